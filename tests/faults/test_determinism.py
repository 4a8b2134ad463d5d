"""The same input gives the same labels: over runs, threads, blocks and memory, and as plain Python gives them."""

from typing import Any

import numpy as np
import oracles
import oracles_gcn_d
import oracles_lgcn
import oracles_nsr
import oracles_propagation
import oracles_sepfl
import oracles_ve_gcn
import pytest
from small_blocks import set_blocks
from system_cases import CASES

import fcdeploy
from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.propagation import pool_links, propagate
from fcdeploy.engine.bundle import Bundle
from fcdeploy.graph.connectivity import (
    candidates_and_certain,
    density_from_scores,
    symmetric_scores,
    weighted_largest,
)
from fcdeploy.graph.density import (
    density_from_sums,
    density_from_sums_and_counts,
    sum_and_count_similarities,
    sum_similarities,
)
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.pairs import similar_pairs
from fcdeploy.graph.subgraphs import gather_subgraphs, own_positions
from fcdeploy.systems import NAMES
from fcdeploy.systems.gcn_d.decode import labels_from_scores
from fcdeploy.systems.gcn_d.inputs import Proposals
from fcdeploy.systems.gcn_d.spec import Recipe
from fcdeploy.systems.ve_gcn.decode import best_candidates
from fcdeploy.systems.ve_gcn.edges import edges_of_lists
from fcdeploy.systems.ve_gcn.inputs import candidates_of, graphs_among, ignored_faces

Lists = tuple[np.ndarray, np.ndarray]


def random_lists(rng: np.random.Generator, most: int = 40) -> Lists:
    """Lists of a few faces: the face itself first, then others by similarity; ids and sims (n, k).

    Similarities are multiples of 1/64: many are equal, and every sum of them is exact, in whatever order.
    """
    n = int(rng.integers(6, most))
    k = int(rng.integers(4, min(n, 12) + 1))
    dense = rng.integers(0, 65, (n, n)) / 64
    dense = np.maximum(dense, dense.T)
    np.fill_diagonal(dense, 2)
    ids = np.argsort(-dense, axis=1, kind="stable")[:, :k]
    sims = np.minimum(np.take_along_axis(dense, ids, axis=1), 1)
    return ids.astype(np.int32), sims.astype(np.float32)


def labels_of(n: int, a: np.ndarray, b: np.ndarray) -> list[int]:
    forest = new_forest(n)
    join(forest, np.ascontiguousarray(a), np.ascontiguousarray(b))
    return labels_from_forest(forest).tolist()


def check_pse_gcn(rng: np.random.Generator) -> None:
    """Density, nearest denser face, threshold, components."""
    ids, sims = random_lists(rng)
    n, tau = len(ids), np.float32(rng.integers(0, 65) / 64)
    sums = np.empty(n, np.float32)
    sum_similarities(sims, sums)
    denser, to = link_to_denser(ids, sims, density_from_sums(sums), 0)
    kept = np.flatnonzero((denser != NO_LINK) & (to >= tau))
    found = oracles.link_to_denser(ids, sims, oracles.density(sims))
    links = [(face, link[0]) for face, link in enumerate(found) if link and link[1] >= tau]
    assert labels_of(n, kept, denser[kept]) == oracles.components(n, links)


def check_sepfl(rng: np.random.Generator) -> None:
    """The density of two halves, and links that a network accepts or refuses."""
    ids, sims = random_lists(rng)
    n, rho = len(ids), float(rng.integers(0, 65) / 64)
    sums, counts = np.empty(n, np.float32), np.empty(n, np.int32)
    sum_and_count_similarities(sims, rho, sums, counts)
    accepted = rng.random(n) < 0.6
    denser, _ = link_to_denser(ids, sims, density_from_sums_and_counts(sums, counts), 0)
    kept = np.flatnonzero((denser != NO_LINK) & accepted)
    if not counts.any():  # undefined by the publication
        return
    found = oracles.link_to_denser(ids, sims, oracles_sepfl.density(sims, rho))
    links = [(face, link[0]) for face, link in enumerate(found) if link and accepted[face]]
    assert labels_of(n, kept, denser[kept]) == oracles.components(n, links)


