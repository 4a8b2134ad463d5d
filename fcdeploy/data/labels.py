"""Labels in and out: one integer per face, in the forms that the face-clustering systems exchange, and tables."""

import contextlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.label_tables import HEADINGS, LabelColumn, read_arrow, read_table
from fcdeploy.data.label_values import NUMBER, UNKNOWN_TEXTS, labels_from_texts, labels_from_values, shortened
from fcdeploy.data.run_record import check_not_of_a_run
from fcdeploy.data.written_tables import check_written_table, is_written_table, write_table
from fcdeploy.errors import FcdeployWarning, InputError, counted

BLOCK_BYTES = 1 << 20  # of text read at a time
BLOCK_LABELS = 1 << 17  # written at a time
LONGEST_WORD = 1 << 16  # bytes; no integer is longer, a binary file soon holds one that is

INT64 = np.iinfo(np.int64)
DIGITS_THAT_FIT = 18  # in an int64, whatever they are
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SEPARATORS = (b"\n", b" ", b"\r", b"\t")
IS_SEPARATOR = np.zeros(256, bool)
IS_SEPARATOR[[ord(separator) for separator in SEPARATORS]] = True


class WrongNumberOfLabels(InputError):
    """A file of labels has another number of them than there are faces; ``found`` is how many."""

    def __init__(self, message: str, found: int) -> None:
        super().__init__(message)
        self.found = found


def read_labels(path: Path | str, n: int | None = None, column: str | None = None) -> np.ndarray:
    """Read the label of every face; unknown ones are -1.

    The name chooses the form. ``.meta`` and names ending in ``labels.txt``: one label per line, a whole number or a
    name. ``.npy``: an array (n,), (n, 1) or (1, n) of integers, whole floats or names; ``.npz``: one such array. Any
    other ``.txt``: one cluster per line, face ids from 0 separated by spaces, unless its lines can only be labels. In
    that form a face's label is the number of its line, from 0, a face in no line gets -1, and the number of faces is
    ``n`` or, without it, the largest id + 1. ``.csv``, ``.tsv``, MXNet's ``.lst``, ``.parquet`` and ``.feather``:
    one row per face, with the label in ``column``. Names are numbered by first appearance.

    Unknown are -1, NaN, nulls, empty lines and cells, and ``label_values.UNKNOWN_TEXTS``.

    A table whose column ``id`` or ``face`` holds every row number from 0 once is read in the order of these, and not of
    its rows; a note says so where that is another one.

    n: how many faces there are, when the caller knows.  column: of a table (any text is one then), the heading or the
    number, from 1; of ``.npz``, the name of the array.
    Returns (n,) int64, the caller's own.
    Raises InputError when the file cannot be read as labels, or holds another number of them than ``n``.
    """
    return _read_labels(Path(path), n, column).labels


