import faiss
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import inner_products_in_lanes

from fcdeploy.graph.cells import ONE_CELL, Cells, cell_count
from fcdeploy.graph.knn import (
    PROBES,
    SPARE,
    KnnSearch,
    order_candidates,
    similarities_of_lists,
)
from fcdeploy.graph.partition import make_cells

HALVES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=np.float32) - np.float32(0.5)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = faiss.omp_get_max_threads(), numba.get_num_threads()
    yield
    faiss.omp_set_num_threads(before[0])
    numba.set_num_threads(before[1])


def unit_rows(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def people(n, d, kinds, spread, seed=0):
    """n faces of ``kinds`` people: unit rows around as many random points."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((kinds, d))
    return unit_rows(points[rng.integers(0, kinds, n)] + spread * rng.standard_normal((n, d)))


def cells_of(vectors, count):
    return make_cells(vectors, count)


def all_lists(vectors, k, *, cells=None, block=10**9, threads=1, order=None, lists_file=None):
    """Search for all faces, ``block`` of them a call, in ``order``."""
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    faiss.omp_set_num_threads(threads)
    search = KnnSearch(vectors, cells, lists_file=lists_file)
    n = len(vectors)
    order = np.arange(n, dtype=np.int32) if order is None else order
    ids, sims = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32)
    for start in range(0, n, block):
        faces = order[start : start + block]
        ids[faces], sims[faces] = search.search(faces, k)
    return ids, sims


def by_definition(vectors, k):
    """The face itself, then all others by similarity, equal ones by id."""
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    n = len(vectors)
    ids = [sorted(range(n), key=lambda j, i=i: (j != i, -cosines[i, j], j))[:k] for i in range(n)]
    return np.array(ids), np.take_along_axis(cosines, np.array(ids), axis=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
def test_exact_lists_are_those_of_all_pairs_with_ties_by_id_in_any_blocks(n, kinds, seed, block, data):
    """Vectors of halves: many duplicates and ties, and every cosine is exact in float32.

    All faces are candidates, so that nothing but id decides ties.
    """
    vectors = HALVES[np.random.default_rng(seed).integers(0, kinds, n)]
    k = data.draw(st.integers(max(1, n - SPARE), n))
    ids, sims = all_lists(vectors, k, block=block)
    expected_ids, expected_sims = by_definition(vectors, k)
    assert np.array_equal(ids, expected_ids)
    assert np.array_equal(sims, expected_sims)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1), st.integers(1, 60), st.data())
def test_exact_lists_of_any_k_are_those_of_all_pairs(n, seed, block, data):
    vectors = unit_rows(np.random.default_rng(seed).standard_normal((n, 8)))
    k = data.draw(st.integers(1, n))
    ids, sims = all_lists(vectors, k, block=block)
    expected_ids, expected_sims = by_definition(vectors, k)
    assert np.array_equal(ids, expected_ids)
    assert np.abs(sims - expected_sims).max() < 1e-6


def test_exact_lists_of_3000_faces_are_those_of_all_pairs():
    """Float32 sums of 64 products are within 1e-6 of the true cosine; nearer neighbors may change places."""
    vectors = people(3000, 64, 150, 1.0)
    ids, sims = all_lists(vectors, 20, threads=2)
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    assert np.array_equal(ids[:, 0], np.arange(3000))
    assert np.abs(sims - np.take_along_axis(cosines, ids, axis=1)).max() < 1e-6
    assert (np.diff(sims[:, 1:], axis=1) <= 0).all()
    np.put_along_axis(cosines, ids, -2, axis=1)
    assert (cosines.max(axis=1) <= sims[:, -1] + 1e-6).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())


@pytest.mark.parametrize("cells", [None, 50], ids=["exact", "ivf"])
def test_lists_are_the_same_bit_for_bit_whatever_block_threads_and_order(cells):
    """faiss cuts by blocks and threads, and switches to another kernel below 20 queries."""
    vectors = people(2000, 48, 100, 0.9)
    cells = cells and cells_of(vectors, cells)
    ids, sims = all_lists(vectors, 20, cells=cells)
    mixed = np.random.default_rng(0).permutation(2000).astype(np.int32)
    for block, threads, order in [
        (2000, 2, None),
        (1999, 1, mixed),
        (512, 2, mixed),
        (20, 1, None),
        (19, 2, mixed),
        (7, 1, None),
    ]:
        again = all_lists(vectors, 20, cells=cells, block=block, threads=threads, order=order)
        assert np.array_equal(again[0], ids), (block, threads)
        assert np.array_equal(again[1], sims), (block, threads)


def test_duplicates_share_their_lists_and_come_by_id():
    """300 faces, four of each: a face's list is itself, then its three copies by id, all of similarity 1."""
    vectors = np.tile(unit_rows(np.random.default_rng(3).standard_normal((75, 32))), (4, 1))
    ids, sims = all_lists(vectors, 4, block=64)
    for face in range(300):
        copies = [face % 75 + 75 * at for at in range(4)]
        assert ids[face].tolist() == [face, *[j for j in copies if j != face]]
    assert np.allclose(sims, 1, atol=1e-6)
    assert (sims[:, 1:] == sims[:, 1:2]).all()


def test_with_more_copies_than_candidates_lists_are_still_of_copies_the_face_itself_first():
    """100 copies of each of ten faces, k = 20: which copies is not the claim here, only that they are distinct."""
    kinds = unit_rows(np.random.default_rng(4).standard_normal((10, 32)))
    ids, sims = all_lists(np.tile(kinds, (100, 1)), 20, block=300)
    assert np.array_equal(ids[:, 0], np.arange(1000))
    assert (ids % 10 == np.arange(1000)[:, None] % 10).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())
    assert np.allclose(sims, 1, atol=1e-6)


