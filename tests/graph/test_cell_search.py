"""Cells, candidates and lists equal those of NumPy with int64 scores, one face at a time, bit for bit."""

import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.errors import InputError
from fcdeploy.graph import cell_search
from fcdeploy.graph.cell_search import (
    FIRST,
    MOST_CUT,
    NEAREST,
    SPARE,
    CellSearch,
    reach_of,
    sampled_faces,
)
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.codes import EXACT, code_scale, codes_of_faces, codes_of_rows
from fcdeploy.graph.knn import KnnSearch, order_candidates
from fcdeploy.graph.partition import (
    FEW,
    FEW_ITERATIONS,
    ITERATIONS,
    NEAR,
    SAMPLE_PER_CELL,
    SEED,
    make_cells,
    nearest_cells,
    trained_centroids,
)
from fcdeploy.graph.products import INT8_UNITS, FloatProducts, Int8Products, quickest_products

try:
    import numkong
except ImportError:
    numkong = None
BOTH = [FloatProducts(), *([Int8Products()] if numkong else [])]
with_numkong = pytest.mark.skipif(numkong is None, reason="numkong is not installed")
HALVES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=np.float32) - np.float32(0.5)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def unit_rows(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def people(n, d, kinds, spread, seed=0):
    """n faces of ``kinds`` people: unit rows around as many random points."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((kinds, d))
    return unit_rows(points[rng.integers(0, kinds, n)] + spread * rng.standard_normal((n, d)))


def reference_codes(rows, scale):
    return np.clip(np.rint(rows * np.float32(scale.factor)), -scale.limit, scale.limit).astype(np.int64)


def ranked(scores):
    """Positions of all scores, the highest first, of equal ones the first."""
    return np.lexsort((np.arange(len(scores)), -scores))


def reference_lists(vectors, cells, cut, k):
    scale = code_scale(vectors)
    codes = reference_codes(vectors, scale)
    centroids = reference_codes(cells.centroids, scale)
    n, sizes = len(vectors), np.bincount(cells.cell, minlength=cells.count)
    wide = min(n, k + SPARE)
    most = max(NEAREST, FIRST + int(np.ceil(2 * wide * cells.count / n)))
    found = np.empty((n, wide), dtype=np.int32)
    for face in range(n):
        near = ranked(centroids @ codes[face])
        enough = np.cumsum(sizes[near]) >= wide
        count = min(max(FIRST, int(enough.argmax()) + 1), most)
        scores = np.sort(codes[np.isin(cells.cell, near[:count])] @ codes[face])[::-1]
        visited = np.ones(cells.count, dtype=bool)
        if len(scores) >= wide and cut:
            visited = 1024 * (centroids @ codes[face]) >= cut * max(scores[wide - 1], 0)
            visited[near[:count]] = True
        members = np.flatnonzero(visited[cells.cell])
        found[face] = members[ranked(codes[members] @ codes[face])][:wide]
    return order_candidates(vectors, found, np.arange(n, dtype=np.int32), k)


def reference_kmeans(codes, count, scale):
    def unit(sums):
        norms = np.sqrt((sums**2).sum(axis=1).astype(np.float64))
        norms[norms == 0] = 1
        return (sums / norms[:, None]).astype(np.float32)

    chosen = np.sort(np.random.default_rng(SEED).choice(len(codes), count, replace=False))
    centroids = unit(codes[chosen])
    every = codes
    for at in range(ITERATIONS):
        codes = every[::FEW] if at < FEW_ITERATIONS and len(every) >= FEW * count else every
        scores = codes @ reference_codes(centroids, scale).T
        if at <= FEW_ITERATIONS:
            near = np.stack([ranked(row)[:NEAR] for row in scores])
        among = np.full_like(scores, np.iinfo(np.int64).min)
        np.put_along_axis(among, near, np.take_along_axis(scores, near, axis=1), axis=1)
        cell = among.argmax(axis=1)
        sums = np.stack([codes[cell == one].sum(axis=0) for one in range(count)])
        sizes = np.bincount(cell, minlength=count)
        largest = iter(np.argsort(-sizes, kind="stable"))
        for one in range(count):
            if not sums[one].any():
                sums[one] = codes[np.flatnonzero(cell == next(largest))[0]]
        centroids = unit(sums)
    return centroids


def all_lists(vectors, cells, k, *, block=10**9, threads=1, order=None, **options):
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    search = CellSearch(vectors, cells, **options)
    n = len(vectors)
    order = cells.order() if order is None else order
    ids, sims = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32)
    for start in range(0, n, block):
        faces = order[start : start + block]
        ids[faces], sims[faces] = search.search(faces, k)
    return ids, sims


def assert_same(found, expected):
    assert np.array_equal(found[0], expected[0])
    assert np.array_equal(found[1], expected[1])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 250),
    kinds=st.integers(1, 16),
    count=st.integers(1, 60),
    cut=st.integers(0, 1500),
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(20, 250),
    threads=st.integers(1, 2),
    products=st.sampled_from(BOTH),
    data=st.data(),
)
def test_lists_of_hundreds_of_copies_are_those_of_the_reference(
    n, kinds, count, cut, seed, block, threads, products, data
):
    """Up to 250 faces of at most 16 rows, so that nearly every cut-off falls among equal scores."""
    vectors = HALVES[np.random.default_rng(seed).integers(0, kinds, n)]
    count = min(count, n)
    k = data.draw(st.integers(1, n))
    cells = make_cells(vectors, count, products=products)
    found = all_lists(vectors, cells, k, block=block, threads=threads, cut=cut, products=products)
    assert_same(found, reference_lists(vectors, cells, cut, k))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 400),
    d=st.sampled_from([1, 3, 8, 64, 70]),
    count=st.integers(1, 60),
    cut=st.integers(0, 1500),
    seed=st.integers(0, 2**32 - 1),
    block=st.integers(20, 400),
    threads=st.integers(1, 2),
    products=st.sampled_from(BOTH),
    data=st.data(),
)
def test_lists_of_any_faces_are_those_of_the_reference(
    n, d, count, cut, seed, block, threads, products, data
):
    vectors = people(n, d, 10, 0.6, seed)
    count = min(count, n)
    k = data.draw(st.integers(1, n))
    cells = make_cells(vectors, count, products=products)
    order = np.random.default_rng(seed).permutation(n).astype(np.int32)
    found = all_lists(
        vectors, cells, k, block=block, threads=threads, order=order, cut=cut, products=products
    )
    assert_same(found, reference_lists(vectors, cells, cut, k))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 300),
    kinds=st.integers(1, 40),
    count=st.integers(2, 20),
    threads=st.integers(1, 2),
    products=st.sampled_from(BOTH),
    seed=st.integers(0, 2**32 - 1),
)
def test_cells_are_those_of_the_reference(n, kinds, count, threads, products, seed):
    vectors = people(n, 12, kinds, 0.3, seed)
    vectors = vectors[np.random.default_rng(seed).integers(0, n, n)]  # with copies
    count = min(count, n)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    cells = make_cells(vectors, count, products=products, nearest=3)
    scale = code_scale(vectors)
    codes = reference_codes(vectors, scale)
    chosen = np.sort(np.random.default_rng(SEED).choice(n, min(n, SAMPLE_PER_CELL * count), replace=False))
    centroids = reference_kmeans(codes[chosen], count, scale)
    groups = int(np.sqrt(count))
    if groups > 1:
        own = reference_codes(centroids, scale)
        heads = reference_codes(reference_kmeans(own, groups, scale), scale)
        centroids = centroids[np.argsort((own @ heads.T).argmax(axis=1), kind="stable")]
    assert np.array_equal(cells.centroids, centroids)
    scores = codes @ reference_codes(centroids, scale).T
    nearest = np.stack([ranked(row)[:3] for row in scores])
    assert np.array_equal(cells.nearest, nearest)
    assert np.array_equal(cells.cell, nearest[:, 0])


@pytest.fixture(scope="module")
def faces():
    """4,000 faces of 150 people, 300 of them one row, and their cells and lists."""
    vectors = people(4000, 64, 150, 0.8)
    vectors[1000:1300] = vectors[7]
    cells = make_cells(vectors, 60)
    return vectors, cells, reference_lists(vectors, cells, 700, 20)


@pytest.mark.parametrize("products", BOTH, ids=lambda products: products.name)
@pytest.mark.parametrize(("block", "threads"), [(4000, 2), (512, 2), (1999, 1), (37, 1)])
def test_lists_do_not_depend_on_blocks_threads_or_products(faces, products, block, threads):
    vectors, cells, expected = faces
    again = make_cells(vectors, 60, products=products)
    assert np.array_equal(again.centroids, cells.centroids)
    assert np.array_equal(again.nearest, cells.nearest)
    assert_same(
        all_lists(vectors, cells, 20, block=block, threads=threads, cut=700, products=products), expected
    )


@with_numkong
def test_lists_do_not_depend_on_the_instructions_of_the_processor(faces):
    vectors, cells, expected = faces
    had = [name for name, there in numkong.get_capabilities().items() if there and name != "serial"]
    switched_off = []
    try:
        for name in reversed(had):
            numkong.disable_capability(name)
            switched_off.append(name)
            assert_same(all_lists(vectors, cells, 20, cut=700, products=Int8Products()), expected)
    finally:
        for name in switched_off:
            numkong.enable_capability(name)
    assert [name for name, there in numkong.get_capabilities().items() if there and name != "serial"] == had


@with_numkong
def test_without_int8_instructions_products_are_in_single_precision(monkeypatch):
    monkeypatch.setattr(numkong, "get_capabilities", lambda: {"serial": True, "haswell": True})
    assert quickest_products().name == "float32"
    monkeypatch.setattr(numkong, "get_capabilities", lambda: {INT8_UNITS[0]: True})
    assert quickest_products().name == "int8"


def test_without_numkong_products_are_in_single_precision(monkeypatch):
    monkeypatch.setitem(sys.modules, "numkong", None)
    assert quickest_products().name == "float32"


def test_codes_in_a_file_give_the_same_lists(faces, tmp_path):
    vectors, cells, expected = faces
    for products in BOTH:
        found = all_lists(
            vectors, cells, 20, block=2000, cut=700, products=products, lists_file=tmp_path / "codes"
        )
        assert_same(found, expected)
    assert (tmp_path / "codes").stat().st_size == vectors.size


def test_cells_that_keep_no_nearest_ones_give_the_same_lists(faces):
    vectors, cells, expected = faces
    assert_same(all_lists(vectors, Cells(cells.centroids, cells.cell), 20, cut=700), expected)


@pytest.mark.parametrize("d", [1040, 1041, 1536, 4096])
def test_scores_of_wide_rows_are_exact_in_single_precision(d):
    """Rows of one sign add up the most: limit^2 d."""
    vectors = unit_rows(np.ones((40, d)) + 1e-3 * np.random.default_rng(0).standard_normal((40, d)))
    scale = code_scale(vectors)
    codes = codes_of_rows(vectors, scale)
    assert np.array_equal(codes, reference_codes(vectors, scale))
    exact = codes.astype(np.int64) @ codes.T.astype(np.int64)
    assert 0.9 * EXACT < exact.max() <= EXACT
    assert scale.limit == (127 if d == 1040 else int((EXACT / d) ** 0.5))
    for products in BOTH:
        scores = np.empty(1600, dtype=products.scores)
        products.multiply(codes.astype(products.rows), products.packed(codes), scores)
        assert np.array_equal(scores.astype(np.int64).reshape(40, 40), exact)


def test_the_largest_component_in_ten_thousand_is_clipped():
    """39,999 components of 0.1 and one of 1: steps of 0.1 / 127."""
    vectors = np.full((1000, 40), 0.1, dtype=np.float32)
    vectors[3, 5] = 1
    scale = code_scale(vectors)
    assert scale.factor == pytest.approx(1270, rel=1e-6)
    codes = codes_of_faces(vectors, np.array([3, 4]), scale)
    assert (codes == 127).all()


@pytest.mark.parametrize("value", [0, 1])
def test_rows_of_zeros_and_single_faces_have_codes(value):
    vectors = np.full((1, 1), value, dtype=np.float32)
    assert codes_of_rows(vectors, code_scale(vectors)).tolist() == [[127 * value]]
    assert CellSearch(vectors, make_cells(vectors, 1)).search(np.zeros(1, np.int32), 1)[0].tolist() == [[0]]


def test_reaching_all_cells_gives_the_lists_of_all_pairs():
    """The 32 spare candidates make up for the precision of codes: the same lists as by faiss on all pairs."""
    vectors = people(3000, 64, 100, 0.8)
    cells = make_cells(vectors, 30)
    found = all_lists(vectors, cells, 20, cut=0, threads=2)
    expected = KnnSearch(vectors).search(np.arange(3000, dtype=np.int32), 20)
    assert_same(found, expected)


@pytest.mark.parametrize("cut", [0, 300])
def test_only_so_many_pairs_of_faces_and_cells_are_listed_at_once(faces, monkeypatch, cut):
    """However far faces look, as they do where a low cut lets hundreds of cells in: memory has a bound."""
    vectors, cells, _ = faces
    expected = all_lists(vectors, cells, 20, cut=cut)
    listed = []
    sort = cell_search.pairs_by_list

    def counted(lists, rows, count):
        listed.append(len(lists))
        return sort(lists, rows, count)

    monkeypatch.setattr(cell_search, "pairs_by_list", counted)
    monkeypatch.setattr(cell_search, "PAIRS", 5000)
    monkeypatch.setattr(cell_search, "TILE", 1)  # as with so many cells that a tile has no room for more rows
    first = len(vectors) * NEAREST  # cells that are near a face are listed as they are
    assert_same(all_lists(vectors, cells, 20, cut=cut), expected)
    assert cut or sum(listed) == len(vectors) * cells.count
    assert max(listed) <= max(first, 5000 + cell_search.LEAST_ROWS * cells.count)


def resident_bytes_of(path):
    """How much of a file that is mapped this process holds in memory."""
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0]:  # the line that begins a map
            own = words[-1] == str(path)
        elif own and words[0] == "Rss:":
            found += 1024 * int(words[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is resident")
def test_a_map_larger_than_memory_may_be_divided_and_searched(tmp_path):
    """What was read of it is let go of, by k-means, the assignment and the codes; cells and lists are the same."""
    vectors = people(150_000, 16, 2000, 0.3)
    file = tmp_path / "vectors.npy"
    np.save(file, vectors)
    mapped = np.load(file, mmap_mode="r")
    assert np.array_equal(mapped, vectors)
    assert resident_bytes_of(file) > 0.9 * vectors.nbytes
    cells = make_cells(mapped, 300)
    assert resident_bytes_of(file) < 0.1 * vectors.nbytes
    search = CellSearch(mapped, cells, cut=300, lists_file=tmp_path / "lists")
    assert resident_bytes_of(file) < 0.1 * vectors.nbytes
    expected = make_cells(vectors, 300)
    assert np.array_equal(cells.nearest, expected.nearest)
    assert np.array_equal(cells.centroids, expected.centroids)
    faces = np.arange(0, 150_000, 100)
    assert_same(search.search(faces, 10), CellSearch(vectors, expected, cut=300).search(faces, 10))


def test_the_reach_is_the_least_that_finds_the_share_asked_for():
    """Measured on all faces, as the sample: the true recall, but for neighbors that codes rank otherwise."""
    vectors = people(5000, 32, 60, 1.0)
    cells = make_cells(vectors, 60)
    search = CellSearch(vectors, cells)
    exact = KnnSearch(vectors).search(np.arange(5000, dtype=np.int32), 30)[0]

    def recall(cut):
        lists = all_lists(vectors, cells, 30, cut=cut, threads=2)[0]
        return np.mean(
            [len(set(a) & set(b)) / 30 for a, b in zip(lists.tolist(), exact.tolist(), strict=True)]
        )

    before = MOST_CUT
    for wanted in (0.98, 0.99, 0.995):
        reach = search.reach_for(30, wanted, sample=5000)
        assert reach.recall >= wanted
        assert 0 < reach.cut < before
        before = reach.cut
        assert recall(reach.cut) == pytest.approx(reach.recall, abs=0.002)
        assert recall(reach.cut + 1) < wanted + 0.002
    assert search.reach_for(30, 1.0).recall == 1
    assert search.reach_for(30, 0.9) == CellSearch(vectors, cells, products=BOTH[-1]).reach_for(30, 0.9)


def test_the_default_cut_is_that_of_the_default_recall():
    vectors = people(5000, 32, 60, 0.8)
    cells = make_cells(vectors, 60)
    search = CellSearch(vectors, cells)
    search.search(np.arange(10, dtype=np.int32), 20)
    assert search.cut == search.reach_for(20).cut
    assert CellSearch(vectors, cells, cut=100).cut == 100


def test_how_far_a_face_must_look_does_not_depend_on_which_faces_share_the_call():
    """Workers each look at a part of the sample."""
    vectors = people(5000, 32, 60, 0.8)
    search = CellSearch(vectors, make_cells(vectors, 60))
    faces = sampled_faces(5000, 300)
    whole = search.cuts_for(faces, 20)
    assert whole.shape == (300, 20)
    parts = [search.cuts_for(part, 20) for part in np.split(faces, [1, 90, 200])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert reach_of(whole, 0.97) == search.reach_for(20, 0.97, sample=300)


@pytest.mark.parametrize("recall", [0, -1, 1.5, float("nan")])
def test_a_recall_that_is_no_share_is_refused(recall):
    vectors = people(50, 8, 5, 0.5)
    with pytest.raises(InputError, match="recall: expected a share"):
        CellSearch(vectors, make_cells(vectors, 2)).reach_for(5, recall)


def test_lists_of_more_faces_than_the_cells_hold_are_complete():
    """2,000 faces in 100 cells, two of them reached: k = 900 is far more than these hold."""
    vectors = people(2000, 16, 40, 0.3)
    cells = make_cells(vectors, 100)
    ids, sims = all_lists(vectors, cells, 900, cut=2000, threads=2)
    assert np.array_equal(ids[:, 0], np.arange(2000))
    assert (np.diff(np.sort(ids, axis=1), axis=1) > 0).all()
    assert (np.diff(sims[:, 1:], axis=1) <= 0).all()


def test_similar_cells_are_side_by_side():
    """Of 90 cells in nine groups of people, neighbors in number are nearer than any two."""
    rng = np.random.default_rng(0)
    groups = rng.standard_normal((9, 32))
    points = np.repeat(groups, 10, axis=0) + 0.5 * rng.standard_normal((90, 32))
    vectors = unit_rows(np.repeat(points, 50, axis=0) + 0.2 * rng.standard_normal((4500, 32)))
    centroids = make_cells(vectors, 90).centroids
    similar = centroids @ centroids.T
    assert np.diagonal(similar, 1).mean() > similar.mean() + 0.3


def test_nearest_cells_are_those_of_highest_score():
    vectors = people(500, 16, 20, 0.5)
    scale = code_scale(vectors)
    centroids = trained_centroids(vectors, 20, scale, BOTH[0])
    found = nearest_cells(vectors, centroids, 20, scale, BOTH[0])
    scores = reference_codes(vectors, scale) @ reference_codes(centroids, scale).T
    assert np.array_equal(found, np.stack([ranked(row) for row in scores]))