def _read_labels(path: Path, n: int | None, column: str | None) -> LabelColumn:
    """Read labels, with what a table says they are of."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a labels file.")
    form = form_to_read(path, column)
    if form == "clusters":
        return LabelColumn(_read_clusters(path, n))
    if form in ("table", "arrow"):
        with _opened(path):
            found = read_table(path, column, n) if form == "table" else read_arrow(path, column)
        found = _by_row_number(found, path)
    elif form == "lines":
        found = LabelColumn(_read_lines(path, n))
    else:
        found = LabelColumn(_read_array(path) if form == "array" else _read_archive(path, column))
    if n is not None and len(found.labels) != n:
        raise WrongNumberOfLabels(
            f"{path}: {counted(len(found.labels), 'label')} for {counted(n, 'face')}; give the labels of these faces.",
            len(found.labels),
        )
    return found


def _by_row_number(found: LabelColumn, path: Path) -> LabelColumn:
    """Return labels in the order of the row numbers that a table has for them, if it has each of them once."""
    names = found.names()
    if not all(name.isascii() and name.isdecimal() and len(name) <= DIGITS_THAT_FIT for name in names):
        return found
    rows = np.array(names, dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    in_order = np.arange(len(rows))
    if np.array_equal(rows, in_order) or not np.array_equal(rows[order], in_order):
        return found
    _note_order(path, found.heading)
    return LabelColumn(found.labels[order], [str(row) for row in in_order], found.heading)


def _note_order(path: Path, heading: str) -> None:
    warnings.warn(
        f"{path}: its rows are in another order than the faces; they are taken by its column '{heading}'.",
        FcdeployWarning,
        stacklevel=4,
    )


def _in_order_of(truth: LabelColumn, pred: LabelColumn, path: Path, other: Path) -> np.ndarray:
    """Return true labels in the order of predicted ones, where two tables say by name whose they are.

    Row numbers that are not of the same faces are no names. Raises InputError for names of other faces.
    """
    names, wanted = truth.names(), pred.names()
    if not names or names == wanted or len(names) != len(wanted):
        return truth.labels
    place = {name: row for row, name in enumerate(names)}
    missing = next((name for name in wanted if name not in place), None)
    if len(place) == len(names) == len(set(wanted)) and missing is None:
        _note_order(path, truth.heading)
        return truth.labels[[place[name] for name in wanted]]
    numbers = all(name.isdecimal() for name in (*names, *wanted))
    if missing is not None and not numbers and not place.keys().isdisjoint(wanted):
        raise InputError(
            f"{path}: its column '{truth.heading}' lacks {shortened(missing)}, which {other} has; give the labels of "
            "these very faces."
        )
    return truth.labels


def read_pair(pred: Path, truth: Path, column: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read predicted and true labels of the same faces, (n,) int64 each; the forms may differ.

    A file of clusters takes the number of faces from the other; of two tables with a column ``id`` or ``face``, labels
    of one face go together. column: of the file that is a table; of ``truth`` where
    both have other forms. Raises InputError as ``read_labels`` does, and for different numbers of faces.
    """
    named = [table_suffix(path) for path in (pred, truth)]
    columns = [column if of_table else None for of_table in named]
    if not any(named):
        columns[1] = column
    clusters = [form_to_read(path, of) == "clusters" for path, of in zip((pred, truth), columns, strict=True)]
    if clusters == [False, True]:
        pred_labels = read_labels(pred, None, columns[0])
        return pred_labels, read_labels(truth, len(pred_labels), columns[1])
    true = _read_labels(truth, None, columns[1])
    if clusters != [True, True]:
        predicted = _read_labels(pred, len(true.labels), columns[0])
        return predicted.labels, _in_order_of(true, predicted, truth, pred)
    truth_labels = true.labels
    # Neither says how many faces there are: those after its last id are in none of its clusters.
    pred_labels = read_labels(pred)
    n = max(len(pred_labels), len(truth_labels))
    return (
        np.pad(pred_labels, (0, n - len(pred_labels)), constant_values=-1),
        np.pad(truth_labels, (0, n - len(truth_labels)), constant_values=-1),
    )


def check_known(labels: np.ndarray, where: str, unknown: str) -> None:
    """Raise InputError, saying ``where`` they come from, when all ``labels`` (n,) are unknown and to be ignored."""
    if unknown == "ignore" and not (labels != -1).any():
        raise InputError(
            f"{where}: all {len(labels):,} labels are unknown (-1, empty or NaN), which leaves nothing to measure; "
            "give labels of some faces, or --unknown singleton, by which each is an identity of its own."
        )


def write_labels(path: Path | str, labels: ArrayLike, ids: np.ndarray | None = None) -> None:
    """Write the label of every face, whole or not at all, in the form that the name chooses.

    labels: (n,) integers, n > 0. ids: (n,) text or integers, which tables (.csv, .tsv, .parquet, .feather) hold beside
    the labels instead of row numbers; the other forms hold none. The forms are those of ``read_labels``.
    ``clusters.txt`` keeps the partition and not the numbers: clusters come in order of their first face, ids ascend in
    a line, and a face labelled -1 is left out (nothing but such faces gives an empty file).
    Raises InputError when the labels are not integers or the name cannot be written to.
    """
    path = check_labels_path(path)
    labels = as_labels(labels)
    if not labels.size:
        raise InputError(f"{path}: there are no labels to write.")
    form = written_form(path)
    with atomic_file(path) as file:
        if form == "table":
            write_table(file, path, labels, ids)
        elif form == "array":
            _write_array(file, labels)
        elif form == "clusters":
            _write_clusters(file, labels)
        else:
            for block in _blocks(labels):
                file.write(("\n".join(map(str, block.tolist())) + "\n").encode())


