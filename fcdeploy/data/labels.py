"""Labels in and out: one integer a face, in the three forms that the face-clustering systems exchange."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.errors import InputError

BLOCK_BYTES = 1 << 20  # of text read at a time
BLOCK_LABELS = 1 << 17  # written at a time
LONGEST_WORD = 1 << 16  # bytes; no integer is longer, a binary file soon holds one that is

INT64 = np.iinfo(np.int64)
DIGITS_THAT_FIT = 18  # in an int64, whatever they are
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SEPARATORS = (b"\n", b" ", b"\r", b"\t")
IS_SEPARATOR = np.zeros(256, bool)
IS_SEPARATOR[[ord(separator) for separator in SEPARATORS]] = True


def read_labels(path: Path | str, n: int | None = None) -> np.ndarray:
    """Read the label of every face.

    The name chooses the form: ``.meta`` and names ending in ``labels.txt`` hold one label a line; ``.npy`` an
    integer array of shape (n,); any other ``.txt`` is a ``clusters.txt``, one cluster a line, face ids from 0
    separated by spaces. In that last form a face's label is the number of its line, from 0, a face in no line
    gets -1, and the number of faces is ``n`` or, without it, the largest id + 1.

    n: how many faces there are, when the caller knows.
    Returns (n,) int64, the caller's own.
    Raises InputError when the file cannot be read as labels, or holds another number of them than ``n``.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a labels file.")
    form = labels_form(path)
    if form == "clusters":
        return _read_clusters(path, n)
    labels = _read_array(path) if form == "array" else _read_lines(path)
    if n is not None and len(labels) != n:
        raise InputError(
            f"{path}: {len(labels):,} labels for {n:,} faces; give the labels of these very faces."
        )
    return labels


def write_labels(path: Path | str, labels: ArrayLike) -> None:
    """Write the label of every face, whole or not at all, in the form that the name chooses.

    labels: (n,) integers, n > 0. The forms are those of ``read_labels``. ``clusters.txt`` keeps the partition
    and not the numbers: clusters come in order of their first face, ids ascend in a line, and a face labelled
    -1 is left out (nothing but such faces gives an empty file).
    Raises InputError when the labels are not integers or the name cannot be written to.
    """
    path = check_labels_path(path)
    labels = as_labels(labels)
    if not labels.size:
        raise InputError(f"{path}: there are no labels to write.")
    form = labels_form(path)
    with atomic_file(path) as file:
        if form == "array":
            _write_array(file, labels)
        elif form == "clusters":
            _write_clusters(file, labels)
        else:
            for block in _blocks(labels):
                file.write(("\n".join(map(str, block.tolist())) + "\n").encode())


def check_labels_path(path: Path | str) -> Path:
    """Return ``path`` when labels can be written there; meant to be called before the work starts.

    Raises InputError when the suffix is none of ours, the folder does not exist or is not writable, or
    ``path`` is a folder.
    """
    labels_form(path)
    return check_parent(path)


def labels_form(path: Path | str) -> str:
    """Tell the form of a labels file from its name: ``"lines"``, ``"array"`` or ``"clusters"``.

    Raises InputError when the suffix is none of these.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".meta" or path.name.lower().endswith("labels.txt"):
        return "lines"
    if suffix == ".npy":
        return "array"
    if suffix == ".txt":
        return "clusters"
    found = f"the suffix {suffix} is not" if suffix else "a name without a suffix is not"
    raise InputError(
        f"{path}: {found} a form of labels; name the file .meta or ...labels.txt (one label a line), "
        ".npy (an integer array) or .txt (one cluster a line)."
    )


def renumber(labels: ArrayLike) -> np.ndarray:
    """Number the clusters from 0 in order of their first face.

    labels: (n,) integers; -1 is "in no cluster" and stays -1.
    Returns (n,) int64, a copy. Two labellings of one partition give the same array.
    Raises InputError when the labels are not integers.
    """
    labels = as_labels(labels)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    first[labels[first] == -1] = len(labels)  # sorts behind every cluster
    order = np.argsort(first)
    number = np.empty_like(order)
    number[order] = np.arange(len(order))
    number[first == len(labels)] = -1
    return number[inverse].astype(np.int64, copy=False)


def as_labels(labels: ArrayLike, name: str = "labels") -> np.ndarray:
    """Return labels as (n,) int64, the same memory where they already are.

    Raises InputError, calling them ``name``, when they are not integers of shape (n,) that an int64 can hold.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise InputError(f"{name}: expected integers of shape (n,), found {array.dtype} {array.shape}.")
    if array.dtype.kind == "u" and array.size and array.max() > INT64.max:
        raise InputError(f"{name}: {array.max()} does not fit in an int64; number the clusters from 0.")
    return array.astype(np.int64, copy=False)


