"""Tuning: the same clusters as whole runs, everything before links once, and the best setting chosen."""

import json

import numpy as np
import pytest

import fcdeploy
from fcdeploy.cli import main
from fcdeploy.clustering.by_identity import spread_of
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.data.features import features_from_array
from fcdeploy.errors import InputError
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.systems.settings import settings_as_dict, settings_from_dict
from fcdeploy.training import stores
from fcdeploy.training.halves import halves_of
from fcdeploy.training.sweep import Trial, best_trial, near
from fcdeploy.training.tune import tune
from fcdeploy.training.tuned import describe_values
from fcdeploy.training.tuned_files import as_dict, write_tuned
from fcdeploy.training.unlabelled import tune_unlabelled, unlabelled_as_dict, write_unlabelled

pytest.importorskip("onnxscript")
from fcdeploy.deploy.recipe import built_in_names, load_recipe, recipe_text
from fcdeploy.systems import get_system
from fcdeploy.systems.training_types import Tunable, probabilities

FACES = 300
ONE = Options(threads=1)


@pytest.fixture(scope="module")
def bundle(pse_bundle, cut_bundle, tmp_path_factory):
    return cut_bundle(
        pse_bundle, ("refine",), tmp_path_factory.mktemp("tune") / "pse.onnx", links={"tau": 0.3}
    )


@pytest.fixture(scope="module")
def faces(golden):
    features = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:FACES]
    return features, np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)[:FACES]


@pytest.mark.parametrize("objective", ["pairwise", "bcubed"])
def test_trials_are_those_of_whole_runs_and_the_best_of_them_is_chosen(objective, bundle, faces, monkeypatch):
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine

    features, truth = faces
    straight, calls = OnnxRuntimeEngine.run, []

    def run(self, feeds):
        calls.append(self.spec.name)
        return straight(self, feeds)

    fcdeploy.cluster(features, engine=bundle.path, threads=1)
    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    fcdeploy.cluster(features, engine=bundle.path, threads=1)
    once = len(calls)
    calls.clear()
    tuned = tune(features_from_array(features), bundle, truth, objective=objective, repeats=0, options=ONE)
    assert len(calls) == once  # however many settings were tried
    assert len(tuned.trials) > 50
    f = {trial.values["links.tau"]: trial.measure(objective).f for trial in tuned.trials}
    assert tuned.best.measure(objective).f == max(f.values())
    assert tuned.recipe.links.tau == tuned.best.values["links.tau"]
    for precision, trial in tuned.at_precision().items():
        reached = [
            one.measure(objective) for one in tuned.trials if one.measure(objective).precision >= precision
        ]
        assert trial.measure(objective).f == max(measure.f for measure in reached)
        if tuned.best.measure(objective).precision >= precision:
            assert trial == tuned.best  # of equally good ones the middle one here, too
    for trial in [tuned.before, *tuned.trials[::9]]:
        labels = fcdeploy.cluster(features, engine=bundle.path, tau=trial.values["links.tau"], threads=1)
        assert evaluate(labels, truth) == trial.evaluation


def test_the_highest_f_among_settings_of_the_precision_asked_for(bundle, faces):
    features, truth = features_from_array(faces[0]), faces[1]
    few = {"objective": "pairwise", "repeats": 0, "options": ONE}
    free = tune(features, bundle, truth, **few)
    strict = tune(features, bundle, truth, min_precision=0.93, **few)
    assert free.best.evaluation.pairwise.precision < 0.93
    fitting = [trial for trial in strict.trials if trial.evaluation.pairwise.precision >= 0.93]
    assert strict.best.evaluation.pairwise.f == max(trial.evaluation.pairwise.f for trial in fitting)
    assert strict.best in fitting
    # Labels at random: nothing but clusters of one is ever right, and these make no wrong pair.
    mixed = np.random.default_rng(0).permutation(truth)
    with pytest.raises(
        InputError, match=r"no setting that joins faces reaches pairwise precision 1\.0: the highest is"
    ):
        tune(features, bundle, mixed, min_precision=1.0, **few)


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (np.arange(FACES), "l.meta: has no identity with two faces"),
        (np.full(FACES, -1), "l.meta: all 300 labels are unknown"),
        (np.zeros(FACES, np.int64), "l.meta: all 300 faces are of one identity"),
        (np.zeros(FACES - 1, np.int64), "l.meta: 299 labels for 300 faces of 32 values"),
    ],
)
def test_labels_that_tell_no_threshold_are_refused(truth, says, bundle, faces):
    with pytest.raises(InputError, match=says):
        tune(features_from_array(faces[0]), bundle, truth, labels_name="l.meta")


