import hashlib
import re
import zipfile

import numpy as np
import pytest

from fcdeploy.errors import InputError
from fcdeploy.graph.lists import ListsFile, check_lists, mostly_without_self

N, K = 23, 5


@pytest.fixture
def lists():
    """Ids of 23 faces' five neighbors, the face itself first, and similarities."""
    rng = np.random.default_rng(0)
    ids = np.stack([[i, *[j for j in rng.permutation(N) if j != i]][:K] for i in range(N)])
    return ids.astype(np.int32), -np.sort(-rng.random((N, K)), axis=1)


def written(path, form, ids, sims):
    """Write lists in one of the forms that are accepted and return their path."""
    if form.startswith("stacked"):
        data = np.stack([ids, 1 - sims], axis=1).astype(form.removeprefix("stacked "))
        np.savez(path / "lists.npz", data=data)
    elif form == "compressed":
        np.savez_compressed(path / "lists.npz", data=np.stack([ids, 1 - sims], axis=1))
    elif form == "by columns":
        np.savez(path / "lists.npz", ids=np.asfortranarray(ids), sims=np.asfortranarray(sims))
    elif form == "ids and sims":
        np.savez(path / "lists.npz", ids=ids, sims=sims)
    elif form == "ids alone":
        np.savez(path / "lists.npz", ids=ids.astype(np.int64))
    elif form.startswith("folder"):
        (path / "lists").mkdir()
        np.save(path / "lists/ids.npy", ids)
        if form == "folder with sims":
            np.save(path / "lists/sims.npy", sims)
        return path / "lists"
    elif form == "knns and dists":
        np.savez(path / "lists.npz", knns=ids, dists=1 - sims)
    else:
        np.save(path / "lists.npy", ids.astype(form.removeprefix("npy ")))
        return path / "lists.npy"
    return path / "lists.npz"


STACKED = ["stacked float32", "stacked float64", "compressed"]
WITH_SIMS = [*STACKED, "by columns", "ids and sims", "knns and dists", "folder with sims"]
WITHOUT = ["folder", "ids alone", "npy int16", "npy int32", "npy int64", "npy uint64", "npy >i4"]


def checked_blocks(file, rows):
    for start, block, sims in file.blocks(rows):
        yield start, check_lists(block, start, N, "here"), sims


@pytest.mark.parametrize("rows", [1, 7, N, 1000])
@pytest.mark.parametrize("form", WITH_SIMS + WITHOUT)
def test_every_form_is_read_whole_in_any_blocks(tmp_path, lists, form, rows):
    ids, sims = lists
    file = ListsFile(written(tmp_path, form, ids, sims))
    assert (file.n, file.k, file.has_sims) == (N, K, form in WITH_SIMS)
    starts, found, values = [], [], []
    for start, block, block_sims in checked_blocks(file, rows):
        starts.append(start)
        found.append(block)
        if form in WITH_SIMS:
            assert block_sims.dtype == np.float32
            values.append(block_sims)
        else:
            assert block_sims is None
    assert starts == list(range(0, N, rows))
    found = np.concatenate(found)
    assert found.dtype == np.int32
    assert found.flags.c_contiguous
    assert np.array_equal(found, ids)
    if form in WITH_SIMS:  # 1 - (1 - s) is s within the rounding of one float32
        assert np.abs(np.concatenate(values) - sims).max() <= 2**-23


def test_a_file_may_be_read_twice(tmp_path, lists):
    file = ListsFile(written(tmp_path, "stacked float64", *lists))
    first, second = (np.concatenate([ids for _, ids, _ in file.blocks(4)]) for _ in range(2))
    assert np.array_equal(first, second)


