"""Lists found on a GPU, by a stand-in that runs the kernels on the CPU, are those of the CPU, bit for bit."""

import sys

import cuda_on_cpu
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph import best_cuda, cell_search_cuda, cuda, products_cuda
from fcdeploy.graph.best_cuda import STREAMS, WIDEST, _cuts
from fcdeploy.graph.cell_search import CellSearch
from fcdeploy.graph.cell_search_cuda import TILED_PART, cells_on_device, pairs_on_device, parts_of, ranks_on
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.cuda import DeviceArrays
from fcdeploy.graph.knn import KnnSearch
from fcdeploy.graph.partition import make_cells
from fcdeploy.graph.search import Room, search_named

SMALL = 60_000  # bytes, too few for some
HALVES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=np.float32) - np.float32(0.5)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cuda_on_cpu.compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def cupy(library):
    with pytest.MonkeyPatch.context() as patch:
        fake = cuda_on_cpu.Cupy(library)
        patch.setattr(cell_search_cuda, "import_cupy", lambda: fake)
        patch.setattr(products_cuda, "import_cublas", lambda: fake.cublas)
        patch.setattr(cuda, "_modules", {})
        patch.setattr(best_cuda, "THREADS", 32)
        patch.setattr(cell_search_cuda, "THREADS", 32)
        patch.setattr(cell_search_cuda, "LEAST_ROOM", 1)
        yield fake


