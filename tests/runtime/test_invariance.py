"""What must not change the clusters, and what layer-wise inference is, by a slow reading of its definition."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import load_artifact
from small_blocks import set_blocks

from fcdeploy.data.labels import renumber
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.errors import FcdeployError
from fcdeploy.graph import aggregation, search
from fcdeploy.graph import cells as graph_cells
from fcdeploy.graph.aggregation import sum_connected, sum_similar
from fcdeploy.graph.halves import bits_of, floats_from_halves, halves_from_floats
from fcdeploy.graph.marks import new_scratch
from fcdeploy.run.blocks import LocalBlocks
from fcdeploy.run.stage import Stage

INFERENCES = ("exact", "layerwise")
both = pytest.mark.parametrize("inference", INFERENCES)


@pytest.fixture(scope="module")
def rows(many: Callable[[int], Path]) -> np.ndarray:
    return np.fromfile(many(1000), "<f4").reshape(-1, 32)


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Give every stage blocks of so many faces."""

    def change(size: int) -> None:
        set_blocks(size, monkeypatch.setattr)

    return change


@both
@pytest.mark.parametrize("size", [37, 256, 100_000])
def test_blocks_do_not_change_the_labels(
    cluster: Any,
    rows: np.ndarray,
    blocks_of: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    inference: str,
    size: int,
) -> None:
    wanted = cluster(rows, inference=inference).labels
    blocks_of(size)
    seen: dict[str, set[int]] = {}
    compute = LocalBlocks.compute

    def watched(self: LocalBlocks, stage: Stage, *args: Any) -> None:
        def counted(faces: np.ndarray, *resources: Any) -> Any:
            seen.setdefault(stage.name, set()).add(len(faces))
            return stage.block(faces, *resources)

        compute(self, dataclasses.replace(stage, block=counted), *args)

    monkeypatch.setattr(LocalBlocks, "compute", watched)
    found = cluster(rows, inference=inference).labels
    assert np.array_equal(found, wanted)
    sizes = {min(size, 1000), 1000 % size} - {0}
    assert all(counted == sizes for counted in seen.values()), seen
    assert seen.keys() == {
        *("vectors", "knn", "placed", "mutual", "reciprocal", "holders", "reranked"),
        *("refined", "refined_knn"),
        *(("tables",) if inference == "exact" else ("lists", "near1", "similar1", "block1", "similar2")),
    }


@both
@pytest.mark.parametrize(
    "options",
    [{"batch": 1}, {"batch": 7}, {"threads": 1}, {"threads": 2}, {"memory": 1}, {"memory": 300_000}],
    ids=str,
)
def test_batches_threads_and_memory_do_not_change_the_labels(
    cluster: Any, rows: np.ndarray, inference: str, options: dict[str, int]
) -> None:
    wanted = cluster(rows, inference=inference).labels
    assert np.array_equal(cluster(rows, inference=inference, **options).labels, wanted)


@both
def test_cells_lists_on_disk_and_one_thread_do_not_change_the_labels(
    cluster: Any,
    many: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    inference: str,
) -> None:
    """4,500 faces have cells, and are visited cell by cell; with a byte of memory the lists are on disk."""
    features = many(4500)
    wanted = cluster(features, inference=inference, knn="ivf").labels
    lists: list[Any] = []
    knn_search = search.KnnSearch

    def watched(*args: Any, **named: Any) -> Any:
        lists.append(named["lists_file"])
        return knn_search(*args, **named)

    monkeypatch.setattr(search, "KnnSearch", watched)
    one_thread = cluster(features, inference=inference, knn="ivf", threads=1).labels
    assert lists == [None, None]
    assert np.array_equal(one_thread, wanted)
    for run_dir in (None, tmp_path / "run"):
        lists.clear()
        small = cluster(features, inference=inference, knn="ivf", memory=1, run_dir=run_dir).labels
        assert [Path(file).name.split(".")[0] for file in lists] == ["knn", "refined_knn"]
        assert np.array_equal(small, wanted)
    assert capfd.readouterr().out == ""  # stdout is for results, and faiss prints there
    assert np.array_equal(
        cluster(features, inference=inference, knn="ivf", run_dir=tmp_path / "large").labels, wanted
    )