def check_l_gcn(rng: np.random.Generator) -> None:
    """Sub-graphs of every face, and propagation of random scores on all links."""
    ids, _ = random_lists(rng)
    n, k = ids.shape
    one, two, active = int(rng.integers(1, k)), int(rng.integers(0, k)), int(rng.integers(1, k))
    own = own_positions(ids, np.arange(n, dtype=np.int32))
    graphs = gather_subgraphs(ids, own, np.arange(n, dtype=np.int32), (one, two), active)
    for centre in range(n):
        one_hop, faces, _ = oracles_lgcn.subgraph(ids, centre, (one, two), active)
        held = set(graphs.faces[centre, : graphs.within[centre, 3]].tolist())
        assert graphs.faces[centre, : graphs.within[centre, 0]].tolist() == one_hop
        assert held <= faces  # those too far from the one-hop neighbors to matter are left out
    links = np.array([(i, j) for i in range(n) for j in ids[i].tolist() if j != i])
    scores = (rng.integers(0, 65, len(links)) / 64).astype(np.float32)
    size, step = int(rng.integers(1, n)), float(rng.choice([0.25, 0.5]))
    labels = propagate(
        n,
        *pool_links(links[:, 0].astype(np.int32), links[:, 1].astype(np.int32), scores, "max"),
        max_size=size,
        step=step,
        max_rounds=5,
        threshold=float(scores.min()),
    )
    table = oracles_propagation.pooled(links.tolist(), scores.tolist(), "max")
    assert oracles.partition(labels) == oracles_propagation.propagated(
        table, float(scores.min()), size, step, max_rounds=5
    )


def check_gcn_d(rng: np.random.Generator) -> None:
    """Pairs at a threshold, and faces given to the best of overlapping proposals."""
    ids, sims = random_lists(rng)
    n, k = ids.shape
    threshold = float(rng.integers(0, 65) / 64)
    a, b, near = similar_pairs(ids, sims, k, threshold)
    wanted = oracles_gcn_d.similar_pairs(ids, sims, k, threshold)
    assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), near.tolist(), strict=True)) == {
        pair: pytest.approx(sim) for pair, sim in wanted.items()
    }
    count = int(rng.integers(1, 15))
    members = [np.sort(rng.choice(n, int(rng.integers(1, n)), replace=False)) for _ in range(count)]
    offsets = np.concatenate([[0], np.cumsum([len(m) for m in members])]).astype(np.int64)
    nodes = np.concatenate(members).astype(np.int32)
    proposals = Proposals(offsets, nodes, np.full(count, k, np.int32), np.zeros(count, np.int32))
    scores = (rng.integers(0, 9, count) / 8).astype(np.float32)
    recipe = Recipe()
    labels = labels_from_scores(n, proposals, scores, None, recipe, "singleton")
    order = sorted(range(count), key=lambda p: -scores[p])
    ranked = [set(members[p].tolist()) for p in order if scores[p] > recipe.overlap.min_score]
    kept = [ranked[at] for at in oracles_gcn_d.suppress(ranked, recipe.overlap.max_iou)]
    owner = oracles_gcn_d.owner_of_faces(n, kept)
    alone = iter(range(len(kept), len(kept) + n))
    assert oracles.partition(labels) == oracles.partition([at if at >= 0 else next(alone) for at in owner])


def check_nsr_fc(rng: np.random.Generator) -> None:
    """Symmetric scores, candidates and certain links, and what is confirmed of them."""
    ids, sims = random_lists(rng)
    n, k = ids.shape
    scores = (rng.integers(0, 17, (n, k)) / 16).astype(np.float32)
    weights = np.array([0.25, 0.25, 0.5])
    faces = np.arange(n, dtype=np.int32)
    means = symmetric_scores(ids, scores, faces)
    density = density_from_scores(means, sims)
    threshold = float(weighted_largest(sims, weights).mean())
    denser, marked = candidates_and_certain(ids, means * sims, density, threshold)
    row, at = np.nonzero(marked)
    certain = {tuple(sorted((int(i), int(ids[i, p])))) for i, p in zip(row, at, strict=True)}
    theirs = oracles_nsr.pair_links(ids, sims, scores, weights.tolist())
    assert density.tolist() == pytest.approx(theirs[0].tolist(), abs=1e-12)
    assert {i: int(j) for i, j in enumerate(denser) if j != NO_LINK} == theirs[1]
    if abs(threshold - theirs[3]) < 1e-12:
        assert certain == theirs[2]
    confirmed = rng.random(n) < 0.5
    kept = np.flatnonzero((denser != NO_LINK) & confirmed)
    links = [(i, j) for i, j in theirs[1].items() if confirmed[i]]
    assert labels_of(n, kept, denser[kept]) == oracles.components(n, links)


