"""Which files features stand in: one, or the shards of a folder, a list or a pattern, in natural order."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fcdeploy.data.forms.content import BY_NAME
from fcdeploy.errors import InputError

READABLE = ("npy", "zip", "safetensors", "parquet", "arrow", "vecs", "bigann")
SUFFIXES = frozenset(
    {suffix for suffix, kind in BY_NAME.items() if kind in READABLE and suffix != ".zip"}
    | {".bin", ".raw", ".f32"}
)
LIST_SUFFIXES = (".txt", ".lst", ".list")
FORMS = "give features as .npy, .bin (raw float32), .npz, .pt, .safetensors, .fvecs, Parquet or Arrow"
LARGEST_LIST = 64 << 20


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts names as people count: part-2 before part-10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)


def feature_files(path: Path) -> list[Path]:
    """Return the files that ``path`` means: itself, or the shards of a folder, of a list, or of a pattern.

    Raises InputError when there are none, or none that may be read.
    """
    if str(path) == "-" and not path.exists():
        path = Path("/dev/stdin")
    if not path.exists():
        shards = _sorted(Path(found) for found in glob.glob(str(path))) if glob.has_magic(str(path)) else []
        if not shards:
            raise InputError(f"{path}: no such file; give a .bin (raw float32) or .npy features file.")
        return [_checked(shard) for shard in shards]
    if path.is_dir():
        return _files_in(path)
    _checked(path)
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        return _files_of_list(path)
    return [path]


def is_feature_list(path: Path) -> bool:
    """Tell whether a file is a list of files of features, by its name and the name on its first line."""
    if path.suffix.lower() not in LIST_SUFFIXES or not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            first = file.readline(1 << 16).decode().strip()
    except (OSError, UnicodeDecodeError):
        return False
    return Path(first).suffix.lower() in SUFFIXES


def is_pipe(path: Path) -> bool:
    """Tell whether a path is a pipe or a socket, which can be read once."""
    mode = os.stat(path).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _checked(path: Path) -> Path:
    mode = os.stat(path).st_mode if path.exists() else None
    if mode is None:
        raise InputError(f"{path}: no such file.")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        of_stdin = os.path.samefile(path, "/dev/stdin")
        what = "a terminal" if (os.isatty(0) if of_stdin else "tty" in str(path)) else "a device"
        raise InputError(f"{path}: is {what} and not a file of features; {FORMS}.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, where a features file is expected.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; change its permissions or copy it.")
    return path


def _files_in(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except PermissionError:
        raise InputError(f"{folder}: may not be read; change its permissions or copy it.") from None
    shown = [folder / name for name in names if not name.startswith((".", "_"))]
    files = [path for path in shown if path.suffix.lower() in SUFFIXES and path.is_file()]
    suffixes = Counter(path.suffix.lower() for path in files)
    if not files:
        raise InputError(
            f"{folder}: is a folder without features files; give a .bin (raw float32) or .npy features file, or a "
            "folder of such files (images: --embedder MODEL.onnx)."
        )
    if len(suffixes) > 1:
        found = ", ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
        one = f"{folder}/*{max(suffixes, key=lambda suffix: suffixes[suffix])}"
        raise InputError(f"{folder}: holds files of several forms ({found}); name the shards, as in '{one}'.")
    return [_checked(path) for path in _sorted(files)]


def _files_of_list(path: Path) -> list[Path]:
    if not is_feature_list(path):
        raise InputError(
            f"{path}: is not a features file but, by its name, a list of images; embed them with `fcdeploy embed`, or "
            "give --embedder MODEL to `fcdeploy cluster`. A list of features files names them with their suffixes."
        )
    if path.stat().st_size > LARGEST_LIST:
        raise InputError(f"{path}: is too large for a list of files; {FORMS}.")
    try:
        lines = path.read_bytes().decode().splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text; {FORMS}.") from None
    files = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        shard = path.parent / line.strip()
        if not shard.is_file():
            raise InputError(f"{path}: line {number:,} names {shard}, and there is no such file.")
        files.append(_checked(shard))
    return files


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (natural(path.name), str(path)))
