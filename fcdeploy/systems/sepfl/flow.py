"""SEPFL from features to labels; the algorithm, top to bottom."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.clustering.evidence import PROBABILITY, Accepted, links_from
from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.density import density_from_sums_and_counts, sum_and_count_similarities
from fcdeploy.graph.entering import place_of_denser, place_of_follower
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import rows_stay, unless_changed
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays
from fcdeploy.systems.pse_gcn.flow import clusters
from fcdeploy.systems.sepfl.decode import accepted, probability
from fcdeploy.systems.sepfl.inputs import face_batches
from fcdeploy.systems.sepfl.spec import ACCEPTED

NEAR_BLOCK = 4096
ENCODE_BLOCK = 2048
ENGINE_ROWS = 1280  # neighbors per engine call: full-speed matrix products that stay in the cache
LINK_BLOCK = 65536
PAIR_BLOCK = 4096


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    encoded = encoded_faces(run, vectors, cells, knn)
    candidates = candidate_links(run, cells, knn, encoded)
    links = accepted_links(run, candidates)
    return clusters(run, links)


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """The candidate links with what the network says of them."""
    near = kept["candidates"]
    return Accepted(lambda: links_from(near["ids"], probability(near["logits"])), PROBABILITY, "knn")


def assign(run: Extended) -> Rule:
    """Link new faces to the nearest denser stored face, where the network accepts the two.

    One that is linked to none goes with the nearest stored face that would be linked to it, where it accepts these.
    """
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    encoded = encoded_faces(run, vectors, cells, knn)
    stored = knn["sims"][: run.n]
    sums, counts = sums_and_counts(run, stored)
    density = density_from_sums_and_counts(sums, counts)
    reached, floor = link_to_denser(knn["ids"][: run.n], stored, density, 0)[1], stored.min(axis=1)
    engine, least = run.opened_engine("pair"), least_probability(run)

    def asked(face: np.ndarray, denser: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The probability of links of some rows, and which are accepted; none where nothing was ``found``."""
        logits = np.zeros((len(face), 2), dtype=np.float32)
        some = np.flatnonzero(found)
        if len(some):
            pairs = {"face": encoded.array[face[some]], "denser": encoded.array[denser[some]]}
            logits[some] = engine.run(pairs)["logits"]
        probable = np.where(found, probability(logits), np.float32(np.nan))
        return probable, found & accepted_by(logits, least)

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, sims = knn["ids"][rows], knn["sims"][rows]
        own = density_from_sums_and_counts(
            *sums_and_counts(run, sims), largest=(np.abs(sums).max(), counts.max())
        )
        denser = place_of_denser(ids, density, own, run.n)
        at = np.arange(len(rows))
        value, taken = asked(rows, ids[at, denser], denser != NO_LINK)
        follower = place_of_follower(ids, sims, density, own, reached, floor, sims)
        follower[taken] = NO_LINK
        theirs, joined = asked(ids[at, follower], rows, follower != NO_LINK)
        place = np.where(taken, denser, np.where(joined, follower, NO_LINK))
        return offers_of_lists(ids, sims, place, run.n, np.where(joined, theirs, value))

    return rule


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    vectors = read_features(run)
    return nearest_neighbors(run, vectors, partition(run, "cells", vectors))


@step("knn")
def nearest_neighbors(run: Run, vectors: Artifact, cells: Partition) -> Artifact:
    """The k nearest neighbors of the input features, most similar first; k is a length of the weights."""
    links = run.settings.links
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], vectors, links.k, cells, "kNN")
    return find_neighbors(run, "knn", vectors, links.k, cells, text="kNN", clip=True, above=links.rho)


