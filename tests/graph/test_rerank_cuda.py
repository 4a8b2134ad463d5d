"""Re-ranking by the CUDA kernels, run on the CPU, gives the lists of the numba kernels, bit for bit."""

import sys

import cuda_on_cpu
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph import cuda, rerank_cuda
from fcdeploy.graph.marks import new_counters
from fcdeploy.graph.rerank import largest_set, rank_candidates, sets_and_holders
from fcdeploy.graph.rerank_cuda import (
    DeviceRanking,
    HostRanking,
    expanding_bytes,
    ranking_on_device,
    reranks_on_device,
)

HALVES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=np.float32) - np.float32(0.5)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return cuda_on_cpu.compile_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def cupy(library):
    with pytest.MonkeyPatch.context() as patch:
        fake = cuda_on_cpu.Cupy(library)
        patch.setattr(rerank_cuda, "import_cupy", lambda: fake)
        patch.setattr(cuda, "_modules", {})
        patch.setattr(rerank_cuda, "THREADS", 64)
        yield fake


@st.composite
def list_sets(draw):
    """Lists (n, k) by face, similarities, vectors and an order of the faces: nearest neighbors, or any.

    Vectors are drawn from 16 points, or lie around a few: similarities tie in the one case and differ in the other.
    """
    n = draw(st.integers(1, 40))
    k = draw(st.integers(1, n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        vectors = HALVES[rng.integers(0, draw(st.integers(1, 16)), n)]
    else:
        vectors = rng.standard_normal((4, 37))[rng.integers(0, 4, n)] + 0.7 * rng.standard_normal((n, 37))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors @ vectors.T
    if draw(st.booleans()):
        ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32)
    else:
        ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    return ids, np.take_along_axis(cosines, ids, axis=1), vectors, rng.permutation(n).astype(np.int32)


def on_the_cpu(lists, sims, vectors, order, place):
    """Marks, counts, members, and re-ranked lists and overlaps, all by place."""
    ids, places = place[lists[order]], np.arange(len(lists), dtype=np.int32)
    sets, holders = sets_and_holders(ids)
    counters = new_counters(len(lists), largest_set(lists.shape[1]))
    _, counts, members = sets
    return (
        counts,
        members,
        *rank_candidates(ids, sims[order], vectors, order, sets, holders, places, counters),
    )


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs)


def compare(lists, sims, vectors, order):
    """Re-rank in two blocks; sets are compared as they are kept."""
    n, k = lists.shape
    place = np.argsort(order).astype(np.int32)
    counts, members, *expected = on_the_cpu(lists, sims, vectors, order, place)
    with ranking_on_device(lists, k, order, place, vectors, 0) as ranking:
        assert isinstance(ranking, DeviceRanking)
        assert_same((ranking.counts.get(), ranking.members.get()), (counts, members))
        parts = np.array_split(np.arange(n, dtype=np.int32), 2)
        found = [ranking.rank(part, sims[order][part]) for part in parts]
    assert_same([np.concatenate(part) for part in zip(*found, strict=True)], expected)


@settings(max_examples=40, deadline=None)
@given(list_sets())
def test_sets_ranked_lists_and_ties_are_those_of_the_cpu(cupy, case):
    compare(*case)


@pytest.mark.parametrize("k", [6, 24, 25, 41])
def test_second_neighbors_and_halves_are_told_apart(cupy, k):
    """150 faces around 12 points: lists of 41 leave most faces out, so that second neighbors bring new ones."""
    rng = np.random.default_rng(k)
    points = rng.standard_normal((12, 8))
    vectors = points[rng.integers(0, 12, 150)] + 0.8 * rng.standard_normal((150, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors @ vectors.T
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32)
    compare(ids, np.take_along_axis(cosines, ids, axis=1), vectors, rng.permutation(150).astype(np.int32))


def test_lists_longer_than_k_and_parts_of_the_faces(cupy, monkeypatch):
    monkeypatch.setattr(rerank_cuda, "CHUNK", 7)
    rng = np.random.default_rng(0)
    vectors = HALVES[rng.integers(0, 16, 60)]
    lists = np.stack([rng.permutation(60)[:20] for _ in range(60)]).astype(np.int32)
    order = rng.permutation(60).astype(np.int32)
    place = np.argsort(order).astype(np.int32)
    sims = rng.uniform(0, 1, (60, 20)).astype(np.float32)
    *_, ids, overlaps = on_the_cpu(lists[:, :9], sims[:, :9], vectors, order, place)
    with ranking_on_device(lists, 9, order, place, vectors, 0) as ranking:
        some = np.array([5, 59, 0], dtype=np.int32)
        assert_same(ranking.rank(some, sims[order][some][:, :9]), (ids[some], overlaps[some]))


def test_sets_that_do_not_fit_after_all_are_ranked_on_the_cpu(cupy, monkeypatch):
    monkeypatch.setattr(rerank_cuda, "MOST_MEMBERS", 3)
    rng = np.random.default_rng(0)
    vectors = HALVES[rng.integers(0, 16, 30)]
    lists = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :8].astype(np.int32)
    sims, order = np.ones((30, 8), np.float32), rng.permutation(30).astype(np.int32)
    place = np.argsort(order).astype(np.int32)
    with ranking_on_device(lists, 8, order, place, vectors, 0) as ranking:
        assert isinstance(ranking, HostRanking)
        found = ranking.rank(np.arange(30, dtype=np.int32), sims)
    assert_same(found, on_the_cpu(lists, sims, vectors, order, place)[2:])


def test_lists_are_re_ranked_on_a_gpu_where_they_fit_into_it(cupy, monkeypatch):
    assert reranks_on_device(584_000, 80, 256, gpu=True, vram=3 << 30)
    assert not reranks_on_device(584_000, 80, 256, gpu=True, vram=1 << 30)
    assert not reranks_on_device(100, 8, 16, gpu=False, vram=1 << 30)
    assert expanding_bytes(80) < 48 << 10 < expanding_bytes(120)
    assert not reranks_on_device(100, 120, 16, gpu=True, vram=1 << 30)
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(rerank_cuda, "import_cupy", cuda.import_cupy)
    assert not reranks_on_device(100, 8, 16, gpu=True, vram=1 << 30)


@pytest.mark.gpu
def test_on_a_gpu_re_ranked_lists_are_those_of_the_cpu():
    pytest.importorskip("cupy")
    rng = np.random.default_rng(1)
    points = rng.standard_normal((60, 64))
    vectors = points[rng.integers(0, 60, 6000)] + 0.9 * rng.standard_normal((6000, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors @ vectors.T
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :80].astype(np.int32)
    compare(ids, np.take_along_axis(cosines, ids, axis=1), vectors, rng.permutation(6000).astype(np.int32))
