"""GCN-D from features to labels; the algorithm, top to bottom."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.clustering.groups import (
    groups_from_labels,
    join_groups,
    mark_first,
    mean_rows,
    number_parts,
    offsets_from_sizes,
    take_groups,
)
from fcdeploy.clustering.propagation import NO_CLUSTER, Cuts, propagate_and_tell
from fcdeploy.data.labels import renumber
from fcdeploy.engine.batching import Rows, ahead
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.pairs import first_neighbors, similar_pairs
from fcdeploy.graph.recall import Recall
from fcdeploy.systems.gcn_d.decode import labels_from_scores
from fcdeploy.systems.gcn_d.inputs import Graphs, Proposals, proposal_graphs, seeds_of
from fcdeploy.systems.gcn_d.spec import DETECT, PURITY, SEGMENT, MergeSettings, ProposalSettings
from fcdeploy.systems.limits import nearest_similarities, note_divided, note_united, persons_divided

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

FACES_BLOCK = 4096
PROPOSAL_BLOCK = 4096
ENGINE_NODES = 4096  # nodes an engine call: full-speed matrix products that stay in the cache
MEAN_BLOCK = 65536
ROUNDS = 100  # behind which what is still too large becomes one component, as published
LARGEST = 8192  # faces of a proposal whose graph, a square, still fits into memory

MAX_SIZE = "proposals.max_size"

Made = dict[str, Any]  # what a product was made of
Work = Callable[[np.ndarray], dict[str, np.ndarray]]
Groups = tuple[np.ndarray, np.ndarray]  # offsets, nodes
Links = tuple[np.ndarray, np.ndarray, np.ndarray]  # both ends, similarity


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    run.read_features()
    with run.stage("knn"):
        knn, made_of = nearest_neighbors(run)
    with run.stage("proposals"):
        proposals, divided, made_of = proposed_clusters(run, knn, made_of)
    with run.stage("detect"):
        scores, made_of = proposal_scores(run, knn, proposals, made_of)
    probability = None
    if SEGMENT in networks_of(run):
        with run.stage("segment"):
            probability = member_probabilities(run, knn, proposals, scores.get("iop"), made_of)
    with run.stage("clusters"):
        labels = labels_from_scores(
            run.n, proposals, scores["score"], probability, run.settings, run.options.uncovered or "singleton"
        )
        note_divided(run, labels, divided, MAX_SIZE, max(base.max_size for base in run.settings.proposals))
        return labels


def networks_of(run: "Run") -> tuple[str, ...]:
    """The networks of the bundle that this run uses."""
    return run.settings.stages(run.bundle.weights)


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The kNN lists of all faces, as long as the largest k of a proposal set; similarities are clipped to 0..1."""
    if run.knn_file is not None:
        return run.lists_from_file("knn.npz", run.knn_file, run.settings.k, "kNN")
    return run.knn(
        "knn.npz",
        run.vectors,
        run.settings.k,
        run.made_of_features,
        "kNN",
        clip=True,
        above=min(base.threshold for base in run.settings.proposals),
        cells=lambda: run.cells,
    )


def proposed_clusters(
    run: "Run", knn: KnnGraph, knn_made_of: Made
) -> tuple[Proposals, list[np.ndarray], Made]:
    """Proposals of all parameter sets, in the recipe's order, those of a merge behind those that it merges.

    Within a set they are numbered by their first face and stand in the string order of these numbers (0, 10, 11, 1, 2),
    as published files do; equal scores go by this order. A proposal of the same faces and lists of the same k as one
    before it is left out: it would have the same score. With them, the faces of components that seem to be of one
    person each and that max_size divided, in any of the sets.
    """
    made_of = {
        "knn": knn_made_of,
        **run.made_of_features,
        "proposals": [asdict(base) for base in run.settings.proposals],
    }

    def maker() -> dict[str, np.ndarray]:
        found, ks, sets = [], [], []
        caps: list[Cuts] = []
        for at, (settings, k, (offsets, nodes)) in enumerate(levels_of_proposals(run, knn, made_of, caps)):
            if settings.keep:
                found.append(in_string_order(offsets, nodes))
                ks.append(np.full(len(offsets) - 1, k, dtype=np.int32))
                sets.append(np.full(len(offsets) - 1, at, dtype=np.int32))
        offsets, nodes = join_groups(found)
        joined = offsets
        lengths, places = np.concatenate(ks), np.concatenate(sets)
        chosen = np.flatnonzero(mark_first(offsets, nodes, lengths) & (np.diff(offsets) <= LARGEST))
        offsets, nodes = take_groups(offsets, nodes, chosen)
        nearest = nearest_similarities(run.vectors, knn)
        divided = [faces for cuts in caps for faces in persons_divided(cuts, run.vectors, nearest)]
        told = {
            "searches": {name: search for name, search in run.searches.items() if name not in before},
            "recall": {name: asdict(found) for name, found in run.recall.items() if name not in before},
            "united": [cuts.left() for cuts in caps if cuts.united],
            "too_large": int(np.count_nonzero(np.diff(joined) > LARGEST)),
        }
        return {
            "offsets": offsets,
            "nodes": nodes,
            "k": lengths[chosen],
            "set": places[chosen],
            "divided": np.concatenate([np.empty(0, np.int32), *divided]).astype(np.int32),
            "divided_offsets": offsets_from_sizes(np.array(list(map(len, divided)), dtype=np.int64)),
            "told": np.frombuffer(json.dumps(told).encode(), dtype=np.uint8),
        }

    before = set(run.searches)
    arrays = run.keep("proposals.npz", made_of, maker)
    tell(run, json.loads(arrays["told"].tobytes()))
    divided = np.split(arrays["divided"], arrays["divided_offsets"][1:-1]) if len(arrays["divided"]) else []
    proposals = Proposals(arrays["offsets"], arrays["nodes"], arrays["k"], arrays["set"])
    return proposals, divided, made_of


