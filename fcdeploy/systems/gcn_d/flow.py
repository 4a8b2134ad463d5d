"""GCN-D from features to labels; the algorithm, top to bottom."""

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TypedDict

import numpy as np

from fcdeploy.clustering.evidence import SIMILARITY, Accepted, links_of_lists
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
from fcdeploy.engine.batching import Rows, prefetch
from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.pairs import first_neighbors, similar_pairs
from fcdeploy.graph.recall import Recall, RecallFigures
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays
from fcdeploy.systems.gcn_d.decode import labels_from_scores
from fcdeploy.systems.gcn_d.inputs import Graphs, Proposals, proposal_graphs, seeds_of
from fcdeploy.systems.gcn_d.spec import ANY_COHESION, DETECT, PURITY, SEGMENT, MergeSettings, ProposalSettings
from fcdeploy.systems.limits import nearest_similarities, note_divided, note_united, persons_divided

FACES_BLOCK = 4096
PROPOSAL_BLOCK = 4096
ENGINE_NODES = 4096  # nodes per engine call: full-speed matrix products that stay in the cache
MEAN_BLOCK = 65536
ROUNDS = 100  # behind which what is still too large becomes one component, as published
LARGEST = 8192  # faces of a proposal whose graph, a square, still fits into memory

MAX_SIZE = "proposals.max_size"

Groups = tuple[np.ndarray, np.ndarray]  # offsets, nodes
Links = tuple[np.ndarray, np.ndarray, np.ndarray]  # both ends, similarity


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    tables = {network: face_table(run, vectors, network) for network in networks_of(run)}
    proposed = proposed_clusters(run, vectors, knn)
    scores = proposal_scores(run, vectors, cells, knn, proposed, tables)
    members = None
    if SEGMENT in tables:
        members = member_probabilities(run, vectors, knn, proposed, scores, tables[SEGMENT])
    return clusters(run, vectors, proposed, scores, members)


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """The entries of the kNN lists: clusters are proposals, and rest on those of their faces that list each other."""
    return Accepted(lambda: links_of_lists(kept["knn"].lists), SIMILARITY, "knn")


def assign(run: Extended) -> Rule:
    """Let new faces go with the cluster that most of their similar stored neighbors are in, by the sum of similarities.

    Similar ones are those that the loosest parameter set links. No proposal is made or scored again.
    """
    vectors = read_features(run)
    knn = nearest_neighbors(run, vectors, partition(run, "cells", vectors))
    least = np.float32(min(base.threshold for base in run.settings.proposals))

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, sims = knn["ids"][rows], knn["sims"][rows]
        speaks = (ids < run.n) & (sims >= least)
        of = np.where(speaks, labels[np.where(speaks, ids, 0)], -1)
        same = (of[:, :, None] == of[:, None, :]) & (of >= 0)[:, None, :]  # (m, k, k)
        votes = (same * np.where(speaks, sims, 0)[:, None, :]).sum(axis=2)
        best = votes.argmax(axis=1)  # of equal ones the most similar
        found = votes[np.arange(len(rows)), best] > 0
        return offers_of_lists(ids, sims, np.where(found, best, -1), run.n)

    return rule


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    vectors = read_features(run)
    return nearest_neighbors(run, vectors, partition(run, "cells", vectors))


def networks_of(run: Run) -> tuple[str, ...]:
    """The networks of the bundle that this run uses."""
    return tuple(run.settings.stages(run.engines.weights))


@step("knn")
def nearest_neighbors(run: Run, vectors: Artifact, cells: Partition) -> Artifact:
    """The kNN lists of all faces, as long as the largest k of a proposal set; similarities are clipped to 0..1."""
    k = run.settings.k
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], vectors, k, cells, "kNN")
    above = min(base.threshold for base in run.settings.proposals)
    return find_neighbors(run, "knn", vectors, k, cells, text="kNN", clip=True, above=above)


