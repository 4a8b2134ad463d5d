"""Features as people have them: any common form holds the same rows, and anything else is named with what to type.

Reported at yl-1993/learn-to-cluster #9 #60 #64 #83, deepinsight/insightface #337 #2497, facebookresearch/faiss #966,
rapidsai/cudf #19497, Eventual-Inc/Daft #4732, UKPLab/sentence-transformers #366 #3155, pytorch #110285, rogersce/cnpy
#62, int-brain-lab/ibllib #730, nyoki-mtl/keras-facenet #2.
"""

import argparse
import datetime
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fcdeploy.data.features import (
    check_features,
    check_unit_rows,
    features_from_array,
    hash_of,
    needs_width,
    open_features,
    stamp_of,
)
from fcdeploy.data.forms.files import natural
from fcdeploy.data.forms.raw import other_dtype
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.run.folder import RunFolder

N, D = 60, 8
Write = Callable[[Path, np.ndarray], None]


@pytest.fixture(scope="module")
def faces(golden: Path) -> np.ndarray:
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)


@pytest.fixture
def command(fcdeploy: Command) -> Callable[..., tuple[int, str]]:
    """Call ``fcdeploy ARGS`` in this process; its exit code and what it wrote to stderr."""
    return lambda *args: fcdeploy(*args)[::2]


@pytest.fixture
def rows() -> np.ndarray:
    """Values that float16, bfloat16 and int8 all hold exactly."""
    return np.random.default_rng(0).integers(-60, 61, (N, D)).astype(np.float32)


def torch_save(value: Any, path: Path, **options: Any) -> None:
    pytest.importorskip("torch").save(value, path, **options)


def tensor(array: np.ndarray) -> Any:
    return pytest.importorskip("torch").from_numpy(np.array(array))


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    header, at = {}, 0
    for key, (dtype, shape, data) in tensors.items():
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps({"__metadata__": {"by": "hand"}, **header}).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors.values())


def bfloat16_bytes(array: np.ndarray) -> bytes:
    return (array.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def fvecs(path: Path, array: np.ndarray, dtype: str = "<f4") -> None:
    width = struct.pack("<i", array.shape[1])
    path.write_bytes(b"".join(width + row.astype(dtype).tobytes() for row in array))


def save_strided(path: Path, array: np.ndarray) -> None:
    wide = np.zeros((2 * N, D + 3), np.float32)
    wide[1::2, 2:-1] = array
    torch_save(tensor(wide)[1::2, 2:-1], path)


def save_reloaded(path: Path, array: np.ndarray, name: str, **options: Any) -> None:
    """Save under another name than that of the form."""
    np.save(path.with_name("other.npy"), array, **options)
    os.replace(path.with_name("other.npy"), path.with_name(name))


def arrow_table(array: np.ndarray, fixed: bool = True) -> Any:
    pa = pytest.importorskip("pyarrow")
    flat = pa.array(array.ravel())
    if fixed:
        lists = pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    else:
        lists = pa.array(array.tolist(), pa.list_(pa.float32()))
    names = [f"img/{row:03}.jpg" for row in range(len(array))]
    return pa.table({"path": names, "score": np.linspace(0, 1, len(array)), "embedding": lists})


def write_parquet(path: Path, array: np.ndarray, fixed: bool = True) -> None:
    table = arrow_table(array, fixed)
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=17)


def write_columns(path: Path, array: np.ndarray) -> None:
    pa = pytest.importorskip("pyarrow")
    columns = {
        f"f{at}": array[:, at] for at in (*range(1, array.shape[1]), 0)
    }  # in another order than they count
    pytest.importorskip("pyarrow.parquet").write_table(
        pa.table({"id": np.arange(len(array)), **columns}), path
    )


def write_arrow(path: Path, array: np.ndarray, stream: bool = False) -> None:
    pa = pytest.importorskip("pyarrow")
    table = arrow_table(array)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=13)


def write_feather(path: Path, array: np.ndarray) -> None:
    pytest.importorskip("pyarrow.feather").write_feather(arrow_table(array), str(path))