class Trap:
    """Pickled, it writes a file when somebody loads it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["lists.npz", "lists.npy"])
def test_object_arrays_are_refused_and_nothing_in_them_is_executed(tmp_path, name):
    trapped = np.empty((2, 3), dtype=object)
    trapped[0, 0] = Trap(tmp_path / "sprung")
    if name == "lists.npz":
        np.savez(tmp_path / name, data=trapped)
    else:
        np.save(tmp_path / name, trapped)
    with pytest.raises(InputError, match="object array, a pickle that could run code, and is not loaded"):
        ListsFile(tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    np.load(tmp_path / name, allow_pickle=True)["data" if name == "lists.npz" else ...]
    assert (tmp_path / "sprung").exists()  # the trap does work


def test_the_conversion_that_the_refusal_tells_works(tmp_path, lists):
    """The published systems keep a list of (ids, distances) pairs, an object array."""
    ids, sims = lists
    pairs = np.empty((N, 2), dtype=object)
    for i in range(N):
        pairs[i] = [ids[i], 1 - sims[i]]
    np.savez(tmp_path / "pairs.npz", data=pairs)
    with pytest.raises(InputError) as refusal:
        ListsFile(tmp_path / "pairs.npz")
    code = re.search(r"where you trust it: (.*)\.$", str(refusal.value)).group(1)
    exec(code, {"np": np, "file": tmp_path / "pairs.npz", "out": tmp_path / "converted.npz"})
    ((_, found, values),) = ListsFile(tmp_path / "converted.npz").blocks()
    assert np.array_equal(found, ids)
    assert np.abs(values - sims).max() <= 2**-23


def test_lists_that_lack_their_own_faces_are_told_from_a_few_that_do():
    """Of 4,000 lists a sample is looked at; a third of them without the face is what copies of faces may cause."""
    whole = np.stack([np.roll(np.arange(4000), -i)[:5] for i in range(4000)])
    assert not mostly_without_self(whole)
    assert not mostly_without_self(whole[:, ::-1])  # in any place
    assert mostly_without_self(np.roll(whole, 10, axis=0))
    some = whole.copy()
    some[::3] = np.roll(whole, 7, axis=0)[::3]
    assert not mostly_without_self(some)
    assert not mostly_without_self(np.zeros((1, 1), dtype=np.int32))


@pytest.mark.parametrize(
    ("face", "value", "says"),
    [
        (3, N, f"face 3 has the neighbor {N}.0, which is not a face of 0..{N - 1}"),
        (22, 10**12, "face 22 has the neighbor"),
        (0, -1, "face 0 has the neighbor -1.0, which stands for one that a search did not find"),
        (9, 2.5, "face 9 has the neighbor 2.5"),
        (9, np.nan, "face 9 has the neighbor nan"),
        (9, np.inf, "face 9 has the neighbor inf"),
        (9, -np.inf, "face 9 has the neighbor -inf"),
    ],
)
@pytest.mark.parametrize("rows", [1, 8, N])
def test_an_id_that_is_no_face_is_named_with_its_row(tmp_path, lists, face, value, says, rows):
    ids, sims = lists
    ids = ids.astype(np.float64)
    ids[face, 2] = value
    file = ListsFile(written(tmp_path, "stacked float64", ids, sims))
    with pytest.raises(InputError, match=re.escape(says)):
        list(checked_blocks(file, rows))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(np.int64, N), (np.int64, -1), (np.int64, 2**32 + 1), (np.uint64, 2**63 + 1), (np.uint8, 255)],
)
def test_a_whole_id_that_is_no_face_is_named_before_it_is_narrowed(lists, dtype, value):
    ids = lists[0].astype(dtype)
    ids[4, 1] = value
    with pytest.raises(
        InputError,
        match=f"here: face 104 has the neighbor {value}, (which is not a face|which stands for one)",
    ):
        check_lists(ids, 100, N, "here")


def test_a_neighbor_that_comes_twice_is_named_by_its_row(lists):
    ids = lists[0]
    ids[7, 4] = ids[7, 0]
    ids[9, 4] = ids[9, 1]
    with pytest.raises(InputError, match="here: face 57 has the same neighbor twice"):
        check_lists(ids, 50, N, "here")


def test_the_first_bad_row_is_the_one_that_is_named(lists):
    ids = lists[0]
    ids[12, 0], ids[5, 3] = N + 1, N + 2
    with pytest.raises(InputError, match=f"face 5 has the neighbor {N + 2}"):
        check_lists(ids, 0, N, "here")


@pytest.mark.parametrize(
    "arrays",
    [
        {"data": np.zeros((N, 3, K))},
        {"data": np.zeros((N, 2))},
        {"data": np.zeros((N, 2, K), dtype=np.int64)},
        {"data": np.zeros((N, 2, 0))},
        {"data": np.zeros((0, 2, 0))},
        {"ids": np.zeros((N, K))},
        {"ids": np.zeros(N, dtype=np.int32)},
        {"ids": np.zeros((0, K), dtype=np.int32)},
        {"ids": np.zeros((N, K), dtype=np.int32), "sims": np.zeros((N, K + 1))},
        {"ids": np.zeros((N, K), dtype=np.int32), "sims": np.zeros((N + 1, K))},
        {"knns": np.zeros((N, K), dtype=np.int32)},
        {"knns": np.zeros((N, K), dtype=np.int32), "dists": np.zeros((N, 1))},
        {"else": np.zeros((N, K), dtype=np.int32)},
        {},
    ],
    ids=lambda arrays: " ".join(f"{name}{array.shape}" for name, array in arrays.items()) or "nothing",
)
def test_arrays_of_another_form_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "lists.npz", **arrays)
    with pytest.raises(InputError, match=r"lists\.npz: "):
        ListsFile(tmp_path / "lists.npz")


@pytest.mark.parametrize("shape", [(N,), (N, 2, K), (0, K), (N, 0), ()])
def test_an_npy_of_another_shape_is_refused(tmp_path, shape):
    np.save(tmp_path / "lists.npy", np.zeros(shape, dtype=np.int64))
    with pytest.raises(InputError, match=r"lists\.npy: expected \(n, k\) integer ids"):
        ListsFile(tmp_path / "lists.npy")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_an_npz_that_was_cut_short_is_refused(tmp_path, lists, part):
    path = written(tmp_path, "stacked float64", *lists)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(InputError, match="is not a readable"):
        ListsFile(path)


def test_an_array_in_an_npz_that_is_shorter_than_its_header_says_is_refused(tmp_path, lists):
    """The zip is whole; what it holds was cut."""
    path = written(tmp_path, "stacked float64", *lists)
    with zipfile.ZipFile(path) as archive:
        member = archive.read("data.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", member[:-1])
    with pytest.raises(InputError, match="ends within 'data'; it was cut short"):
        list(ListsFile(path).blocks(8))


@pytest.mark.parametrize("cut", [3, 60])
def test_an_npy_without_a_whole_header_is_refused(tmp_path, lists, cut):
    path = written(tmp_path, "npy int32", *lists)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match="is not a readable"):
        ListsFile(path)


def test_an_npy_whose_rows_were_cut_short_is_refused(tmp_path, lists):
    path = written(tmp_path, "npy int32", *lists)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"lists\.npy: "):
        list(ListsFile(path).blocks())


@pytest.mark.parametrize("form", ["stacked float64", "compressed", "by columns"])
def test_bytes_that_were_damaged_within_an_npz_are_refused(tmp_path, lists, form):
    path = written(tmp_path, form, *lists)
    with zipfile.ZipFile(path) as archive:
        entry = archive.infolist()[0]
    whole = bytearray(path.read_bytes())
    at = entry.header_offset + 200 + entry.compress_size // 2
    whole[at : at + 8] = bytes(255 - byte for byte in whole[at : at + 8])
    path.write_bytes(whole)
    with pytest.raises(InputError, match=r"lists\.npz: "):
        list(ListsFile(path).blocks(8))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x80\x04]\x94."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "lists.npz").write_bytes(content)
    with pytest.raises(InputError, match="is not a readable"):
        ListsFile(tmp_path / "lists.npz")


def test_a_missing_file_and_a_folder_without_ids_are_refused(tmp_path):
    np.save(tmp_path / "sims.npy", np.zeros((N, K), np.float32))
    for path, says in (
        (tmp_path / "none.npz", "no such file of neighbor lists"),
        (tmp_path, "without ids.npy"),
    ):
        with pytest.raises(InputError, match=says):
            ListsFile(path)


def test_a_folder_is_told_from_another_by_each_of_its_arrays(tmp_path, lists):
    """What else lies there does not matter; a file is told by its bytes."""
    folder = written(tmp_path, "folder with sims", *lists)
    first = ListsFile(folder).digest
    (folder / "notes.txt").write_text("mine")
    assert ListsFile(folder).digest == first
    np.save(folder / "sims.npy", lists[1] / 2)
    second = ListsFile(folder).digest
    np.save(folder / "ids.npy", lists[0][:, ::-1])
    third = ListsFile(folder).digest
    (folder / "sims.npy").unlink()
    assert len({first, second, third, ListsFile(folder).digest}) == 4
    alone = hashlib.sha256((folder / "ids.npy").read_bytes()).hexdigest()
    assert ListsFile(folder / "ids.npy").digest == alone