def check_labels_path(path: Path | str) -> Path:
    """Return ``path`` when labels can be written there; meant to be called before the work starts.

    Raises InputError when the suffix is none of ours, the folder does not exist or is not writable,
    ``path`` is a folder, or a run keeps something there.
    """
    if written_form(path) == "table":
        check_written_table(Path(path))
    return check_not_of_a_run(check_parent(path))


FORMS = {
    ".meta": "lines",
    ".npy": "array",
    ".txt": "clusters",
    ".npz": "archive",
    ".csv": "table",
    ".tsv": "table",
    ".tab": "table",
    ".lst": "table",
    ".parquet": "arrow",
    ".pq": "arrow",
    ".feather": "arrow",
    ".arrow": "arrow",
}
WRITTEN = ("lines", "array", "clusters")
# What is not read, by how its content begins, and what to type.
OTHERS = {
    b"\x80": (
        "a pickle, which can run code",
        "np.save('labels.npy', np.asarray(pickle.load(open(file, 'rb'))))",
    ),
    b"\x89HDF\r\n\x1a\n": ("HDF5", "np.save('labels.npy', h5py.File(file)['labels'][()])"),
    b"MATLAB": ("MATLAB's .mat", "np.save('labels.npy', scipy.io.loadmat(file)['labels'])"),
    b"\x1f\x8b": ("compressed with gzip", "`gunzip` it"),
    b"\xfd7zXZ": ("compressed with xz", "`unxz` it"),
    b"BZh": ("compressed with bzip2", "`bunzip2` it"),
    b"PK\x03\x04": (
        "a zip archive (.xlsx, .pt or .npz)",
        "save it as CSV, or with np.save('labels.npy', labels)",
    ),
    b"{": ("JSON", "np.save('labels.npy', np.array(labels))"),
    b"[": ("JSON", "np.save('labels.npy', np.array(json.load(open(file))))"),
}
BEGINNINGS = {b"\x93NUMPY": "array", b"PAR1": "arrow", b"ARROW1": "arrow", b"FEA1": "arrow"}


def written_form(path: Path | str) -> str:
    """Tell from its name in which form labels are written: ``"lines"``, ``"array"``, ``"clusters"`` or ``"table"``.

    Raises InputError when the suffix is none of these.
    """
    if is_written_table(Path(path)):
        return "table"
    form = _form_of_name(Path(path))
    if form not in WRITTEN:
        _refuse_form(Path(path))
    return form


def table_suffix(path: Path) -> bool:
    """Tell whether a file is, by its name, one in which a column or an array has to be chosen."""
    return _form_of_name(path) in ("table", "arrow", "archive")


def form_to_read(path: Path | str, column: str | None = None) -> str:
    """Tell the form of a labels file that is to be read, by its name and, where that leaves it open, by its content.

    Returns "lines", "clusters", "array", "archive", "table" or "arrow". Raises InputError for anything else, saying
    what it is where that can be told.
    """
    path = Path(path)
    form = _form_of_name(path)
    if form == "" and path.is_file():
        form = _form_of_content(path)
    if form == "":
        _refuse_form(path)
    if column is not None:
        if form == "array":
            raise InputError(
                f"{path}: is an array and has no columns to choose from; leave --label-column out."
            )
        return "table" if form in ("lines", "clusters") else form
    if form == "clusters" and path.is_file() and not _is_clusters(path):
        return "lines"
    return form


def _form_of_name(path: Path) -> str:
    if path.name.lower().endswith("labels.txt"):
        return "lines"
    return FORMS.get(path.suffix.lower(), "")


def _form_of_content(path: Path) -> str:
    with _opened(path) as file:
        start = file.read(64)
    for beginning, form in BEGINNINGS.items():
        if start.startswith(beginning):
            return form
    for beginning, (what, advice) in OTHERS.items():
        if start.startswith(beginning):
            raise InputError(f"{path}: is {what}; labels are text or arrays: {advice}.")
    return ""


