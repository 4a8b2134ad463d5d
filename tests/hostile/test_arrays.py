"""Arrays that somebody else wrote: features, labels and neighbor lists are read or refused, whatever their bytes."""

import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fuzzing import check_each, damaged, refused_or_read, tries
from hypothesis import strategies as st

from fcdeploy.data.arrays import array_from
from fcdeploy.data.features import check_features, open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.errors import InputError
from fcdeploy.graph.lists import ListsFile, check_lists

MIB = 1 << 20
N, K = 60, 7
EDGES = [2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63), -1, N, N - 1, 0]
HEADERS = {
    "as deep as a stack": "-" * 5000 + "1",
    "brackets": "(" * 5000,
    "braces": "{'descr':" * 800,
    "negative": "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 32)}",
    "true": "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 32)}",
    "more than there is": "{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 32)}",
    "2 ** 70": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**70}, 32)}}",
    "2 ** 62": f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62}, 32)}}",
    "wide": "{'descr': 'V1000000000000', 'fortran_order': False, 'shape': (1, 32)}",
    "records": "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 32)}",
    "no record": "{'descr': [('a',)], 'fortran_order': False, 'shape': (1, 32)}",
    "nested record": "{'descr': [('a', '<f4', (10**9,))], 'fortran_order': False, 'shape': (1, 32)}",
    "large record": "{'descr': [('a','<f4',(1000000000,1000000000))],'fortran_order':False,'shape':(1,)}",
    "number as type": "{'descr': 3, 'fortran_order': False, 'shape': (1, 32)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (4, 2)}",
    "zeros": "\0" * 50,
    "digits": "9" * 5000,
    "nothing": "",
}


class Payload:
    """Pickled, it makes a file when it is loaded by someone careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def npy_bytes(header: str, data: bytes = b"\0" * 512) -> bytes:
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


def write_archive(path: Path, member: str, parts: Iterable[bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(member, "w") as file:
        for part in parts:
            file.write(part)


def peak_of(read: Callable[[], Any]) -> int:
    """Bytes that a call took at most, whatever came of it; modules that the first call imports are none of them."""
    refused_or_read(read)
    tracemalloc.start()
    try:
        refused_or_read(read)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def read_features(path: Path) -> None:
    features = open_features(path, None if path.suffix == ".npy" else 32)
    check_features(features)
    for start, rows in features.blocks(7):
        assert rows.dtype == np.float32
        assert len(rows) == min(7, features.n - start)


def read_lists(path: Path) -> None:
    lists = ListsFile(path)
    for start, ids, sims in lists.blocks(7):
        checked = check_lists(ids, start, lists.n, str(path))
        assert checked.shape == (min(7, lists.n - start), lists.k)
        assert checked.dtype == np.int32
        assert ((checked >= 0) & (checked < lists.n)).all()
        assert sims is None or np.isfinite(sims).all()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.stack([np.roll(np.arange(N), -face)[:K] for face in range(N)])


@pytest.fixture(scope="module")
def files(ids: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A good file of every form of lists, by its name, and a features file."""
    folder = tmp_path_factory.mktemp("good")
    sims = np.linspace(1, 0.1, K * N).reshape(N, K).astype(np.float32)
    stacked = np.stack([ids, 1 - sims], axis=1)
    np.savez(folder / "data.npz", data=stacked)
    np.savez_compressed(folder / "packed.npz", data=stacked.astype(np.float32))
    np.savez(folder / "ids.npz", ids=ids.astype(np.int32), sims=sims)
    np.savez(folder / "knns.npz", knns=np.asfortranarray(ids), dists=1 - sims)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "features.npy", np.random.default_rng(0).standard_normal((N, 8)).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(N))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_no_header_whatever_is_more_than_a_refusal(header: str, tmp_path: Path) -> None:
    path = tmp_path / "array.npy"
    path.write_bytes(npy_bytes(header))
    with zipfile.ZipFile(tmp_path / "lists.npz", "w") as archive:
        archive.write(path, "ids.npy")
    for read in (read_features, read_labels, read_lists):
        assert not refused_or_read(lambda read=read: read(path))
    assert not refused_or_read(lambda: read_lists(tmp_path / "lists.npz"))


@tries(250, 8_000)
def test_damaged_lists_are_lists_or_refused(count: int, files: dict[str, bytes], tmp_path: Path) -> None:
    forms = [name for name in files if name not in ("features.npy", "labels.npy")]
    assert len(forms) == 5
    outcomes = set()

    def check(case: tuple[str, bytes]) -> None:
        path = tmp_path / case[0]
        path.write_bytes(case[1])
        outcomes.add((case[0], refused_or_read(lambda: read_lists(path))))

    check_each(
        count, st.sampled_from(forms).flatmap(lambda f: st.tuples(st.just(f), damaged(files[f]))), check
    )
    assert {(name, False) for name in forms} <= outcomes


