"""Photo libraries are full of copies: equal rows have one label in every system, and copies count once.

Reported at: faiss #1311 and #1588 (equal vectors fill the lists, and which of them is arbitrary), learn-to-cluster #64,
PictoPy #915 (one picture, imported again and again, comes apart).
"""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import load_artifact
from system_cases import CASES

import fcdeploy
from fcdeploy.clustering.metrics import share_in_same_cluster
from fcdeploy.data.features import features_from_array
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import Result, run_clustering

WHOLE = [case for case in CASES if not case.networks]
every_system = pytest.mark.parametrize("case", WHOLE, ids=str)
K = 20  # of the goldens' recipes


@pytest.fixture(scope="module")
def faces(golden: Any) -> np.ndarray:
    """60 faces of the golden set, (60, 32) float32, of people with several each."""
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    identities = np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)
    return rows[np.argsort(identities, kind="stable")[:60]]


def clustered(features: np.ndarray, bundle: Bundle, truth: Any = None, **options: Any) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        more = {name: options.pop(name) for name in ("on_bad", "run_dir") if name in options}
        return run_clustering(
            features_from_array(features), bundle, Options(threads=1, **options), truth=truth, **more
        )


@every_system
@settings(max_examples=2, deadline=None)
@given(data=st.data())
def test_any_pattern_of_copies_gives_the_clusters_of_the_different_rows(
    case: Any, exported: Any, faces: np.ndarray, data: st.DataObject
) -> None:
    """Exactly: the run computes on the different rows, in the order in which they come first."""
    bundle = exported(case)
    pattern = data.draw(st.lists(st.integers(0, len(faces) - 1), max_size=150))
    rows = np.array([*range(len(faces)), *pattern])
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    rows = rows[order]
    scale = np.array(
        data.draw(st.lists(st.sampled_from([1, 2, 0.5]), min_size=len(rows), max_size=len(rows)))
    )
    given_rows = faces[rows] * scale[:, None].astype(np.float32)  # powers of two change no direction
    labels = clustered(given_rows, bundle).labels
    _, first, which = np.unique(rows, return_index=True, return_inverse=True)
    for face in range(len(faces)):
        assert len(set(labels[which == face])) == 1
    first.sort()
    alone = clustered(faces[rows[first]], bundle, duplicates="as-published").labels
    assert np.array_equal(labels[first], alone)


