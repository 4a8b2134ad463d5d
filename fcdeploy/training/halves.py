"""Halves of labelled faces, by identity: what is chosen on one is judged on the other.

Each half is clustered anew, from the search of neighbors on. Nothing of the run over all faces is of use to it: in the
lists of a half are faces that were crowded out by the other half's, every network sees a neighborhood through such
lists, and a cluster of all faces may hang together by faces that the half does not have.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.by_identity import Spread, spread_of
from fcdeploy.clustering.metrics import Evaluation, evaluate
from fcdeploy.data.features import Features
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployWarning
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.runtime.bad_rows import LEFT_OUT
from fcdeploy.runtime.checked import checked_rows
from fcdeploy.runtime.pipeline import begin_run
from fcdeploy.runtime.prepare import prepare
from fcdeploy.systems.training_types import Value
from fcdeploy.training.stores import opened_store
from fcdeploy.training.sweep import Trial, labels_with, try_settings

FEWEST = 2  # people with several faces that a half needs: fewer tell no threshold from another


@dataclass(frozen=True)
class Half:
    """One half of the people.

    faces: which faces it has, (m,) int64; identity: of these, (m,) int64, -1 where unknown; others: how often its
    people would meet as many others as they do among all faces; largest: the faces of the largest identity.
    """

    faces: np.ndarray
    identity: np.ndarray
    others: float
    largest: int

    @property
    def people(self) -> int:
        """How many identities are known in it."""
        return len(np.unique(self.identity[self.identity >= 0]))


def deal_people(identity: np.ndarray, seed: int) -> np.ndarray:
    """Deal people into two halves, (n,) bool, with people of as many faces on both sides.

    identity: (n,) int64; all faces of one go to one side, and faces of unknown identity (-1) by themselves. People in
    the order of their numbers of faces are dealt in pairs, one to either side, by a coin.
    """
    rng = np.random.default_rng([seed, 7])
    people = np.where(identity >= 0, identity, identity.max(initial=-1) + 1 + np.arange(len(identity)))
    _, number, sizes = np.unique(people, return_inverse=True, return_counts=True)
    order = np.lexsort((rng.random(len(sizes)), -sizes))
    side = np.empty(len(sizes), dtype=bool)
    coins = rng.random((len(sizes) + 1) // 2) < 0.5
    side[order] = (np.arange(len(sizes)) % 2 == 0) == np.repeat(coins, 2)[: len(sizes)]
    return side[number]


def halves_of(identity: np.ndarray, seed: int) -> tuple[Half, Half] | None:
    """Deal faces into two halves by identity; None where one of them would have too few people to tell anything.

    identity: (n,) int64, -1 where unknown.
    """
    chosen = deal_people(identity, seed)
    halves = []
    for faces in (np.flatnonzero(chosen), np.flatnonzero(~chosen)):
        own = identity[faces]
        sizes = np.unique(own[own >= 0], return_counts=True)[1]
        if np.count_nonzero(sizes > 1) < FEWEST:
            return None
        halves.append(Half(faces, own, len(identity) / len(faces), int(sizes.max())))
    return halves[0], halves[1]


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Leave out what a run tells the user: of a half that is of no use to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        yield


@contextlib.contextmanager
def opened_half(
    half: Half,
    faces: Features,
    bundle: Bundle,
    options: Options,
    folder: Path | None,
    scratch_dir: Path | str | None,
) -> Iterator[Run]:
    """Begin a run over the faces of a half and nothing else; faces: all of them, good rows only."""
    with contextlib.ExitStack() as stack:
        with unheard():
            checked = checked_rows(faces.select(half.faces), options.duplicates, "stop", None, LEFT_OUT)
            prepared = prepare(checked.faces, bundle, options)
            store = stack.enter_context(opened_store(prepared, folder, scratch_dir))
            run = begin_run(checked, bundle, options, store, Progress(), final=False)
        yield run
        store.drop_scratch()


def judged(labels: np.ndarray, half: Half) -> Evaluation:
    """Measure a half's labels (m,) as if its people met as many others as they do among all faces."""
    found = evaluate(labels, half.identity)
    pairwise, bcubed = spread_of(labels, half.identity).measures(half.others)
    return dataclasses.replace(found, pairwise=pairwise, bcubed=bcubed)


def trials_of(
    run: Run, half: Half, settings: Sequence[Mapping[str, Value]], seen: Callable[[Trial], None]
) -> list[Trial]:
    """Try settings on a half, in their order."""
    with unheard():
        return try_settings(run, settings, lambda labels: judged(labels, half), seen)


def spread_with(run: Run, half: Half, values: Mapping[str, Value]) -> Spread:
    """Return how the identities of a half lie in the clusters that a setting gives."""
    with unheard():
        return spread_of(labels_with(run, values), half.identity)
