"""NSR-FC from features to labels; the algorithm, top to bottom.

Every stage reads the first so many columns of the same kNN lists. Re-scored distances stay in the order of these
lists; density peaks sort them, the pair networks do not.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from fcdeploy.clustering.evidence import PROBABILITY, SIMILARITY, Accepted, links_from
from fcdeploy.engine.tensors import Engine, Feeds
from fcdeploy.graph.connectivity import (
    candidates_and_certain,
    density_from_scores,
    symmetric_scores,
    weighted_largest,
)
from fcdeploy.graph.entering import entering_scores, links_of_entering, lists_with
from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.transition import add_received, link_to_peaks, shares, transition_distances
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import and_near, entries_from_others, entries_stay, unless_changed
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Moved, Stage
from fcdeploy.run.store import Arrays
from fcdeploy.systems.nsr_fc.decode import distance, place_of_link, probability
from fcdeploy.systems.nsr_fc.inputs import list_batches, position_batches, position_code
from fcdeploy.systems.nsr_fc.spec import ENGINE_ROWS, PAIRS, link_of, longest_list, positions_a_call
from fcdeploy.systems.pse_gcn.flow import clusters, refined_features, reranked_lists

RESCORE_BLOCK = 512  # faces between two commits, rounded to whole batches
CONNECT_BLOCK = 2048
LINK_BLOCK = 65536
CONFIRM_BLOCK = 2048
NEAR = 0.5  # similarity of the neighbors whose recall is told apart
SAME = 0.5  # probability from which LCENet takes two faces for one person
NEARLY = 0.1  # from the least probability of a link: nearly undecided

Similarities = Callable[[slice], np.ndarray]  # a block of faces -> those to their first k neighbors


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    networks = run.engines.weights
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    features = features_to_rescore(run, vectors, cells, knn)
    dists = rescored_distances(run, features, knn) if "rescore" in networks else None
    if link_of(networks, run.options.link) == PAIRS:
        scores = connectivity(run, vectors, cells, knn)
        candidates = candidate_links(run, knn, dists, scores)
        confirmed = confirmation(run, vectors, cells, knn, scores, candidates)
        links = pair_links(run, candidates, confirmed, certain_links(run, knn, dists, scores, candidates))
    else:
        assert dists is not None  # a bundle without re-scoring has no density peaks
        lists = resorted_lists(run, knn, dists)
        near = transitions(run, cells, dists, lists)
        links = peak_links(run, knn, dists, lists, near)
    return clusters(run, links)


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """The candidates of the pair networks and certain links, of probability 1, or links to peaks, by 1 - distance."""
    if link_of(run.engines.weights, run.options.link) == PAIRS:
        candidates, confirmed, certain = (kept[name] for name in ("candidates", "confirmed", "certain"))

        def links() -> list[tuple[np.ndarray, np.ndarray]]:
            sure = certain["ids"], np.ones(len(certain["ids"]), np.float32)
            return [sure, *links_from(candidates["ids"], confirmed["probability"])]

        return Accepted(links, PROBABILITY, "knn")
    near = kept["transitions" if "transitions" in kept else "resorted"]
    return Accepted(
        lambda: ((ids, 1 - to) for ids, to in peak_candidates(run, near, kept["links"]["density"])),
        SIMILARITY,
        "knn",
    )


def assign(run: Extended) -> Rule:
    """Link new faces as the bundle's networks do: by the pair networks, or to near peaks of re-scored distance."""
    networks = run.engines.weights
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    features = features_to_rescore(run, vectors, cells, knn)
    dists = rescored_distances(run, features, knn) if "rescore" in networks else None
    if link_of(networks, run.options.link) == PAIRS:
        return rule_of_pairs(run, vectors, knn, dists, connectivity(run, vectors, cells, knn))
    assert dists is not None
    return rule_of_peaks(run, transitions(run, cells, dists, resorted_lists(run, knn, dists)))