def _refuse_form(path: Path) -> NoReturn:
    suffix = path.suffix.lower()
    found = f"the suffix {suffix} is not" if suffix else "a name without a suffix is not"
    raise InputError(
        f"{path}: {found} a form of labels; name the file .meta or ...labels.txt (one label per line), "
        ".npy (an integer array), .txt (one cluster per line), or .csv, .tsv, .parquet (a table of ids and labels)."
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


class _NotIntegers(InputError):
    """A text holds something else than integers."""


def _read_lines(path: Path, n: int | None) -> np.ndarray:
    """Read one label per line: all integers block by block, anything else as texts."""
    try:
        labels = _read_integer_lines(path)
    except _NotIntegers:
        return _read_text_lines(path, n)
    return labels if n is None or len(labels) >= n else _read_text_lines(path, n)  # blank lines at the end


def _read_integer_lines(path: Path) -> np.ndarray:
    blocks = []
    n = 0
    for labels, lines in _integers(path):
        expected = np.arange(n + 1, n + 1 + len(lines))
        if (wrong := lines != expected).any():
            at = wrong.argmax()
            if lines[at] > expected[at]:
                raise _NotIntegers(f"{path}: line {expected[at]:,} is blank.")
            raise _several_in_a_line(path, int(lines[at]))
        blocks.append(labels)
        n += len(labels)
    if not n:
        raise _NotIntegers(f"{path}: is empty.")
    return np.concatenate(blocks)


def _several_in_a_line(path: Path, line: int) -> InputError:
    return InputError(
        f"{path}: line {line:,} holds more than one integer; write one label per line "
        "(a file of one cluster per line is named clusters.txt)."
    )


def _read_text_lines(path: Path, n: int | None) -> np.ndarray:
    texts = [line.strip() for line in _text_lines(path)]
    last = max((at for at, text in enumerate(texts) if text), default=-1)
    kept = last + 1 if n is None else min(len(texts), max(last + 1, n))
    texts = texts[:kept]
    if last < 0 and (n is None or kept < n):
        raise InputError(f"{path}: is empty; expected one label per line.")
    for at, text in enumerate(texts):
        words = text.split()
        if len(words) > 1 and all(_is_integer(word) for word in words):
            raise _several_in_a_line(path, at + 1)
    for delimiter, name in (("\t", "tabs"), (",", "commas")):
        if all(delimiter in text and f"{delimiter} " not in text for text in texts):
            raise InputError(
                f"{path}: has several columns, with {name} between; choose the column of the labels with "
                "--label-column, "
                "its number from 1 or its heading."
            )
    first = 0
    if _is_heading(texts, n):
        first = 1
        warnings.warn(
            f"{path}: line 1, {shortened(texts[0])}, is read as a heading and not as the label of a face.",
            FcdeployWarning,
            stacklevel=4,
        )
    return labels_from_texts(texts[first:], str(path), lambda at: f"line {at + 1 + first:,}")


def _is_heading(texts: Sequence[str], n: int | None) -> bool:
    """Tell whether the first line is a heading: a word of its own, and one line more than faces or a usual word."""
    if len(texts) < 2 or NUMBER.fullmatch(texts[0]) or texts[0] in UNKNOWN_TEXTS or texts[0] in texts[1:]:
        return False
    return n == len(texts) - 1 if n is not None else texts[0].lower() in HEADINGS


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdigit() and word.isascii()


def _text_lines(path: Path) -> Iterator[str]:
    """Give the lines of a text; a binary file is refused after a line at most."""
    line = 0
    with _opened(path) as file:
        while read := file.readline(LONGEST_WORD):
            line += 1
            raw = read.removeprefix(BYTE_ORDER_MARK) if line == 1 else read
            try:
                text = raw.decode()
                if any(character < " " for character in text.strip()) and "\t" not in text:
                    raise UnicodeDecodeError("utf-8", raw, 0, 1, "control character")
            except UnicodeDecodeError:
                _refuse_binary(path, line)
            if len(read) == LONGEST_WORD:
                _refuse_word(path, raw, line)
            yield text


def _read_array(path: Path) -> np.ndarray:
    with _opened(path) as file:
        if not file.read(1):
            raise InputError(f"{path}: is empty; expected an integer array of shape (n,).")
        try:
            array = np.lib.format.open_memmap(path, mode="r")  # a header that promises too much fails here
        except DAMAGED as error:
            if "Python objects" in str(error):
                raise InputError(
                    f"{path}: is a pickle of objects, which can run code; save names as text, with "
                    "np.save(path, labels.astype(str))."
                ) from None
            raise InputError(
                f"{path}: is not a whole NumPy array of integers; write it with np.save(path, labels), "
                "where labels is an int64 array of shape (n,)."
            ) from error
        return _labels_of_array(array, str(path))


def _labels_of_array(array: np.ndarray, where: str) -> np.ndarray:
    if array.ndim and not array.size:
        raise InputError(f"{where}: holds no labels; expected an integer array of shape (n,).")
    return np.array(labels_from_values(array, where))


def _read_archive(path: Path, column: str | None) -> np.ndarray:
    """Read the labels in an .npz, one array of which is named where there are several."""
    with _opened(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                likely = [column] if column in names else names if column is None else []
                if len(likely) > 1:
                    likely = [name for name in names if name in ("labels", "label")]
                if len(likely) != 1:
                    raise InputError(
                        f"{path}: holds {', '.join(names) or 'no array'}; choose the labels with --label-column."
                    )
                with archive.open(f"{likely[0]}.npy") as member:
                    array = np.lib.format.read_array(member, allow_pickle=False)
        except InputError:
            raise
        except DAMAGED as error:
            raise InputError(
                f"{path}: is not a whole .npz archive of NumPy arrays ({reason_of(error)}); write it with "
                "np.savez(path, labels=labels), where labels is an int64 array of shape (n,)."
            ) from error
    return _labels_of_array(array, f"{path} ({likely[0]})")


def _is_clusters(path: Path) -> bool:
    """Tell a .txt of one cluster per line from one of labels, whose lines are names, or numbers that repeat.

    What is neither counts as clusters: numbers that are all different, one per line, are the same partition.
    """
    blocks, last = [], 0
    try:
        for ids, lines in _integers(path):
            if np.diff(np.concatenate([[last], lines])).min() < 1:
                return True  # several in a line
            last = int(lines[-1])
            blocks.append(ids)
    except _NotIntegers:
        return any(
            len(words) > 1 and all(map(_is_integer, words)) for words in map(str.split, _text_lines(path))
        )
    if not blocks:
        return True
    values = np.unique(np.concatenate(blocks))
    return bool(values[0] >= 0 and len(values) == sum(map(len, blocks)))


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
        raise InputError(f"{path}: is empty; expected one cluster per line, face ids separated by spaces.")
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
        faces = (
            f"a file of {counted(len(ids), 'id')}"
            if n is None
            else f"{counted(n, 'face')} (ids count from 0)"
        )
        raise InputError(
            f"{path}: line {lines[at]:,} holds the face id {ids[at]}, too large for {faces}; "
            "give the clusters of these same faces."
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
            "(a file of one label per line is named .meta or ...labels.txt)."
        )
    labels = np.full(n, -1, np.int64)
    labels[ids] = lines - 1
    return labels


def _refuse_blank_line(path: Path, line: int) -> NoReturn:
    raise InputError(f"{path}: line {line:,} is blank; remove it, or write what is missing there.")


def _integers(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give every integer of a text and the line it is on, counted from 1, a block at a time.

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
                f"{path}: line {lines[at]:,} holds {shortened(word.decode())}, which does not fit in an int64; "
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
        _refuse_binary(path, line)
    raise _NotIntegers(
        f"{path}: line {line:,} holds {shortened(word.decode())}, which is not an integer; write integers only."
    )


def _refuse_binary(path: Path, line: int) -> NoReturn:
    raise InputError(
        f"{path}: line {line:,} holds bytes that are not text; give integers as text, "
        "or name the file .npy if it is a NumPy array."
    )


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