FORMS: dict[str, Write] = {
    "a.npy": lambda path, x: np.save(path, x),
    "A.NPY": lambda path, x: save_reloaded(path, x, "A.NPY"),
    "bytes.npy": lambda path, x: np.save(path, x.astype(np.int8)),
    "halves.npy": lambda path, x: np.save(path, x.astype(np.float16)),
    "doubles.npy": lambda path, x: np.save(path, x.astype(np.float64)),
    "big-endian.npy": lambda path, x: np.save(path, x.astype(">f4")),
    "fortran.npy": lambda path, x: np.save(path, np.asfortranarray(x)),
    "short.npy": lambda path, x: np.save(path, x.astype(np.int16)),
    "middle.npy": lambda path, x: np.save(path, x[:, None, :]),
    "front.npy": lambda path, x: np.save(path, x[None]),
    "behind.npy": lambda path, x: np.save(path, x[:, :, None, None]),
    "an-array.bin": lambda path, x: save_reloaded(path, x, "an-array.bin"),
    "raw.bin": lambda path, x: path.write_bytes(x.tobytes()) and None,
    "raw-of-any-name": lambda path, x: path.write_bytes(x.tobytes()) and None,
    "one.npz": lambda path, x: np.savez(path, x),
    "packed.npz": lambda path, x: np.savez_compressed(path, features=x),
    "beside-labels.npz": lambda path, x: np.savez(path, labels=np.arange(N), features=x.astype(">f8")),
    "fortran.npz": lambda path, x: np.savez_compressed(path, np.asfortranarray(x)),
    "archive.npy": lambda path, x: (
        np.savez(path.with_suffix(".npz"), x),
        path.with_suffix(".npz").rename(path),
    )[0],
    "t.pt": lambda path, x: torch_save(tensor(x), path),
    "t.pth": lambda path, x: torch_save({"features": tensor(x), "labels": tensor(np.arange(N))}, path),
    "half.pt": lambda path, x: torch_save(tensor(x).half(), path),
    "brain.pt": lambda path, x: torch_save(tensor(x).bfloat16(), path),
    "bytes.pt": lambda path, x: torch_save(tensor(x).char(), path),
    "turned.pt": lambda path, x: torch_save(tensor(x.T).T, path),
    "view.pt": save_strided,
    "grad.pt": lambda path, x: torch_save(tensor(x).requires_grad_(), path),
    "parameter.pt": lambda path, x: torch_save(pytest.importorskip("torch").nn.Parameter(tensor(x)), path),
    "list.pt": lambda path, x: torch_save(list(tensor(x)), path),
    "list-of-one-row.pt": lambda path, x: torch_save([row[None] for row in tensor(x)], path),
    "protocol.pt": lambda path, x: torch_save(tensor(x), path, pickle_protocol=4),
    "s.safetensors": lambda path, x: (
        path.write_bytes(safetensors_bytes({"x": ("F32", x.shape, x.tobytes())})) and None
    ),
    "brain.safetensors": lambda path, x: (
        path.write_bytes(
            safetensors_bytes({"i": ("I64", (1,), bytes(8)), "x": ("BF16", x.shape, bfloat16_bytes(x))})
        )
        and None
    ),
    "v.fvecs": fvecs,
    "v.bin": fvecs,
    "v.ivecs": lambda path, x: fvecs(path, x, "<i4"),
    "v.fbin": lambda path, x: path.write_bytes(struct.pack("<II", *x.shape) + x.tobytes()) and None,
    "v.i8bin": lambda path, x: (
        path.write_bytes(struct.pack("<II", *x.shape) + x.astype("i1").tobytes()) and None
    ),
    "fixed.parquet": write_parquet,
    "lists.parquet": lambda path, x: write_parquet(path, x, fixed=False),
    "columns.parquet": write_columns,
    "file.arrow": write_arrow,
    "stream.arrow": lambda path, x: write_arrow(path, x, stream=True),
    "table.feather": write_feather,
    "table.without-a-suffix": write_parquet,
}


@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_in_every_form(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name, rows)
    opened = open_features(tmp_path / name, D, normalize=False)
    assert (opened.n, opened.dim) == (N, D)
    assert np.array_equal(opened.rows(0, N), rows)
    assert np.array_equal(opened.rows(13, 29), rows[13:29])
    assert np.array_equal(opened.take(np.array([5, 0, 59])), rows[[5, 0, 59]])
    assert np.array_equal(opened.select(np.array([2, 40])).rows(0, 2), rows[[2, 40]])
    assert opened.rows(0, 3).flags.c_contiguous
    assert f"{N} rows of {D} " in opened.read_as
    assert len(stamp_of(opened)) == 5
    assert hash_of(opened) == hash_of(open_features(tmp_path / name, D))
    raw = name.startswith("raw")
    assert needs_width(tmp_path / name) == raw == bool(opened.note)
    if not raw:
        assert open_features(tmp_path / name).dim == D
        with pytest.raises(InputError, match=rf"{name}.*expected \(n, {D + 1}\)"):
            open_features(tmp_path / name, D + 1)


@pytest.mark.parametrize(
    "name", ["a.npy", "packed.npz", "t.pt", "s.safetensors", "v.fvecs", "fixed.parquet", "file.arrow"]
)
def test_a_file_cut_short_anywhere_is_one_sentence(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name, rows)
    whole = (tmp_path / name).read_bytes()
    for kept in (0, 1, 7, 8, 40, len(whole) // 3 + 5, len(whole) // 2 + 5, len(whole) - 70, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:kept])
        with pytest.raises(InputError, match=name):
            check_features(open_features(tmp_path / name, D))


@pytest.mark.parametrize(
    "name", ["packed.npz", "one.npz", "t.pt", "list.pt", "s.safetensors", "v.fvecs", "fixed.parquet"]
)
def test_a_damaged_file_is_features_or_one_sentence(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name, rows)
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3).tolist():
            damaged[at] = int(rng.integers(256))
        (tmp_path / name).write_bytes(damaged)
        said = refusal_of(lambda: check_features(open_features(tmp_path / name, D)))
        assert said is None or name in said


