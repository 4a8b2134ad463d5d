"""The faces of a training: which of them train, which tell how good the network is, and in which albums they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import check_unknown
from fcdeploy.data.features import Features
from fcdeploy.data.labels import check_known
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.scan import scan_rows
from fcdeploy.runtime.bad_rows import LEFT_OUT, good_faces
from fcdeploy.training.choices import Choices
from fcdeploy.training.identities import (
    alike_shots,
    deal_faces,
    faces_where,
    identities_of,
    split_identities,
)
from fcdeploy.training.places import make_folder


@dataclass(frozen=True)
class Faces:
    """The faces of a training, those for validation among them.

    features: of n faces; identity: (n,) int64, numbered from 0; validating: (n,) bool, kept for validation; albums:
    (n,) int32, the set that each face is dealt into, of ``dealt`` sets. left_out: how many faces of unknown identity
    are not among them.
    """

    features: Features
    identity: np.ndarray
    validating: np.ndarray
    albums: np.ndarray
    dealt: int
    left_out: int

    @property
    def sides(self) -> Mapping[str, np.ndarray]:
        """Which faces, (n,) bool, are on the "training" and on the "validation" side; a side without faces is none."""
        sides = {"training": ~self.validating, "validation": self.validating}
        return {side: chosen for side, chosen in sides.items() if chosen.any()}

    def of(self, side: str) -> tuple[Features, np.ndarray]:
        """Return the features of a side's faces, and their identities, numbered from 0 again."""
        return faces_where(self.features, self.identity, self.sides[side])

    def counts(self, side: str) -> tuple[int, int]:
        """Return how many faces a side has, and of how many identities."""
        chosen = self.sides[side]
        return int(chosen.sum()), len(np.unique(self.identity[chosen]))

    def albums_of(self, side: str) -> np.ndarray | None:
        """Return the albums of a side's faces; None where all faces are in one."""
        return None if self.dealt == 1 else self.albums[self.sides[side]]


def faces_of_training(
    features: Features,
    labels: np.ndarray,
    choices: Choices,
    *,
    unknown: str,
    labels_name: str,
    on_bad: str,
    bad_list: Path | None,
) -> Faces:
    """Leave out what cannot be trained on, keep identities apart for validation, and deal faces into albums.

    labels: (n,) identities, -1 where unknown. Raises InputError for labels and choices that these faces do not allow.
    """
    check_unknown(unknown)
    check_known(labels, labels_name, unknown)
    features, labels = without_bad_rows(features, labels, on_bad, bad_list)
    left_out = int((labels == -1).sum()) if unknown == "ignore" else 0
    if left_out:
        features, labels = features.select(np.flatnonzero(labels != -1)), labels[labels != -1]
    identity = identities_of(labels)
    validating = split_identities(identity, choices.validation, choices.seed_of_split, labels_name)
    if choices.splits > features.n:
        raise InputError(
            f"--splits {choices.splits:,}: there are only {counted(features.n, 'face')}; give a much smaller number."
        )
    shots = alike_shots(features, identity) if choices.splits > 1 else None
    albums = deal_faces(identity, choices.splits, choices.seed_of_split, shots, choices.singletons)
    return Faces(features, identity, validating, albums, choices.splits, left_out)


def without_bad_rows(
    features: Features, labels: np.ndarray, on_bad: str, bad_list: Path | None
) -> tuple[Features, np.ndarray]:
    """Return the features and labels (n,) of the rows that can be used; see ``good_faces``."""
    scan = scan_rows(features)
    if len(scan.bad) and bad_list is not None:
        make_folder(bad_list.parent, "output")
    faces, told = good_faces(features, scan, on_bad, bad_list, LEFT_OUT)
    return faces, labels[scan.good] if told else labels