def tell(run: "Run", told: dict[str, Any]) -> None:
    """Tell what was found while proposals were made, in this run or in an earlier one."""
    run.searches |= told["searches"]
    run.recall |= {name: Recall(**found) for name, found in told["recall"].items()}
    if told["united"]:
        components, faces = max(told["united"])
        note_united(run, components, faces, MAX_SIZE, ROUNDS)
    if too_large := told["too_large"]:
        run.note(
            f"{too_large:,} proposals have more than {LARGEST:,} faces, which the cap could not divide (nearly equal "
            "rows); they are left out.",
            proposals_too_large=too_large,
        )


def levels_of_proposals(
    run: "Run", knn: KnnGraph, made_of: Made, caps: list[Cuts]
) -> Iterator[tuple[ProposalSettings | MergeSettings, int, Groups]]:
    """Yield each parameter set with the length of its kNN lists and its groups of faces, in the recipe's order.

    Adds to ``caps`` what max_size did in each that is not a merge.
    """
    for at, base in enumerate(run.settings.proposals):
        links = similar_pairs(knn.ids, knn.sims, base.k, base.threshold)
        labels, cuts = grown_components(run.n, links, base)
        caps.append(cuts)
        yield base, base.k, groups_from_labels(labels, base.min_size)
        for merge, groups in merged_levels(run, labels, base.merge, f"{at}", {**made_of, "base": at}):
            yield merge, base.k, groups


def grown_components(
    n: int, links: Links, settings: ProposalSettings | MergeSettings
) -> tuple[np.ndarray, Cuts]:
    """Components of similar pairs under a rising threshold and a cap: labels (n,) int64, NO_CLUSTER without a pair."""
    cap = settings.max_parts if isinstance(settings, MergeSettings) else settings.max_size
    return propagate_and_tell(n, *links, max_size=cap, step=settings.step, max_rounds=ROUNDS)


def merged_levels(
    run: "Run", labels: np.ndarray, merges: tuple[MergeSettings, ...], name: str, made_of: Made
) -> Iterator[tuple[MergeSettings, Groups]]:
    """Merge the components of a level, those that are merged further right behind; groups of faces.

    labels: (n,) int64, NO_CLUSTER for a face that is a part by itself. A part stands for its faces by the mean of their
    features, which is not normalised again.
    """
    if not merges:
        return
    parts, count = number_parts(labels)
    near = nearest_parts(run, parts, count, max(merge.k for merge in merges), merges, name, made_of)
    for at, merge in enumerate(merges):
        ids = first_neighbors(near.ids, near.sims, merge.k)
        links = similar_pairs(ids, near.sims[:, 1 : 1 + ids.shape[1]], ids.shape[1], merge.threshold)
        merged, _ = grown_components(count, links, merge)
        sizes = np.bincount(merged[merged >= 0], minlength=1)
        merged[(merged >= 0) & (sizes[merged] < merge.min_parts)] = NO_CLUSTER
        above = renumber(merged[parts])
        yield merge, groups_from_labels(above, merge.min_size, merge.max_size)
        deeper = {**made_of, "merge": asdict(merge)}
        yield from merged_levels(run, above, merge.merge, f"{name}-{at}", deeper)


