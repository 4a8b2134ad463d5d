"""A decision is on disk when it is made, survives a kill, can be taken back, and is what the next run takes."""

import contextlib
import multiprocessing
import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.constraints import Constraints, constrain
from fcdeploy.clustering.forest import without_faces
from fcdeploy.data.checked_pairs import read_pairs
from fcdeploy.errors import InputError
from fcdeploy.report import corrections
from fcdeploy.report.decisions import DecisionLog, StaleError
from fcdeploy.report.opened import open_run

N = 50


@pytest.fixture
def log(tmp_path):
    opened = DecisionLog(tmp_path / "decisions.csv", N)
    yield opened
    with contextlib.suppress(OSError):  # closed by the test
        opened.close()


def pairs_in(log):
    pairs = read_pairs(log.path, N)
    return [(a, b, same) for (a, b), same in zip(pairs.ids.tolist(), pairs.same.tolist(), strict=True)]


def test_pairs_read_what_was_decided_and_not_taken_back(log):
    log.append(0, "same", [(1, 2, "same")], [1, 2])
    log.append(1, "different", [(3, 4, "different")], [3, 4])
    log.append(2, "not-a-face", [(9, None, "not-a-face")], [9])
    log.append(3, "name", [], [5], "Anna, B.")
    assert pairs_in(log) == [(1, 2, True), (3, 4, False)]
    assert read_pairs(log.path, N).not_faces.tolist() == [9]
    assert read_pairs(log.path, N).unanswered == 0
    assert [log.undo(revision).kind for revision in (4, 5, 6)] == ["name", "not-a-face", "different"]
    assert pairs_in(log) == [(1, 2, True)]
    assert not len(read_pairs(log.path, N).not_faces)


def test_who_opens_the_file_again_finds_all_of_it(log, tmp_path):
    log.append(0, "split", [(1, 2, "different"), (1, 3, "same")], [1, 3])
    log.append(1, "name", [], [5], "Zoë <img src=x onerror=alert(1)>")
    log.append(2, "same", [(7, 8, "same")], [7, 8])
    log.undo(3)
    before = log.live(), log.revision
    log.close()
    again = DecisionLog(tmp_path / "decisions.csv", N)
    assert (again.live(), again.revision) == before
    again.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(
            str.strip
        ),
        min_size=4,
        max_size=4,
        unique_by=str.strip,
    )
)
def test_faces_may_have_any_name(tmp_path, names):
    """As ids from paths of photos have them: commas, quotes, spaces around, and whatever ends a line somewhere."""
    path = tmp_path / "named.csv"
    path.unlink(missing_ok=True)
    ids = np.array(names, object)
    log = DecisionLog(path, 4, ids)
    for _ in range(3):
        log.append(log.revision, "different", [(0, 3, "different")], [0, 3])
    log.append(log.revision, "same", [(2, 1, "same")], [2, 1])
    log.append(log.revision, "not-a-face", [(0, None, "not-a-face")], [0])
    before = log.live()
    log.close()
    again = DecisionLog(path, 4, ids)
    assert again.live() == before
    again.close()
    pairs = read_pairs(path, 4, ids)
    assert pairs.ids.tolist() == [[0, 3], [2, 1]]
    assert pairs.same.tolist() == [False, True]
    assert pairs.not_faces.tolist() == [0]


def test_the_same_pair_answered_anew_takes_the_earlier_answer_back(log):
    log.append(0, "same", [(1, 2, "same")], [1, 2])
    log.append(1, "different", [(2, 1, "different")], [2, 1])
    assert pairs_in(log) == [(2, 1, False)]
    assert len(log.live()) == 1


def test_who_has_not_seen_the_last_decision_is_told(log):
    log.append(0, "same", [(1, 2, "same")], [1, 2])
    with pytest.raises(StaleError):
        log.append(0, "same", [(3, 4, "same")], [3, 4])
    with pytest.raises(StaleError):
        log.undo(0)
    assert pairs_in(log) == [(1, 2, True)]


def test_what_contradicts_is_refused_and_written_nowhere(log):
    log.append(0, "same", [(1, 2, "same")], [1, 2])
    log.append(1, "same", [(2, 3, "same")], [2, 3])
    before = log.path.read_bytes()
    for kind, said, faces in (
        ("different", [(1, 3, "different")], [1, 3]),
        ("same", [(1, 1, "same")], [1, 1]),
        ("same", [(1, N, "same")], [1, N]),
        ("not-a-face", [(2, None, "not-a-face")], [2]),
        ("name", [], [1]),
        ("bless", [(1, 4, "same")], [1, 4]),
    ):
        with pytest.raises(InputError):
            log.append(2, kind, said, faces)
    assert log.path.read_bytes() == before