@every_system
@pytest.mark.parametrize("different", [1, 2, 5])
def test_fewer_different_rows_than_a_list_holds(
    case: Any, exported: Any, faces: np.ndarray, different: int
) -> None:
    """Where a network's weights are for k neighbors, as many copies stay as make k faces; they are joined."""
    rows = np.repeat(np.arange(different), 40 // different)
    result = clustered(faces[rows], exported(case))
    assert len(result.labels) == len(rows)
    for face in range(different):
        assert len(set(result.labels[rows == face])) == 1
    assert result.summary["duplicates"]["equal_rows"] == len(rows) - different
    assert result.summary["faces"] == len(rows)
    assert result.summary["singletons"] == 0


def test_zeros_of_either_sign_half_precision_and_rows_that_are_not_normalised(
    pse_bundle: Bundle, faces: np.ndarray
) -> None:
    some = faces.astype(np.float16)
    some[:, 3] = 0
    other = some.copy()
    other[:, 3] = -0.0
    labels = clustered(np.concatenate([some, other]), pse_bundle).labels
    assert np.array_equal(labels[:60], labels[60:])
    assert np.array_equal(labels[:60], clustered(some.astype(np.float32), pse_bundle).labels)


def test_the_summary_says_what_was_done_and_of_all_rows(pse_bundle: Bundle, faces: np.ndarray) -> None:
    two = np.concatenate([faces, faces, faces[:5]])
    truth = np.concatenate([np.arange(60), np.arange(60), np.arange(5)])
    with pytest.warns(FcdeployWarning) as told:
        result = run_clustering(features_from_array(two), pse_bundle, Options(threads=1), truth=truth)
    assert "65 of 125 rows are equal to an earlier one (60 groups)" in str(told[0].message)
    assert result.summary["duplicates"] == {
        "handling": "merge",
        "equal_rows": 65,
        "groups": 60,
        "near_copies": 0,
        "filled_lists": 0,
    }
    assert result.summary["faces"] == 125
    assert result.summary["singletons"] == 0
    assert result.summary["quality"]["faces"] == 125
    assert result.summary["quality"]["pairwise"]["recall"] == 1
    assert "duplicates='as-published'" in result.summary["notes"][0]


def test_as_published_computes_on_all_rows(pse_bundle: Bundle, faces: np.ndarray) -> None:
    """What the publication does with copies: this test shows that merging changes something."""
    copies = np.concatenate([faces, np.repeat(faces[:1], 60, axis=0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        published = fcdeploy.cluster(copies, engine=pse_bundle.path, duplicates="as-published")
    assert len(set(published[60:])) > 1
    assert len(set(clustered(copies, pse_bundle).labels[60:])) == 1
    with pytest.raises(InputError, match="duplicates = once"):
        fcdeploy.cluster(copies, engine=pse_bundle.path, duplicates="once")


def near_copies(row: np.ndarray, count: int, away: float) -> np.ndarray:
    """Rows (count, d) whose cosine similarity to ``row`` is 1 - away."""
    rng = np.random.default_rng(1)
    unit = row / np.linalg.norm(row)
    noise = rng.standard_normal((count, len(row)))
    noise -= (noise @ unit)[:, None] * unit
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return ((1 - away) * unit + np.sqrt(1 - (1 - away) ** 2) * noise).astype(np.float32)


@every_system
def test_near_copies_that_fill_lists_leave_everyone_as_without_them(
    case: Any, exported: Any, golden: Any
) -> None:
    """60 of one face, lists of 20."""
    bundle = exported(case)
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:150]
    copies = near_copies(rows[7], 60, 1e-3)
    result = clustered(np.concatenate([rows, copies]), bundle)
    without = clustered(rows, bundle)
    assert np.array_equal(result.labels[:150], without.labels)
    assert set(result.labels[150:]) == {result.labels[7]}
    assert result.summary["duplicates"]["near_copies"] == 60
    assert result.summary["duplicates"]["filled_lists"] == 61
    assert without.summary["duplicates"]["near_copies"] == 0
    if case.name == "pse-gcn":  # so that this test can fail
        published = clustered(np.concatenate([rows, copies]), bundle, duplicates="as-published")
        assert share_in_same_cluster(published.labels[:150], without.labels) < 1


def test_near_copies_that_fill_no_list_stay_as_they_are(pse_bundle: Bundle, faces: np.ndarray) -> None:
    some = np.concatenate([faces, near_copies(faces[7], K // 2 - 1, 1e-4)])
    result = clustered(some, pse_bundle)
    assert result.summary["duplicates"]["near_copies"] == 0
    assert np.array_equal(result.labels, clustered(some, pse_bundle, duplicates="as-published").labels)


def test_a_run_folder_says_which_row_each_one_goes_with_and_is_taken_up(
    pse_bundle: Bundle, faces: np.ndarray, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.concatenate([near_copies(faces[7], 30, 1e-4), faces, faces[:3], np.full((1, 32), np.nan)])
    rows = rows.astype(np.float32)
    first = clustered(rows, pse_bundle, run_dir=tmp_path / "run", on_bad="skip")
    source = load_artifact(tmp_path / "run/rows")["source"]
    wanted = np.arange(len(rows))
    wanted[:30], wanted[37], wanted[90:93], wanted[93] = 0, 0, [30, 31, 32], -1
    assert np.array_equal(source, wanted)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/*.npy")}
    assert len(times) > 5
    assert load_artifact(tmp_path / "run/knn")["ids"].shape[0] == 60
    monkeypatch.setattr("fcdeploy.runtime.copies.find_near_copies", None)  # not looked for again
    again = clustered(rows, pse_bundle, run_dir=tmp_path / "run", on_bad="skip")
    assert np.array_equal(first.labels, again.labels)
    assert again.summary["duplicates"] == first.summary["duplicates"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    published = clustered(
        rows, pse_bundle, run_dir=tmp_path / "run", on_bad="skip", duplicates="as-published"
    )
    alone = clustered(rows[:-1], pse_bundle, duplicates="as-published")
    assert np.array_equal(published.labels[:-1], alone.labels)


def test_lists_of_all_rows_are_used_as_they_are_and_equal_rows_joined(
    pse_bundle: Bundle, faces: np.ndarray, tmp_path: Any
) -> None:
    rows = np.concatenate([faces, np.repeat(faces[:2], 40, axis=0)])
    clustered(rows, pse_bundle, run_dir=tmp_path / "run", duplicates="as-published")
    published = clustered(rows, pse_bundle, duplicates="as-published", knn=str(tmp_path / "run/knn")).labels
    result = clustered(rows, pse_bundle, knn=str(tmp_path / "run/knn"))
    assert "lists" in result.summary["notes"][0]
    for face in range(2):
        copies = [face, *range(60 + 40 * face, 100 + 40 * face)]
        assert len(set(published[copies])) > 1
        assert len(set(result.labels[copies])) == 1
    for one in set(published):  # clusters are only ever joined
        assert len(set(result.labels[published == one])) == 1
    touched = set(published[[0, 1, *range(60, 140)]])
    others = ~np.isin(published, list(touched))
    assert share_in_same_cluster(published[others], result.labels[others]) == 1
