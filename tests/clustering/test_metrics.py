import dataclasses
import functools
import json
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import oracles_metrics as oracle
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering import metrics
from fcdeploy.errors import InputError

KEYS = ("precision", "recall", "f")
evaluate = functools.partial(metrics.evaluate, unknown="singleton")  # -1 is a cluster of one on either side


@st.composite
def label_pairs(draw, smallest=-1):
    """Two labellings of one to thirty faces; few labels, so that clusters meet."""
    n = draw(st.integers(1, 30))
    most = draw(st.integers(0, 8))
    labels = st.lists(st.integers(smallest, most), min_size=n, max_size=n)
    return draw(labels), draw(labels)


def flat(evaluation):
    """List the seven measures, pairwise first."""
    found = evaluation.as_dict()
    both = [found[name][key] for name in ("pairwise", "bcubed") for key in KEYS]
    return [*both, found["nmi"], found["ari"]]


def golden_cases(golden):
    return json.loads((golden / "metrics" / "cases.json").read_text())


def test_every_golden_of_learn_to_cluster_is_met_to_1e_12(golden):
    """cases.json holds what learn-to-cluster's evaluation/metrics.py printed; null where it gave NaN."""
    cases = golden_cases(golden)
    assert len(cases) == 7
    compared = 0
    for case in cases:
        found = evaluate(case["pred"], case["gt"])
        for name in ("pairwise", "bcubed"):
            for key, expected in zip(KEYS, case[name], strict=True):
                if expected is not None:
                    assert found.as_dict()[name][key] == pytest.approx(expected, abs=1e-12), case["name"]
                    compared += 1
        assert found.nmi == pytest.approx(case["nmi"], abs=1e-12), case["name"]
        assert found.ari == pytest.approx(case["nsrfc_evaluator"]["ARI"], abs=1e-12), case["name"]
        assert (found.faces, found.clusters) == (len(case["gt"]), len(set(case["pred"])))
    assert compared == 7 * 6 - 2


def test_the_goldens_that_are_nan_upstream_have_the_documented_values(golden):
    (case,) = [case for case in golden_cases(golden) if None in case["pairwise"]]
    found = evaluate(case["pred"], case["gt"]).pairwise
    assert (found.precision, found.recall, found.f) == (1.0, 0.0, 0.0)


def test_an_answer_worked_by_hand():
    """Identities {0 1 2} {3 4}, clusters {0 1} {2 3 4}.

    Pairs: 4 true (01 02 12 34), 4 predicted (01 23 24 34), 2 common: P = R = F = 1/2.
    BCubed precision: faces 0 and 1 see 2/2, 2 sees 1/3, 3 and 4 see 2/3: (2 + 1/3 + 4/3) / 5 = 11/15; recall:
    2/3, 2/3, 1/3, 2/2, 2/2: 11/15.  ARI: (2 - 1.6) / (4 - 1.6) = 1/6.
    NMI: both entropies are H = H(2/5), the joint is 2/5 ln 5/2 * 2 + 1/5 ln 5; NMI = (2 H - joint) / H.
    """
    found = evaluate([5, 5, 9, 9, 9], [1, 1, 1, 0, 0])
    h = 2 / 5 * math.log(5 / 2) + 3 / 5 * math.log(5 / 3)
    joint = 4 / 5 * math.log(5 / 2) + 1 / 5 * math.log(5)
    expected = [1 / 2, 1 / 2, 1 / 2, 11 / 15, 11 / 15, 11 / 15, (2 * h - joint) / h, 1 / 6]
    assert flat(found) == pytest.approx(expected, abs=1e-15)
    assert (found.faces, found.clusters) == (5, 2)


@settings(deadline=None)
@given(label_pairs())
def test_every_measure_is_that_of_the_definition_pair_by_pair(labels):
    pred, truth = labels
    found = evaluate(pred, truth)
    for name in ("pairwise", "bcubed"):
        expected = {key: float(value) for key, value in getattr(oracle, name)(pred, truth).items()}
        assert found.as_dict()[name] == pytest.approx(expected, abs=1e-12)
    assert found.nmi == pytest.approx(oracle.nmi(pred, truth), abs=1e-12)
    assert found.ari == pytest.approx(float(oracle.ari(pred, truth)), abs=1e-12)
    assert (found.faces, found.clusters) == (len(pred), len(set(pred) - {-1}))