def test_with_more_copies_than_candidates_the_similarities_do_not_depend_on_the_block():
    """Which copies are listed is then faiss's choice; how similar they are is not."""
    kinds = unit_rows(np.random.default_rng(4).standard_normal((20, 64)))
    vectors = kinds[np.random.default_rng(5).integers(0, 20, 2000)]
    ids, sims = all_lists(vectors, 20)
    assert np.array_equal(ids[:, 0], np.arange(2000))
    assert np.array_equal(vectors[ids], np.repeat(vectors[:, None], 20, axis=1))
    assert np.array_equal(all_lists(vectors, 20, block=100)[1], sims)


@pytest.mark.parametrize("cells", [None, 1, 5], ids=["exact", "one cell", "five cells"])
@pytest.mark.parametrize("n", [1, 2, 39, 100])
def test_k_may_be_all_faces(cells, n):
    vectors = people(n, 16, 5, 0.5)
    ids, sims = all_lists(vectors, n, cells=cells and cells_of(vectors, min(cells, n)))
    assert np.array_equal(np.sort(ids, axis=1), np.tile(np.arange(n), (n, 1)))
    assert np.array_equal(ids[:, 0], np.arange(n))
    assert (np.diff(sims[:, 1:], axis=1) <= 0).all()


def test_ivf_gives_k_distinct_faces_even_when_the_probed_cells_hold_fewer():
    """3,000 faces in 200 cells, 32 of them probed: k = 900 is more than these hold for most queries."""
    vectors = people(3000, 16, 40, 0.3)
    assert 3000 * PROBES / 200 < 900
    ids, sims = all_lists(vectors, 900, cells=cells_of(vectors, 200), threads=2)
    assert np.array_equal(ids[:, 0], np.arange(3000))
    assert ids.min() >= 0
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    assert (np.diff(sims[:, 1:], axis=1) <= 0).all()


def test_ivf_finds_nine_of_ten_neighbors_of_clustered_faces():
    vectors = people(8000, 64, 300, 0.8)
    ids, _ = all_lists(vectors, 20, cells=cells_of(vectors, cell_count(8000)), threads=2)
    exact, _ = all_lists(vectors, 20, threads=2)
    common = sum(len(set(a) & set(b)) for a, b in zip(ids.tolist(), exact.tolist(), strict=True))
    assert common / exact.size > 0.9
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()