def refusal_of(read: Callable[[], Any]) -> str | None:
    try:
        read()
    except InputError as error:
        return str(error)
    return None


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("wrapped", [lambda it: it, lambda it: {"x": it}, lambda it: [it]])
def test_a_tensor_file_runs_nothing(wrapped: Any, tmp_path: Path) -> None:
    torch_save(wrapped(Payload(tmp_path / "ran")), tmp_path / "t.pt")
    with pytest.raises(InputError, match=r"t\.pt.*only tensors are loaded.*torch\.save"):
        open_features(tmp_path / "t.pt", D)
    assert not (tmp_path / "ran").exists()


def test_tensors_are_read_without_pytorch(rows: np.ndarray, tmp_path: Path) -> None:
    torch_save(tensor(rows), tmp_path / "t.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fcdeploy.data.features import open_features\n"
        "print(open_features(sys.argv[1]).n)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.pt"], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == (f"{N}\n", 0), done.stderr


def test_features_beside_settings_and_counters_are_read_and_the_settings_never_made(
    rows: np.ndarray, tmp_path: Path
) -> None:
    """What a training keeps beside its weights is passed over beside features, too."""
    beside = {"args": argparse.Namespace(epochs=3), "when": datetime.date(2024, 5, 17), "epoch": 3}
    torch_save({"features": tensor(rows), **beside}, tmp_path / "t.pt")
    assert np.array_equal(open_features(tmp_path / "t.pt", D, normalize=False).rows(0, N), rows)
    torch_save(beside, tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"none\.pt: is a file of tensors without an \(n, d\) array"):
        open_features(tmp_path / "none.pt", D)


def test_tensors_that_are_none_of_numbers_are_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for name, value in {"s": torch.eye(D).to_sparse(), "c": torch.ones(N, D, dtype=torch.complex64)}.items():
        torch_save(value, tmp_path / f"{name}.pt")
        with pytest.raises(
            InputError, match=rf"{name}\.pt: the tensor is sparse, nested, quantized or complex"
        ):
            open_features(tmp_path / f"{name}.pt", D)