def nearest_parts(
    run: "Run",
    parts: np.ndarray,
    count: int,
    k: int,
    merges: tuple[MergeSettings, ...],
    name: str,
    made_of: Made,
) -> KnnGraph:
    """The k nearest neighbors of every part by the inner product of means, behind the part itself: k + 1 columns."""
    wide = min(count, k + 1)
    means, lists, cells = f"means{name}", f"parts{name}", f"cells{name}"
    run.products[means] = {"means": ((count, run.features.dim), np.float32)}
    run.products[lists] = {"ids": ((count, wide), np.int32), "sims": ((count, wide), np.float32)}

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        offsets, nodes = groups_from_labels(parts, 1)
        yield lambda some: {"means": mean_rows(offsets, nodes, some, run.vectors)}

    vectors = run.make(means, made_of, worker, text="means of components", rows=count, block=MEAN_BLOCK)[
        "means"
    ]
    graph, _ = run.knn(
        lists,
        vectors,
        wide,
        made_of,
        "kNN of components",
        clip=True,
        above=min(merge.threshold for merge in merges),
        cells=lambda: run.partition(cells, vectors, made_of),
    )
    run.drop(means, cells)
    return graph


def in_string_order(offsets: np.ndarray, nodes: np.ndarray) -> Groups:
    """Sort groups 0, 1, 2, ... the way that files called 0_node.npz, 1_node.npz, ... are sorted."""
    return take_groups(
        offsets, nodes, np.argsort([f"{at}_" for at in range(len(offsets) - 1)], kind="stable")
    )


def proposal_scores(
    run: "Run", knn: KnnGraph, proposals: Proposals, proposals_made_of: Made
) -> tuple[dict[str, np.ndarray], Made]:
    """What the network says of every proposal: score (p,) float32, and iop (p,) float32 where a second one does."""
    outputs = {"score": DETECT} | ({"iop": PURITY} if PURITY in networks_of(run) else {})
    made_of = made_of_graphs(run, proposals_made_of, tuple(outputs.values()))
    run.products["scores.npz"] = {part: ((len(proposals),), np.float32) for part in outputs}

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with contextlib.ExitStack() as stack:
            tables = {part: face_table(run, network) for part, network in outputs.items()}
            engines = {
                part: stack.enter_context(run.engine(network, len(outputs)))
                for part, network in outputs.items()
            }

            def work(chosen: np.ndarray) -> dict[str, np.ndarray]:
                made = {part: np.empty(len(chosen), dtype=np.float32) for part in outputs}
                place = {p: at for at, p in enumerate(chosen.tolist())}
                for graphs in graphs_ahead(run, knn, proposals, chosen):
                    at = [place[p] for p in graphs.at.tolist()]
                    for part, engine in engines.items():
                        table, nodes_name = tables[part]
                        made[part][at] = engine.run(feeds_of(graphs, table, nodes_name))["score"]
                for values in made.values():
                    check_finite(run, values, proposals, chosen, "score")
                return made

            yield work

    order = proposals_in_order(run, proposals)
    arrays = run.make(
        "scores.npz",
        made_of,
        worker,
        text="scores of proposals",
        order=order,
        block=PROPOSAL_BLOCK,
        rows=len(proposals),
    )
    run.drop(*(f"{network}_faces" for network in outputs.values()))
    return arrays, made_of


def member_probabilities(
    run: "Run", knn: KnnGraph, proposals: Proposals, iop: np.ndarray | None, scores_made_of: Made
) -> np.ndarray:
    """How probably each node of a proposal belongs to it, (t,) float32; 1 in proposals that are not segmented."""
    settings = run.settings.segment
    made_of = {
        **made_of_graphs(run, scores_made_of, (SEGMENT,)),
        "seed": settings.seed,
        "iop": [settings.min_iop, settings.max_iop] if iop is not None else None,
    }
    run.products["members.npz"] = {"probability": ((len(proposals.nodes),), np.float32)}

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        table, nodes_name = face_table(run, SEGMENT)
        mark = mark_of_seed(run)
        with run.engine(SEGMENT) as engine:

            def work(block: np.ndarray) -> dict[str, np.ndarray]:
                first = proposals.offsets[block[0]]
                probability = np.ones(int(proposals.offsets[block[-1] + 1] - first), dtype=np.float32)
                chosen = block
                if iop is not None:
                    predicted = iop[block].astype(np.float64)
                    chosen = block[(predicted >= settings.min_iop) & (predicted <= settings.max_iop)]
                for graphs in graphs_ahead(run, knn, proposals, chosen):
                    feeds = feeds_of(graphs, table, nodes_name)
                    if mark is not None:
                        feeds[nodes_name][np.arange(len(graphs.at)), seeds_of(graphs, settings.seed)] += mark
                    found = engine.run(feeds)["probability"]
                    for row, p in enumerate(graphs.at):
                        begin, end = proposals.offsets[p] - first, proposals.offsets[p + 1] - first
                        probability[begin:end] = found[row, : end - begin]
                ends = proposals.offsets[block + 1] - first
                worst = np.maximum.reduceat(np.abs(probability), ends - proposals.sizes[block])
                check_finite(run, worst, proposals, block, "probability of a member")
                return {"probability": probability}

            yield work

    arrays = run.make(
        "members.npz",
        made_of,
        worker,
        text="members of proposals",
        block=PROPOSAL_BLOCK,
        rows=len(proposals),
        spans=proposals.offsets,
    )
    run.drop(f"{SEGMENT}_faces")
    return arrays["probability"]