@settings(deadline=None)
@given(label_pairs(smallest=0))
def test_nmi_and_ari_are_those_of_scikit_learn(labels):
    pred, truth = labels
    found = evaluate(pred, truth)
    assert found.nmi == pytest.approx(sklearn.metrics.normalized_mutual_info_score(truth, pred), abs=1e-12)
    assert found.nmi == pytest.approx(sklearn.metrics.v_measure_score(truth, pred), abs=1e-12)
    assert found.ari == pytest.approx(sklearn.metrics.adjusted_rand_score(truth, pred), abs=1e-12)


INT64_BUT_MINUS_ONE = st.integers(-(2**63), -2) | st.integers(0, 2**63 - 1)
NUMBERINGS = st.lists(INT64_BUT_MINUS_ONE, min_size=9, max_size=9, unique=True)


@settings(deadline=None)
@given(label_pairs(), NUMBERINGS, NUMBERINGS)
def test_any_numbering_of_the_clusters_gives_exactly_the_same(labels, pred_numbers, truth_numbers):
    """Exactly: both sides are numbered by first appearance before anything is counted."""
    renumbered = [
        [label if label == -1 else numbers[label] for label in side]
        for side, numbers in zip(labels, (pred_numbers, truth_numbers), strict=True)
    ]
    assert evaluate(*renumbered) == evaluate(*labels)


@settings(deadline=None)
@given(label_pairs(), st.randoms(use_true_random=False))
def test_any_order_of_the_faces_gives_the_same(labels, random):
    order = random.sample(range(len(labels[0])), len(labels[0]))
    shuffled = evaluate(*([side[face] for face in order] for side in labels))
    assert flat(shuffled) == pytest.approx(flat(evaluate(*labels)), abs=1e-12)


@settings(deadline=None)
@given(label_pairs())
def test_swapping_the_sides_swaps_precision_and_recall(labels):
    pred, truth = labels
    one, other = evaluate(pred, truth), evaluate(truth, pred)
    for name in ("pairwise", "bcubed"):
        assert getattr(one, name).precision == pytest.approx(getattr(other, name).recall, abs=1e-12)
        assert getattr(one, name).f == pytest.approx(getattr(other, name).f, abs=1e-12)
    assert (one.nmi, one.ari) == pytest.approx((other.nmi, other.ari), abs=1e-12)


@settings(deadline=None)
@given(label_pairs())
def test_equal_partitions_give_exactly_one_everywhere(labels):
    pred = labels[0]
    truth = [label if label == -1 else 100 - label for label in pred]
    assert flat(evaluate(pred, truth)) == [1.0] * 8


@settings(deadline=None)
@given(label_pairs())
def test_nothing_is_ever_nan_or_out_of_range(labels):
    found = evaluate(*labels)
    assert all(0 <= measure <= 1 for measure in flat(found)[:-1])
    assert -0.5 <= found.ari <= 1


@settings(deadline=None)
@given(label_pairs())
def test_a_face_labelled_minus_one_is_a_cluster_of_one_on_either_side(labels):
    alone = [[100 + face if label == -1 else label for face, label in enumerate(side)] for side in labels]
    as_given, spelled_out = evaluate(*labels), evaluate(*alone)
    assert flat(as_given) == flat(spelled_out)
    assert spelled_out.clusters - as_given.clusters == labels[0].count(-1)


@pytest.mark.parametrize(
    ("pred", "truth", "pairwise", "nmi", "ari"),
    [
        pytest.param([0, 1, 2], [0, 1, 2], (1, 1, 1), 1, 1, id="nobody paired on either side"),
        pytest.param([0, 1, 2], [0, 0, 0], (1, 0, 0), 0, 0, id="nobody paired in pred, one true cluster"),
        pytest.param([0, 0, 0], [0, 1, 2], (0, 1, 0), 0, 0, id="one cluster in pred, nobody paired in truth"),
        pytest.param([0, 0, 0], [7, 7, 7], (1, 1, 1), 1, 1, id="one cluster on both sides"),
        pytest.param([0, 0, 1, 1], [0, 1, 0, 1], (0, 0, 0), 0, -0.5, id="no common pair"),
        pytest.param([0], [4], (1, 1, 1), 1, 1, id="one face"),
        pytest.param([-1, -1], [-1, -1], (1, 1, 1), 1, 1, id="all in no cluster"),
        pytest.param([-1, -1], [0, 0], (1, 0, 0), 0, 0, id="predicted in no cluster, one true cluster"),
    ],
)
def test_each_zero_denominator_has_its_documented_value(pred, truth, pairwise, nmi, ari):
    found = evaluate(pred, truth)
    assert (found.pairwise.precision, found.pairwise.recall, found.pairwise.f) == pairwise
    assert (found.nmi, found.ari) == (nmi, ari)


