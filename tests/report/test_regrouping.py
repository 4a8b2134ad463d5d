"""What a review shows after "Regroup" is what the next run makes of the same decisions."""

from pathlib import Path

import numpy as np
import pytest

import fcdeploy
from fcdeploy.data.checked_pairs import CheckedPairs, read_pairs
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import InputError
from fcdeploy.report import serving
from fcdeploy.report.decisions import DecisionLog, StaleError
from fcdeploy.report.opened import OpenedRun, open_run
from fcdeploy.report.regrouping import regrouped, unchanged
from fcdeploy.report.serving import Desk, open_desk

# Notes of copies.
pytestmark = pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")


@pytest.fixture(scope="module")
def features(golden: Path) -> np.ndarray:
    """A part of the goldens' faces, two of them once more: (402, 32) float32."""
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:400]
    return np.concatenate([faces, faces[[3, 70]]])


@pytest.fixture(scope="module")
def run_dir(features: np.ndarray, pse_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("regrouping") / "run"
    fcdeploy.cluster(features, engine=pse_bundle.path, run_dir=folder)
    return folder


@pytest.fixture
def desk(run_dir: Path, tmp_path: Path) -> Desk:
    """A desk without a page."""
    run = open_run(run_dir)
    return Desk(run, run.clusters, DecisionLog(tmp_path / "decisions.csv", run.n), {})


def decide(desk: Desk, **asked: object) -> None:
    desk.decide({"revision": desk.log.revision, **asked})


def decided(desk: Desk) -> CheckedPairs:
    """What the log of a desk says."""
    return read_pairs(desk.log.path, desk.run.n, desk.run.ids)


def several(run: OpenedRun) -> list[int]:
    """The clusters of four faces or more, the largest first."""
    sizes = run.clusters.sizes
    return [one for one in np.argsort(-sizes, kind="stable").tolist() if sizes[one] >= 4]


def test_regrouped_clusters_are_those_of_the_next_run(
    desk: Desk, features: np.ndarray, pse_bundle: Bundle
) -> None:
    """A split, a move, a merge, a face that is none, two single faces; and an undo."""
    run = desk.run
    first, second, third, fourth, *_ = several(run)
    decide(desk, kind="split", faces=run.clusters.rows(first)[:2].tolist())
    decide(desk, kind="move", faces=run.clusters.rows(second)[:1].tolist(), other=third)
    decide(desk, kind="merge", cluster=third, other=fourth)
    decide(desk, kind="not-a-face", faces=[int(run.clusters.rows(second)[-1])])
    a, b = np.flatnonzero(run.clusters.sizes == 1)[:2].tolist()
    decide(desk, kind="same", faces=[int(run.clusters.rows(one)[0]) for one in (a, b)])
    decide(desk, kind="merge", cluster=first, other=second)
    desk.log.undo(desk.log.revision)
    made = regrouped(run, decided(desk))
    expected = fcdeploy.cluster(features, engine=pse_bundle.path, pairs=desk.log.path)
    assert np.array_equal(made.placed.labels, expected)
    assert not np.array_equal(run.placed.labels, expected)
    links = made.placed.evidence.links
    own = made.placed.labels[made.clusters.rows_of_faces]
    assert (own[links[:, 0]] == own[links[:, 1]]).all()
    assert len(links) == len(own[own >= 0]) - len(np.unique(own[own >= 0]))  # as few as hold them together
    beyond = made.placed.evidence.beyond
    assert (own[beyond[:, 0]] != own[beyond[:, 1]]).all()


def test_nothing_decided_regroups_nothing(desk: Desk) -> None:
    made = regrouped(desk.run, decided(desk))
    assert np.array_equal(made.placed.labels, desk.run.placed.labels)
    assert np.array_equal(made.placed.evidence.within, desk.run.placed.evidence.within, equal_nan=True)
    assert np.array_equal(made.confidence.clusters.flags, desk.run.confidence.clusters.flags)


def test_copies_of_a_face_cannot_be_told_apart(desk: Desk) -> None:
    decide(desk, kind="different", faces=[3, 400])
    with pytest.raises(InputError, match="copies of one face"):
        regrouped(desk.run, decided(desk))


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 2], [1, 1, 0, 0]),
        ([0, 0, 1, 2], [0, 0, 1, 1], [1, 1, 0, 0]),
        ([0, 1, 1, -1], [1, 0, 0, -1], [1, 1, 1, 0]),
        ([0, 0, -1, 1], [0, -1, -1, 0], [0, 0, 0, 0]),
    ],
)
def test_a_cluster_is_unchanged_when_it_has_the_same_members(
    before: list[int], after: list[int], kept: list[int]
) -> None:
    assert unchanged(np.array(before), np.array(after)).tolist() == list(map(bool, kept))


def test_numbers_of_clusters_that_are_shown_no_more_are_refused(
    made_run: Path, coloured_faces: Path, tmp_path: Path
) -> None:
    """One tab regroups, another one still means the old numbers."""
    desk = open_desk(made_run, coloured_faces, tmp_path / "decisions.csv")
    try:
        one, other = several(desk.run)[:2]
        decide(desk, kind="merge", cluster=one, other=other)
        sizes = desk.run.clusters.sizes
        desk.regroup(desk.log.revision)
        assert desk.clusters.count == len(sizes) - 1
        assert desk.clusters.sizes.max() == sizes[one] + sizes[other]
        with pytest.raises(StaleError):
            decide(desk, kind="merge", cluster=one, other=other)
        decide(desk, kind="name", cluster=0, name="Anna", grouped=desk.grouped)
        with pytest.raises(StaleError):
            desk.regroup(desk.log.revision - 1)
        desk.log.undo(desk.log.revision)
        desk.log.undo(desk.log.revision)
        desk.regroup(desk.log.revision)
        assert np.array_equal(desk.clusters.sizes, sizes)
    finally:
        desk.log.close()


def test_what_is_decided_while_clusters_are_regrouped_waits_for_the_next_time(
    made_run: Path, coloured_faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another tab decides between the first and the last step of a regrouping."""
    desk = open_desk(made_run, coloured_faces, tmp_path / "decisions.csv")
    try:
        first, second, third, *_ = several(desk.run)
        sizes = desk.run.clusters.sizes
        decide(desk, kind="merge", cluster=first, other=second)

        def slow(run: OpenedRun, pairs: CheckedPairs) -> OpenedRun:
            decide(desk, kind="merge", cluster=first, other=third)
            return regrouped(run, pairs)

        monkeypatch.setattr(serving, "regrouped", slow)
        desk.regroup(1)
        assert (desk.grouped, desk.log.revision) == (1, 2)
        assert desk.clusters.sizes.max() == sizes[first] + sizes[second]
        monkeypatch.undo()
        desk.regroup(2)
        assert desk.clusters.sizes.max() == sizes[first] + sizes[second] + sizes[third]
    finally:
        desk.log.close()


def test_a_run_without_images_is_not_reviewed(made_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--images"):
        open_desk(made_run, None, tmp_path / "decisions.csv")
    assert not (tmp_path / "decisions.csv").exists()