def unit_rows(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def people(n, d, kinds, spread, seed=0):
    """n faces of ``kinds`` people: unit rows around as many random points."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((kinds, d))
    return unit_rows(points[rng.integers(0, kinds, n)] + spread * rng.standard_normal((n, d)))


def faces_of(vectors):
    return np.arange(len(vectors), dtype=np.int32)


def in_cells(vectors, cells, k, cut, *, vram=1 << 26, faces=None):
    with cells_on_device(vectors, cells, k, vram) as search:
        search.cut = cut
        return search.search(faces_of(vectors) if faces is None else faces, k)


def assert_same(found, expected):
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1].view(np.int32), expected[1].view(np.int32))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 160),
    kinds=st.integers(1, 16),
    count=st.integers(1, 40),
    cut=st.integers(0, 1500),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_lists_of_hundreds_of_copies_are_those_of_the_cpu(cupy, n, kinds, count, cut, seed, data):
    """Faces of at most 16 rows, so that nearly every cut-off falls among equal scores."""
    vectors = HALVES[np.random.default_rng(seed).integers(0, kinds, n)]
    cells = make_cells(vectors, min(count, n))
    k = data.draw(st.integers(1, n))
    expected = CellSearch(vectors, cells, cut=cut).search(faces_of(vectors), k)
    assert_same(in_cells(vectors, cells, k, cut), expected)


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 200),
    d=st.sampled_from([1, 3, 8, 33, 64, 70]),
    count=st.integers(1, 40),
    cut=st.integers(0, 1500),
    seed=st.integers(0, 2**32 - 1),
    vram=st.sampled_from([SMALL, 4_000_000, 1 << 26]),
    data=st.data(),
)
def test_lists_of_any_faces_are_those_of_the_cpu(cupy, n, d, count, cut, seed, vram, data):
    """In any order, some asked for twice or not at all, and with little device memory."""
    vectors = people(n, d, 10, 0.6, seed)
    cells = make_cells(vectors, min(count, n))
    k = data.draw(st.integers(1, n))
    faces = np.random.default_rng(seed).integers(0, n, n).astype(np.int32)
    with cells_on_device(vectors, cells, k, vram) as search:
        if search is None:
            assert vram == SMALL
            return
        search.cut = cut
        found = search.search(faces, k)
    assert_same(found, CellSearch(vectors, cells, cut=cut).search(faces, k))


@pytest.fixture(scope="module")
def faces():
    """1,500 faces of 50 people, 150 of them one row, and their cells."""
    vectors = people(1500, 64, 50, 0.8)
    vectors[1000:1150] = vectors[7]
    return vectors, make_cells(vectors, 40)


@pytest.mark.parametrize("threads", [32, 128])
def test_lists_depend_neither_on_parts_nor_on_the_threads_of_a_block(cupy, faces, threads, monkeypatch):
    vectors, cells = faces
    monkeypatch.setattr(best_cuda, "THREADS", threads)
    monkeypatch.setattr(cell_search_cuda, "THREADS", threads)
    monkeypatch.setattr(cell_search_cuda, "PART", 217)
    asked = cells.order()[:600]
    expected = CellSearch(vectors, cells, cut=700).search(asked, 20)
    assert_same(in_cells(vectors, cells, 20, 700, faces=asked), expected)


def test_two_streams_do_all_blocks_of_a_search(cupy, faces, monkeypatch):
    """Each has parts of every block; what they let go is theirs, so that later blocks take no memory of others."""
    vectors, cells = faces
    monkeypatch.setattr(cell_search_cuda, "PART", 100)
    before = len(cupy.streams)
    with cells_on_device(vectors, cells, 20, 1 << 26) as search:
        search.cut = 700
        for start in (0, 300, 600):
            given = [stream.given for stream in cupy.streams[before:]]
            asked = cells.order()[start : start + 300]
            assert_same(search.search(asked, 20), CellSearch(vectors, cells, cut=700).search(asked, 20))
            assert all(stream.given > was for stream, was in zip(cupy.streams[before:], given, strict=True))
    assert len(cupy.streams) == before + 2


@pytest.mark.parametrize(("name", "part"), [("cells", cell_search_cuda.PART), ("exact", TILED_PART)])
def test_a_block_of_a_run_on_a_gpu_has_parts_for_both_streams(name, part):
    assert len(parts_of(search_named(name, 100).gpu_block, part)) >= 2 * STREAMS


def test_what_a_block_cannot_hold_at_once_is_dropped_on_the_way(cupy, faces, monkeypatch):
    """With room for 16 scores beside the best, buffers are full many times a row."""
    vectors, cells = faces
    monkeypatch.setattr(best_cuda, "ROUND", 16)
    asked = cells.order()[::10]
    expected = CellSearch(vectors, cells, cut=300).search(asked, 20)
    assert_same(in_cells(vectors, cells, 20, 300, faces=asked), expected)


def test_cells_that_keep_no_nearest_ones_give_the_same_lists(cupy, faces):
    vectors, cells = faces
    asked = faces_of(vectors)[:200]
    expected = CellSearch(vectors, cells, cut=700).search(asked, 20)
    assert_same(in_cells(vectors, Cells(cells.centroids, cells.cell), 20, 700, faces=asked), expected)


def test_vectors_that_do_not_fit_beside_the_codes_are_compared_on_the_cpu(cupy, faces):
    vectors, cells = faces
    of_a_part = 2 * 1500 * (8 * 52 + 4 * (52 + 64 + 32))
    vram = of_a_part + 2 * vectors.size + 4 * len(vectors) + vectors.nbytes // 2
    before = len(cupy.launches)
    asked = faces_of(vectors)[:100]
    found = in_cells(vectors, cells, 20, 700, vram=vram, faces=asked)
    assert_same(found, CellSearch(vectors, cells, cut=700).search(asked, 20))
    names = [name for name, *_ in cupy.launches[before:]]
    assert "keep_integers" in names
    assert "order_candidates" not in names


def test_vectors_stay_on_the_device_while_there_is_room_for_them(cupy, faces):
    vectors, cells = faces
    expected = CellSearch(vectors, cells, cut=700).search(faces_of(vectors)[:50], 20)
    resident = DeviceArrays(cupy, vectors.nbytes)

    def copied_for(vram):
        before = cuda.copied.there
        with cells_on_device(vectors, cells, 20, vram, resident) as search:
            search.cut = 700
            assert_same(search.search(faces_of(vectors)[:50], 20), expected)
        return cuda.copied.there - before

    first, second = copied_for(1 << 26), copied_for(1 << 26)
    assert first - second == vectors.nbytes
    assert resident.nbytes == vectors.nbytes
    # With room for the codes and either the vectors or scores, the vectors go.
    of_a_part = 2 * 1500 * (8 * 52 + 4 * (52 + 64 + 32))
    copied_for(of_a_part + 2 * vectors.size + 4 * len(vectors) + vectors.nbytes)
    assert resident.nbytes == 0


def test_without_room_for_the_codes_or_cupy_or_for_huge_lists_the_cpu_searches(cupy, faces, monkeypatch):
    vectors, cells = faces
    for k, vram in ((20, 2 * vectors.size), (WIDEST, 1 << 30)):
        with cells_on_device(vectors, cells, min(k, 1400), vram) as search:
            assert (search is None) == (k == 20)
    many = np.tile(vectors, (3, 1))
    with cells_on_device(many, make_cells(many, 5), WIDEST, 1 << 30) as search:
        assert search is None
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(cell_search_cuda, "import_cupy", cuda.import_cupy)
    with cells_on_device(vectors, cells, 20, 1 << 30) as search, pairs_on_device(vectors, 20, 0) as pairs:
        assert search is pairs is None
    with ranks_on(gpu=True) as ranks:
        assert ranks is None


def test_the_reach_is_that_of_the_cpu(cupy, faces):
    vectors, cells = faces
    with cells_on_device(vectors, cells, 20, 1 << 26) as search:
        for recall in (0.9, 0.98, 1.0):
            found = search.reach_for(20, recall, sample=150)
            assert found == CellSearch(vectors, cells).reach_for(20, recall, sample=150)
        assert 0 < found.cut < 1024
        with pytest.raises(InputError, match="recall: expected a share"):
            search.reach_for(20, 1.5)


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(2, 300),
    kinds=st.integers(1, 40),
    d=st.sampled_from([5, 12, 16]),
    count=st.integers(2, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_cells_are_those_of_the_cpu(cupy, n, kinds, d, count, seed):
    vectors = people(n, d, kinds, 0.3, seed)
    vectors = vectors[np.random.default_rng(seed).integers(0, n, n)]  # with copies
    expected = make_cells(vectors, min(count, n), nearest=5)
    with ranks_on(gpu=True) as ranks:
        found = make_cells(vectors, min(count, n), nearest=5, products=ranks)
    for part in ("centroids", "cell", "nearest"):
        assert np.array_equal(getattr(found, part), getattr(expected, part))


@pytest.mark.parametrize("d", [1, 33, 64])
def test_lists_of_all_pairs_are_those_of_the_cpu(cupy, d, monkeypatch):
    """Tiles of a few columns: the best of one are kept while the next are looked at."""
    monkeypatch.setattr(best_cuda, "TILE_ROWS", 90)
    vectors = people(400, d, 20, 0.7)
    asked = np.random.default_rng(0).integers(0, 400, 200).astype(np.int32)
    of_a_part = 2 * 400 * (8 * 44 + 4 * (44 + d + 32))
    for vram in (1 << 26, of_a_part + 4 * 400 * (d + 3) + 40_000):
        with pairs_on_device(vectors, 12, vram) as search:
            found = search.search(asked, 12)
        if d > 1:
            assert_same(found, KnnSearch(vectors).search(asked, 12))
        else:  # all similarities are 1 or -1: which faces become candidates is faiss's choice
            assert (found[1] == 1).all()


def test_codes_too_wide_for_eight_bits_are_exact_in_float16(cupy):
    """Rows of one sign add up the most: 127^2 d up to 1,040 components, less per component beyond."""
    for d in (1040, 1536):
        vectors = unit_rows(np.ones((60, d)) + 0.02 * np.random.default_rng(0).standard_normal((60, d)))
        cells = make_cells(vectors, 3)
        expected = CellSearch(vectors, cells, cut=0).search(faces_of(vectors), 9)
        assert_same(in_cells(vectors, cells, 9, 0), expected)


def test_a_run_on_a_gpu_searches_there_and_frees_the_memory(cupy, faces):
    vectors, cells = faces
    room = Room(memory=1 << 30, gpu=True)
    before = len(cupy.launches)
    asked = faces_of(vectors)[:50]
    for search in (search_named("cells", 1500), search_named("exact", 1500)):
        with search.open(vectors, cells, 20, room) as find:
            found = find(asked)
        with search.open(vectors, cells, 20, Room(memory=1 << 30)) as find:
            assert_same(found, find(asked))
    names = {name for name, *_ in cupy.launches[before:]}
    assert {"keep_integers", "keep_floats", "order_candidates", "cells_above"} <= names


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (cuda_on_cpu.OutOfMemoryError("no"), "the GPU memory is full; end other programs that use the GPU"),
        (cuda_on_cpu.CUDARuntimeError("cudaErrorIllegalAddress"), "CUDA failed .cudaErrorIllegalAddress"),
    ],
)
def test_a_device_that_fails_in_the_middle_is_told_in_a_sentence(cupy, faces, error, says, monkeypatch):
    vectors, cells = faces

    def fail_in_the_middle():
        with cells_on_device(vectors, cells, 20, 1 << 26) as search:
            search.cut = 700
            monkeypatch.setattr(cupy, "fails", error)
            search.search(faces_of(vectors)[:9], 20)

    with pytest.raises(FcdeployError, match=rf"neighbor search: {says}"):
        fail_in_the_middle()


@settings(max_examples=50, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50)), max_size=40), room=st.integers(1, 200)
)
def test_pairs_are_cut_between_rows_and_as_late_as_there_is_room(pairs, room):
    rows = np.sort(np.array([row for row, _ in pairs], dtype=np.int64))
    costs = np.array([cost for _, cost in pairs], dtype=np.int64)
    cuts = list(_cuts(rows, costs, room))
    assert [start for start, _ in cuts] == [0, *(stop for _, stop in cuts[:-1])][: len(cuts)]
    assert (cuts[-1][1] if cuts else 0) == len(rows)
    for start, stop in cuts:
        assert stop == len(rows) or rows[stop] != rows[stop - 1]
        assert costs[start:stop].sum() <= room or len(set(rows[start:stop].tolist())) == 1
        if stop < len(rows):  # the next row had no place
            following = rows == rows[stop]
            assert costs[start:stop].sum() + costs[following].sum() > room


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 250, 512])
def test_on_a_gpu_lists_and_cells_are_those_of_the_cpu(d):
    pytest.importorskip("cupy")
    vectors = people(20_000, d, 500, 0.8)
    vectors[1000:1300] = vectors[7]
    cells = make_cells(vectors, 200)
    with ranks_on(gpu=True) as ranks:
        again = make_cells(vectors, 200, products=ranks)
    assert np.array_equal(again.centroids, cells.centroids)
    assert np.array_equal(again.nearest, cells.nearest)
    expected = CellSearch(vectors, cells, cut=700).search(faces_of(vectors), 80)
    assert_same(in_cells(vectors, cells, 80, 700, vram=0), expected)
    assert_same(in_cells(vectors, cells, 80, 700, vram=200 << 20), expected)
    with cells_on_device(vectors, cells, 80, 0) as search:
        assert search.reach_for(80) == CellSearch(vectors, cells).reach_for(80)
    with pairs_on_device(vectors, 80, 0) as search:
        found = search.search(faces_of(vectors), 80)
    expected = KnnSearch(vectors).search(faces_of(vectors), 80)
    copies = np.zeros(len(vectors), bool)
    copies[[7, *range(1000, 1300)]] = True  # which of these become candidates is faiss's choice
    apart = ~copies[found[0]].any(axis=1) & ~copies
    assert apart.mean() > 0.9
    assert (found[0][apart] == expected[0][apart]).mean() > 0.9999