def _read_lines(path: Path) -> np.ndarray:
    blocks = []
    n = 0
    for labels, lines in _integers(path):
        expected = np.arange(n + 1, n + 1 + len(lines))
        if (wrong := lines != expected).any():
            at = wrong.argmax()
            if lines[at] > expected[at]:
                _refuse_blank_line(path, expected[at])
            raise InputError(
                f"{path}: line {lines[at]:,} holds more than one integer; write one label a line "
                "(a file of one cluster a line is named clusters.txt)."
            )
        blocks.append(labels)
        n += len(labels)
    if not n:
        raise InputError(f"{path}: is empty; expected one label a line.")
    return np.concatenate(blocks)


def _read_array(path: Path) -> np.ndarray:
    with _opened(path) as file:
        if not file.read(1):
            raise InputError(f"{path}: is empty; expected an integer array of shape (n,).")
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # a header that promises too much fails here
        except DAMAGED as error:
            raise InputError(
                f"{path}: is not a whole NumPy array of integers; write it with np.save(path, labels), "
                "where labels is an int64 array of shape (n,)."
            ) from error
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"{path}: expected integers of shape (n,), found {array.dtype} {array.shape}; "
                "write it with np.save(path, labels), where labels is an int64 array of shape (n,)."
            )
        if not array.size:
            raise InputError(f"{path}: holds no labels; expected an integer array of shape (n,).")
        return np.array(as_labels(array, str(path)))


def _read_clusters(path: Path, n: int | None) -> np.ndarray:
    id_blocks, line_blocks = [], []
    line = 0  # the last that held an id
    for block, lines in _integers(path):
        before = np.concatenate([[line], lines[:-1]])
        if (skipped := lines > before + 1).any():
            _refuse_blank_line(path, before[skipped.argmax()] + 1)
        line = int(lines[-1])
        id_blocks.append(block)
        line_blocks.append(lines)
    if not id_blocks:
        if n is not None:  # of faces that are all in no cluster
            return np.full(n, -1, np.int64)
        raise InputError(f"{path}: is empty; expected one cluster a line, face ids separated by spaces.")
    ids, lines = np.concatenate(id_blocks), np.concatenate(line_blocks)  # (t,) each

    if (wrong := ids < 0).any():
        at = wrong.argmax()
        raise InputError(
            f"{path}: line {lines[at]:,} holds the face id {ids[at]}; "
            "ids are line numbers of the file list, counted from 0."
        )
    # Without n one mistyped id must not ask for terabytes.
    limit = 1_000_000 + 100 * len(ids) if n is None else n
    if (wrong := ids >= limit).any():
        at = wrong.argmax()
        faces = f"a file of {len(ids):,} ids" if n is None else f"{n:,} faces (ids count from 0)"
        raise InputError(
            f"{path}: line {lines[at]:,} holds the face id {ids[at]}, too large for {faces}; "
            "give the clusters of these very faces."
        )

    n = int(ids.max()) + 1 if n is None else n
    places = np.arange(len(ids))
    first = np.full(n, -1)
    first[ids[::-1]] = places[::-1]  # of equal ids the last written stays, which is the file's first
    if (wrong := first[ids] != places).any():
        at = wrong.argmax()
        raise InputError(
            f"{path}: line {lines[at]:,} holds the face id {ids[at]} again, after line "
            f"{lines[first[ids[at]]]:,}; write a face in one cluster only "
            "(a file of one label a line is named .meta or ...labels.txt)."
        )
    labels = np.full(n, -1, np.int64)
    labels[ids] = lines - 1
    return labels


def _refuse_blank_line(path: Path, line: int) -> NoReturn:
    raise InputError(f"{path}: line {line:,} is blank; remove it, or write what is missing there.")


