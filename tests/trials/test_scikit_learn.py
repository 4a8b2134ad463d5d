"""Everything in scikit-learn that takes a clusterer takes ours: repr, dir, pickles and NumPy's numbers, too.

The conventions: https://scikit-learn.org/stable/developers/develop.html. What breaks where they do not hold:
scikit-learn #30479 (estimators without ``__sklearn_tags__``), #12322 (``check_is_fitted``).
"""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone, is_clusterer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import check_is_fitted

import fcdeploy
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.run.options import DESCRIBED, Options
from fcdeploy.runtime.api import options_from

# Thresholds far from the best put all faces, or none, together, which a note says.
pytestmark = pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")


@pytest.fixture(scope="module")
def faces(golden):
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    identities = np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)
    chosen = np.argsort(identities, kind="stable")[:120]
    return rows[chosen], identities[chosen]


def test_a_clusterer_is_known_as_one_and_as_fitted_once_it_is(pse_bundle, faces):
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path)
    assert is_clusterer(clusterer)
    with pytest.raises(NotFittedError):
        check_is_fitted(clusterer)
    check_is_fitted(clusterer.fit(faces[0]))
    with pytest.raises(NotFittedError):
        check_is_fitted(clone(clusterer))


def test_predict_before_fit_is_an_error_of_both(pse_bundle, faces):
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path)
    for error in (NotFittedError, fcdeploy.InputError):
        with pytest.raises(error, match="call fit first"):
            clusterer.predict(faces[0])


def test_none_is_the_default_of_every_option(pse_bundle, faces):
    usual = Options()
    for name in DESCRIBED:
        assert getattr(options_from({name: None}), name) == getattr(usual, name), name


def test_settings_may_be_numbers_of_numpy_and_have_to_be_a_dict(pse_bundle, faces):
    rows, _ = faces
    expected = fcdeploy.cluster(rows, engine=pse_bundle.path, tau=0.75)
    settings = {"links.tau": np.float32(0.75), "neighborhood.k": np.int64(20)}
    assert np.array_equal(
        fcdeploy.cluster(rows, engine=pse_bundle.path, settings=settings),
        expected,
    )
    for wrong in ("links.tau=0.75", {1: 2}, 5):
        with pytest.raises(fcdeploy.InputError, match="expected a dict"):
            fcdeploy.cluster(rows, engine=pse_bundle.path, settings=wrong)


@pytest.mark.parametrize("name", ["engine", "run_dir", "scratch", "reranked"])
@pytest.mark.parametrize("wrong", [5, b"run"])
def test_a_path_is_text_or_a_path(pse_bundle, faces, name, wrong):
    with pytest.raises(fcdeploy.InputError, match=f"{name} = "):
        fcdeploy.cluster(faces[0], **{"engine": pse_bundle.path, name: wrong})


def test_a_pipeline_clusters_what_its_steps_give(pse_bundle, faces):
    rows, _ = faces
    pipeline = Pipeline([("unit", Normalizer()), ("cluster", fcdeploy.FaceClusterer(pse_bundle.path))])
    assert "FaceClusterer" in pipeline._repr_html_()
    pipeline.set_params(cluster__tau=0.9)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = fcdeploy.cluster(unit, engine=pse_bundle.path, tau=0.9)
    assert np.array_equal(pipeline.fit_predict(rows * 3), expected)


def test_a_grid_search_finds_the_threshold_of_highest_pairwise_f(pse_bundle, faces):
    rows, identities = faces
    taus = [-0.9, 0.7, 0.999]
    scores = [
        evaluate(fcdeploy.cluster(rows, engine=pse_bundle.path, tau=tau), identities).pairwise.f
        for tau in taus
    ]
    assert len(set(scores)) == 3
    whole = [(np.arange(len(rows)), np.arange(len(rows)))]
    search = GridSearchCV(fcdeploy.FaceClusterer(pse_bundle.path), {"tau": taus}, cv=whole)
    search.fit(rows, identities)
    assert search.cv_results_["mean_test_score"].tolist() == scores
    assert search.best_params_ == {"tau": taus[int(np.argmax(scores))]}
    assert len(search.best_estimator_.labels_) == len(rows)


