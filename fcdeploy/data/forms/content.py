"""What a file is, told by its first bytes, and what to type where it is nothing that holds features for us."""

import os
import pickletools
import re
import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

HEAD = 4096
LEAST_TEXT = 32  # bytes; fewer printable ones may be numbers
TAR_MAGIC_AT = 257
HDF5 = b"\x89HDF\r\n\x1a\n"
TORCH_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

SAVE = "np.save('features.npy', {})"
HDF5_LINE = ("import h5py, numpy as np", "np.save('features.npy', h5py.File({file})['features'][:])")
ADVICE = {
    "a pickle": (
        (
            "import pickle, numpy as np",
            "np.save('features.npy', np.asarray(pickle.load(open({file}, 'rb'))))",
        ),
        "; pickles can run code, so only one that you trust",
    ),
    "an HDF5 file": (HDF5_LINE, "; with your data set's name for 'features'"),
    "a MATLAB file": (
        ("import scipy.io, numpy as np", "np.save('features.npy', scipy.io.loadmat({file})['features'])"),
        "; with your variable's name for 'features'",
    ),
    "a MATLAB 7.3 file (HDF5)": (
        ("import h5py, numpy as np", "np.save('features.npy', h5py.File({file})['features'][:].T)"),
        "; with your variable's name for 'features'",
    ),
    "a table of text": (
        (
            "import numpy as np",
            "np.save('features.npy', np.loadtxt({file}, dtype='f4', delimiter={delimiter}))",
        ),
        "; skiprows=1 for a line of headings",
    ),
    "JSON": (
        ("import json, numpy as np", "np.save('features.npy', np.array(json.load(open({file})), 'f4'))"),
        "",
    ),
    "JSON, one value per line": (
        (
            "import json, numpy as np",
            "np.save('features.npy', np.array([json.loads(line) for line in open({file})], 'f4'))",
        ),
        "",
    ),
    "a tensor file of PyTorch before 1.6": (
        ("import torch", "torch.save(torch.load({file}, weights_only=True), 'features.pt')"),
        "",
    ),
    "a faiss index": (
        (
            "import faiss, numpy as np",
            "i = faiss.read_index({file})",
            "np.save('features.npy', i.reconstruct_n(0, i.ntotal))",
        ),
        "",
    ),
    "an ORC table": (
        (
            "import pyarrow.orc as o, pyarrow.parquet as p",
            "p.write_table(o.read_table({file}), 'features.parquet')",
        ),
        "",
    ),
    "an Excel workbook": (
        ("import pandas, numpy as np", "np.save('features.npy', pandas.read_excel({file}).to_numpy('f4'))"),
        "",
    ),
}
COMMANDS = {
    "a gzip archive": "gzip -dk {file}",
    "a bzip2 archive": "bzip2 -dk {file}",
    "an xz archive": "xz -dk {file}",
    "a Zstandard archive": "zstd -d {file}",
    "an LZ4 archive": "lz4 -d {file}",
    "a zip archive": "unzip {file}",
    "a tar archive": "tar -xf {file}",
    "a 7z archive": "7z x {file}",
    "a rar archive": "unrar x {file}",
}
SAYINGS = {
    "an image": "features of images come from `fcdeploy embed`, or give --embedder MODEL.onnx and a list of images",
    "an ONNX model": "give it as --engine or --embedder, and the features of the faces here",
    "a Git LFS pointer, not the file itself": "fetch it with `git lfs pull`",
    "a web page": "the download went wrong; fetch the file itself",
    "a TorchScript model": "save tensors only: torch.save(features, 'features.pt')",
    "an SQLite database": "write its rows with numpy.save('features.npy', rows)",
    "a TFRecord file": "write its rows with numpy.save('features.npy', rows)",
    "a RecordIO file of MXNet": "features of images come from `fcdeploy embed`",
    "an Avro file": "write its rows with numpy.save('features.npy', rows)",
    "text": "features are numbers: save them with numpy.save('features.npy', rows)",
}
MAGIC = (
    (b"\x93NUMPY", "npy"),
    (b"PAR1", "parquet"),
    (b"ARROW1\0\0", "arrow"),
    (b"FEA1", "arrow"),
    (TORCH_LEGACY, "a tensor file of PyTorch before 1.6"),
    (HDF5, "an HDF5 file"),
    (b"MATLAB 7.3 MAT-file", "a MATLAB 7.3 file (HDF5)"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"\xfd7zXZ\0", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x04\x22\x4d\x18", "an LZ4 archive"),
    (b"\x1f\x8b\x08", "a gzip archive"),
    (b"BZh91AY&SY", "a bzip2 archive"),
    (b"\xff\xd8\xff\xe0", "an image"),
    (b"\xff\xd8\xff\xe1", "an image"),
    (b"\xff\xd8\xff\xdb", "an image"),
    (b"\x89PNG\r\n\x1a\n", "an image"),
    (b"GIF89a", "an image"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x0a\x23\xd7\xce", "a RecordIO file of MXNet"),
    (b"Obj\x01\x04", "an Avro file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
FAISS = (
    b"IxFI",
    b"IxF2",
    b"IxFl",
    b"IwFl",
    b"IwPQ",
    b"IwSq",
    b"IxMp",
    b"IxM2",
    b"IxPT",
    b"IHNf",
    b"IxSQ",
    b"IxPq",
)
BY_NAME = {
    ".npy": "npy",
    ".npz": "zip",
    ".pt": "zip",
    ".pth": "zip",
    ".safetensors": "safetensors",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".fvecs": "vecs",
    ".bvecs": "vecs",
    ".ivecs": "vecs",
    ".fbin": "bigann",
    ".u8bin": "bigann",
    ".i8bin": "bigann",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".joblib": "a pickle",
    ".h5": "an HDF5 file",
    ".hdf5": "an HDF5 file",
    ".mat": "a MATLAB file",
    ".csv": "a table of text",
    ".tsv": "a table of text",
    ".json": "JSON",
    ".jsonl": "JSON, one value per line",
    ".orc": "an ORC table",
    ".gz": "a gzip archive",
    ".bz2": "a bzip2 archive",
    ".xz": "an xz archive",
    ".zst": "a Zstandard archive",
    ".zip": "a zip archive",
    ".tar": "a tar archive",
    ".7z": "a 7z archive",
    ".rar": "a rar archive",
    ".xlsx": "an Excel workbook",
    ".jpg": "an image",
    ".jpeg": "an image",
    ".png": "an image",
    ".onnx": "an ONNX model",
    ".index": "a faiss index",
    ".faiss": "a faiss index",
    ".tfrecord": "a TFRecord file",
    ".rec": "a RecordIO file of MXNet",
}
READ = {"npy", "npz", "torch", "safetensors", "parquet", "arrow", "vecs", "bigann", "raw"}


@dataclass(frozen=True)
class Content:
    """What a file is: one of READ, or words for what it is instead; ``told``: by its bytes, else by its name."""

    kind: str
    told: bool


def content_of(path: Path, name: str) -> Content:
    """Tell what a file is, by its bytes and, where they say nothing, by its name. ``path`` is where the bytes are."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        head = file.read(HEAD)
        file.seek(max(0, size - 1))
        last = file.read(1)
    if found := _by_bytes(path, head, last, size):
        return Content(found, True)
    suffix = Path(name).suffix.lower()
    kind = BY_NAME.get(suffix, "raw")
    if kind == "zip":
        kind = "npz" if suffix == ".npz" else "torch"
    return Content(kind, False)


def conversion(kind: str, name: str, head: bytes = b"") -> str:
    """Return what to type, or to do, with a file that fcdeploy cannot read."""
    if kind in COMMANDS:
        return f"unpack it: `{COMMANDS[kind].format(file=shlex.quote(name))}`"
    if kind in ADVICE:
        lines, more = ADVICE[kind]
        delimiter = repr(next((mark for mark in ("\t", ",", ";") if mark.encode() in head), None))
        code = "; ".join(line.format(file=repr(name), delimiter=delimiter) for line in lines)
        return f"convert it: python -c {shlex.quote(code) if chr(34) in code else chr(34) + code + chr(34)}{more}"
    return SAYINGS.get(kind, SAYINGS["text"])


def _by_bytes(path: Path, head: bytes, last: bytes, size: int) -> str | None:
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path)
    if head[:4] in FAISS and size > LEAST_TEXT:
        return "a faiss index"
    if head[:3] == b"ORC" and size > LEAST_TEXT and last == b"\x04":
        return "an ORC table"
    if head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "an image"
    if (
        len(head) > 9
        and head[8:10] in (b'{"', b"{}", b"{ ")
        and int.from_bytes(head[:8], "little") <= size - 8
    ):
        return "safetensors"
    if head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < min(size, 1 << 24):
        return "arrow"
    if _is_onnx(head):
        return "an ONNX model"
    if last == b"." and _is_pickle(head):
        return "a pickle"
    if size >= 512 + 8 and any(_bytes_at(path, at, 8) == HDF5 for at in (512, 1024, 2048)):
        return "an HDF5 file"
    return _text_kind(head)


def _bytes_at(path: Path, at: int, count: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(at)
        return file.read(count)


def _zip_kind(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return None  # cut short; the reader that its name asks for says so
    if any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        code = any(name.endswith("constants.pkl") for name in names)
        return "a TorchScript model" if code else "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if "[Content_Types].xml" in names:
        return "an Excel workbook"
    return "a zip archive"


def _is_onnx(head: bytes) -> bool:
    """Whether this begins as exporters write it: ir_version, then the producer's name."""
    if len(head) < 8 or head[0] != 0x08 or not 1 <= head[1] <= 32 or head[2] != 0x12:
        return False
    producer = head[4 : 4 + head[3]]
    return 3 <= len(producer) == head[3] and all(32 < byte < 127 for byte in producer)


def _is_pickle(head: bytes) -> bool:
    """Whether this begins as a pickle of protocol 2 or later, its first operations being ones that exist."""
    if len(head) < 3 or head[0] != 0x80 or not 2 <= head[1] <= 5:
        return False
    read = 0
    try:
        for operation, _, at in pickletools.genops(head):
            read = (at or 0) + 1
            if operation.name == "STOP":
                return True
    except Exception:
        pass  # the head ends in the middle of one
    return read > 16


def _text_kind(head: bytes) -> str | None:
    if len(head) < LEAST_TEXT:
        return None
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return None
        text = head[: error.start].decode()
    if any(character < " " and character not in "\t\n\r\f" for character in text) or "\x7f" in text:
        return None
    start = text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("[", "{"):
        lines = start.splitlines()
        several = (
            len(lines) > 2
            and all(line[:1] == start[:1] for line in lines[:2])
            and lines[0][-1:] in ("]", "}")
        )
        return "JSON, one value per line" if several else "JSON"
    if start[:1] == "<":
        return "a web page" if "html" in start[:200].lower() else "text"
    numbers = re.findall(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?", start)
    return "a table of text" if len(numbers) >= 4 and sum(map(len, numbers)) > len(start) // 3 else "text"