def test_a_list_of_more_rows_than_files_may_be_open_is_read(tmp_path: Path) -> None:
    rows = np.arange(4.0 * 300, dtype=np.float32).reshape(300, 4)
    torch_save(list(tensor(rows)), tmp_path / "t.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, soft), hard))
    try:
        opened = open_features(tmp_path / "t.pt", 4, normalize=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert np.array_equal(opened.rows(0, 300), rows)


def test_of_several_arrays_the_column_chooses(rows: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=rows, b=2 * rows)
    torch_save({"a": tensor(rows), "b": tensor(2 * rows)}, tmp_path / "two.pt")
    data = {key: ("F32", rows.shape, (times * rows).tobytes()) for key, times in (("a", 1), ("b", 2))}
    (tmp_path / "two.safetensors").write_bytes(safetensors_bytes(data))
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lists = {
        key: pa.array((times * rows).tolist(), pa.list_(pa.float32())) for key, times in (("a", 1), ("b", 2))
    }
    parquet.write_table(pa.table(lists), tmp_path / "two.parquet")
    for name in ("two.npz", "two.pt", "two.safetensors", "two.parquet"):
        with pytest.raises(InputError, match=rf"{name}.*a.*b.*column"):
            open_features(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}.*c.*column.*a.*b"):
            open_features(tmp_path / name, column="c")
        assert np.array_equal(
            open_features(tmp_path / name, column="b", normalize=False).rows(0, N), 2 * rows
        )


def test_a_pattern_means_columns_of_numbers_in_the_order_they_count(rows: np.ndarray, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    wide = np.concatenate([rows, rows + 1], axis=1)
    columns = {f"e{at}": wide[:, at].astype(np.int8) for at in range(16)}
    parquet.write_table(pa.table({"quality": np.ones(N), **columns}), tmp_path / "t.parquet")
    assert np.array_equal(
        open_features(tmp_path / "t.parquet", column="e*", normalize=False).rows(0, N), wide
    )


def test_nulls_of_a_table_are_bad_rows(rows: np.ndarray, tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for kind in (pa.list_(pa.float32()), pa.list_(pa.int8(), D)):
        values = rows.astype(int).tolist()
        values[3], values[7] = None, [1, None, *range(D - 2)]
        try:
            parquet.write_table(pa.table({"e": pa.array(values, kind)}), tmp_path / "t.parquet")
        except pa.ArrowNotImplementedError:  # older versions write no nulls of fixed length
            continue
        opened = open_features(tmp_path / "t.parquet", D)
        with pytest.raises(InputError, match=rf"2 of {N} rows.*\(rows 3, 7"):
            check_features(opened)
        assert np.array_equal(opened.raw(4, 7), rows[4:7])
    parquet.write_table(pa.table({"e": pa.array([[1.0, 2.0], [1.0]])}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet.*1 value in row 1"):
        open_features(tmp_path / "t.parquet", 2)


def test_shards_follow_each_other_in_the_order_they_count(rows: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for at in range(12):
        np.save(tmp_path / f"parts/part-{at}.npy", rows[5 * at : 5 * at + 5])
    (tmp_path / "parts/_SUCCESS").touch()
    (tmp_path / "parts/README.md").write_text("mine")
    (tmp_path / "list.txt").write_text("".join(f"parts/part-{at}.npy\n" for at in range(12)))
    several = [tmp_path / f"parts/part-{at}.npy" for at in range(12)]
    np.save(tmp_path / "whole.npy", rows)
    whole = open_features(tmp_path / "whole.npy", normalize=False)
    for given_ in (tmp_path / "parts", tmp_path / "list.txt", str(tmp_path / "parts/*.npy"), several):
        opened = open_features(given_, D, normalize=False)
        assert opened.files == tuple(several)
        assert np.array_equal(opened.rows(0, N), rows)
        assert np.array_equal(opened.rows(3, 22), rows[3:22])
        assert np.array_equal(opened.take(np.array([59, 4, 5, 30])), rows[[59, 4, 5, 30]])
        assert np.array_equal(opened.select(np.array([4, 5, 30])).rows(1, 3), rows[[5, 30]])
        assert hash_of(opened) == hash_of(whole)
        assert len(stamp_of(opened)) == 60
    before = stamp_of(opened)
    np.save(several[7], rows[:5] + 1)
    assert stamp_of(opened) != before


def test_the_shard_that_differs_is_named(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a1.npy", rows)
    np.save(tmp_path / "a2.npy", rows[:, :5])
    for dim in (None, D):
        with pytest.raises(InputError, match=rf"a2\.npy: expected \(n, {D}\).*\({N}, 5\)"):
            open_features(tmp_path, dim)
    rows.tofile(tmp_path / "b.bin")
    with pytest.raises(InputError, match=r"several forms \(1 \.bin, 2 \.npy\)"):
        open_features(tmp_path, D)
    (tmp_path / "list.txt").write_text("a1.npy\n\ngone.npy\n")
    with pytest.raises(InputError, match=r"list\.txt: line 3 names .*gone\.npy"):
        open_features(tmp_path / "list.txt", D)


def test_shards_of_several_dtypes_keep_every_value(rows: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", rows.astype(np.int8))
    np.save(tmp_path / "2.npy", rows + 0.5)
    opened = open_features(tmp_path, normalize=False)
    assert np.array_equal(opened.rows(N - 2, N + 2), np.concatenate([rows[-2:], rows[:2] + 0.5]))


@given(st.lists(st.text("ab", min_size=1, max_size=2), min_size=2, max_size=3), st.lists(st.integers(0, 300)))
def test_names_are_sorted_as_people_count(words: list[str], numbers: list[int]) -> None:
    names = [f"{words[0]}{number}{words[1]}.npy" for number in numbers]
    assert sorted(names, key=natural) == [f"{words[0]}{number}{words[1]}.npy" for number in sorted(numbers)]


@pytest.mark.parametrize("name", ["a.npy", "t.pt", "packed.npz", "fixed.parquet", "raw.bin"])
def test_a_pipe_holds_the_same_rows(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name, rows)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / name).read_bytes()))
    writer.start()
    opened = open_features(tmp_path / "pipe", D, normalize=False, scratch=tmp_path)
    writer.join()
    assert np.array_equal(opened.rows(0, N), rows)
    assert opened.files == stamp_of(opened) == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, "pipe"})


def test_rows_larger_than_memory_is_meant_for_lie_in_a_nameless_file(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcdeploy.data.forms.spool.IN_MEMORY", 100)
    write_parquet(tmp_path / "t.parquet", rows)
    (tmp_path / "scratch").mkdir()
    opened = open_features(tmp_path / "t.parquet", D, normalize=False, scratch=tmp_path / "scratch")
    assert isinstance(opened.array, np.memmap)
    assert np.array_equal(opened.rows(0, N), rows)
    assert not list((tmp_path / "scratch").iterdir())


# What is no form of ours is named, with what to type


def write_tar(path: Path, array: np.ndarray) -> None:
    np.save(path.with_name("inside.npy"), array)
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_name("inside.npy"))


def write_zip(path: Path, array: np.ndarray) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.bin", array.tobytes())
        archive.writestr("README", "mine")


def written(data: bytes) -> Write:
    return lambda path, array: path.write_bytes(data) and None


OTHERS: dict[str, tuple[Write, str]] = {
    "x.pkl": (lambda path, x: path.write_bytes(pickle.dumps(x)) and None, "pickle.*np.save"),
    "a-pickle.bin": (lambda path, x: path.write_bytes(pickle.dumps(x, protocol=2)) and None, "pickle"),
    "protocol-0.pkl": (lambda path, x: path.write_bytes(pickle.dumps([1.5, 2.5], 0)) and None, "pickle"),
    "x.h5": (written(b"\x89HDF\r\n\x1a\n" + bytes(5000)), "HDF5.*h5py"),
    "x.bin": (written(b"\x89HDF\r\n\x1a\n" + bytes(5000)), "HDF5.*h5py"),
    "x.mat": (written(b"MATLAB 5.0 MAT-file, Platform: GLNXA64".ljust(500)), "MATLAB.*loadmat"),
    "x.csv": (lambda path, x: np.savetxt(path, x, delimiter=","), r"table of text.*delimiter=','"),
    "x.tsv": (lambda path, x: np.savetxt(path, x, delimiter="\t"), "table of text.*loadtxt"),
    "a-table.bin": (lambda path, x: np.savetxt(path, x), "table of text.*loadtxt"),
    "x.json": (lambda path, x: path.write_text(json.dumps(x.tolist())) and None, "JSON.*json"),
    "x.jsonl": (
        lambda path, x: path.write_text("\n".join(map(json.dumps, x.tolist()))) and None,
        "one value per line",
    ),
    "x.bin.gz": (written(b"\x1f\x8b\x08" + bytes(500)), "gzip.*gzip -dk"),
    "x.zst": (written(b"\x28\xb5\x2f\xfd" + bytes(500)), "Zstandard.*zstd -d"),
    "x.7z": (written(b"7z\xbc\xaf\x27\x1c" + bytes(500)), "7z x"),
    "x.tar": (write_tar, "tar -xf"),
    "x.zip": (write_zip, "unzip"),
    "x.jpg": (written(b"\xff\xd8\xff\xe0" + bytes(500)), "image.*embed"),
    "x.onnx": (written(b"\x08\x08\x12\x07pytorch\x1a" + bytes(500)), "ONNX"),
    "lfs.npy": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:01\nsize 2264\n"),
        "git lfs pull",
    ),
    "page.npy": (written(b"<!DOCTYPE html><html><body>404 not found here</body></html>"), "web page"),
    "x.index": (written(b"IxFI" + struct.pack("<i", 8) + bytes(500)), "faiss index.*reconstruct_n"),
    "old.pt": (
        lambda path, x: torch_save(tensor(x), path, _use_new_zipfile_serialization=False),
        "before 1.6.*torch.save",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_form_of_features_is_named(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    write, says = OTHERS[name]
    write(tmp_path / name, rows)
    with pytest.raises(InputError, match=f"(?s){name}.*{says}"):
        open_features(tmp_path / name, D)


def run_line(error: InputError, folder: Path) -> None:
    """Run the command that a refusal tells to type."""
    text = str(error)
    command = text[text.index("python -c ") :]
    command = command[: command.index('"', command.index('"') + 1) + 1]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, cwd=folder, check=True)


@pytest.mark.parametrize("name", ["x.pkl", "x.csv", "x.tsv", "x.json", "x.jsonl", "old.pt"])
def test_the_line_that_converts_does(name: str, rows: np.ndarray, tmp_path: Path) -> None:
    OTHERS[name][0](tmp_path / name, rows)
    with pytest.raises(InputError) as refusal:
        open_features(tmp_path / name, D)
    run_line(refusal.value, tmp_path)
    made = tmp_path / ("features.pt" if name == "old.pt" else "features.npy")
    assert np.array_equal(open_features(made, D, normalize=False).rows(0, N), rows)


# Raw rows: what contradicts that they are float32


def faces_of(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) + 0.3 * rng.standard_normal(d)
    if kind == "unit":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif kind == "relu":
        x = np.maximum(x, 0)
    elif kind == "sparse":
        x = np.maximum(x - 1, 0)
    elif kind == "quantised":
        x = np.round(x * 30) / 128
    elif kind == "integers":
        x = np.round(x * 30)
    elif kind == "from halves":
        x = x.astype(np.float16)
    elif kind == "heavy":
        x = np.sign(x) * np.exp(3 * rng.standard_normal((n, d)))
    elif kind == "probabilities":
        x = np.exp(4 * x) / np.exp(4 * x).sum(axis=1, keepdims=True)
    elif kind == "signs":
        x = np.sign(x)
    elif kind == "bits":
        x = (x > 0) * 1.0
    elif kind == "equal":
        x = np.repeat(x[:1], n, axis=0)
    elif kind == "large":
        x = x * 1e6
    elif kind == "small":
        x = x * 1e-9
    return np.ascontiguousarray(x, "<f4")


KINDS = (
    *(
        "plain",
        "unit",
        "relu",
        "sparse",
        "quantised",
        "integers",
        "from halves",
        "heavy",
        "probabilities",
        "signs",
    ),
    *("bits", "equal", "large", "small"),
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 300), st.sampled_from([8, 64, 100, 128, 256]), st.integers(0, 9999)
)
def test_no_float32_rows_are_taken_for_something_else(kind: str, n: int, d: int, seed: int) -> None:
    data = faces_of(kind, n, d, seed).ravel().view(np.uint8)
    assert other_dtype(data[: len(data) // 8 * 8]) is None


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float32, (64, 8), elements=st.floats(2**-12, 2.0**12, width=32)),
    arrays(np.float32, (64, 8), elements=st.sampled_from([-1, 0, 1])),
)
def test_no_ordinary_values_at_all_are_taken_for_something_else(sizes: np.ndarray, signs: np.ndarray) -> None:
    assert other_dtype((sizes * signs).ravel().view(np.uint8)) is None


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["plain", "unit", "relu", "quantised", "from halves"]),
    st.sampled_from(["<f2", "<f8", ">f4", ">f8"]),
    st.integers(4, 300),
    st.sampled_from([64, 128, 512]),
    st.integers(0, 9999),
)
def test_raw_rows_of_another_dtype_are_told_by_their_values(
    kind: str, dtype: str, n: int, d: int, seed: int
) -> None:
    found = other_dtype(np.frombuffer(faces_of(kind, n, d, seed).astype(dtype).tobytes(), np.uint8))
    assert found is not None
    assert found[1] == dtype


def test_raw_rows_of_another_dtype_are_refused_by_name(tmp_path: Path) -> None:
    x = faces_of("plain", 200, 128, 0)
    for dtype, says in (("<f2", "float16"), ("<f8", "float64"), (">f4", "big-endian float32")):
        x.astype(dtype).tofile(tmp_path / "x.bin")
        with pytest.raises(InputError, match=rf"x\.bin: .*{says}.*np\.save") as refusal:
            open_features(tmp_path / "x.bin", 128)
        run_line(refusal.value, tmp_path)
        kept = open_features(tmp_path / "features.npy", 128, normalize=False).rows(0, 200)
        assert np.array_equal(kept, x.astype(dtype).astype(np.float32))
    (x * 20).clip(-127, 127).astype(np.int8).tofile(tmp_path / "x.bin")
    with pytest.raises(InputError, match="int8"):
        open_features(tmp_path / "x.bin", 128)
    (tmp_path / "x.bin").write_bytes(bfloat16_bytes(x))
    with pytest.raises(InputError, match="bfloat16"):
        open_features(tmp_path / "x.bin", 128)
    (tmp_path / "x.bin").write_bytes(np.random.default_rng(0).bytes(51200))
    with pytest.raises(InputError, match="no numbers"):
        open_features(tmp_path / "x.bin", 128)


def test_unit_rows_of_another_width_are_refused_unless_the_user_is_sure(tmp_path: Path) -> None:
    faces_of("unit", 100, 512, 0).tofile(tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"x\.bin: rows of 512 .*unit length.*--dim 128"):
        open_features(tmp_path / "x.bin", 128)
    assert "512 wide" in open_features(tmp_path / "x.bin", 128, sure=True).note
    assert open_features(tmp_path / "x.bin", 512).note.endswith("read as 100 rows of 512 float32 (raw).")
    # Two unit vectors beside each other are how features of two networks are often kept.
    two = np.concatenate([faces_of("unit", 100, 256, seed) for seed in (1, 2)], axis=1)
    two.tofile(tmp_path / "x.bin")
    assert open_features(tmp_path / "x.bin", 512).n == 100


def test_the_command_says_how_raw_rows_were_read(
    command: Any, pse_bundle: Any, faces: np.ndarray, tmp_path: Path
) -> None:
    faces[:200].tofile(tmp_path / "x.bin")
    args = ("cluster", tmp_path / "x.bin", "--engine", pse_bundle.path, "-o", tmp_path / "o.meta", "--json")
    assert f"Note: {tmp_path}/x.bin: read as 200 rows of 32 float32 (raw).\n" in command(*args)[1]
    assert "read as" not in command(*args[:-1], "--quiet")[1]
    np.save(tmp_path / "x.npy", faces[:200])
    assert "read as" not in command("cluster", tmp_path / "x.npy", *args[2:])[1]


def test_every_command_takes_every_form(
    command: Any, pse_bundle: Any, faces: np.ndarray, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", e=faces[:100], other=faces[:100] + 1)
    (tmp_path / "shards").mkdir()
    for at in range(2):
        np.save(tmp_path / f"shards/{at}.npy", faces[100 * at : 100 * at + 100])
    engine = "--engine", pse_bundle.path
    for given_ in ((tmp_path / "x.npz", "--column", "e"), (tmp_path / "shards",)):
        assert command("estimate", *given_, *engine)[0] == 0
        assert command("cluster", *given_, *engine, "-o", tmp_path / "o.meta", "--quiet") == (0, "")
    np.save(tmp_path / "whole.npy", faces[:200])
    command("cluster", tmp_path / "whole.npy", *engine, "-o", tmp_path / "w.meta", "--quiet")
    assert (tmp_path / "o.meta").read_bytes() == (tmp_path / "w.meta").read_bytes()
    code, said = command("cluster", tmp_path / "shards", *engine, "-o", tmp_path / "shards/0.npy")
    assert (code, "is also an input" in said) == (2, True)
    code, said = command("cluster", tmp_path / "x.npz", *engine)
    assert (code, "--column" in said) == (2, True)


@pytest.mark.parametrize("name", ["o.csv", "o.tsv", "o.parquet", "o.feather"])
def test_ids_travel_into_the_labels(
    name: str, command: Any, pse_bundle: Any, faces: np.ndarray, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "x.parquet", faces[:100])
    args = ("cluster", tmp_path / "x.parquet", "--engine", pse_bundle.path, "--quiet")
    assert command(*args, "--id-column", "path", "-o", tmp_path / name) == (0, "")
    assert command(*args, "-o", tmp_path / "o.meta") == (0, "")
    labels = [int(line) for line in (tmp_path / "o.meta").read_text().split()]
    if name in ("o.csv", "o.tsv"):
        mark = "," if name == "o.csv" else "\t"
        head, *lines = (line.split(mark) for line in (tmp_path / name).read_text().splitlines())
    else:
        pq, feather = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow.feather")
        table = (pq if name == "o.parquet" else feather).read_table(tmp_path / name)
        head, lines = table.column_names, list(zip(*(column.to_pylist() for column in table), strict=True))
    assert head == ["id", "label"]
    assert [(id_, int(label)) for id_, label in lines] == [
        (f"img/{row:03}.jpg", label) for row, label in enumerate(labels)
    ]
    code, said = command("evaluate", tmp_path / name, tmp_path / "o.meta", "--json")
    assert code == 0, said


def test_ids_are_refused_where_they_cannot_be_kept_or_found(
    command: Any, pse_bundle: Any, faces: np.ndarray, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "x.parquet", faces[:100])
    np.savez(tmp_path / "x.npz", x=faces[:100], names=np.array([f"n{row}" for row in range(100)]))
    np.save(tmp_path / "x.npy", faces[:100])
    engine = ("--engine", pse_bundle.path, "--quiet")
    code, said = command(
        "cluster", tmp_path / "x.parquet", *engine, "--id-column", "path", "-o", tmp_path / "o.meta"
    )
    assert (code, all(fact in said for fact in ("o.meta", "--id-column", ".parquet"))) == (2, True)
    to_table = (*engine, "-o", tmp_path / "o.csv", "--id-column")
    for file, column, says in (
        ("x.parquet", "nowhere", "has no column nowhere (--id-column); it has path (string)"),
        ("x.parquet", "score", "ids are text or integers"),
        ("x.npy", "path", "leave out --id-column path"),
        ("x.npz", "x", "should be 100 integers or texts"),
    ):
        code, said = command("cluster", tmp_path / file, *to_table, column)
        assert (code, says in said) == (2, True), said
    assert not (tmp_path / "o.csv").exists()
    assert open_features(tmp_path / "x.npz", 32, id_column="names").ids[7] == "n7"


# From Python


class WithArray:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


class WithDlpack:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class Column:
    """As a Series of pandas: rows in an object array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def to_numpy(self) -> np.ndarray:
        return column_of(self.array)


def column_of(array: np.ndarray) -> np.ndarray:
    column = np.empty(len(array), object)
    column[:] = list(array)
    return column


TAKEN: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda x: x,
    "lists": lambda x: x.tolist(),
    "rows": list,
    "rows of one row": lambda x: [row[None] for row in x],
    "tuples": lambda x: tuple(map(tuple, x.tolist())),
    "generator": lambda x: (row for row in x),
    "column of rows": column_of,
    "column of lists": lambda x: column_of(np.array(x)).tolist(),
    "series": Column,
    "int8": lambda x: x.astype(np.int8),
    "int64": lambda x: x.astype(np.int64),
    "big-endian": lambda x: x.astype(">f8"),
    "middle axis": lambda x: x[:, None],
    "masked nowhere": np.ma.masked_array,
    "numbers as objects": lambda x: x.astype(object),
    "__array__": WithArray,
    "rows with __array__": lambda x: [WithArray(row) for row in x],
    "dlpack": WithDlpack,
    "memory view": lambda x: memoryview(x),
    "tensor": tensor,
    "bfloat16 tensor": lambda x: tensor(x).bfloat16(),
    "half tensor": lambda x: tensor(x).half(),
    "tensor with grad": lambda x: tensor(x).requires_grad_(),
    "integer tensor": lambda x: tensor(x).char(),
    "list of tensors": lambda x: [row.requires_grad_() for row in tensor(x)],
    "list of bfloat16 tensors": lambda x: list(tensor(x).bfloat16()),
    "table of arrow": arrow_table,
    "column of arrow": lambda x: arrow_table(x)["embedding"],
    "sparse": lambda x: pytest.importorskip("scipy.sparse").csr_matrix(x),
}


@pytest.mark.parametrize("name", TAKEN)
def test_python_gives_the_same_rows_in_every_way(name: str, rows: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = features_from_array(TAKEN[name](rows), D, normalize=False)
    assert np.array_equal(opened.rows(0, N), rows)


def masked(x: np.ndarray) -> Any:
    made = np.ma.masked_array(x, np.zeros(x.shape, bool))
    made[3, 5] = np.ma.masked
    return made


REFUSED: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "ragged": (lambda x: [x[0], x[1], x[2][:5]], "row 2 .*5 values.*8"),
    "ragged lists": (lambda x: [[1.0, 2.0], [1.0]], "row 1 .*1 value.*2"),
    "ragged column": (lambda x: column_of(np.arange(2)).tolist() and [x[0], None], "row 1 .*missing"),
    "ragged tensors": (lambda x: [tensor(x[0]), tensor(x[1, :3])], "row 1 .*3 values.*8"),
    "masked": (masked, r"1 of 60 rows.*masked.*row 3"),
    "masked rows": (lambda x: list(masked(x)), r"1 of 60 rows.*masked.*row 3"),
    "complex": (lambda x: x.astype(complex), "complex128.*x.real"),
    "text": (lambda x: x.astype(str), "real numbers"),
    "dates": (lambda x: x.astype("M8[s]"), "real numbers"),
    "one row": (lambda x: x[0], r"\(8,\)"),
    "one row of numbers": (lambda x: x[0].tolist(), r"\(8,\)"),
    "cube": (lambda x: np.ones((5, 2, 8)), r"\(5, 2, 8\)"),
    "dictionary": (lambda x: {"a": x}, "dict"),
    "nothing": (lambda x: None, "NoneType"),
    "number": (lambda x: 3.5, "float"),
    "no rows": (lambda x: [], "0|no rows"),
    "words": (lambda x: [["a", "b"], ["c", "d"]], "real numbers"),
    "another width": (lambda x: x[:, :5], r"expected \(n, 8\).*\(60, 5\)"),
    "turned": (lambda x: x.T, "x.T"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_python_refuses_what_is_no_features_in_one_sentence(name: str, rows: np.ndarray) -> None:
    given_, says = REFUSED[name]
    with pytest.raises(InputError, match=f"(?s)features: .*{says}|features: row.*{says}"):
        features_from_array(given_(rows), D)


def test_a_run_folder_goes_on_from_any_form(
    pse_bundle: Any, faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values of the same dtype are the same features, wherever they lie."""
    from fcdeploy.run.options import Options
    from fcdeploy.runtime.pipeline import run_clustering

    np.save(tmp_path / "x.npy", faces[:100])
    np.savez_compressed(tmp_path / "x.npz", faces[:100])
    ran: list[str] = []
    begin = RunFolder.begin
    monkeypatch.setattr(
        RunFolder,
        "begin",
        lambda self, name, *args, **more: ran.append(name) or begin(self, name, *args, **more),
    )
    for name in ("x.npy", "x.npz"):
        ran.clear()
        run_clustering(
            open_features(tmp_path / name, 32), pse_bundle, Options(threads=1), run_dir=tmp_path / "run"
        )
    assert "knn" not in ran


def test_rows_that_are_no_unit_vectors_are_refused_where_they_have_to_be(rows: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"norms from .* to .*PSE-GCN.*normalize = true"):
        check_unit_rows(features_from_array(rows, normalize=False), "PSE-GCN")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    check_unit_rows(features_from_array(unit.astype(np.float16), normalize=False), "PSE-GCN")


def test_systems_that_need_unit_vectors_say_so(
    pse_bundle: Any, cut_bundle: Any, faces: np.ndarray, tmp_path: Path
) -> None:
    from fcdeploy.run.options import Options
    from fcdeploy.runtime.pipeline import run_clustering

    bundle = cut_bundle(
        pse_bundle, tuple(pse_bundle.weights), tmp_path / "b.onnx", features={"normalize": False}
    )
    with pytest.raises(InputError, match=r"features: rows have norms from"):
        run_clustering(features_from_array(faces[:100]), bundle, Options(threads=1))
    unit = faces[:100] / np.linalg.norm(faces[:100], axis=1, keepdims=True)
    assert len(run_clustering(features_from_array(unit), bundle, Options(threads=1)).labels) == 100


def test_errors_are_the_users(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.npz", tmp_path / "*.npy", tmp_path, "/dev/null"):
        with pytest.raises(FcdeployError) as refusal:
            open_features(path, D)
        assert refusal.value.exit_code == 2