@both
def test_visiting_cell_by_cell_does_not_change_the_labels(
    cluster: Any, many: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch, inference: str
) -> None:
    by_cell = cluster(many(4500), inference=inference, knn="exact").labels
    monkeypatch.setattr(graph_cells, "ONE_CELL", 4500)
    assert np.array_equal(cluster(many(4500), inference=inference, knn="exact").labels, by_cell)


@both
def test_faces_in_another_order_have_the_same_partition(
    cluster: Any, rows: np.ndarray, inference: str
) -> None:
    wanted = cluster(rows[:400], inference=inference, knn="exact").labels

    @settings(max_examples=8, deadline=None, database=None)
    @given(st.randoms(use_true_random=False))
    def check(random: Any) -> None:
        order = list(range(400))
        random.shuffle(order)
        found = cluster(rows[:400][order], inference=inference, knn="exact").labels
        assert np.array_equal(found, renumber(wanted[order]))

    check()


# Layer-wise inference


@functools.cache
def network(checkpoint: Path) -> Any:
    """The golden network in float64."""
    torch = pytest.importorskip("torch")
    from fcdeploy.systems.pse_gcn.network import network_from_state_dict

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return network_from_state_dict(saved.get("state_dict", saved)).double()


def layerwise(
    net: Any, rows: np.ndarray, ranked: np.ndarray, ids: np.ndarray, sims: np.ndarray, hops: tuple[int, int]
) -> tuple[np.ndarray, float]:
    """Each block once a face, in the face's own neighborhood; only the centre's row of what it gives is used.

    A neighbor brings to a block what it had as a centre in the one before. Returns refined (n, 2d), and how near
    to 0.5 a similarity came.
    """
    import torch

    from fcdeploy.systems.pse_gcn.network import row_normalise, rowwise, unit

    n = len(rows)
    with torch.inference_mode():
        x0 = net.bn0(torch.from_numpy(rows).double())
        skip, t1 = net.Up_dim(x0), net.trans1(x0)
        nodes = [[i, *sorted(oracles.neighborhood(ranked, i, *hops) - {i})] for i in range(n)]
        graphs = [
            row_normalise(torch.from_numpy(oracles.fixed_graph(ids, sims, near, 10)).double())
            for near in nodes
        ]
        nearest = [1.0]

        def own(values: list[Any]) -> Any:
            return torch.stack([value[0] for value in values])

        def drawn(directions: Any, near: list[int]) -> Any:
            similarity = directions[near] @ directions[near].T
            nearest.append(float((similarity[0] - 0.5).abs().min()))
            return row_normalise(torch.where(similarity >= 0.5, similarity, 0.0))

        def head(layers: Any, x: Any) -> Any:
            return rowwise(layers, x[None])[0]

        h1 = unit(
            head(
                net.local_classifier1,
                own([net.local_conv1(t1[near], graph) for near, graph in zip(nodes, graphs, strict=True)]),
            )
        )
        tx = net.trans_x(x0)
        x1 = head(net.classifier1, own([net.conv1(tx[near], drawn(h1, near)) for near in nodes])) + skip
        t2 = net.trans2(x1)
        h2 = unit(
            head(
                net.local_classifier2,
                own(
                    [
                        net.local_conv2(t2[near], row_normalise(graph))
                        for near, graph in zip(nodes, graphs, strict=True)
                    ]
                ),
            )
        )
        x2 = head(net.classifier2, own([net.conv2(x1[near], drawn(h2, near)) for near in nodes])) + x1
        return unit(net.classifier_out(torch.cat([x2, x1, t1], dim=-1))).numpy(), min(nearest)