@step("encode")
def encoded_faces(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """Each face with what it attends to among its neighbors, (n, 2d) float32."""
    near = near_products(run, vectors)
    width = 2 * run.features.dim

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        ids = knn["ids"]
        most = run.options.batch or max(1, ENGINE_ROWS // ids.shape[1])
        encoded = np.empty((len(faces), width), dtype=np.float32)
        for part, outputs in engine.run_each(face_batches(vectors.array, near["near"], ids, faces, most)):
            encoded[part] = outputs["encoded"]
        run.check_finite(encoded, faces, "encoded face")
        return {"encoded": encoded}

    return run.compute(
        Stage(
            name="encoded",
            text="encoding",
            block=block,
            shapes={"encoded": ((run.n, width), np.float32)},
            made_from=(vectors, knn),
            passes=("encode",),
            through=(near,),
            rows=run.n,
            size=ENCODE_BLOCK,
            visit=cells,
            carry=rows_stay,
        )
    )


def near_products(run: Run, vectors: Artifact) -> Artifact:
    """What each face brings to the channel mixer of those it is a neighbor of, (n, 4d) float32."""

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        return run.finite(engine.run({"features": vectors.array[faces]}), faces, "product of a neighbor")

    return run.compute(
        Stage(
            name="near",
            text="products of neighbors",
            block=block,
            shapes={"near": ((run.n, 4 * run.features.dim), np.float32)},
            made_from=(vectors,),
            passes=("near",),
            rows=run.n,
            size=NEAR_BLOCK,
            scratch=True,
        )
    )


def sums_and_counts(run: Run, sims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums (m,) float32 of similarities in lists (m, k), and how many (m,) int32 are near ones."""
    sums, counts = np.empty(len(sims), dtype=np.float32), np.empty(len(sims), dtype=np.int32)
    for block in blocks_of(len(sims), LINK_BLOCK):
        sum_and_count_similarities(sims[block], run.settings.links.rho, sums[block], counts[block])
    return sums, counts


def density_of_faces(run: Run, knn: Artifact) -> np.ndarray:
    """How central each face is, (n,) float64: half by its neighbors' similarity, half by the number of near ones."""
    return density_from_sums_and_counts(*sums_and_counts(run, knn["sims"][: run.n]))


def denser_neighbors(run: Run, knn: Artifact) -> Artifact:
    """Each face's nearest denser neighbor: ids (n,) int32, NO_LINK where there is none, and sims (n,) float32."""

    def make() -> Arrays:
        density = density_of_faces(run, knn)
        denser, sims = np.empty(run.n, dtype=np.int32), np.empty(run.n, dtype=np.float32)
        for block in blocks_of(run.n, LINK_BLOCK):
            denser[block], sims[block] = link_to_denser(
                knn["ids"][block], knn["sims"][block], density, block.start
            )
        return {"ids": denser, "sims": sims}

    rho = run.settings.links.rho
    return run.collect("denser", make, made_from=(knn,), settings={"rho": rho}, scratch=True)


@step("links")
def candidate_links(run: Run, cells: Partition, knn: Artifact, encoded: Artifact) -> Artifact:
    """Each face's nearest denser neighbor and what the network says of the two.

    Gives ids (n,) int32, NO_LINK where no neighbor is denser, sims (n,) float32 and logits (n, 2) float32, 0 there.
    """
    near = denser_neighbors(run, knn)

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        denser = near["ids"][faces]
        logits = np.zeros((len(faces), 2), dtype=np.float32)
        linked = np.flatnonzero(denser != NO_LINK)
        if len(linked):
            pairs = {"face": encoded.array[faces[linked]], "denser": encoded.array[denser[linked]]}
            logits[linked] = engine.run(pairs)["logits"]
        run.check_finite(logits, faces, "logit")
        return {"ids": denser, "sims": near["sims"][faces], "logits": logits}

    return run.compute(
        Stage(
            name="candidates",
            text="candidate links",
            block=block,
            shapes={
                "ids": ((run.n,), np.int32),
                "sims": ((run.n,), np.float32),
                "logits": ((run.n, 2), np.float32),
            },
            made_from=(knn, encoded),
            settings={"rho": run.settings.links.rho},
            passes=("pair",),
            through=(near,),
            rows=run.n,
            size=PAIR_BLOCK,
            visit=cells,
            carry=unless_changed("candidates", near),
        )
    )


@step("links")
def accepted_links(run: Run, candidates: Artifact) -> Artifact:
    """Candidate links whose logit 1 is above logit 0, and as probable as the user asks for.

    A recipe that is content with less than half accepts links that the network refuses. Gives ids (m, 2) int32, sims
    and probability (m,) float32.
    """
    least = least_probability(run)

    def make() -> Arrays:
        ids, sims, probabilities = [], [], []
        for block in blocks_of(run.n, LINK_BLOCK):
            denser, logits = (candidates[name][block] for name in ("ids", "logits"))
            probable = probability(logits)
            kept = np.flatnonzero((denser != NO_LINK) & accepted_by(logits, least))
            ids.append(np.stack([block.start + kept, denser[kept]], axis=1).astype(np.int32))
            sims.append(candidates["sims"][block][kept])
            probabilities.append(probable[kept])
        return {
            "ids": np.concatenate(ids),
            "sims": np.concatenate(sims),
            "probability": np.concatenate(probabilities),
        }

    return run.collect("links", make, made_from=(candidates,), settings={"min_probability": least})


def least_probability(run: Run) -> float:
    """The probability that a link needs."""
    wanted, asked = run.settings.links.min_probability, run.options.min_probability
    return max(ACCEPTED, asked) if asked is not None else wanted


def accepted_by(logits: np.ndarray, least: float) -> np.ndarray:
    """Which links (m,) bool of ``logits`` (m, 2) are accepted by who wants them to be ``least`` probable."""
    keep: np.ndarray = probability(logits) >= np.float32(least)
    return keep & accepted(logits) if least >= ACCEPTED else keep