def test_an_index_in_a_file_gives_the_same_lists(tmp_path):
    vectors = people(2000, 32, 100, 0.9)
    cells = cells_of(vectors, 100)
    expected = all_lists(vectors, 10, cells=cells)
    found = all_lists(vectors, 10, cells=cells, lists_file=tmp_path / "index")
    assert (tmp_path / "index").stat().st_size >= vectors.nbytes // 2
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


def test_every_face_is_in_the_cell_of_its_most_similar_centroid():
    """Up to the rounding of codes, by which faces and centroids are compared: some 1/127 of the largest entry."""
    vectors = people(3000, 24, 60, 0.9)
    cells = cells_of(vectors, 40)
    similar = vectors @ cells.centroids.T
    assert cells.centroids.shape == (40, 24)
    assert np.allclose(np.linalg.norm(cells.centroids, axis=1), 1, atol=1e-5)
    assert (similar[np.arange(3000), cells.cell] >= similar.max(axis=1) - 0.01).all()
    again = cells_of(vectors, 40)
    assert np.array_equal(again.centroids, cells.centroids)
    assert np.array_equal(again.cell, cells.cell)


def test_the_order_of_cells_is_by_cell_then_by_id():
    cells = Cells(np.eye(3, dtype=np.float32), np.array([2, 0, 1, 0, 2], dtype=np.int32))
    assert cells.order().tolist() == [1, 3, 2, 0, 4]
    assert cells.order().dtype == np.int32


def test_few_faces_are_one_cell():
    assert cell_count(1) == cell_count(ONE_CELL) == 1
    assert cell_count(584_013) == 3056  # 4 * 764.2
    assert cell_count(584_013, 6) == 4585
    assert cell_count(5_210_000) == 27_135  # of 192 faces


def test_similarities_of_lists_are_those_of_the_search_bit_for_bit():
    """An ids-only file of our own lists gives the run that the search gives."""
    vectors = people(200, 48, 20, 0.9)
    ids, sims = all_lists(vectors, 10)
    faces = np.random.default_rng(0).permutation(200).astype(np.int32)
    for block in np.split(faces, [33, 150]):
        assert np.array_equal(similarities_of_lists(vectors, ids[block], block), sims[block])


def test_candidates_in_any_order_give_the_same_lists():
    vectors = HALVES[np.random.default_rng(0).integers(0, 16, 50)]
    found = np.tile(np.arange(50), (20, 1))
    faces = np.arange(30, 50, dtype=np.int32)
    ids, sims = order_candidates(vectors, found, faces, 50)
    rng = np.random.default_rng(1)
    shuffled = np.stack([rng.permutation(row) for row in found])
    again = order_candidates(vectors, shuffled, faces, 50)
    assert np.array_equal(again[0], ids)
    assert np.array_equal(again[1], sims)
    assert np.array_equal(ids, by_definition(vectors, 50)[0][30:])


def test_a_face_that_was_not_among_its_own_candidates_still_comes_first():
    vectors = HALVES[[0, 0, 0, 1]]
    ids, sims = order_candidates(vectors, np.array([[1, 3]]), np.zeros(1, np.int32), 2)
    assert ids.tolist() == [[0, 1]]
    assert sims.tolist() == [[1, 1]]


@pytest.mark.parametrize("d", [1, 2, 31, 32, 33, 70, 256])
def test_similarities_are_added_up_in_one_order_on_every_processor(d):
    """32 lanes of sums, then pairs of them: to the bit what NumPy gives, one operation at a time."""
    rng = np.random.default_rng(d)
    vectors = rng.standard_normal((50, d)).astype(np.float32)
    ids = rng.integers(0, 50, (20, 9)).astype(np.int32)
    faces = rng.integers(0, 50, 20).astype(np.int32)
    found = similarities_of_lists(vectors, ids, faces)
    expected = inner_products_in_lanes(vectors[faces][:, None], vectors[ids])
    assert np.array_equal(found.view(np.int32), expected.view(np.int32))