@pytest.mark.parametrize(("n", "k", "hops"), [(150, 20, (20, 5)), (120, 12, (8, 3)), (90, 10, (10, 0))])
def test_layerwise_is_each_block_once_a_face_in_its_own_neighborhood(
    cluster: Any, golden: Path, rows: np.ndarray, tmp_path: Path, n: int, k: int, hops: tuple[int, int]
) -> None:
    """1e-5, the recipe's tolerance; inference that evaluates whole neighborhoods is a hundred times farther off."""
    cluster(rows[:n], run_dir=tmp_path / "run", inference="layerwise", k=k, hops=hops)
    lists = load_artifact(tmp_path / "run/knn")
    ranked = load_artifact(tmp_path / "run/reranked")["ids"]
    unit_rows = rows[:n] / np.linalg.norm(rows[:n], axis=1, keepdims=True)
    net = network(golden / "dev/pse/checkpoint.pth")
    wanted, nearest = layerwise(net, unit_rows, ranked, lists["ids"], lists["sims"], hops)
    assert nearest > 1e-6  # or float32 could fall on the other side
    found = np.load(tmp_path / "run/refined/refined.npy")
    assert np.abs(found - wanted).max() < 1e-5
    cluster(rows[:n], run_dir=tmp_path / "run", inference="exact", k=k, hops=hops)
    assert np.abs(np.load(tmp_path / "run/refined/refined.npy") - wanted).max() > 1e-3