def rule_of_pairs(
    run: Extended, vectors: Artifact, knn: Artifact, dists: Artifact | None, scores: Artifact
) -> Rule:
    """Link new faces to the denser stored face of the largest score times similarity, if PCENet confirms the two.

    Else to one that is linked for certain, else to the stored face that would most strongly link to it of those that
    it confirms; see ``place_of_link``. A link back to a new face, which is in no list, is taken to be as probable as
    that from it.
    """
    pairs, sims = run.settings.pairs, similarities(run, knn, dists)
    candidates = candidate_links(run, knn, dists, scores)
    density = candidates["density"]
    threshold = float(certain_links(run, knn, dists, scores, candidates)["threshold"][0])
    floor = knn["sims"][: run.n, : pairs.k].min(axis=1)
    reached = strongest_links(run, knn, dists, scores, density)
    engine, least = run.opened_engine("confirm"), np.float32(least_probability(run))

    def asked(rows: np.ndarray, place: np.ndarray, follows: bool) -> np.ndarray:
        """PCENet's probability of links to, or with ``follows`` from, the faces at a place in lists of new ones."""
        probable = np.full(len(rows), np.nan, dtype=np.float32)
        some = np.flatnonzero(place != NO_LINK)
        if len(some):
            new, own = rows[some], (rows[some], place[some])
            other = knn["ids"][own]
            lists = lists_with(
                knn["ids"][other, : pairs.k], knn["sims"][other, : pairs.k], new, knn["sims"][own]
            )
            both = (lists, knn["ids"][new, : pairs.k]) if follows else (knn["ids"][new, : pairs.k], lists)
            probable[some] = confirmed_lists(run, vectors, *both, new, engine)
        return probable

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids = np.ascontiguousarray(knn["ids"][rows, : pairs.k])
        near, cosine = sims(slice(int(rows[0]), int(rows[-1]) + 1)), knn["sims"][rows, : pairs.k]
        means = entering_scores(ids, floor, cosine, scores["probability"][rows])
        strengths, own = means * near, density_from_scores(means, near)
        links = links_of_entering(ids, strengths, density, own, reached, floor, cosine, threshold)
        near_labels = labels[np.minimum(ids, run.n - 1)]
        place, told = place_of_link(links, strengths, near_labels, least, partial(asked, rows))
        return offers_of_lists(ids, strengths.astype(np.float32), place, run.n, told)

    return rule


def strongest_links(
    run: Run, knn: Artifact, dists: Artifact | None, scores: Artifact, density: np.ndarray
) -> np.ndarray:
    """The largest score times similarity of a denser neighbor, (n,) float64; 0 without one."""
    k, sims = run.settings.pairs.k, similarities(run, knn, dists)
    ids, largest = knn["ids"][:, :k], np.empty(run.n, dtype=np.float64)
    for block in blocks_of(run.n, LINK_BLOCK):
        faces = np.arange(block.start, block.stop, dtype=np.int32)
        strengths = symmetric_scores(ids, scores["probability"], faces) * sims(block)
        higher = density[ids[block]] > density[ids[block, :1]]  # column 0 stands for the face itself
        largest[block] = np.where(higher, strengths, 0).max(axis=1, initial=0)
    return largest


def rule_of_peaks(run: Extended, near: Artifact) -> Rule:
    """Link new faces to the nearest stored face, if its distance is less than tau.

    What a new face is given by lists, its density, is not known, since it is in none: all others count as denser.
    """
    tau = np.float32(run.settings.density_peaks.tau)

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, to = near["ids"][rows], near["dists"][rows]
        to = np.where(ids < run.n, to, np.float32(np.inf))
        best = to.argmin(axis=1)
        nearest = to[np.arange(len(rows)), best]
        return offers_of_lists(ids, 1 - to, np.where(nearest < tau, best, NO_LINK), run.n, 1 - nearest)

    return rule


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    vectors = read_features(run)
    return nearest_neighbors(run, vectors, partition(run, "cells", vectors))


@step("knn")
def nearest_neighbors(run: Run, vectors: Artifact, cells: Partition) -> Artifact:
    """The nearest neighbors of the input features, most similar first, as many as the longest stage reads."""
    weights = run.engines.weights
    k = longest_list(weights, run.settings, link_of(weights, run.options.link))
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], vectors, k, cells, "kNN")
    return find_neighbors(run, "knn", vectors, k, cells, text="kNN", clip=True, above=NEAR)