@step("proposals")
def proposed_clusters(run: Run, vectors: Artifact, knn: Artifact) -> Artifact:
    """Proposals of all parameter sets, in the recipe's order, those of a merge behind those that it merges.

    Within a set they are numbered by their first face and stand in the string order of these numbers (0, 10, 11, 1, 2),
    as published files do; equal scores go by this order. A proposal of the same faces and lists of the same k as one
    before it is left out: it would have the same score. See ``proposals_of`` and ``divided_of`` for the arrays.
    """
    before = set(run.searches)
    if run.survey:
        for at, base in enumerate(run.settings.proposals):
            describe_merges(run, vectors, (knn,), base.merge, f"{at}")

    def make() -> Arrays:
        found, ks, sets = [], [], []
        caps: list[Cuts] = []
        for at, (settings, k, (offsets, nodes)) in enumerate(levels_of_proposals(run, vectors, knn, caps)):
            if settings.keep:
                found.append(in_string_order(offsets, nodes))
                ks.append(np.full(len(offsets) - 1, k, dtype=np.int32))
                sets.append(np.full(len(offsets) - 1, at, dtype=np.int32))
        offsets, nodes = join_groups(found)
        joined = offsets
        lengths, places = np.concatenate(ks), np.concatenate(sets)
        chosen = np.flatnonzero(mark_first(offsets, nodes, lengths) & (np.diff(offsets) <= LARGEST))
        offsets, nodes = take_groups(offsets, nodes, chosen)
        nearest = nearest_similarities(vectors.array, knn.lists)
        divided = [faces for cuts in caps for faces in persons_divided(cuts, vectors.array, nearest)]
        told: Told = {
            "searches": {name: search for name, search in run.searches.items() if name not in before},
            "recall": {name: found.as_dict() for name, found in run.recall.items() if name not in before},
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

    return run.collect(
        "proposals",
        make,
        made_from=(vectors, knn),
        settings={"proposals": [asdict(base) for base in run.settings.proposals]},
        then=lambda arrays: tell(run, json.loads(arrays["told"].tobytes())),
    )


def proposals_of(proposed: Artifact) -> Proposals:
    """The proposals themselves: proposal p holds nodes[offsets[p]:offsets[p + 1]]."""
    return Proposals(*(proposed[part] for part in ("offsets", "nodes", "k", "set")))


def divided_of(proposed: Artifact) -> list[np.ndarray]:
    """The faces of components that seem to be of one person each and that max_size divided, in any of the sets."""
    faces = proposed["divided"]
    return np.split(faces, proposed["divided_offsets"][1:-1]) if len(faces) else []


class Told(TypedDict):
    """What is found while proposals are made: searches, their recall, components united, proposals left out."""

    searches: dict[str, dict[str, object]]
    recall: dict[str, RecallFigures]
    united: list[tuple[int, int]]
    too_large: int


def tell(run: Run, told: Told) -> None:
    """Tell what was found while proposals were made, in this run or in an earlier one."""
    run.searches |= told["searches"]
    run.recall |= {name: Recall(**found) for name, found in told["recall"].items()}
    if told["united"]:
        components, faces = max(told["united"])
        note_united(run, components, faces, MAX_SIZE, ROUNDS)
    if too_large := told["too_large"]:
        run.note(
            f"proposals of more than {LARGEST:,} faces that could not be split (nearly equal rows) are left out: "
            f"{too_large:,}.",
            proposals_too_large=too_large,
        )


def levels_of_proposals(
    run: Run, vectors: Artifact, knn: Artifact, caps: list[Cuts]
) -> Iterator[tuple[ProposalSettings | MergeSettings, int, Groups]]:
    """Yield each parameter set with the length of its kNN lists and its groups of faces, in the recipe's order.

    Adds to ``caps`` what max_size did in each that is not a merge.
    """
    for at, base in enumerate(run.settings.proposals):
        links = similar_pairs(knn["ids"], knn["sims"], base.k, base.threshold)
        labels, cuts = grown_components(run.n, links, base)
        caps.append(cuts)
        yield base, base.k, groups_from_labels(labels, base.min_size)
        for merge, groups in merged_levels(run, vectors, (knn,), labels, base.merge, f"{at}"):
            yield merge, base.k, groups


def grown_components(
    n: int, links: Links, settings: ProposalSettings | MergeSettings
) -> tuple[np.ndarray, Cuts]:
    """Components of similar pairs under a rising threshold and a cap: labels (n,) int64, NO_CLUSTER without a pair."""
    cap = settings.max_parts if isinstance(settings, MergeSettings) else settings.max_size
    return propagate_and_tell(n, *links, max_size=cap, step=settings.step, max_rounds=ROUNDS)


def merged_levels(
    run: Run,
    vectors: Artifact,
    made_from: tuple[Artifact, ...],
    labels: np.ndarray,
    merges: tuple[MergeSettings, ...],
    name: str,
) -> Iterator[tuple[MergeSettings, Groups]]:
    """Merge the components of a level, those that are merged further right behind; groups of faces.

    labels: (n,) int64, NO_CLUSTER for a face that is a part by itself. A part stands for its faces by the mean of their
    features, which is not normalised again.
    """
    if not merges:
        return
    parts, count = number_parts(labels)
    on_the_way, near = nearest_parts(run, vectors, made_from, parts, count, merges, name)
    _ = near.arrays
    run.drop(*on_the_way)
    for at, merge in enumerate(merges):
        ids = first_neighbors(near["ids"], near["sims"], merge.k)
        links = similar_pairs(ids, near["sims"][:, 1 : 1 + ids.shape[1]], ids.shape[1], merge.threshold)
        merged, _ = grown_components(count, links, merge)
        sizes = np.bincount(merged[merged >= 0], minlength=1)
        merged[(merged >= 0) & (sizes[merged] < merge.min_parts)] = NO_CLUSTER
        above = renumber(merged[parts])
        yield merge, groups_from_labels(above, merge.min_size, merge.max_size)
        yield from merged_levels(run, vectors, (near,), above, merge.merge, f"{name}-{at}")


def nearest_parts(
    run: Run,
    vectors: Artifact,
    made_from: tuple[Artifact, ...],
    parts: np.ndarray,
    count: int,
    merges: tuple[MergeSettings, ...],
    name: str,
) -> tuple[list[Artifact], Artifact]:
    """The nearest neighbors of every part by the inner product of means, behind the part itself.

    In front of them what is computed on the way.
    """
    wide = min(count, 1 + max(merge.k for merge in merges))
    members = run.collect(
        f"members{name}",
        lambda: dict(zip(("offsets", "nodes"), groups_from_labels(parts, 1), strict=True)),
        made_from=made_from,
        settings={"proposals": [asdict(base) for base in run.settings.proposals]},
        scratch=True,
    )
    means = run.compute(
        Stage(
            name=f"means{name}",
            text="means of components",
            unit="components",
            block=lambda some: {
                "means": mean_rows(members["offsets"], members["nodes"], some, vectors.array)
            },
            shapes={"means": ((count, run.features.dim), np.float32)},
            made_from=(members, vectors),
            rows=count,
            size=MEAN_BLOCK,
            scratch=True,
        )
    )
    cells = partition(run, f"cells{name}", means)
    near = find_neighbors(
        run,
        f"parts{name}",
        means,
        wide,
        cells,
        text="kNN of components",
        clip=True,
        above=min(merge.threshold for merge in merges),
        scratch=True,
    )
    return [means, members, cells.artifact], near


def describe_merges(
    run: Run,
    vectors: Artifact,
    made_from: tuple[Artifact, ...],
    merges: tuple[MergeSettings, ...],
    name: str,
) -> None:
    """Describe what merging takes when there are as many components as faces; more there cannot be."""
    if merges:
        _, near = nearest_parts(run, vectors, made_from, np.empty(0, np.int64), run.n, merges, name)
        for at, merge in enumerate(merges):
            describe_merges(run, vectors, (near,), merge.merge, f"{name}-{at}")


def in_string_order(offsets: np.ndarray, nodes: np.ndarray) -> Groups:
    """Sort groups 0, 1, 2, ... the way that files called 0_node.npz, 1_node.npz, ... are sorted."""
    return take_groups(
        offsets, nodes, np.argsort([f"{at}_" for at in range(len(offsets) - 1)], kind="stable")
    )


@step("detect")
def proposal_scores(
    run: Run,
    vectors: Artifact,
    cells: Partition,
    knn: Artifact,
    proposed: Artifact,
    tables: Mapping[str, Artifact],
) -> Artifact:
    """What the network says of every proposal: score (p,) float32, and iop (p,) float32 where a second one does."""
    outputs = {"score": DETECT} | ({"iop": PURITY} if PURITY in tables else {})
    proposals = proposals_of(proposed)

    def block(chosen: np.ndarray, *engines: Engine) -> Arrays:
        made = {part: np.empty(len(chosen), dtype=np.float32) for part in outputs}
        place = {p: at for at, p in enumerate(chosen.tolist())}
        for graphs in graphs_ahead(run, knn, proposals, chosen):
            at = [place[p] for p in graphs.at.tolist()]
            for (part, network), engine in zip(outputs.items(), engines, strict=True):
                made[part][at] = engine.run(feeds_of(graphs, tables[network]))["score"]
        for values in made.values():
            check_finite(run, values, proposals, chosen, "score")
        return made

    return run.compute(
        Stage(
            name="scores",
            text="scores of proposals",
            unit="proposals",
            block=block,
            shapes={part: ((len(proposals),), np.float32) for part in outputs},
            made_from=(vectors, knn, proposed),
            settings=settings_of_graphs(run),
            passes=tuple(outputs.values()),
            through=tuple(tables[network] for network in outputs.values() if tables[network] is not vectors),
            rows=len(proposals),
            size=PROPOSAL_BLOCK,
            visit=InOrderOfCells(cells, proposals),
        )
    )


@step("segment")
def member_probabilities(
    run: Run, vectors: Artifact, knn: Artifact, proposed: Artifact, scores: Artifact, table: Artifact
) -> Artifact:
    """How probably each node of a proposal belongs to it, (t,) float32; 1 in proposals that are not segmented."""
    settings, proposals = run.settings.segment, proposals_of(proposed)
    seeded = settings.seed != "none"

    def block(chosen: np.ndarray, engine: Engine, *others: Engine) -> Arrays:
        mark = mark_of_seed(run, others[0]) if others else None
        first = proposals.offsets[chosen[0]]
        ends = proposals.offsets[chosen + 1] - first
        probability = np.ones(int(ends[-1]), dtype=np.float32)
        for graphs in graphs_ahead(run, knn, proposals, to_segment(run, chosen, scores)):
            feeds = feeds_of(graphs, table)
            if mark is not None:
                (nodes,) = feeds.keys() - {"adj"}
                feeds[nodes][np.arange(len(graphs.at)), seeds_of(graphs, settings.seed)] += mark
            found = engine.run(feeds)["probability"]
            for row, p in enumerate(graphs.at):
                begin, end = proposals.offsets[p] - first, proposals.offsets[p + 1] - first
                probability[begin:end] = found[row, : end - begin]
        worst = np.maximum.reduceat(np.abs(probability), ends - proposals.sizes[chosen])
        check_finite(run, worst, proposals, chosen, "probability of a member")
        return {"probability": probability}

    range_of_iop = [settings.min_iop, settings.max_iop] if "iop" in scores.shapes else None
    return run.compute(
        Stage(
            name="members",
            text="members of proposals",
            unit="proposals",
            block=block,
            shapes={"probability": ((len(proposals.nodes),), np.float32)},
            made_from=(vectors, knn, proposed, scores),
            settings={**settings_of_graphs(run), "seed": settings.seed, "iop": range_of_iop},
            passes=(SEGMENT, f"{SEGMENT}_faces") if seeded else (SEGMENT,),
            through=() if table is vectors else (table,),
            rows=proposals.offsets,
            size=PROPOSAL_BLOCK,
        )
    )


def to_segment(run: Run, chosen: np.ndarray, scores: Artifact) -> np.ndarray:
    """Those of some proposals (m,) whose members are asked for, by the purity that was predicted of them."""
    if "iop" not in scores.arrays:
        return chosen
    predicted = scores["iop"][chosen].astype(np.float64)
    settings = run.settings.segment
    return chosen[(predicted >= settings.min_iop) & (predicted <= settings.max_iop)]


@step("clusters")
def clusters(
    run: Run, vectors: Artifact, proposed: Artifact, scores: Artifact, members: Artifact | None
) -> np.ndarray:
    """Labels (n,) int64: proposals by their scores, the highest first; see ``labels_from_scores``."""
    probability = None if members is None else members["probability"]
    labels = labels_from_scores(
        run.n,
        proposals_of(proposed),
        scores["score"],
        probability,
        run.settings,
        run.options.uncovered or "singleton",
        vectors.array if run.settings.overlap.min_cohesion > ANY_COHESION else None,
    )
    largest = max(base.max_size for base in run.settings.proposals)
    note_divided(run, labels, divided_of(proposed), MAX_SIZE, largest)
    return labels


def settings_of_graphs(run: Run) -> dict[str, object]:
    """The settings that decide what networks say of proposals."""
    return {"edge_weights": run.settings.graph.edge_weights, "network": asdict(run.settings.network)}


def graphs_ahead(run: Run, knn: Artifact, proposals: Proposals, chosen: np.ndarray) -> Iterator[Graphs]:
    """The graphs of some proposals, built while the engine works on those before."""
    weighted = run.settings.graph.edge_weights == "similarity"
    most = run.options.batch or ENGINE_NODES
    graphs = proposal_graphs(proposals, chosen, knn.lists, weighted, rows=ENGINE_NODES, most=most)
    return prefetch(graphs, threads=run.options.cores)


def feeds_of(graphs: Graphs, table: Artifact) -> dict[str, np.ndarray]:
    """Gather the rows of a table for all nodes of graphs; its array is called as the input of the network is."""
    (part,) = table.arrays
    name = "weighted" if part == "weighted" else "features"
    return {name: Rows(table.array, graphs.members).gather(), "adj": graphs.adj}


class InOrderOfCells(Partition):
    """The order in which proposals are best visited: by the cell of their first face."""

    def __init__(self, cells: Partition, proposals: Proposals) -> None:
        super().__init__(cells.artifact)
        self._proposals = proposals

    @functools.cached_property
    def order(self) -> np.ndarray:
        first = self._proposals.nodes[self._proposals.offsets[:-1]]
        return np.argsort(self.cells.cell[first], kind="stable").astype(np.int32)


def node_features(run: Run, rows: np.ndarray, network: str) -> np.ndarray:
    """What a network takes for faces: their features or ones, and a column of zeros where a seed would be marked."""
    if run.settings.network.featureless:
        rows = np.ones((len(rows), 1), dtype=np.float32)
    if network == SEGMENT and run.settings.segment.seed != "none":
        rows = np.concatenate([rows, np.zeros((len(rows), 1), dtype=np.float32)], axis=1)
    return rows


def face_table(run: Run, vectors: Artifact, network: str) -> Artifact:
    """What each face brings to every graph it is in, a single array (n, h) float32: ``weighted``, or its features."""
    name = f"{network}_faces"
    if name not in run.engines.passes:  # without layers: the features themselves
        if not run.settings.network.featureless:
            return vectors
        return run.collect("ones", lambda: {"ones": np.ones((run.n, 1), dtype=np.float32)}, scratch=True)

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        rows = node_features(run, vectors.array[faces], network)
        return run.finite(engine.run({"features": rows}), faces, "product of a face")

    return run.compute(
        Stage(
            name=name,
            text="products of faces",
            block=block,
            shapes={"weighted": ((run.n, run.engines.weights[network]["hidden"][0]), np.float32)},
            made_from=(vectors,),
            settings={**settings_of_graphs(run), "seed": run.settings.segment.seed},
            passes=(name,),
            rows=run.n,
            size=FACES_BLOCK,
            scratch=True,
        )
    )


def mark_of_seed(run: Run, engine: Engine) -> np.ndarray:
    """What the seed's column adds to its node's product, (h,) float32; engine: the pass that makes products."""
    column = np.zeros((1, run.engines.weights[SEGMENT]["dim"]), dtype=np.float32)
    column[0, -1] = 1
    product = engine.run({"features": column})
    run.check_row(product)
    return product["weighted"][0]


def check_finite(run: Run, values: np.ndarray, proposals: Proposals, chosen: np.ndarray, what: str) -> None:
    """Raise FcdeployError when one of ``values`` (m,), of the proposals ``chosen`` (m,), is NaN or infinite."""
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        first = int(chosen[bad].min())
        nodes = proposals.nodes[proposals.offsets[first] : proposals.offsets[first + 1]]
        shown = ", ".join(map(str, run.rows_of(nodes[:5]))) + (", ..." if len(nodes) > 5 else "")
        raise FcdeployError(
            f"{run.engines.path}: the engine gave a {what} that is not finite for {len(bad):,} of {len(values):,} "
            f"proposals (the first is of rows {shown} of {run.features.name}); stopped before clustering."
        )