def made_of_graphs(run: "Run", made_of: Made, networks: tuple[str, ...]) -> Made:
    """Everything that decides what networks say of proposals."""
    return {
        "proposals": made_of,
        "engine": run.bundle.digest(),
        "networks": list(networks),
        "edge_weights": run.settings.graph.edge_weights,
        "network": asdict(run.settings.network),
    }


def graphs_ahead(run: "Run", knn: KnnGraph, proposals: Proposals, chosen: np.ndarray) -> Iterator[Graphs]:
    """The graphs of some proposals, built while the engine works on those before."""

    def batches() -> Iterator[Graphs]:
        yield from proposal_graphs(
            proposals,
            chosen,
            knn,
            run.settings.graph.edge_weights == "similarity",
            rows=ENGINE_NODES,
            most=run.options.batch or ENGINE_NODES,
        )

    return ahead(batches(), threads=run.options.cores)


def feeds_of(graphs: Graphs, table: np.ndarray, nodes_name: str) -> dict[str, np.ndarray]:
    """Gather the rows of a table for all nodes of graphs."""
    return {nodes_name: Rows(table, graphs.members).gather(), "adj": graphs.adj}


def proposals_in_order(run: "Run", proposals: Proposals) -> np.ndarray:
    """The order in which proposals are best visited, (p,) int32: by the cell of their first face."""
    return np.argsort(run.cells.cell[proposals.nodes[proposals.offsets[:-1]]], kind="stable").astype(np.int32)


def node_features(run: "Run", network: str, faces: np.ndarray) -> np.ndarray:
    """What a network takes for faces: their features or ones, and a column of zeros where a seed would be marked."""
    rows = run.vectors[faces]
    if run.settings.network.featureless:
        rows = np.ones((len(faces), 1), dtype=np.float32)
    if network == SEGMENT and run.settings.segment.seed != "none":
        rows = np.concatenate([rows, np.zeros((len(faces), 1), dtype=np.float32)], axis=1)
    return rows


def face_table(run: "Run", network: str) -> tuple[np.ndarray, str]:
    """What each face brings to every graph it is in, (n, h) float32, and the input of the network that takes it."""
    name = f"{network}_faces"
    if name not in run.bundle.passes:  # without layers: the features themselves
        if not run.settings.network.featureless:
            return run.vectors, "features"
        return np.ones((run.n, 1), dtype=np.float32), "features"

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine(name) as engine:
            yield lambda faces: run.finite(
                engine.run({"features": node_features(run, network, faces)}), faces, "product of a face"
            )

    made_of = {
        **run.made_of_features,
        "engine": run.bundle.digest(),
        "network": asdict(run.settings.network),
        "seed": run.settings.segment.seed,
    }
    return run.make(name, made_of, worker, text="products of faces", block=FACES_BLOCK)[
        "weighted"
    ], "weighted"


def mark_of_seed(run: "Run") -> np.ndarray | None:
    """What the seed's column adds to its node's product, (h,) float32; None if there is no such column."""
    if run.settings.segment.seed == "none":
        return None
    column = np.zeros((1, run.bundle.weights[SEGMENT]["dim"]), dtype=np.float32)
    column[0, -1] = 1
    with run.engine(f"{SEGMENT}_faces") as engine:
        product = engine.run({"features": column})
        run.check_row(product)
        return product["weighted"][0]


def check_finite(run: "Run", values: np.ndarray, proposals: Proposals, chosen: np.ndarray, what: str) -> None:
    """Raise FcdeployError when one of ``values`` (m,), of the proposals ``chosen`` (m,), is NaN or infinite."""
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        first = int(chosen[bad].min())
        nodes = proposals.nodes[proposals.offsets[first] : proposals.offsets[first + 1]]
        shown = ", ".join(map(str, run.rows_of(nodes[:5]))) + (", ..." if len(nodes) > 5 else "")
        raise FcdeployError(
            f"{run.bundle.path}: the engine gave a {what} that is not finite for {len(bad):,} of {len(values):,} "
            f"proposals (the first is of rows {shown} of {run.features.name}); stopped before clustering."
        )