def test_the_fixed_graph_is_normalised_once_for_the_first_block_and_twice_for_the_second(
    cluster: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As published. It moves refined features by less than the tolerance above, so the call itself is looked at."""
    times: list[int] = []

    def watched(*args: Any) -> np.ndarray:
        times.append(args[6])
        return sum_connected(*args)

    monkeypatch.setattr(aggregation, "sum_connected", watched)
    cluster(rows[:100], inference="layerwise")
    assert times == [1, 2]


@pytest.mark.parametrize("n", [1, 2, 5, 17, 60])
def test_layerwise_is_exact_where_all_faces_share_one_neighborhood(
    cluster: Any, rows: np.ndarray, tmp_path: Path, n: int
) -> None:
    refined = []
    for inference in INFERENCES:
        run = tmp_path / inference
        hops = (
            (n, n - 1) if n >= 10 else None
        )  # as many as there are active connections; else they are shortened
        labels = cluster(rows[:n], run_dir=run, inference=inference, k=n, hops=hops).labels
        refined.append((np.load(run / "refined/refined.npy"), labels))
    (exact, exact_labels), (by_layers, labels) = refined
    assert exact.shape == (n, 64)
    assert np.abs(exact - by_layers).max() < 1e-5  # float32, in another order of additions
    assert np.array_equal(labels, exact_labels)


# The sums of layer-wise inference


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """Lists with each face in a place of its own, similarities of either sign, directions, a table and faces."""
    n = draw(st.integers(1, 25))
    k = draw(st.integers(1, min(n, 8)))
    hops = draw(st.integers(1, k)), draw(st.integers(0, k - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def lists() -> np.ndarray:
        return np.array([rng.permutation(n)[:k] for _ in range(n)], dtype=np.int32)

    sims = np.round(rng.uniform(-0.3, 1, (n, k)), 1).astype(np.float32)
    directions = rng.standard_normal((n, 3))
    directions = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    table = rng.standard_normal((n, draw(st.integers(1, 5)))).astype(np.float32)
    faces = rng.permutation(n)[: draw(st.integers(1, n))].astype(np.int32)
    return lists(), lists(), sims, directions, table, faces, hops, draw(st.integers(1, k))


@settings(deadline=None, database=None)
@given(graphs(), st.integers(0, 3))
def test_connected_rows_are_summed_by_their_weights(graph: Any, times: int) -> None:
    """Against the dense graph of every neighborhood, normalised as a whole; 1e-5 for float32 sums of few terms.

    A similarity of zero or less connects nobody. Normalised again and again, the centre's row depends on no other.
    """
    ranked, ids, sims, _, table, faces, hops, active = graph
    scratch = new_scratch(len(ids))
    found = sum_connected(ranked, ids, sims, faces, hops, active, times, table, scratch)
    assert found.dtype == np.float32
    assert not scratch.any()
    for face, row in zip(faces, found, strict=True):
        near = [face, *sorted(oracles.neighborhood(ranked, face, *hops) - {face})]
        weights = oracles.fixed_graph(ids, np.maximum(sims, 0), near, active).astype(np.float64)
        for _ in range(times):
            weights /= weights.sum(axis=1, keepdims=True) + 1e-5
        assert np.abs(row - weights[0] @ table[near].astype(np.float64)).max() < 1e-5


@settings(deadline=None, database=None)
@given(graphs())
def test_similar_rows_are_summed_by_their_similarity(graph: Any) -> None:
    ranked, _, _, directions, table, faces, hops, _ = graph
    scratch = new_scratch(len(ranked))
    found = sum_similar(ranked, faces, hops, directions, table, scratch)
    assert found.dtype == np.float32
    assert not scratch.any()
    for face, row in zip(faces, found, strict=True):
        total, sums = 1e-5, np.zeros(table.shape[1])
        near_threshold = False
        for other in oracles.neighborhood(ranked, face, *hops) | {face}:
            similarity = float(directions[face].astype(np.float64) @ directions[other])
            near_threshold |= abs(similarity - 0.5) < 1e-6
            if similarity >= 0.5:
                total += similarity
                sums += similarity * table[other].astype(np.float64)
        assert near_threshold or np.abs(row - sums / total).max() < 1e-5


@settings(deadline=None, database=None, max_examples=50)
@given(graphs())
def test_sums_over_float16_tables_are_those_over_the_same_numbers_as_float32(graph: Any) -> None:
    ranked, ids, sims, directions, table, faces, hops, active = graph
    scratch = new_scratch(len(ids))
    halves = [halves_from_floats(rows) for rows in (directions, table)]
    floats = [floats_from_halves(rows) for rows in halves]
    assert np.array_equal(
        sum_connected(ranked, ids, sims, faces, hops, active, 1, bits_of(halves[1]), scratch),
        sum_connected(ranked, ids, sims, faces, hops, active, 1, floats[1], scratch),
    )
    assert np.array_equal(
        sum_similar(ranked, faces, hops, *map(bits_of, halves), scratch),
        sum_similar(ranked, faces, hops, *floats, scratch),
    )


def test_halves_are_those_of_numpy() -> None:
    """All 65,536 of them there and back, and what lies between, halfway, and beyond."""
    every = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(64, -1)
    assert np.array_equal(floats_from_halves(every), every.astype(np.float32), equal_nan=True)
    rows = np.random.default_rng(0).standard_normal((50, 333), dtype=np.float32) ** 9
    finite = every[np.isfinite(every)].astype(np.float32)
    rows = np.concatenate([rows.ravel(), finite, (finite[1:] + finite[:-1]) / 2, [7e4, -7e4, 1e-9, 0]])
    rows = rows[None].astype(np.float32)
    with np.errstate(over="ignore"):
        assert np.array_equal(halves_from_floats(rows), rows.astype(np.float16))


def test_float16_tables_move_refined_features_by_their_rounding_only(
    cluster: Any, rows: np.ndarray, tmp_path: Path
) -> None:
    """Unit features: a few parts in 2^11, the rounding of one entry; and more than nothing."""
    refined = {}
    for tables in ("float32", "float16"):
        cluster(rows, run_dir=tmp_path / tables, inference="layerwise", tables=tables)
        refined[tables] = np.load(tmp_path / tables / "refined/refined.npy")
    difference = np.abs(refined["float32"] - refined["float16"]).max(axis=1)
    assert 0 < np.median(difference) < 1e-3


def test_values_beyond_float16_stop_the_run_with_what_to_do(
    cluster: Any, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = OnnxRuntimeEngine.run

    def run(self: Any, feeds: Any) -> Any:
        outputs = straight(self, feeds)
        return {name: output * 1e9 if name == "near1" else output for name, output in outputs.items()}

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    with pytest.raises(FcdeployError, match=r"too large for float16; give tables='float32'"):
        cluster(rows, inference="layerwise", tables="float16")