def test_a_clusterer_takes_the_array_of_an_archive_that_column_names(pse_bundle, faces, tmp_path):
    """Both arrays of the archive could be the features, so that without a column neither is taken."""
    rows, _ = faces
    np.savez(tmp_path / "two.npz", first=rows[::-1], second=rows)
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path, tau=0.7, column="second")
    assert clone(clusterer).get_params()["column"] == "second"
    expected = fcdeploy.cluster(rows, engine=pse_bundle.path, tau=0.7)
    assert np.array_equal(clusterer.fit_predict(tmp_path / "two.npz"), expected)
    with pytest.raises(fcdeploy.InputError, match="second"):
        clusterer.set_params(column=None).fit(tmp_path / "two.npz")


def test_folds_are_scored_on_their_own_faces(pse_bundle, faces):
    rows, identities = faces
    fold = (identities % 2).astype(int)
    search = GridSearchCV(
        fcdeploy.FaceClusterer(pse_bundle.path), {"tau": [0.7]}, cv=PredefinedSplit(fold), refit=False
    ).fit(rows, identities)
    for of in (0, 1):
        labels = fcdeploy.cluster(rows[fold == of], engine=pse_bundle.path, tau=0.7)
        expected = evaluate(labels, identities[fold == of]).pairwise.f
        assert search.cv_results_[f"split{of}_test_score"][0] == expected


def test_identities_of_score_may_be_names_and_have_to_be_one_per_row(pse_bundle, faces):
    rows, identities = faces
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path)
    names = np.array([f"person {identity}" for identity in identities])
    assert clusterer.score(rows, names) == clusterer.score(rows, identities) > 0
    assert not hasattr(clusterer, "labels_")
    for wrong in (None, identities[:-1], identities[:, None]):
        with pytest.raises(fcdeploy.InputError, match=r"score: .*identit"):
            clusterer.score(rows, wrong)


def test_a_fitted_clusterer_survives_a_pickle(pse_bundle, faces):
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path, tau=0.7).fit(faces[0])
    copy = pickle.loads(pickle.dumps(clusterer))
    assert np.array_equal(copy.labels_, clusterer.labels_)
    assert copy.get_params() == clusterer.get_params()
    assert copy.summary_["faces"] == len(faces[0])
    error = pickle.loads(pickle.dumps(fcdeploy.InputError("f.npy: is empty.")))
    assert (type(error), str(error)) == (fcdeploy.InputError, "f.npy: is empty.")


def test_its_repr_says_what_is_not_a_default():
    assert repr(fcdeploy.FaceClusterer("pse.onnx")) == "FaceClusterer(engine='pse.onnx')"
    shown = fcdeploy.FaceClusterer("pse.onnx", tau=0.5, hops=np.array([8, 5]), k=None)
    assert repr(shown) == "FaceClusterer(engine='pse.onnx', hops=array([8, 5]), tau=0.5)"


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("k", np.int64(20), 20),
        ("k", np.array(20), 20),
        ("batch", np.uint8(16), 16),
        ("threads", np.int32(1), 1),
        ("memory", np.uint64(1 << 30), 1 << 30),
        ("tau", np.float32(0.5), 0.5),
        ("tau", 1, 1.0),
        ("hops", np.array([8, 5], np.int16), (8, 5)),
    ],
)
def test_numbers_may_be_numpys(pse_bundle, faces, name, value, plain):
    rows = faces[0][:60]
    expected = fcdeploy.cluster(rows, engine=pse_bundle.path, **{name: plain})
    assert np.array_equal(fcdeploy.cluster(rows, engine=pse_bundle.path, **{name: value}), expected)


@pytest.mark.parametrize("name", ["k", "batch", "threads", "memory", "vram"])
@pytest.mark.parametrize("value", ["20", 2.5, [20], np.float64(20)])
def test_what_is_no_whole_number_is_named(pse_bundle, faces, name, value):
    with pytest.raises(fcdeploy.InputError, match=rf"^{name} = .*whole number"):
        fcdeploy.cluster(faces[0], engine=pse_bundle.path, **{name: value})


@pytest.mark.parametrize("name", ["tau", "min_probability"])
def test_what_is_no_number_is_named(pse_bundle, faces, name):
    for value in ("0.5", [0.5, 0.6], 1j):
        with pytest.raises(fcdeploy.InputError, match=rf"^{name} = .*expected a number"):
            fcdeploy.cluster(faces[0], engine=pse_bundle.path, **{name: value})


def test_dir_names_the_interface_without_importing_it():
    code = (
        "import sys, fcdeploy\n"
        "assert {'cluster', 'embed', 'FaceClusterer', 'InputError', 'FcdeployError'} <= set(dir(fcdeploy))\n"
        "assert 'numpy' not in sys.modules\n"
        "assert all(hasattr(fcdeploy, name) for name in dir(fcdeploy))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
