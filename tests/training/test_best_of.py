"""Several seeds within the time, the best kept; and trainings with nothing given."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import fcdeploy as package  # noqa: E402
from fcdeploy.data.features import features_from_array  # noqa: E402
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.deploy.recipe import is_written_recipe, load_recipe  # noqa: E402
from fcdeploy.deploy.recipe_beside import recipe_beside  # noqa: E402
from fcdeploy.errors import FcdeployWarning, InputError  # noqa: E402
from fcdeploy.systems import get_system  # noqa: E402
from fcdeploy.training import best_of, loop  # noqa: E402
from fcdeploy.training.asked import RENAMED, with_new_names  # noqa: E402
from fcdeploy.training.best_of import MOST_SEEDS, train_best  # noqa: E402
from fcdeploy.training.networks import shapes_of  # noqa: E402
from fcdeploy.training.train import Trained  # noqa: E402

HEADING = "# PSE-GCN, network refine, trained with fcdeploy 0\n# more\n"


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that take no time but on the clock; what each is asked for is in ``calls``."""

    class Trainings:
        def __init__(self):
            self.calls, self.scores, self.lasting, self.now = [], {}, 600.0, 0.0

    made = Trainings()

    def train(system, features, labels, output, *, network, choices, until, checkpoints, recipe, **more):
        assert until > made.now
        made.calls.append((network, choices, [path.name for path in checkpoints]))
        made.now += made.lasting
        score = made.scores.get((network, choices.seed), 0.5)
        output.write_text(f"{network} {choices.seed}")
        output.with_suffix(".toml").write_text(HEADING + 'system = "pse-gcn"\n')
        figures = {"pairwise_f": score, "bcubed_f": score} if choices.validation else {}
        return Trained(
            output, output.with_suffix(".toml"), output, network, 1, 1, figures, {}, "all steps", 1.0
        )

    monkeypatch.setattr(best_of, "train", train)
    monkeypatch.setattr(best_of.time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def trained(vectors, identities, tmp_path):
    def run(system="pse-gcn", **more):
        faces = features_from_array(vectors)
        return train_best(get_system(system), faces, identities, tmp_path / "new/c.pth", **more)

    return run


def test_as_many_seeds_as_the_time_allows_and_the_best_is_kept(trainings, trained, tmp_path):
    """Three of ten minutes in 35; all with the same people held out."""
    trainings.scores = {("refine", 1): 0.9}
    found = trained(minutes=35)
    assert [choices.seed for _, choices, _ in trainings.calls] == [0, 1, 2]
    assert {choices.split_seed for _, choices, _ in trainings.calls} == {0}
    assert found.seeds == {"refine": 3}
    assert (tmp_path / "new/c.pth").read_text() == "refine 1"
    recipe = (tmp_path / "new/c.toml").read_text()
    assert recipe.startswith(HEADING + "# Chosen from the faces:\n# splits")
    assert is_written_recipe(tmp_path / "new/c.toml")
    kept = json.loads((tmp_path / "new/c.run/chosen.json").read_text())
    assert kept["seconds"] == {"refine": {"0": 600, "1": 600, "2": 600}}


def test_one_seed_is_trained_however_long_it_takes(trainings, trained):
    assert trained(minutes=1).seeds == {"refine": 1}


def test_a_quick_training_is_not_repeated_for_ever(trainings, trained):
    trainings.lasting = 1.0
    assert trained(minutes=600).seeds == {"refine": MOST_SEEDS}


def test_where_nobody_is_held_out_nothing_tells_seeds_apart(trainings, trained):
    assert trained(minutes=600, given={"validation": 0.0}).seeds == {"refine": 1}


def test_the_same_call_again_trains_nothing_more(trainings, trained):
    """All seeds are taken up where they are; none is added because they take no time by now."""
    trained(minutes=35)
    trainings.lasting = 0.5
    assert trained(minutes=35).seeds == {"refine": 3}
    with pytest.raises(InputError, match="other faces or settings"):
        trained(minutes=35, given={"lr": 0.5})


def test_networks_of_a_chain_stand_behind_the_best_of_those_before_and_share_the_time(
    trainings, trained, tmp_path
):
    """LCENet gets two fifths of 50 minutes, PCENet what is left."""
    trainings.scores = {("lce", 1): 0.8}
    found = trained("nsr-fc", minutes=50)
    assert [(name, choices.seed, before) for name, choices, before in trainings.calls] == [
        *(("lce", 0, []), ("lce", 1, [])),
        *(("pce", seed, ["lce-1.pth"]) for seed in range(3)),
    ]
    assert [one.checkpoint for one in found.trained] == [
        tmp_path / f"new/c-{name}.pth" for name in ("lce", "pce")
    ]
    assert all(one.recipe.exists() for one in found.trained)


def test_what_the_user_gives_is_not_chosen(trainings, trained):
    given = {"splits": 3, "singletons": 0.1, "lr": 0.5, "seed": 7, "settings": {"nodes": "20"}, "steps": 9}
    trained(minutes=1, given=given)
    ((_, choices, _),) = trainings.calls
    assert (choices.splits, choices.singletons, choices.lr, choices.seed, choices.steps) == (
        3,
        0.1,
        0.5,
        7,
        9,
    )
    assert choices.settings["nodes"] == "20"
    assert choices.settings["loss"] == "multi-similarity"


def test_a_recipe_beside_a_checkpoint_of_another_system_says_what_the_two_have_in_common(
    trainings, trained, people, tmp_path
):
    """A refinement is PSE-GCN's: its neighborhood stays, and the pairs' lists are as long as without it."""
    (tmp_path / "refine.pth").write_bytes(b"")
    (tmp_path / "refine.toml").write_text((people / "pse-gcn.toml").read_text())
    recipes = [
        trained("nsr-fc", network="rescore", minutes=1, checkpoints=before, run_dir=f"{len(before)}.run")
        for before in ([], [tmp_path / "refine.pth"])
    ]
    assert [call[2] for call in trainings.calls] == [[], ["refine.pth"]]
    assert recipes[0].suited.recipe["pairs.k"] == recipes[1].suited.recipe["pairs.k"] == 24


def test_a_target_decides_how_faces_are_split(trainings, trained, vectors):
    """Faces that are all alone, against all in one place."""
    alone = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    together = np.ones((50, 16)) + 0.01 * np.random.default_rng(2).standard_normal((50, 16))
    ks, given = [], {"validation": 0.0}  # the few faces of that side would make lists shorter
    for target in (alone, together):
        faces = features_from_array(target.astype(np.float32))
        found = trained(minutes=1, target=faces, run_dir=f"{len(ks)}.run", given=given)
        ks.append(found.suited.recipe["links.k"])
    assert ks == [24, 80]


def test_no_checkpoint_of_a_chain_takes_the_place_of_an_input_or_of_another_s_file(people, fcdeploy):
    data = ("--features", people / "f.bin", "--labels", people / "f.meta")
    Path("checkpoint-pce.pth").write_text("mine")
    done = fcdeploy("train", "nsr-fc", *data)
    assert (done.code, Path("checkpoint-pce.pth").read_text()) == (2, "mine")
    assert "checkpoint-pce.pth: exists already" in done.err
    done = fcdeploy("train", "nsr-fc", *data, "--ckpt", "checkpoint-pce.pth", "-o", "checkpoint.pth")
    assert "checkpoint-pce.pth: is also an input" in done.err


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"minutes": 0}, "--minutes 0: should be more than 0"),
        ({"target": features_from_array(np.ones((5, 8), np.float32))}, "features of the same embedder"),
        ({"network": "lce"}, "--network refine"),
        ({"given": {"lr": -1.0}}, "--lr -1"),
        ({"given": {"settings": {"node": "3"}}}, "no such training setting"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(more, says, trained, tmp_path):
    with pytest.raises(InputError, match=says):
        trained(**more)
    assert not list(tmp_path.iterdir())


def test_a_run_folder_of_given_settings_is_not_mixed_with_chosen_ones(trained, tmp_path):
    config = {
        "config": dict.fromkeys(("system", "network", "recipe", "schedule"), 0),
        "versions": {"fcdeploy": "1"},
    }
    (tmp_path / "new/c.run").mkdir(parents=True)
    (tmp_path / "new/c.run/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="with given settings"):
        trained()


FEW = {"steps": 1, "batch": 4, "threads": 1}


def test_the_command_and_python_train_alike_with_nothing_said_of_settings(
    people, vectors, identities, fcdeploy, tmp_path
):
    """But for how long: a few steps, as chosen ones take longer. The recipe says why its settings are what they are."""
    data = ("--features", people / "f.bin", "--labels", people / "f.meta")
    few = [word for name, value in FEW.items() for word in (f"--{name}", value)]
    done = fcdeploy("train", "pse-gcn", *data, *few, "--minutes", 0.001, "--set", "nodes=16", "-o", "a.pth")
    assert done.code == 0, done.err
    assert "chosen from the faces" in done.err
    recipe = load_recipe("a.toml")
    assert (recipe.system, recipe.feature_dim) == ("pse-gcn", 16)
    assert "# k " in Path("a.toml").read_text()
    assert is_written_recipe(Path("a.toml"))
    (found,) = package.train(
        "pse-gcn", vectors, identities, output="b.pth", minutes=0.001, settings={"nodes": 16}, **FEW
    )
    weights = [torch.load(path, weights_only=True) for path in ("a.pth", found.checkpoint)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])


def test_several_networks_are_trained_in_turn_and_their_recipes_agree(people, fcdeploy):
    data = ("--features", people / "f.bin", "--labels", people / "f.meta", "--minutes", 0.001)
    few = [word for name, value in {**FEW, "validation": 0}.items() for word in (f"--{name}", value)]
    done = fcdeploy("train", "nsr-fc", *data, *few, "-o", "n.pth")
    assert done.code == 0, done.err
    assert "fcdeploy export --ckpt n-lce.pth --ckpt n-pce.pth -o nsr-fc.onnx" in done.out
    checkpoints = [Path("n-lce.pth"), Path("n-pce.pth")]
    system = get_system("nsr-fc")
    assert recipe_beside(system, checkpoints, system.recipe).recipe.pairs.k == 40
    for name, path in zip(("lce", "pce"), checkpoints, strict=True):
        assert system.networks[name].widths_from_shapes(shapes_of(load_state_dict(path)))


def test_python_refuses_an_option_that_there_is_not(vectors, identities):
    with pytest.raises(TypeError, match="'albms'"):
        package.train("pse-gcn", vectors, identities, albms=3)


@pytest.mark.parametrize(("minutes", "steps"), [(10, 100), (1.5, 12 + int(0.75 * (90 - 12))), (0.2, 50)])
def test_fewer_steps_are_taken_where_the_time_is_short(
    minutes, steps, vectors, identities, tmp_path, monkeypatch
):
    """Each of 100 takes a second of this clock: 12 are timed, then come three quarters of the seconds left, or half."""
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    step = loop.Loop.step

    def slow(self, arrays, lr):
        clock[0] += 1
        return step(self, arrays, lr)

    monkeypatch.setattr(loop.Loop, "step", slow)
    monkeypatch.setattr(best_of.time, "monotonic", lambda: clock[0])
    given = {"steps": 100, "batch": 2, "threads": 1, "settings": {"nodes": "12"}, "validation": 0.0}
    faces = features_from_array(vectors)
    found = train_best(
        get_system("pse-gcn"), faces, identities, tmp_path / "c.pth", minutes=minutes, given=given
    )
    assert found.trained[0].steps == steps


def test_arguments_of_the_last_version_still_work_with_a_note():
    with pytest.warns(FcdeployWarning) as told:
        found = with_new_names({"albums": 8, "strays": 0.4, "lr": 0.1})
    assert found == {"splits": 8, "singletons": 0.4, "lr": 0.1}
    notes = sorted(str(note.message) for note in told)
    for (old, new), note in zip(sorted(RENAMED.items()), notes, strict=True):
        assert {old, new} <= set(note.replace(".", " ").split())