def test_a_run_folder_takes_up_what_was_made(bundle, faces, tmp_path, monkeypatch):
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine

    features, truth = features_from_array(faces[0]), faces[1]
    first = tune(features, bundle, truth, run_dir=tmp_path / "run", repeats=1, options=ONE)
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda *args: pytest.fail("refined again"))
    again = tune(
        features, bundle, truth, run_dir=tmp_path / "run", repeats=1, options=ONE, min_precision=0.93
    )
    assert [trial.evaluation for trial in again.trials[:50]] == [
        trial.evaluation for trial in first.trials[:50]
    ]
    for one, other in zip(again.elsewhere.samples, first.elsewhere.samples, strict=True):
        assert one.trials[:50] == other.trials[:50]


def test_the_choice_stays_on_halves_of_the_people_each_clustered_anew(bundle, faces, tmp_path):
    """What is chosen is no mega-cluster anywhere; trials of a half are those of its faces clustered alone."""
    features, truth = faces
    tuned = tune(features_from_array(features), bundle, truth, repeats=2, options=ONE)
    assert len(tuned.elsewhere.samples) == 4
    at = next(at for at, trial in enumerate(tuned.trials) if trial is tuned.best)
    assert not tuned.elsewhere.fell_apart()[at]
    assert tuned.best.evaluation.largest <= 1.5 * np.bincount(truth).max()
    half = halves_of(truth, 0)[0]
    alone = fcdeploy.cluster(
        features[half.faces], engine=bundle.path, tau=tuned.best.values["links.tau"], threads=1
    )
    assert (
        evaluate(alone, half.identity).clusters == tuned.elsewhere.samples[0].trials[at].evaluation.clusters
    )
    pairwise, bcubed = spread_of(alone, half.identity).measures(len(truth) / len(half.faces))
    assert tuned.elsewhere.samples[0].trials[at].evaluation.pairwise == pairwise
    assert tuned.elsewhere.samples[0].trials[at].evaluation.bcubed == bcubed
    for name in tuned.measures:
        assert tuned.expected[name].f <= tuned.best.measure(name).f
    assert settings_from_dict(settings_as_dict(tuned.recipe), "here") == tuned.recipe
    write_tuned(tuned, tmp_path / "tuned.toml")
    assert load_recipe(tmp_path / "tuned.toml") == tuned.recipe
    json.dumps(as_dict(tuned), allow_nan=False)


def test_too_few_people_are_told_and_tuned_all_the_same(bundle, faces):
    truth = np.minimum(np.searchsorted([0, 100, 200], np.arange(FACES), side="right"), 3)
    tuned = tune(features_from_array(faces[0]), bundle, truth, options=ONE)
    assert tuned.elsewhere is None
    assert tuned.best is tuned.highest
    assert "too few people" in tuned.untold
    assert tuned.recipe.tuned.expected_pairwise_f is None