def features_to_rescore(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """What the re-scoring is given of each face, a single array (n, w) float32: refined features, or the input."""
    if "refine" not in run.engines.weights:
        return vectors
    ranked = reranked_lists(run, vectors, cells, knn)
    return refined_features(run, vectors, cells, knn, ranked)


@step("rescore")
def rescored_distances(run: Run, features: Artifact, knn: Artifact) -> Artifact:
    """What the transformer makes of the distance to each neighbor, (n, k) float32, in the order of the kNN lists.

    features: (n, d) float32, refined ones or the input. Batch-wise attention reads a face's scores off the whole
    batch, so batches are those of the recipe, in the order of the file, whatever else a run is told.
    """
    rescore = run.settings.rescore
    batch, batch_wise = rescore.batch, rescore.attention == "batch"
    across: Callable[..., np.ndarray] = logits_across_batch if batch_wise else logits_across_neighbors
    width = int(features.shapes[next(iter(features.shapes))][0][1] or 0)
    code = position_code(rescore.k, width)

    def block(faces: np.ndarray, *engines: Engine) -> Arrays:
        logits = np.empty((len(faces), rescore.k), dtype=np.float32)
        for start in range(0, len(faces), batch):  # blocks start where a batch does
            ids = knn["ids"][faces[start : start + batch]][:, : rescore.k]
            logits[start : start + len(ids)] = across(run, features.array, ids, code, *engines)
        run.check_finite(logits, faces, "logit")
        return {"dists": distance(logits)}

    def unlisted(faces: np.ndarray, *engines: Engine) -> Arrays:
        """Behind the last stored faces, with whom they fill a batch."""
        before = np.arange(max(0, run.n - batch + len(faces)), run.n, dtype=np.int32)
        return {"dists": block(np.concatenate([before, faces]), *engines)["dists"][len(before) :]}

    return run.compute(
        Stage(
            name="rescored",
            text="re-scoring",
            block=block,
            unlisted=unlisted if batch_wise else None,
            shapes={"dists": ((run.n, rescore.k), np.float32)},
            made_from=(features, knn),
            settings={
                "k": rescore.k,
                "attention": rescore.attention,
                "batch": batch if batch_wise else None,
            },
            passes=("rescore_first", "rescore") if batch_wise else ("rescore_neighbors",),
            rows=run.n,
            size=max(1, RESCORE_BLOCK // batch) * batch,
            whole=batch,
            carry=entries_stay(knn, "knn", rescore.k),
            carried=entries_from_others(knn, rescore.k),
        )
    )


def logits_across_batch(
    run: Run, features: np.ndarray, ids: np.ndarray, code: np.ndarray, first_engine: Engine, engine: Engine
) -> np.ndarray:
    """Score lists (b, k) that are one batch, its faces attending to each other at each position: logits (b, k)."""
    made = run.finite(first_engine.run({"features": features[ids[:, 0]]}), ids[:, 0], "first row")
    logits = np.empty(ids.shape, dtype=np.float32)

    def batches() -> Iterator[tuple[slice, Feeds]]:
        for part, feeds in position_batches(features, ids, code, positions_a_call(len(ids))):
            yield part, {**feeds, "first": made["first"]}

    for part, outputs in engine.run_each(batches()):
        logits[:, part] = outputs["logits"].T
    return logits


def logits_across_neighbors(
    run: Run, features: np.ndarray, ids: np.ndarray, code: np.ndarray, engine: Engine
) -> np.ndarray:
    """Score lists (b, k), the neighbors in each attending to each other: logits (b, k)."""
    logits = np.empty(ids.shape, dtype=np.float32)

    def batches() -> Iterator[tuple[slice, Feeds]]:
        for part, feeds in list_batches(features, ids, lists_a_call(run, ids.shape[1])):
            yield part, {**feeds, "code": code}

    for part, outputs in engine.run_each(batches()):
        logits[part] = outputs["logits"]
    return logits


def lists_a_call(run: Run, width: int) -> int:
    """How many lists of ``width`` faces go into one engine call."""
    return run.options.batch or max(1, ENGINE_ROWS // width)


@step("links")
def peak_links(run: Run, knn: Artifact, dists: Artifact, lists: Artifact, near: Artifact) -> Artifact:
    """Links of less than tau, each from a face to the nearest faces that are at least as dense.

    Gives ids (m, 2) int32, dists (m,) float32 and density (n,) float64.
    """
    peaks = run.settings.density_peaks

    def make() -> Arrays:
        density = np.zeros(run.n, dtype=np.float64)
        for block in blocks_of(run.n, LINK_BLOCK):
            given = shares(lists["dists"][block, : peaks.k], peaks.sigma)
            add_received(np.ascontiguousarray(lists["ids"][block, : peaks.k]), given, density)
        pairs, reached = [], []
        for ids, to in peak_candidates(run, near, density):
            kept = np.flatnonzero(to < np.float32(peaks.tau))
            pairs.append(ids[kept])
            reached.append(to[kept])
        return {"ids": np.concatenate(pairs), "dists": np.concatenate(reached), "density": density}

    return run.collect(
        "links",
        make,
        made_from=(knn, dists),
        settings={
            "sigma": peaks.transition_sigma,
            "density": [peaks.k, peaks.sigma],
            "tau": peaks.tau,
            "max_links": peaks.max_links,
        },
        through=(lists,),
    )


def peak_candidates(run: Run, near: Artifact, density: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the links from faces to faces at least as dense, in blocks: ids (m, 2) int32 and distances (m,)."""
    for block in blocks_of(run.n, LINK_BLOCK):
        ids, to = link_to_peaks(
            near["ids"][block],
            near["dists"][block],
            density,
            block.start,
            run.settings.density_peaks.max_links,
        )
        row, at = np.nonzero(ids != NO_LINK)
        yield np.stack([block.start + row, ids[row, at]], axis=1).astype(np.int32), to[row, at]


def resorted_lists(run: Run, knn: Artifact, dists: Artifact) -> Artifact:
    """Lists sorted by re-scored distance: ids and dists (n, k), and the weights of their transitions."""
    sigma = run.settings.density_peaks.transition_sigma
    shape = dists.shapes["dists"][0]

    def block(faces: np.ndarray) -> Arrays:
        found = dists["dists"][faces]
        order = np.argsort(found, axis=1, kind="stable")
        lists = {
            "ids": np.take_along_axis(knn["ids"][faces][:, : found.shape[1]], order, axis=1),
            "dists": np.take_along_axis(found, order, axis=1),
        }
        if sigma > 0:
            lists["weights"] = np.sqrt(shares(lists["dists"], sigma))
        return lists

    weights = {"weights": (shape, np.float32)} if sigma > 0 else {}
    return run.compute(
        Stage(
            name="resorted",
            text="sorting by re-scored distance",
            block=block,
            shapes={"ids": (shape, np.int32), "dists": (shape, np.float32), **weights},
            made_from=(knn, dists),
            settings={"sigma": sigma},
            rows=run.n,
            scratch=True,
        )
    )


@step("links")
def transitions(run: Run, cells: Partition, dists: Artifact, lists: Artifact) -> Artifact:
    """Transition distances to the neighbors in lists sorted by re-scored distance: ids and dists (n, k).

    Without a sigma for them they are the re-scored ones.
    """
    if run.settings.density_peaks.transition_sigma <= 0:
        return lists
    shape = dists.shapes["dists"][0]

    def block(faces: np.ndarray) -> Arrays:
        faces = np.ascontiguousarray(faces)
        found = transition_distances(lists["ids"], lists["weights"], faces)
        return {"ids": lists["ids"][faces], "dists": found}

    return run.compute(
        Stage(
            name="transitions",
            text="transition distances",
            block=block,
            shapes={"ids": (shape, np.int32), "dists": (shape, np.float32)},
            made_from=(lists,),
            rows=run.n,
            visit=cells,
        )
    )


@step("connect")
def connectivity(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """LCENet's probability that a face and each of its neighbors are one person, (n, k) float32."""
    k = run.settings.pairs.k

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        logits = np.empty((len(faces), k, 2), dtype=np.float32)
        batches = list_batches(vectors.array, knn["ids"][faces][:, :k], lists_a_call(run, k))
        for part, outputs in engine.run_each(batches):
            logits[part] = outputs["logits"]
        run.check_finite(logits.reshape(len(faces), -1), faces, "logit")
        return {"probability": probability(logits)}

    return run.compute(
        Stage(
            name="connectivity",
            text="connectivity",
            block=block,
            shapes={"probability": ((run.n, k), np.float32)},
            made_from=(vectors, knn),
            settings={"k": k},
            passes=("connect",),
            rows=run.n,
            size=CONNECT_BLOCK,
            visit=cells,
            carry=entries_stay(knn, "knn", k),
            carried=entries_from_others(knn, k),
        )
    )


def similarities(run: Run, knn: Artifact, dists: Artifact | None) -> Similarities:
    """Similarities of a block of faces to their first neighbors: 1 - re-scored distance, or cosine."""
    k = run.settings.pairs.k
    if dists is None:
        return lambda block: knn["sims"][block, :k]
    return lambda block: np.float32(1) - dists["dists"][block, :k]


@step("links")
def candidate_links(run: Run, knn: Artifact, dists: Artifact | None, scores: Artifact) -> Artifact:
    """Each face's density (n,) float64 and its candidate, ids (n,) int32.

    The candidate, NO_LINK where there is none, is the denser neighbor of the largest score times similarity.
    """
    k = run.settings.pairs.k

    def make() -> Arrays:
        density, denser = np.empty(run.n, dtype=np.float64), np.empty(run.n, dtype=np.int32)
        for block, _, means, near in pair_scores(run, knn, dists, scores):
            density[block] = density_from_scores(means, near)
        for block, ids, means, near in pair_scores(run, knn, dists, scores):
            denser[block], _ = candidates_and_certain(ids, means * near, density, np.inf)
        return {"density": density, "ids": denser}

    made_from = (knn, scores, *([dists] if dists is not None else []))
    return run.collect("candidates", make, made_from=made_from, settings={"k": k})


@step("links")
def certain_links(
    run: Run, knn: Artifact, dists: Artifact | None, scores: Artifact, candidates: Artifact
) -> Artifact:
    """Links to denser neighbors that PCENet is not asked about, beside the candidates: ids (m, 2) int32.

    threshold: (1,) float64, the score times similarity that they reach; infinite when there shall be none.
    """
    pairs, sims = run.settings.pairs, similarities(run, knn, dists)
    weights = np.array(pairs.certain_weights)

    def make() -> Arrays:
        if not len(weights):
            return {"ids": np.empty((0, 2), dtype=np.int32), "threshold": np.array([np.inf])}
        largest = np.empty(run.n, dtype=np.float64)
        for block in blocks_of(run.n, LINK_BLOCK):
            largest[block] = weighted_largest(sims(block), weights)
        threshold = float(largest.mean())
        certain = []
        for block, ids, means, near in pair_scores(run, knn, dists, scores):
            _, marked = candidates_and_certain(ids, means * near, candidates["density"], threshold)
            row, at = np.nonzero(marked)
            both = np.sort(np.stack([block.start + row, ids[row, at]], axis=1), axis=1)
            certain.append(both[:, 0] * run.n + both[:, 1])  # one number per pair
        together = np.unique(np.concatenate(certain))
        links = np.stack([together // run.n, together % run.n], axis=1).astype(np.int32)
        return {"ids": links, "threshold": np.array([threshold])}

    made_from = (knn, scores, candidates, *([dists] if dists is not None else []))
    settings = {"k": pairs.k, "certain_weights": list(pairs.certain_weights)}
    return run.collect("certain", make, made_from=made_from, settings=settings)


def pair_scores(
    run: Run, knn: Artifact, dists: Artifact | None, scores: Artifact
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield faces in blocks with their lists, the means of both faces' scores and the similarities, (m, k) each."""
    ids, sims = knn["ids"][:, : run.settings.pairs.k], similarities(run, knn, dists)
    for block in blocks_of(run.n, LINK_BLOCK):
        faces = np.arange(block.start, block.stop, dtype=np.int32)
        yield block, ids[block], symmetric_scores(ids, scores["probability"], faces), sims(block)


@step("links")
def confirmation(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, scores: Artifact, candidates: Artifact
) -> Artifact:
    """PCENet's probability that a face and its candidate are one person, (n,) float32; 0 without a candidate.

    When faces are added, links that stay are asked about again where it was nearly undecided and a new face stands in
    either list that LCENet takes for the same person.
    """
    k = run.settings.pairs.k

    def beside_new(moved: Moved, faces: np.ndarray) -> np.ndarray:
        found = np.zeros(len(faces), bool)
        for end in (faces, np.maximum(candidates["ids"][faces], 0)):
            new = moved.before[knn["ids"][end][:, 1:k]] < 0
            found |= (new & (scores["probability"][end][:, 1:] >= SAME)).any(axis=1)
        return found

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        denser = candidates["ids"]
        links = faces[denser[faces] != NO_LINK]
        confirmed = np.zeros(len(faces), dtype=np.float32)
        confirmed[denser[faces] != NO_LINK] = confirmed_links(run, vectors, knn, links, denser[links], engine)
        return {"probability": confirmed}

    return run.compute(
        Stage(
            name="confirmed",
            text="confirmation",
            block=block,
            shapes={"probability": ((run.n,), np.float32)},
            made_from=(vectors, knn, candidates),
            settings={"k": k},
            passes=("confirm",),
            rows=run.n,
            size=CONFIRM_BLOCK,
            visit=cells,
            carry=and_near(
                unless_changed("candidates", candidates),
                "probability",
                least_probability(run),
                NEARLY,
                beside_new,
            ),
        )
    )


def confirmed_links(
    run: Run, vectors: Artifact, knn: Artifact, faces: np.ndarray, denser: np.ndarray, engine: Engine
) -> np.ndarray:
    """PCENet's probability (m,) float32 that ``faces`` (m,) and the ``denser`` ones (m,) are one person each."""
    k, ids = run.settings.pairs.k, knn["ids"]
    return confirmed_lists(run, vectors, ids[faces][:, :k], ids[denser][:, :k], faces, engine)


def confirmed_lists(
    run: Run, vectors: Artifact, lists: np.ndarray, others: np.ndarray, faces: np.ndarray, engine: Engine
) -> np.ndarray:
    """PCENet's probability (m,) float32 by the lists (m, k) of ``faces`` (m,), and those of the denser ones."""
    both = np.concatenate([lists, others], axis=1)  # (m, 2k)
    logits = np.empty((len(faces), 2), dtype=np.float32)
    for part, outputs in engine.run_each(list_batches(vectors.array, both, lists_a_call(run, both.shape[1]))):
        logits[part] = outputs["logits"]
    run.check_finite(logits, faces, "logit")
    return probability(logits)


def least_probability(run: Run) -> float:
    """The probability that a link needs."""
    wanted, asked = run.settings.pairs.min_probability, run.options.min_probability
    return wanted if asked is None else asked


@step("links")
def pair_links(run: Run, candidates: Artifact, confirmed: Artifact, certain: Artifact) -> Artifact:
    """Candidates that PCENet confirms, and certain links: ids (m, 2) int32, probability (m,) and certain (m,) bool."""
    least = least_probability(run)

    def make() -> Arrays:
        denser, sure, probable = candidates["ids"], certain["ids"], confirmed["probability"]
        kept = np.flatnonzero((denser != NO_LINK) & (probable > np.float32(least)))
        links = np.stack([kept, denser[kept]], axis=1).astype(np.int32)
        asked = np.concatenate([probable[kept], np.ones(len(sure), np.float32)])
        return {
            "ids": np.concatenate([links, sure]),
            "probability": asked,
            "certain": np.arange(len(asked)) >= len(kept),
        }

    made_from = (candidates, confirmed, certain)
    return run.collect("links", make, made_from=made_from, settings={"min_probability": least})
