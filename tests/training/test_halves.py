"""Halves of the people, the choice that stays good on them, and what it is expected to give on others."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdeploy.clustering.by_identity import spread_of
from fcdeploy.clustering.metrics import Evaluation, PrecisionRecall, evaluate
from fcdeploy.systems.training_types import Tunable
from fcdeploy.training import elsewhere
from fcdeploy.training.choice import MOST, Sample, chosen_of, nearby, scores_of
from fcdeploy.training.elsewhere import Task, judged_elsewhere
from fcdeploy.training.halves import Half, deal_people, halves_of
from fcdeploy.training.sweep import Trial

LABELS = st.lists(st.integers(-1, 6), min_size=2, max_size=60)
TAU = Tunable("tau", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), between=True)


def trial(tau, f, largest=1, **others):
    same = PrecisionRecall(f, f)
    return Trial({"tau": tau, **others}, Evaluation(same, same, 0, 0, 10, 5, pairs=3, largest=largest))


def chosen(samples, weights=None, objective="mean", min_precision=0.0):
    scores = scores_of(samples, weights or [1] * len(samples), [TAU], objective, min_precision)
    return chosen_of(samples[0].trials, [TAU], scores)


@given(LABELS, st.integers(0, 50))
def test_people_are_dealt_whole_and_evenly(labels, seed):
    """Every known person on one side, as many people on both, but for one; unknown faces go by themselves."""
    identity = np.array(labels)
    side = deal_people(identity, seed)
    known = np.unique(identity[identity >= 0])
    sides = [np.unique(side[identity == one]) for one in known]
    assert all(len(of) == 1 for of in sides)
    people = len(known) + np.count_nonzero(identity < 0)
    dealt = sum(bool(of[0]) for of in sides) + np.count_nonzero(side[identity < 0])
    assert abs(2 * dealt - people) <= 1


def test_the_two_largest_people_are_never_on_one_side():
    identity = np.repeat(np.arange(12), [90, 80, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1])
    sides = [deal_people(identity, seed) for seed in range(8)]
    assert all(side[0] != side[90] for side in sides)
    assert len({bool(side[0]) for side in sides}) == 2


@given(LABELS, st.integers(0, 20))
def test_halves_share_no_person_and_leave_none_out(labels, seed):
    identity = np.array(labels)
    halves = halves_of(identity, seed)
    if halves is None:
        return
    one, other = halves
    assert sorted([*one.faces, *other.faces]) == list(range(len(identity)))
    assert not set(one.identity[one.identity >= 0]) & set(other.identity[other.identity >= 0])
    for half in halves:
        np.testing.assert_array_equal(half.identity, identity[half.faces])
        assert half.largest == np.bincount(half.identity[half.identity >= 0]).max()


def test_too_few_people_make_no_halves():
    assert halves_of(np.repeat(np.arange(3), 5), 0) is None
    assert halves_of(np.repeat(np.arange(4), 5), 0) is not None


@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 5)), min_size=1, max_size=50))
def test_everybody_once_gives_what_evaluate_gives(faces):
    pred, truth = np.array(faces).T
    if (truth < 0).all():
        return
    found, spread = evaluate(pred, truth), spread_of(pred, truth)
    assert spread.largest == found.largest
    for one, other in zip(spread.measures(), (found.pairwise, found.bcubed), strict=True):
        assert (one.precision, one.recall) == pytest.approx((other.precision, other.recall))


def test_twice_as_many_others_are_joined_twice_as_often():
    """A cluster of three faces of one person and one of another, who has another face alone.

    Right pairs 3 (in both orders 6), wrong ones 3 (6), missed one (2). With twice as many others, 12 wrong ones in both
    orders: precision 6 / 18. BCubed: three faces of 3 / (3 + 2), one of 1 / (1 + 6), one of 1.
    """
    spread = spread_of(np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1]))
    pairwise, bcubed = spread.measures(2.0)
    assert (pairwise.precision, pairwise.recall) == pytest.approx((6 / 18, 6 / 8))
    assert bcubed.precision == pytest.approx((3 * 3 / 5 + 1 / 7 + 1) / 5)
    assert bcubed.recall == pytest.approx((3 + 2 / 2) / 5)
    assert spread.measures(1.0, np.array([2.0, 2.0])) == spread.measures(2.0)


@given(st.integers(0, 100))
def test_sets_that_are_drawn_vary_round_the_whole(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 30, 200)
    spread = spread_of(np.where(rng.random(200) < 0.8, truth, rng.integers(0, 30, 200)), truth)
    drawn = np.array(list(spread.drawn(40, seed)))
    whole = [measure.f for measure in spread.measures()]
    assert (drawn.min(axis=0) <= whole).all()
    assert (drawn.max(axis=0) >= whole).all()
    assert (drawn == np.array(list(spread.drawn(40, seed)))).all()


def test_around_a_setting_are_those_up_to_the_next_that_are_always_tried():
    values = (0.1, 0.2, 0.225, 0.25, 0.3, 0.4)
    trials = [trial(tau, 0.5, u=u) for u in (0, 1) for tau in values]
    around = nearby(trials, [TAU])
    assert around[1].tolist() == [0, 1, 2, 3, 4]
    assert around[2].tolist() == [1, 2, 3, 4]
    assert around[6 + 5].tolist() == [10, 11]


def test_a_plateau_is_taken_and_not_the_peak_before_a_cliff():
    everybody = Sample([trial(at / 10, f) for at, f in enumerate((0.1, 0.2, 0.9, 0.8, 0.79, 0.78))], 10)
    assert chosen([everybody]) == 3


def test_all_samples_count():
    everybody = Sample([trial(at / 10, f) for at, f in enumerate((0.8, 0.8, 0.8, 0.7, 0.7, 0.7))], 10)
    half = Sample([trial(at / 10, f) for at, f in enumerate((0.2, 0.2, 0.2, 0.7, 0.7, 0.7))], 10)
    assert chosen([everybody]) in (0, 1)
    assert chosen([everybody, half], [2, 2]) == 4


@given(st.lists(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 40)), min_size=6, max_size=6), min_size=1))
def test_what_falls_apart_anywhere_is_not_chosen_while_anything_stays(drawn):
    samples = [
        Sample([trial(at / 10, f, largest) for at, (f, largest) in enumerate(sample)], 10) for sample in drawn
    ]
    out = np.any([sample.fell_apart() for sample in samples], axis=0)
    np.testing.assert_array_equal(
        out, [any(sample[at][1] > 10 * MOST for sample in drawn) for at in range(6)]
    )
    assert out.all() or not out[chosen(samples)]


def test_a_precision_that_is_asked_for_is_reached():
    everybody = Sample([trial(at / 10, f) for at, f in enumerate((0.5, 0.6, 0.7, 0.8, 0.9, 0.95))], 10)
    assert everybody.trials[chosen([everybody], min_precision=0.9)].measure("pairwise").precision >= 0.9


def test_a_choice_is_judged_on_the_people_it_was_not_made_on(monkeypatch):
    """Half a is best at 0.1, half b at 0.4: each is judged there by what the other one gives, and only by that."""
    best_on = ({0.1: 0.9, 0.4: 0.3}, {0.1: 0.2, 0.4: 0.8})
    identity = np.repeat(np.arange(8), 4)
    asked = []

    @contextlib.contextmanager
    def opened(half: Half, faces, *rest):
        asked.append(half)
        yield None

    def trials(run, half, settings, seen):
        side = 0 if half is asked[0] else 1
        return [trial(values["tau"], best_on[side][values["tau"]]) for values in settings]

    monkeypatch.setattr(elsewhere, "opened_half", opened)
    monkeypatch.setattr(elsewhere, "trials_of", trials)
    monkeypatch.setattr(
        elsewhere, "spread_with", lambda run, half, values: spread_of(half.identity, half.identity)
    )
    task = Task([{"tau": 0.1}, {"tau": 0.4}], [Tunable("tau", (0.1, 0.2, 0.3, 0.4))], "mean", 0.0, 1)
    found = judged_elsewhere(None, identity, None, task, None, None, None, lambda: None)
    assert not set(asked[0].identity) & set(asked[1].identity)
    assert [values["tau"] for values in found.chosen] == [0.1, 0.4]
    assert [one.f for one in found.own["pairwise"]] == pytest.approx([0.9, 0.8])
    assert [one.f for one in found.others["pairwise"]] == pytest.approx([0.2, 0.3])
    expected = found.expected(trial(0.1, 0.95))["pairwise"]
    assert expected.f == pytest.approx(0.95 - (0.85 - 0.25))
    assert expected.interval == pytest.approx((expected.f, expected.f))  # of draws that are all alike