def _integers(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give every integer of a text and the line it stands on, counted from 1, a block at a time.

    Each block is two (t,) int64 arrays, t > 0. Blank lines and the end of the last line give nothing.
    """
    line = 1
    with _opened(path) as file:
        head = file.read(len(BYTE_ORDER_MARK))
        rest = b"" if head == BYTE_ORDER_MARK else head
        at_end = False
        while not at_end:
            read = file.read(BLOCK_BYTES)
            at_end = not read
            text = rest + (read or b"\n")
            cut = 1 + max(text.rfind(separator) for separator in SEPARATORS)
            text, rest = text[:cut], text[cut:]
            if len(rest) > LONGEST_WORD:
                _refuse_word(path, rest, line + text.count(b"\n"))
            if text:
                values, lines = _parse(path, text, line)
                line += text.count(b"\n")
                if len(values):
                    yield values, lines


def _parse(path: Path, text: bytes, line: int) -> tuple[np.ndarray, np.ndarray]:
    """Parse words that are integers; ``text`` begins with line number ``line`` and ends with a separator."""
    raw = np.frombuffer(text, np.uint8)
    separator = IS_SEPARATOR[raw]
    edges = np.flatnonzero(separator[1:] != separator[:-1]) + 1
    if not separator[0]:
        edges = np.concatenate([[0], edges])
    starts, ends = edges[0::2], edges[1::2]  # (t,) each
    lines = line + np.searchsorted(np.flatnonzero(raw == ord("\n")), starts)

    digits = raw - np.uint8(ord("0"))  # wraps: above 9 for all that is not a digit
    negative = raw[starts] == ord("-")
    signed = negative | (raw[starts] == ord("+"))
    wrong = ~separator & (digits > 9)
    wrong[starts[signed & (ends - starts > 1)]] = False
    if wrong.any():
        at = np.searchsorted(starts, wrong.argmax(), side="right") - 1
        _refuse_word(path, text[starts[at] : ends[at]], lines[at])

    lengths = ends - starts - signed
    values = np.zeros(len(starts), np.int64)
    for place in range(min(lengths.max(initial=0), DIGITS_THAT_FIT)):
        if place < lengths.min():
            values += digits[ends - 1 - place] * np.int64(10**place)
        else:
            rows = np.flatnonzero(lengths > place)
            values[rows] += digits[ends[rows] - 1 - place] * np.int64(10**place)
    np.negative(values, out=values, where=negative)
    for at in np.flatnonzero(lengths > DIGITS_THAT_FIT):
        word = text[starts[at] : ends[at]]
        value = int(word) if len(word.lstrip(b"+-0")) <= DIGITS_THAT_FIT + 1 else INT64.max + 1
        if not INT64.min <= value <= INT64.max:
            raise InputError(
                f"{path}: line {lines[at]:,} holds {_shortened(word)}, which does not fit in an int64; "
                "number the clusters from 0."
            )
        values[at] = value
    return values, lines


def _refuse_word(path: Path, word: bytes, line: int) -> NoReturn:
    try:
        binary = any(character < " " for character in word.decode())
    except UnicodeDecodeError:
        binary = True
    if binary:
        raise InputError(
            f"{path}: line {line:,} holds bytes that are not text; give a text of integers, "
            "or name the file .npy if it is a NumPy array."
        )
    raise InputError(
        f"{path}: line {line:,} holds {_shortened(word)}, which is not an integer; write integers only."
    )


def _shortened(word: bytes) -> str:
    text = word.decode()
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _write_array(file: IO[bytes], labels: np.ndarray) -> None:
    labels = labels.astype("<i8", copy=False)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(labels))
    for block in _blocks(labels):
        file.write(block.tobytes())  # ndarray.tofile would lose the errno of a full disk


def _write_clusters(file: IO[bytes], labels: np.ndarray) -> None:
    labels = renumber(labels)
    ids = np.argsort(labels, kind="stable")[np.count_nonzero(labels == -1) :]  # (t,), the -1 come first
    last = np.ones(len(ids), bool)  # of its cluster
    last[:-1] = np.diff(labels[ids]) != 0
    for start in range(0, len(ids), BLOCK_LABELS):
        block = slice(start, start + BLOCK_LABELS)
        ends = np.where(last[block], "\n", " ").tolist()
        words = [""] * (2 * len(ends))
        words[0::2] = map(str, ids[block].tolist())
        words[1::2] = ends
        file.write("".join(words).encode())


def _blocks(labels: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(labels), BLOCK_LABELS):
        yield labels[start : start + BLOCK_LABELS]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read; what the system says against it becomes one InputError."""
    try:
        with open(path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; check the name.") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read; change its permissions or copy it.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the file.") from error