def test_a_line_cut_short_is_gone_and_others_files_stay_as_they_are(log, tmp_path):
    log.append(0, "same", [(1, 2, "same")], [1, 2])
    whole = log.path.read_bytes()
    log.close()
    log.path.write_bytes(whole + b"3,4,sa")
    again = DecisionLog(log.path, N)
    assert again.path.read_bytes() == whole
    assert again.revision == 1
    with pytest.raises(InputError, match="another review"):
        DecisionLog(log.path, N)
    again.close()
    (tmp_path / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError):
        DecisionLog(tmp_path / "mine.csv", N)
    assert (tmp_path / "mine.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(InputError, match="another run"):
        DecisionLog(log.path, 2)


def _decide_for_ever(path, told):
    log = DecisionLog(path, 10**6)
    for revision in range(10**6):
        log.append(revision, "same", [(revision, revision + 1, "same")], [revision, revision + 1])
        told.send(revision + 1)


def test_a_kill_loses_no_decision_that_was_confirmed(tmp_path):
    path = tmp_path / "decisions.csv"
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_decide_for_ever, args=(path, theirs))
    process.start()
    confirmed = 0
    while confirmed < 20:
        confirmed = ours.recv()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    while ours.poll():
        confirmed = ours.recv()
    log = DecisionLog(path, 10**6)
    assert log.revision in (confirmed, confirmed + 1)
    assert len(read_pairs(path, 10**6).ids) == log.revision
    log.close()


@pytest.fixture(scope="module")
def clusters(made_run):
    return open_run(made_run).clusters


def clusters_after(clusters, said):
    """Labels when links are taken again under what was said: the run's own rule."""
    same = np.array([(a, b) for a, b, answer in said if answer == "same"], np.int32).reshape(-1, 2)
    different = np.array([(a, b) for a, b, answer in said if answer == "different"], np.int32).reshape(-1, 2)
    links, labels = clusters.placed.evidence.links, clusters.placed.labels
    return constrain(labels, links, np.arange(len(links)), Constraints(same, different)).labels


def same_sets(labels, rows):
    return {frozenset(np.flatnonzero(labels == one).tolist()) for one in set(labels[rows].tolist())}


@pytest.mark.parametrize("seed", range(6))
def test_a_split_takes_exactly_the_chosen_faces_out(clusters, seed):
    """Whatever faces are chosen, also those that hold the others together."""
    rng = np.random.default_rng(seed)
    largest = int(np.argsort(-clusters.sizes)[seed % 3])
    rows = clusters.rows(largest)
    chosen = rng.choice(rows, rng.integers(1, len(rows) - 1), replace=False)
    labels = clusters_after(clusters, corrections.of_split(clusters, chosen.tolist()))
    rest = np.setdiff1d(rows, chosen)
    assert same_sets(labels, rows) == {frozenset(chosen.tolist()), frozenset(rest.tolist())}
    others = np.setdiff1d(np.arange(len(labels)), rows)
    assert same_sets(labels, others) == same_sets(clusters.placed.labels, others)


@pytest.mark.parametrize("seed", range(4))
def test_a_move_takes_the_chosen_faces_to_the_other_cluster(clusters, seed):
    rng = np.random.default_rng(seed)
    first, second = np.argsort(-clusters.sizes)[[seed, seed + 1]].tolist()
    rows, target = clusters.rows(first), clusters.rows(second)
    chosen = rng.choice(rows, 3, replace=False)
    labels = clusters_after(clusters, corrections.of_move(clusters, chosen.tolist(), second))
    expected = {
        frozenset(np.setdiff1d(rows, chosen).tolist()),
        frozenset(np.concatenate([target, chosen]).tolist()),
    }
    assert same_sets(labels, np.concatenate([rows, target])) == expected


def test_a_merge_makes_one_of_two(clusters):
    first, second = np.argsort(-clusters.sizes)[:2].tolist()
    said, faces = corrections.of_merge(clusters, first, second)
    labels = clusters_after(clusters, said)
    rows = np.concatenate([clusters.rows(first), clusters.rows(second)])
    assert same_sets(labels, rows) == {frozenset(rows.tolist())}
    assert clusters.placed.labels[faces].tolist() == [first, second]


def test_what_cannot_be_corrected_is_told(clusters):
    largest = int(np.argmax(clusters.sizes))
    rows = clusters.rows(largest)
    stranger = int(np.flatnonzero(clusters.placed.labels != largest)[0])
    for wrong in (
        lambda: corrections.of_split(clusters, rows.tolist()),
        lambda: corrections.of_split(clusters, [int(rows[0]), stranger]),
        lambda: corrections.of_move(clusters, [int(rows[0])], largest),
        lambda: corrections.of_merge(clusters, largest, largest),
        lambda: corrections.of_merge(clusters, largest, clusters.count),
    ):
        with pytest.raises(InputError):
            wrong()


def test_a_face_taken_out_of_a_forest_leaves_its_neighbors_together():
    """By hand: 0-1 (0.9), 1-2 (0.8), 1-3 (0.7) without 1 is 0-2 (0.8), 2-3 (0.7)."""
    ids = np.array([[0, 1], [1, 2], [1, 3], [4, 5]], np.int32)
    left, strength = without_faces(ids, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([1]))
    assert left.tolist() == [[0, 2], [2, 3], [4, 5]]
    assert strength.tolist() == pytest.approx([0.8, 0.7, 0.6])