def test_the_command_prints_the_trade_off_and_writes_recipe_and_plot(
    bundle, faces, fcdeploy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("f.npy", faces[0])
    faces[0].tofile("f.bin")
    np.save("l.npy", faces[1])
    np.save("short.npy", faces[1][1:])
    data = (
        "tune",
        "--engine",
        bundle.path,
        "--features",
        "f.npy",
        "--labels",
        "l.npy",
        "--threads",
        1,
        "--repeats",
        1,
    )
    done = fcdeploy(*data, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    written = load_recipe("tuned.toml")
    assert written.links.tau == found["best"]["values"]["links.tau"]
    assert written.neighborhood.hops == (20, 5)
    assert found["before"]["values"] == {"links.tau": 0.3}
    expected = found["expected"]["pairwise"]
    assert written.tuned.expected_pairwise_f == pytest.approx(expected["f"], abs=1e-4)
    assert written.tuned.expected_pairwise_range == pytest.approx(expected["interval"], abs=1e-4)
    assert written.tuned.pairwise_f == pytest.approx(found["best"]["pairwise"]["f"], abs=1e-4)
    assert written.tuned.people == len(np.unique(faces[1]))
    done = fcdeploy(*data)
    assert f"Expected on other people: pairwise F {expected['f']:.3f}" in done.out
    assert (tmp_path / "tuned.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for options, says in (
        (("-o", "x.txt"), "ends in .toml"),
        (("-o", "none/x.toml"), "none/x.toml: the folder none does not exist"),
        (
            ("--labels", "short.npy"),
            "short.npy: 299 labels for 300 faces; give the labels of these faces.",
        ),
        (("--labels", "f.npy"), "expected one label per face, integers"),
        (("--features", "f.bin", "--labels", "short.npy"), "of 32 values, the engine's width"),
        (("--inference", "layerwis"), "layerwis"),
    ):
        done = fcdeploy(*data, *options)
        assert (done.code, done.out) == (2, ""), options
        assert says in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_are_said_as_a_recipe_has_them():
    values = {"pairs.min_probability": 0.5, "pairs.certain_weights": (0.1, 0.9), "pairs.k": ()}
    said = "pairs.min_probability = 0.5, pairs.certain_weights = [0.1, 0.9], pairs.k = []"
    assert describe_values(values) == said


def test_values_near_the_best_lie_between_it_and_its_neighbors():
    assert list(near([0.0, 0.2, 0.4, 0.8], 0.4)) == pytest.approx([0.25, 0.3, 0.35, 0.5, 0.6, 0.7])
    assert list(near([0.0, 0.4], 0.0)) == pytest.approx([0.1, 0.2, 0.3])
    assert list(near([10, 12, 20], 12)) == [11, 14, 16, 18]
    assert list(near([1], 1)) == []


def test_a_sure_network_can_be_asked_for_more_than_it_says_of_most_links():
    """Whatever the probabilities' scale: the links said to be wrong with 1 in 100 to 1 in 100,000 are told apart."""
    values = probabilities(0.0, 1.0, 0.02)
    assert values == tuple(sorted(set(values)))
    assert {0.0, 0.5, 0.98, 1.0} < set(values)
    doubts = 1 - np.array([value for value in values if 0.98 <= value < 1])
    assert doubts.min() < 2e-5
    assert (doubts[1:] > doubts[:-1] / 12).all()
    pairs = {"lce": {"dim": 8, "k": 8}, "pce": {"dim": 8, "k": 8}}
    for name, weights in (("sepfl", {}), ("nsr-fc", pairs)):
        tunable = get_system(name).tunable(weights, ONE)[0]
        assert tunable.key.endswith(".min_probability")
        assert set(values[-5:-1]) < set(tunable.values)


def test_of_thresholds_that_make_no_difference_the_middle_one_is_taken():
    trials = [
        Trial({"t": t, "u": u}, f)
        for u in (0, 1)
        for t, f in zip((5, 1, 2, 3, 4), (1, 2, 3, 3, 3) if u else (1, 1, 2, 3, 1), strict=True)
    ]
    best = best_trial(trials, [Tunable("t", ()), Tunable("u", ())], lambda trial: trial.evaluation)
    assert best.values == {"t": 3, "u": 0}
    best = best_trial(trials[5:], [Tunable("t", ()), Tunable("u", ())], lambda trial: trial.evaluation)
    assert best.values == {"t": 3, "u": 1}


@pytest.mark.parametrize("name", built_in_names())
def test_a_recipe_that_is_written_reads_as_it_was(name, tmp_path):
    recipe = load_recipe(name)
    (tmp_path / "x.toml").write_text(recipe_text(recipe, ["What it is for", ""]))
    again = load_recipe(tmp_path / "x.toml")
    assert again == recipe
    assert settings_as_dict(again) == settings_as_dict(recipe)
    assert (tmp_path / "x.toml").read_text().startswith("# What it is for\n#\n")


def test_what_does_not_fit_into_memory_lies_in_scratch_until_the_end(bundle, faces, tmp_path, monkeypatch):
    """What a run over 300 faces makes is more than half of a budget of 100 kB, and the trials are the same."""
    features, truth = faces
    rooms = []
    monkeypatch.setattr(stores, "RunFolder", lambda folder: rooms.append(folder) or RunFolder(folder))
    in_memory = tune(features_from_array(features), bundle, truth, repeats=0, options=ONE)
    assert rooms == []
    little = Options(threads=1, memory=100_000, scratch=tmp_path)
    on_disk = tune(features_from_array(features), bundle, truth, repeats=0, options=little)
    assert [room.parent for room in rooms] == [tmp_path]
    assert on_disk.trials == in_memory.trials
    assert not list(tmp_path.iterdir())


def test_the_command_takes_scratch(bundle, faces, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "f.npy", faces[0])
    np.save(tmp_path / "l.npy", faces[1])
    data = ("--features", tmp_path / "f.npy", "--labels", tmp_path / "l.npy", "-o", tmp_path / "tuned.toml")
    line = ("fcdeploy", "tune", "--engine", bundle.path, *data, "--scratch", tmp_path / "none")
    monkeypatch.setattr("sys.argv", [*map(str, line)])
    with pytest.raises(SystemExit):
        main()
    assert f"--scratch {tmp_path}/none: is not a folder" in capsys.readouterr().err


# Without identities: checked pairs, or nothing


def checked(drawn, truth):
    same = truth[drawn.ids[:, 0]] == truth[drawn.ids[:, 1]]
    numbers = {"stratum": drawn.stratum.astype(float), "stratum_pairs": drawn.pairs.astype(float)}
    return CheckedPairs("pairs.csv", drawn.ids.astype(np.int32), same, np.arange(len(same)) + 2, 0, numbers)


def test_pairs_of_fcdeploy_pairs_answered_by_the_truth_choose_nearly_the_best_threshold(
    bundle, faces, tmp_path
):
    features, truth = faces
    fcdeploy.cluster(features, engine=bundle.path, run_dir=tmp_path / "run", tau=0.6)
    drawn = fcdeploy.pairs(tmp_path / "run", 200)
    tuned = tune(features_from_array(features), bundle, pairs=checked(drawn, truth), options=ONE)
    assert tuned.measures == ("pairwise",)
    low, high = tuned.estimated.f
    assert 0 < low <= tuned.best.measure("pairwise").f <= high <= 1
    whole = tune(features_from_array(features), bundle, truth, repeats=0, options=ONE)
    f = {trial.values["links.tau"]: trial.measure("pairwise").f for trial in whole.trials}
    labels = fcdeploy.cluster(features, engine=bundle.path, tau=tuned.recipe.links.tau)
    assert evaluate(labels, truth).pairwise.f >= max(f.values()) - 0.05
    assert as_dict(tuned)["estimated"]["pairs"] == len(drawn.ids)
    json.dumps(as_dict(tuned), allow_nan=False)


def test_all_pairs_give_the_figures_of_all_labels(bundle, faces):
    """Pairs that stand for themselves: precision and recall are those of the faces that they are all pairs of."""
    features, truth = faces[0][:60], faces[1][:60]
    ids = np.stack(np.triu_indices(60, 1), axis=1).astype(np.int32)
    same = truth[ids[:, 0]] == truth[ids[:, 1]]
    pairs = CheckedPairs("pairs", ids, same, np.arange(len(ids)), 0, {})
    by_pairs = tune(features_from_array(features), bundle, pairs=pairs, options=ONE)
    by_labels = tune(
        features_from_array(features), bundle, truth, objective="pairwise", repeats=0, options=ONE
    )
    assert not by_pairs.estimated.weighted
    for one, other in zip(by_pairs.trials, by_labels.trials, strict=True):
        assert one.values == other.values
        assert one.evaluation.pairwise.f == pytest.approx(other.evaluation.pairwise.f)


def test_without_labels_a_value_is_suggested_where_neighbors_agree(bundle, faces, tmp_path):
    features, truth = faces
    found = tune_unlabelled(features_from_array(features), bundle, options=ONE)
    assert [point.value for point in found.points] == sorted(point.value for point in found.points)
    assert found.best.votes == max(point.votes for point in found.points)
    labels = fcdeploy.cluster(features, engine=bundle.path, tau=found.best.value, threads=1)
    assert found.best.clusters == labels.max() + 1
    whole = tune(features_from_array(features), bundle, truth, repeats=0, options=ONE)
    assert evaluate(labels, truth).pairwise.f >= whole.best.measure("pairwise").f - 0.1
    plot = write_unlabelled(found, "features.npy", tmp_path / "tuned.toml")
    assert load_recipe(tmp_path / "tuned.toml").links.tau == found.best.value
    assert plot.read_bytes().startswith(b"\x89PNG")
    json.dumps(unlabelled_as_dict(found), allow_nan=False)


def test_where_no_setting_is_better_than_another_they_stay_as_they_were(bundle, faces, fcdeploy, tmp_path):
    """Two faces far apart are said to be one person: with every threshold they are apart, and F is 0."""
    features, _ = faces
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    ids = np.array([[face, int((unit @ unit[face]).argmin())] for face in (0, 1)], np.int32)
    same = np.array([True, False])
    pairs = CheckedPairs("pairs.csv", ids, same, np.array([2, 3]), 0, {})
    tuned = tune(features_from_array(features), bundle, pairs=pairs, options=ONE)
    assert tuned.all_alike
    assert tuned.best.f("pairwise") == 0
    assert tuned.recipe.links.tau == bundle.about.recipe["links"]["tau"] == 0.3
    assert tuned.best in tuned.table()
    assert tuned.estimated.chosen is None
    features.tofile(tmp_path / "f.bin")
    answers = zip(ids, ("same", "different"), strict=True)
    (tmp_path / "pairs.csv").write_text("".join(f"{a},{b},{answer}\n" for (a, b), answer in answers))
    given = ("--features", tmp_path / "f.bin", "--pairs", tmp_path / "pairs.csv", "--threads", 1)
    done = fcdeploy("tune", "--engine", bundle.path, *given, "-o", tmp_path / "tuned.toml")
    assert done.code == 0, done.err
    assert "stay as they are" in done.out
    assert load_recipe(tmp_path / "tuned.toml").links.tau == 0.3


def test_pairs_that_cannot_tell_are_refused(bundle, faces):
    ids = np.array([[0, 1], [2, 3]], np.int32)
    only = CheckedPairs("pairs.csv", ids, np.ones(2, bool), np.array([2, 3]), 0, {})
    with pytest.raises(InputError, match="none is different"):
        tune(features_from_array(faces[0]), bundle, pairs=only, options=ONE)
    with pytest.raises(InputError, match="either the true identities"):
        tune(features_from_array(faces[0]), bundle, options=ONE)