@tries(100, 5_000)
@pytest.mark.parametrize("name", ["features.npy", "features.bin", "labels.npy"])
def test_damaged_arrays_are_arrays_or_refused(
    count: int, name: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    content = files[name] if name.endswith(".npy") else files["features.npy"][128:]
    path = tmp_path / name
    read = read_labels if name.startswith("labels") else read_features

    def check(data: bytes) -> None:
        path.unlink(missing_ok=True)  # a file that is mapped is not cut short here
        path.write_bytes(data)
        refused_or_read(lambda: read(path))

    check_each(count, damaged(content), check)


@pytest.mark.parametrize("value", EDGES)
@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_ids_at_the_edges_of_integers_are_faces_or_refused(
    value: int, kind: str, ids: np.ndarray, tmp_path: Path
) -> None:
    """As float64, 2 ** 63 - 1 is 2 ** 63, which an int64 cannot hold."""
    changed = ids.copy()
    changed[17, 3] = value
    if kind == "int64":
        np.save(tmp_path / "lists.npy", changed)
    else:
        stacked = np.stack([changed.astype(np.float64), np.full(ids.shape, 0.5)], axis=1)
        np.savez(tmp_path / "lists.npz", data=stacked)
    path = next(tmp_path.iterdir())
    good = 0 <= value < N and value not in ids[17]
    if good:
        read_lists(path)
    else:
        with pytest.raises(InputError, match=r"face 17 has the (neighbor|same neighbor twice)"):
            read_lists(path)


@pytest.mark.parametrize("member", ["ids.npy", "data.npy", "knns.npy"])
def test_pickles_in_arrays_are_refused_and_never_run(member: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    array = np.array([[Payload(trap)] * 2] * 2, dtype=object)
    np.save(tmp_path / "array.npy", array, allow_pickle=True)
    np.savez(tmp_path / "array.npz", **{member.removesuffix(".npy"): array, "dists": np.ones((2, 2))})
    for read, name in (
        (read_features, "array.npy"),
        (read_labels, "array.npy"),
        (read_lists, "array.npy"),
        (read_lists, "array.npz"),
    ):
        assert not refused_or_read(lambda read=read, name=name: read(tmp_path / name))
    assert not trap.exists()
    np.load(tmp_path / "array.npy", allow_pickle=True)  # or the trap would be none
    assert trap.exists()
    assert pickle.HIGHEST_PROTOCOL  # what numpy writes objects with


# Files of a megabyte that would unpack to gigabytes

ZEROS = b"\0" * (16 * MIB)
COLUMNS = "{'descr': '<i8', 'fortran_order': True, 'shape': (60, 7), }\n"


def test_an_array_with_more_behind_it_than_it_says_is_not_unpacked(tmp_path: Path) -> None:
    parts = [npy_bytes(COLUMNS, b""), *[ZEROS] * 8]
    write_archive(tmp_path / "lists.npz", "ids.npy", parts)
    assert (tmp_path / "lists.npz").stat().st_size < MIB
    assert peak_of(lambda: read_lists(tmp_path / "lists.npz")) < 8 * MIB


def test_a_header_of_a_hundred_megabytes_is_not_unpacked(tmp_path: Path) -> None:
    parts = [b"\x93NUMPY\2\0" + struct.pack("<I", 8 * len(ZEROS)), *[ZEROS] * 8]
    write_archive(tmp_path / "lists.npz", "ids.npy", parts)
    assert peak_of(lambda: read_lists(tmp_path / "lists.npz")) < 8 * MIB


def test_an_array_in_column_order_is_not_unpacked_beyond_a_gigabyte(tmp_path: Path) -> None:
    header = "{'descr': '<i8', 'fortran_order': True, 'shape': (2000000, 80), }\n"
    write_archive(tmp_path / "lists.npz", "ids.npy", [npy_bytes(header)])
    with pytest.raises(InputError, match=r"column order and is too large"):
        read_lists(tmp_path / "lists.npz")


def test_wide_lists_are_read_some_rows_at_a_time() -> None:
    """20,000 neighbors a face: a block of 8,192 faces would be of 2.6 GB."""
    from fcdeploy.graph.lists import RowsInOrder

    class Wide(ListsFile):
        def __init__(self) -> None:
            self.asked: list[int] = []

        def blocks(self, rows: int = 0, used: int | None = None) -> Any:
            for start in range(0, 100, rows):
                self.asked.append(rows)
                yield start, np.arange(start, min(start + rows, 100))[:, None], None

    lists = Wide()
    rows_of = RowsInOrder(lists, 7)
    assert rows_of(0, 10)[0].ravel().tolist() == list(range(10))
    assert rows_of(10, 11)[0].ravel().tolist() == [10]
    assert rows_of(60, 100)[0].ravel().tolist() == list(range(60, 100))
    assert set(lists.asked) == {7}


class Columns:
    """A table as pandas has them, with columns of any names."""

    def __init__(self, columns: list[tuple[str, np.ndarray]]) -> None:
        self.columns = [name for name, _ in columns]
        self.shape = (len(columns[0][1]), len(columns))
        self._series = [SimpleNamespace(name=name, to_numpy=lambda v=values: v) for name, values in columns]
        self.iloc = _ByPlace(self._series)


class _ByPlace:
    def __init__(self, series: list[Any]) -> None:
        self._series = series

    def __getitem__(self, at: tuple[slice, int]) -> Any:
        return self._series[at[1]]


def test_columns_of_one_name_are_all_taken() -> None:
    """Two tables beside each other have the headings of both."""
    rows = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    table = Columns([(f"f{column % 2}", rows[:, column]) for column in range(4)])
    assert np.array_equal(array_from(table, "features"), rows)


@pytest.mark.parametrize("given", [np.array(None), np.array({}), np.array("a", object)])
def test_an_array_without_axes_holds_no_rows(given: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected an"):
        array_from(given, "features")


def test_names_in_an_array_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "names.npy", np.array(["Ann", None], object), allow_pickle=True)
    with pytest.raises(InputError, match=r"pickle of objects.*astype\(str\)"):
        read_labels(tmp_path / "names.npy")