def test_counts_of_a_hundred_million_faces_are_exact():
    """One cluster of 10^8 + 1 faces: the square is odd, and beyond 2^53 a float has only even numbers."""
    n = 10**8 + 1
    assert metrics._ordered_pairs(np.array([n]), n) == n * (n - 1)
    assert metrics._ordered_pairs(np.array([n, 1, 1]), n + 2) == n * (n - 1)
    assert metrics._ordered_pairs(np.array([n], np.int32), n) == n * (n - 1)


def test_the_ari_of_a_hundred_million_faces_is_exact_next_to_chance():
    """Common pairs are as many as chance expects, but for less than one: floats keep no digit of the rest."""
    n = 10**8 + 1
    one_side = 3 * 10**15 + 7
    expected = Fraction(one_side**2, n * (n - 1))
    together = math.floor(expected)
    exact = (together - expected) / (one_side - expected)
    assert metrics._ari(together, one_side, one_side, n) == pytest.approx(float(exact), rel=1e-12, abs=0)


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        (
            [0] * 1200,
            [0] * 1100,
            "pred has 1,200 labels and truth has 1,100; give the labels of the same faces.",
        ),
        ([], [], "there are no labels to compare; give one label per face."),
        (
            [0.5, 1.0],
            [0, 1],
            "pred: row 0, counted from 0, holds 0.5, which is not a whole number up to 2 ** 53; expected integers of "
            "shape (n,), found float64 (2,).",
        ),
        (
            [0, 1],
            [[0, 0], [1, 1]],
            "truth: expected one label per face, integers of shape (n,), found int64 (2, 2); write it with "
            "np.save(path, labels), where labels is an int64 array of shape (n,).",
        ),
        (
            np.array([2**63], np.uint64),
            [0],
            "pred: 9223372036854775808 does not fit in an int64; number the clusters from 0.",
        ),
    ],
)
def test_labels_that_cannot_be_compared_are_one_sentence(pred, truth, message):
    with pytest.raises(InputError) as caught:
        evaluate(pred, truth)
    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.uint64, ">i4"])
def test_every_integer_type_is_taken_and_the_input_left_alone(dtype):
    pred, truth = np.array([3, 3, 0, 1, 1], dtype), np.array([0, 0, 0, 2, 2], dtype)
    before = pred.copy(), truth.copy()
    assert evaluate(pred, truth) == evaluate(pred.tolist(), truth.tolist())
    assert np.array_equal(pred, before[0])
    assert np.array_equal(truth, before[1])


def test_an_evaluation_is_frozen_and_its_dict_is_plain_json():
    found = evaluate([0, 0, 1], [0, 1, 1])
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nmi = 1.0
    assert json.loads(json.dumps(found.as_dict())) == found.as_dict()
    assert list(found.as_dict()) == ["pairwise", "bcubed", "nmi", "ari", "faces", "clusters"]
    assert list(found.as_dict()["bcubed"]) == ["precision", "recall", "f"]


AT_FULL_SIZE = """
import resource, time
import numpy as np
from fcdeploy.clustering.metrics import evaluate
rng = np.random.default_rng(0)
truth = rng.integers(0, 77_000, 5_210_000)
pred = np.where(rng.random(len(truth)) < 0.2, 77_000 + np.arange(len(truth)), truth)
began = time.monotonic()
evaluate(pred, truth)
print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_five_million_labels_take_under_ten_seconds_and_two_gigabytes():
    done = subprocess.run([sys.executable, "-c", AT_FULL_SIZE], check=True, capture_output=True, text=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 10
    assert kilobytes < 2e6
