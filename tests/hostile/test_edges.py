"""Inputs at the edges of what is possible, through every system: labels as expected, or one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from system_cases import CASES

import fcdeploy as package
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.systems import NAMES

every_system = pytest.mark.parametrize("name", NAMES)
HUGE = (2**31 - 1, 2**63 - 1, 2**63, 10**30)


def rows(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    some = rng.standard_normal((120, 32)).astype(np.float32)
    return {
        "all equal": np.tile(some[:1], (1000, 1)),
        "two faces a thousand times": np.repeat(some[:2], 1000, axis=0),
        "orthogonal": np.eye(32, dtype=np.float32),
        "opposite": np.concatenate([np.tile(some[:1], (40, 1)), np.tile(-some[:1], (40, 1))]),
        "axes ten times": np.eye(32, dtype=np.float32).repeat(10, axis=0),
        "mostly negative zeros": np.where(rng.random((100, 32)) < 0.9, -0.0, 1).astype(np.float32)
        + np.eye(32, dtype=np.float32)[np.arange(100) % 32],
        "long": some * np.float32(1e18),
        "short": some * np.float32(1e-18),
    }[kind]


@every_system
@pytest.mark.parametrize(
    "kind",
    [
        *("all equal", "opposite", "axes ten times"),
        *(
            pytest.param(kind, marks=pytest.mark.faults)
            for kind in ("two faces a thousand times", "orthogonal", "mostly negative zeros", "long", "short")
        ),
    ],
)
def test_faces_that_are_equal_or_have_nothing_in_common_are_clustered_and_always_alike(
    name: str, kind: str, bundle_of: Any
) -> None:
    """One thread or two, again and again: the same labels, one for each face.

    Another batch is not tried: it moves an engine's sums by a bit or two, and with that which of two equally dense
    faces is the denser.
    """
    features, bundle = rows(kind), bundle_of(name).path
    wanted = run_or_refusal(features, bundle, {"threads": 2})
    assert len(wanted) == len(features)
    for copies in np.split(*sorted_by_row(features)):
        assert len(set(wanted[copies])) == 1
    assert wanted.min() == 0
    assert set(np.unique(wanted)) == set(range(wanted.max() + 1))
    assert np.array_equal(run_or_refusal(features, bundle, {"threads": 1}), wanted)
    # As published, too: copies need not have one label then, but always the same ones.
    published = {"threads": 2, "duplicates": "as-published"}
    wanted = run_or_refusal(features, bundle, published)
    assert np.array_equal(run_or_refusal(features, bundle, {**published, "threads": 1}), wanted)


def sorted_by_row(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the faces with equal rows behind each other, and where others begin."""
    which = np.unique(features, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(which, kind="stable")
    return order, np.flatnonzero(np.diff(which[order])) + 1


@pytest.mark.parametrize("name", ["pse-gcn", "l-gcn"])
@pytest.mark.parametrize("scale", [1e-41, 1e-45])
def test_denormal_rows_without_a_norm_are_refused_by_number(name: str, scale: float, bundle_of: Any) -> None:
    """Their float32 norm is zero, and so they have no direction; upstream divides by it."""
    features = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    features[17] *= np.float32(scale)
    with pytest.raises(InputError, match=r"1 of 50 rows is all zero \(row 17,"):
        package.cluster(features, engine=bundle_of(name).path)


@pytest.mark.parametrize("name", ["pse-gcn", "l-gcn"])
@pytest.mark.parametrize("value", [3e38, np.inf, -np.inf, np.nan])
def test_rows_whose_norm_is_not_finite_are_refused_by_number(name: str, value: float, bundle_of: Any) -> None:
    features = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    features[17, :2] = value
    with pytest.raises(InputError, match=r"1 of 50 rows holds NaN, infinite or overflowing values \(row 17,"):
        package.cluster(features, engine=bundle_of(name).path)


@every_system
@pytest.mark.parametrize("value", [2**31, *(pytest.param(value, marks=pytest.mark.faults) for value in HUGE)])
def test_absurd_k_and_hops_are_the_longest_possible_or_one_sentence(
    name: str, value: int, bundle_of: Any, faces: np.ndarray
) -> None:
    bundle = bundle_of(name).path
    possible: tuple[dict[str, Any], ...] = (
        {"k": value},
        {"hops": (1, value)},
        {"k": value, "hops": (value, value)},
    )
    for options in possible:
        labels = run_or_refusal(faces, bundle, options)
        assert labels is None or len(labels) == len(faces)
    large = dict.fromkeys(("batch", "threads", "memory", "vram"), value)
    assert np.array_equal(run_or_refusal(faces, bundle, large), package.cluster(faces, engine=bundle))


def run_or_refusal(faces: np.ndarray, bundle: Path, options: dict[str, Any]) -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        try:
            return package.cluster(faces, engine=bundle, **options)
        except InputError:
            return None


@every_system
@pytest.mark.parametrize("n", [1, 2])
def test_a_few_faces_are_clustered_or_one_sentence(name: str, n: int, bundle_of: Any) -> None:
    features = np.random.default_rng(0).standard_normal((n, 32)).astype(np.float32)
    labels = run_or_refusal(features, bundle_of(name).path, {})
    fixed = name in ("sepfl", "nsr-fc")  # k is a length of their weights
    assert (labels is None) == fixed
    assert fixed or len(labels) == n


@pytest.mark.parametrize("n", [2, 3000])
def test_one_cluster_of_all_and_all_alone_are_measured_without_nan(n: int) -> None:
    one, alone = np.zeros(n, np.int64), np.arange(n)
    for found, truth in ((one, one), (alone, alone), (one, alone), (alone, one)):
        measured = evaluate(found, truth)
        figures = [measured.pairwise.f, measured.bcubed.f, measured.nmi, measured.ari]
        assert np.isfinite(figures).all()
        assert measured.bcubed.f == (1.0 if found is truth else pytest.approx(2 / (n + 1)))


def test_every_case_is_one_of_the_systems() -> None:
    assert {case.name for case in CASES} == set(NAMES)