def check_ve_gcn(rng: np.random.Generator) -> None:
    """The graph of the lists, candidates and the graph among them, and links that a network chooses."""
    ids, sims = random_lists(rng)
    n, k = ids.shape
    th_sim, tau, ratio = float(rng.integers(0, 65) / 64), float(rng.integers(0, 65) / 64), rng.random()
    faces = np.arange(n, dtype=np.int32)
    confidence = (rng.integers(0, 17, n) / 16).astype(np.float32)
    scores = rng.integers(0, 5, (n, n)).astype(np.float32)  # of a link; many are equal
    edges = edges_of_lists(ids, sims, k, th_sim)
    graph = oracles_ve_gcn.similarity_graph(ids, sims, k, th_sim)
    candidates = candidates_of(ids, confidence, faces)
    graphs = graphs_among(edges, candidates)
    for i in range(n):
        row = slice(edges.starts[i], edges.starts[i] + edges.counts[i])
        assert np.array_equal(edges.sims[row], graph[i][edges.ids[row]])
        assert np.flatnonzero(graph[i]).tolist() == [j for j in edges.ids[row].tolist() if graph[i, j]]
        members = candidates.faces[candidates.starts[i] : candidates.starts[i + 1]]
        assert members.tolist() == oracles_ve_gcn.higher(ids[i], confidence, i)
        among = graphs.shares[graphs.offsets[i] : graphs.offsets[i + 1]]
        wanted = oracles_ve_gcn.row_normalised(graph[np.ix_(members, members)])
        assert np.allclose(among.reshape(wanted.shape), wanted, rtol=0, atol=1e-15)
    ignored = ignored_faces(confidence, ratio)
    ranked = sorted(range(n), key=lambda i: (confidence[i], i))
    assert set(np.flatnonzero(ignored).tolist()) == set(ranked[: int(n * ratio)])
    centres = np.flatnonzero(candidates.counts > 0)
    chosen = candidates_of(ids, confidence, faces[centres])
    logits = np.stack(
        [np.zeros(len(chosen.faces)), scores[faces[centres].repeat(chosen.counts), chosen.faces]], 1
    )
    best = best_candidates(logits, chosen.starts)
    first = np.where(ignored[centres], chosen.starts[:-1], best)
    near = sims[centres, chosen.places[first]]
    kept = np.flatnonzero((np.float32(1) - near).astype(np.float64) < 1 - tau)
    peaks = oracles_ve_gcn.peaks(
        ids,
        confidence,
        set(np.flatnonzero(ignored).tolist()),
        lambda i, members: np.stack([np.zeros(len(members)), scores[i, members]], 1),
    )
    place = {(i, int(j)): sims[i, p] for i in range(n) for p, j in enumerate(ids[i])}
    links = [(i, int(j)) for i, j in enumerate(peaks) if j >= 0 and 1 - place[i, int(j)] < 1 - tau]
    assert labels_of(n, faces[centres[kept]], chosen.faces[first[kept]]) == oracles.components(n, links)


CHECKS = {
    "pse-gcn": check_pse_gcn,
    "nsr-fc": check_nsr_fc,
    "sepfl": check_sepfl,
    "l-gcn": check_l_gcn,
    "gcn-d": check_gcn_d,
    "ve-gcn": check_ve_gcn,
}


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.faults)])
@pytest.mark.parametrize("name", NAMES)
def test_random_small_graphs_have_the_labels_of_plain_python(name: str, count: int) -> None:
    for seed in range(count):
        try:
            CHECKS[name](np.random.default_rng([seed, 11]))
        except AssertionError as error:
            raise AssertionError(f"graph {seed}") from error


# Whole runs


@pytest.fixture(scope="module", params=CASES, ids=str)
def bundle(
    request: pytest.FixtureRequest, exported: Any, cut_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    case = request.param
    whole = exported(case)
    if not case.networks:
        return whole
    return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx")


def rows_of(n: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    people = np.repeat(rng.standard_normal((n // 10, 32)), 10, axis=0)
    return (people + 0.5 * rng.standard_normal(people.shape)).astype(np.float32)


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give every stage of every system blocks of so many rows."""

    def change(rows: int) -> None:
        set_blocks(rows, monkeypatch.setattr)

    return change


@pytest.mark.parametrize("n", [120, pytest.param(1500, marks=pytest.mark.faults)])
def test_runs_threads_blocks_and_memory_change_no_label(n: int, bundle: Bundle, blocks_of: Any) -> None:
    faces = rows_of(n)
    wanted = fcdeploy.cluster(faces, engine=bundle.path)
    assert 1 < wanted.max() + 1 < n
    many: tuple[dict[str, Any], ...] = ({}, {"threads": 1}, {"threads": 2, "memory": 1}, {"batch": 3})
    for options in many if n > 1000 else ({"threads": 1, "memory": 1},):
        assert np.array_equal(fcdeploy.cluster(faces, engine=bundle.path, **options), wanted), options
    for rows in (256, 37) if n > 1000 else (37,):
        blocks_of(rows)
        assert np.array_equal(fcdeploy.cluster(faces, engine=bundle.path), wanted), rows
