"""Training: loss goes down, a stopped training ends as one that was not, and what cannot work is said."""

import csv
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.data.features import features_from_array
from fcdeploy.data.labels import renumber, write_labels
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.run.options import Options
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems import NAMES, get_system
from fcdeploy.training.identities import (
    alike_shots,
    check_albums,
    deal_faces,
    identities_of,
    people_of,
    split_identities,
)

torch = pytest.importorskip("torch")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.training import loop  # noqa: E402
from fcdeploy.training.choices import Choices  # noqa: E402
from fcdeploy.training.live import live_run  # noqa: E402
from fcdeploy.training.train import train  # noqa: E402

CASES = [
    ("pse-gcn", "refine", {"nodes": "24"}, 8, 0.05),
    ("sepfl", "pairwise", {"links": "300"}, 64, 0.1),
    ("sepfl", "pairwise", {"group": "4", "start": "similarity"}, 16, 0.1),
    ("gcn-d", "detect", {"dropout": "0.2"}, 16, 0.1),
    ("l-gcn", "links", {}, 32, 0.2),
    ("nsr-fc", "rescore", {"dropout": "0.1"}, 32, 1e-3),
    ("nsr-fc", "lce", {}, 32, 1e-3),
    ("nsr-fc", "pce", {"others": "2"}, 32, 3e-3),
    ("ve-gcn", "vertex", {}, 32, 0.1),
    ("ve-gcn", "edge", {"ignore_ratio": "0.3"}, 48, 0.2),
]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case[:2]))
def case(request):
    return request.param


def trained(case, people, vectors, identities, output, **choices):
    name, network, settings, batch, lr = case
    chosen = Choices(**{"steps": 20, "batch": batch, "lr": lr, "threads": 1, "settings": settings, **choices})
    return train(
        get_system(name),
        features_from_array(vectors),
        identities,
        output,
        network=network,
        recipe=load_recipe(people / f"{name}.toml"),
        checkpoints=[BEFORE[network](people, vectors, identities)] if network in BEFORE else [],
        choices=chosen,
        unknown="singleton",
    )


def trained_lce(people, vectors, identities):
    """An LCENet that PCENet stands behind, trained once."""
    checkpoint = people / "lce/lce.pth"
    if not checkpoint.exists():
        trained(("nsr-fc", "lce", {}, 32, 1e-3), people, vectors, identities, checkpoint)
    return checkpoint


def trained_vertex(people, vectors, identities):
    """A GCN-V that GCN-E stands behind, trained once for each width."""
    checkpoint = people / f"vertex/{vectors.shape[1]}/vertex.pth"
    if not checkpoint.exists():
        trained(("ve-gcn", "vertex", {}, 32, 0.1), people, vectors, identities, checkpoint, steps=100)
    return checkpoint


BEFORE = {"pce": trained_lce, "edge": trained_vertex}


def curve(folder):
    with open(folder / "curves.csv") as file:
        return list(csv.DictReader(file))


def same_weights(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_a_few_steps_lower_the_loss_and_leave_all_that_a_user_needs(
    case, people, vectors, identities, tmp_path, drawn
):
    done = trained(case, people, vectors, identities, tmp_path / "new/c.pth", steps=60, patience=0)
    assert (done.run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in done.run_dir.iterdir()} == {
        *("config.json", "curves.csv", "curves.png", "best.pth", "last.pth", "state.pt", "faces", "run.json")
    }
    rows = curve(done.run_dir)
    losses = [float(row["loss"]) for row in rows]
    assert [int(row["step"]) for row in rows] == list(range(1, 61))
    assert np.mean(losses[-15:]) < 0.9 * np.mean(losses[:5])
    checked = [int(row["step"]) for row in rows if row["pairwise_f"]]
    assert checked[-1] == 60
    assert len(checked) >= 10
    assert (
        done.measures["pairwise_f"]
        == max(
            (float(row["pairwise_f"]) + float(row["bcubed_f"]), float(row["pairwise_f"]))
            for row in rows
            if row["pairwise_f"]
        )[1]
    )
    config = json.loads((done.run_dir / "config.json").read_text())
    assert {"torch", "numpy", "fcdeploy"} <= config["versions"].keys()
    assert config["config"]["schedule"]["batch"] == case[3]
    # The authors' layout, whole: names, shapes and order of the network's own state_dict.
    shapes = {key: tuple(tensor.shape) for key, tensor in load_state_dict(done.checkpoint).items()}
    network = get_system(case[0]).networks[case[1]]
    assert shapes == network.checkpoint_shapes(**network.widths_from_shapes(shapes))
    assert same_weights(done.checkpoint, done.run_dir / "best.pth")
    assert load_recipe(done.recipe).system == case[0]


@pytest.mark.gpu
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
def test_training_on_a_gpu_goes_as_on_the_cpu(case, mixed, people, vectors, identities, tmp_path):
    """The first losses are those of the CPU, and it goes down."""
    losses = {
        device: [
            float(row["loss"])
            for row in curve(
                trained(
                    *(case, people, vectors, identities, tmp_path / f"{device}.pth"),
                    device=device,
                    mixed=mixed,
                    steps=60,
                    patience=0,
                ).run_dir
            )
        ]
        for device in ("cpu", "cuda")
    }
    drops = case[1] not in ("refine", "links")  # dropout draws other numbers on a GPU
    assert abs(losses["cuda"][0] / losses["cpu"][0] - 1) < (0.2 if drops else 2e-2 if mixed else 1e-4)
    assert np.mean(losses["cuda"][-15:]) < 0.9 * np.mean(losses["cuda"][:5])


@pytest.mark.parametrize(("stop_at", "average"), [pytest.param(1, 0.0, marks=pytest.mark.slow), (3, 0.9)])
def test_a_training_that_was_stopped_ends_with_the_weights_of_one_that_was_not(
    case, stop_at, average, people, vectors, identities, tmp_path, monkeypatch
):
    """Bit for bit, the last weights, the best, and the optimizer's; stopped in the middle of a stretch of steps."""
    straight = trained(case, people, vectors, identities, tmp_path / "a.pth", average=average)
    saved, steps = loop.Loop.save, []
    step = loop.Loop.step

    def save(self):
        saved(self)
        steps.append(self.at.step)

    def interrupted(self, *args):
        if len(steps) == stop_at and self.at.step > steps[-1]:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(loop.Loop, "save", save)
    monkeypatch.setattr(loop.Loop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(case, people, vectors, identities, tmp_path / "b.pth", average=average)
    monkeypatch.undo()
    assert not (tmp_path / "b.pth").exists()
    done = trained(case, people, vectors, identities, tmp_path / "b.pth", average=average)
    for file in ("best.pth", "last.pth"):
        assert same_weights(tmp_path / "a.run" / file, tmp_path / "b.run" / file)
    assert done.measures == straight.measures
    first, second = (torch.load(tmp_path / f"{x}.run/state.pt", weights_only=True) for x in "ab")
    momenta = list(zip(*(s["optimizer"]["state"].values() for s in (first, second)), strict=True))
    assert momenta
    assert all(torch.equal(a[key], b[key]) for a, b in momenta for key in a)
    assert (tmp_path / "a.toml").read_text() == (tmp_path / "b.toml").read_text()


def test_another_seed_gives_other_weights_and_the_same_the_same(case, people, vectors, identities, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        trained(
            case,
            people,
            vectors,
            identities,
            tmp_path / f"{name}.pth",
            steps=3,
            seed=seed,
        )
    assert same_weights(tmp_path / "a.pth", tmp_path / "b.pth")
    assert not same_weights(tmp_path / "a.pth", tmp_path / "c.pth")


def test_the_running_mean_of_the_weights_is_what_is_judged_and_saved(
    case, people, vectors, identities, tmp_path, monkeypatch
):
    """Against a mean made here of the weights of every step, which are those of a training without one."""
    if case[1] in BEFORE:
        BEFORE[case[1]](people, vectors, identities)  # whose steps are not those looked at
    step, outcome = loop.Loop.step, loop.Loop.outcome
    seen, judged = [], []

    def watched(self, *args):
        said = step(self, *args)
        seen.append({key: tensor.clone() for key, tensor in self.net.state_dict().items()})
        return said

    def noted(self, *args):
        judged.append({key: tensor.clone() for key, tensor in self.judged.state_dict().items()})
        return outcome(self, *args)

    monkeypatch.setattr(loop.Loop, "step", watched)
    monkeypatch.setattr(loop.Loop, "outcome", noted)
    trained(case, people, vectors, identities, tmp_path / "mean.pth", steps=3, average=0.75)
    moving = {key: tensor.double() for key, tensor in seen[0].items()}
    for state in seen[1:]:
        moving = {key: 0.75 * moving[key] + 0.25 * state[key].double() for key in moving}
    last = torch.load(tmp_path / "mean.run/last.pth", weights_only=True)
    floats = [key for key, tensor in last.items() if tensor.is_floating_point()]
    assert all(torch.allclose(last[key].double(), moving[key], rtol=1e-5, atol=1e-7) for key in floats)
    assert not all(torch.equal(last[key], seen[-1][key]) for key in floats)
    assert all(torch.equal(last[key], judged[-1][key]) for key in last)
    means, seen[:] = seen.copy(), []
    trained(case, people, vectors, identities, tmp_path / "own.pth", steps=3)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(means, seen, strict=True) for key in a)


def test_half_precision_products_leave_weights_of_full_precision(case, people, vectors, identities, tmp_path):
    trained(case, people, vectors, identities, tmp_path / "a.pth", steps=3)
    trained(case, people, vectors, identities, tmp_path / "b.pth", steps=3, mixed=True)
    full, half = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in "ab")
    assert all(half[key].dtype == tensor.dtype for key, tensor in full.items())
    assert not same_weights(tmp_path / "a.pth", tmp_path / "b.pth")
    parts = [key for key, tensor in full.items() if tensor.ndim == 2]
    assert all(torch.allclose(full[key], half[key], atol=0.05) for key in parts)


def test_albums_are_clustered_alone_and_people_are_dealt_unevenly(people, vectors, identities):
    """Neighbors by brute force inside each album; a person's faces of two albums are two persons'."""
    identity = identities_of(identities)
    albums = deal_faces(identity, 4, 7)
    assert np.array_equal(albums, deal_faces(identity, 4, 7))
    assert not np.array_equal(albums, deal_faces(identity, 4, 8))
    sizes = np.array([np.bincount(albums[identity == who], minlength=4) for who in range(identity.max() + 1)])
    assert sizes.sum() == len(vectors)
    many = sizes[sizes.sum(1) >= 8]
    assert np.mean(many.max(1) / many.sum(1)) > 0.5  # even shares would make 0.25, and drawing about 0.4
    apart = people_of(identity, albums)
    for i in range(0, 400, 7):
        assert np.array_equal(apart == apart[i], (identity == identity[i]) & (albums == albums[i]))
    system, recipe = get_system("sepfl"), load_recipe(people / "sepfl.toml")
    options = Options(threads=1)
    device = torch.device("cpu")
    weights = {"pairwise": {"dim": 16, "k": 8}}

    def lists(albums):
        faces = features_from_array(vectors)
        run = live_run(system, faces, recipe, weights, options, MemoryStore(), device, albums=albums)
        return system.neighbors(run)

    found = lists(albums)
    knn = found.lists
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in range(0, 400, 5):
        members = np.flatnonzero(albums == albums[i])
        nearest = members[np.argsort(-(unit[members] @ unit[i]), kind="stable")[:8]]
        assert knn.ids[i, 0] == i
        assert set(knn.ids[i].tolist()) == set(nearest.tolist())
        assert knn.sims[i] == pytest.approx(np.clip(unit[knn.ids[i]] @ unit[i], 0, 1), abs=1e-6)
    assert lists(np.zeros(400, np.int32)).key != found.key


def test_strays_fall_anywhere_and_the_other_faces_where_they_did():
    identity = np.repeat(np.arange(50), 40)
    shots = np.repeat(np.arange(500), 4)
    without = deal_faces(identity, 20, 7, shots)
    albums = deal_faces(identity, 20, 7, shots, 0.1)
    moved = albums != without
    assert 0.07 < moved.mean() < 0.12  # a stray may fall where it was
    assert np.bincount(albums[moved], minlength=20).min() > 0

    def alone(albums):
        return (np.unique(identity * 20 + albums, return_counts=True)[1] == 1).sum()

    assert alone(without) == 0
    assert alone(albums) > 40


def test_shots_of_one_moment_are_dealt_together():
    """Ten people, each photographed at six moments, three shots of each: nearest are the shots of one moment."""
    rng = np.random.default_rng(2)
    moments = rng.standard_normal((60, 16)).repeat(3, axis=0)
    identity = (np.arange(60) // 6).repeat(3)
    turned = rng.permutation(180)
    features = features_from_array(
        (moments + 0.01 * rng.standard_normal((180, 16)))[turned].astype(np.float32)
    )
    shots = alike_shots(features, identity[turned])
    moment = np.arange(60).repeat(3)[turned]
    assert len(np.unique(shots)) == 60
    assert len(np.unique(np.stack([shots, moment]), axis=1).T) == 60
    albums = deal_faces(identity[turned], 3, 0, shots)
    assert all(len(set(albums[moment == at])) == 1 for at in range(60))
    assert any(len(set(albums[identity[turned] == who])) > 1 for who in range(10))
    # Two persons' faces never stand together, however alike they are; who has one face stands alone.
    twins = features_from_array(np.ones((4, 16), np.float32))
    assert len(np.unique(alike_shots(twins, np.array([0, 1, 0, 2])))) == 3


def test_a_finished_training_only_writes_its_results_again(
    case, people, vectors, identities, tmp_path, monkeypatch
):
    trained(case, people, vectors, identities, tmp_path / "a.pth", steps=4)
    before = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").unlink()
    monkeypatch.setattr(loop.Loop, "step", lambda *args: pytest.fail("it was trained again"))
    trained(case, people, vectors, identities, tmp_path / "a.pth", steps=4)
    assert (tmp_path / "a.pth").read_bytes() == before


def test_a_training_of_another_system_is_refused_before_anything_of_the_first_is_replaced(
    people, vectors, identities, tmp_path
):
    pse, sepfl = CASES[0], CASES[1]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2, patience=0)

    def files():
        return {
            path: path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_file() and path.name not in ("lock", "run.json")
        }

    before = files()
    assert any(path.parent.name == "knn" for path in before)
    with pytest.raises(InputError, match=r"other settings \(SYSTEM, --network\)"):
        trained(sepfl, people, vectors, identities, tmp_path / "a.pth", steps=2)
    assert files() == before
    assert not list(tmp_path.rglob("*.scratch"))


def test_a_run_folder_of_other_settings_is_refused_and_kept(case, people, vectors, identities, tmp_path):
    trained(case, people, vectors, identities, tmp_path / "a.pth", steps=4)
    before = (tmp_path / "a.run/config.json").read_bytes()
    with pytest.raises(InputError, match=r"other settings \(--lr\)"):
        trained(case, people, vectors, identities, tmp_path / "a.pth", steps=4, lr=0.02)
    assert (tmp_path / "a.run/config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"validation": 0.2}, r"\(--validation\)"),
        ({"seed": 1, "patience": 2}, r"\(--patience, --seed\)"),
        ({"settings": {"nodes": "16", "flips": "0.1"}}, r"\(settings nodes, settings flips\)"),
    ],
)
def test_what_differs_is_named_as_it_is_given(changed, says, people, vectors, identities, tmp_path):
    pse = CASES[0]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    with pytest.raises(InputError, match=says):
        trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2, **changed)


@pytest.mark.parametrize("damage", ["", "[]", '{"config": {}}', '{"config": {"system": 3}}', None])
def test_a_configuration_that_is_damaged_or_missing_is_told_as_that(
    damage, people, vectors, identities, tmp_path
):
    pse = CASES[0]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    file = tmp_path / "a.run/config.json"
    file.unlink()
    if damage is not None:
        file.write_text(damage)
    with pytest.raises(InputError, match=r"config.json: is missing or damaged.* another run_dir"):
        trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_damaged_best_weights_become_no_checkpoint(damage, people, vectors, identities, tmp_path):
    pse = CASES[0]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    (tmp_path / "a.run/best.pth").unlink()
    (tmp_path / "a.pth").unlink()
    if damage is not None:
        (tmp_path / "a.run/best.pth").write_bytes(damage)
    with pytest.raises(InputError, match=r"best.pth: .*; choose another run_dir"):
        trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    assert not (tmp_path / "a.pth").exists()


def test_a_recipe_of_another_width_is_the_same_recipe(people, vectors, identities, tmp_path):
    """The width is that of the features."""
    pse = CASES[0]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    wider = np.concatenate([vectors, vectors], axis=1)
    with pytest.raises(InputError, match=r"other settings \(--features\)"):
        trained(pse, people, wider, identities, tmp_path / "a.pth", steps=2)


def test_a_network_that_diverged_by_a_check_is_told_as_one(people, vectors, identities, tmp_path):
    """The loss of the first step is still finite."""
    with pytest.raises(FcdeployError, match=r"training diverged: .* lower --lr"):
        trained(CASES[0], people, vectors, identities, tmp_path / "a.pth", steps=3, lr=1e30)


def test_an_interrupt_before_anything_is_kept_promises_nothing(people, fcdeploy, tmp_path, monkeypatch):
    def interrupted(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("fcdeploy.training.asked.train_best", interrupted)
    monkeypatch.chdir(people)
    data = ("--features", "f.bin", "--labels", "f.meta", "-o", tmp_path / "c.pth")
    assert fcdeploy("train", "pse-gcn", *data).err.splitlines()[-1] == "Interrupted."
    (tmp_path / "c.run").mkdir()
    assert "continues from" in fcdeploy("train", "pse-gcn", *data).err


@pytest.mark.parametrize(("measures", "panels"), [([], 1), (["pairwise_f"], 2)])
def test_curves_have_a_panel_for_measures_only_where_there_are_some(measures, panels, monkeypatch):
    from fcdeploy.training import curves

    figures = []
    monkeypatch.setattr(curves, "_draw", lambda path, draw: figures.append(draw))
    rows = [{"step": step, "loss": 1.0, **dict.fromkeys(measures, 0.5)} for step in (1, 2)]
    curves.draw_training("x.png", rows, measures)
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figures[0](figure)
    assert len(figure.axes) == panels


def test_the_step_of_the_highest_mean_is_marked_and_named(monkeypatch):
    """Step 2 has the highest mean of both, and step 3 the highest of one."""
    from fcdeploy.training import curves

    figures = []
    monkeypatch.setattr(curves, "_draw", lambda path, draw: figures.append(draw))
    scores = {1: (0.5, 0.5), 2: (0.8, 0.7), 3: (0.9, 0.1)}
    rows = [
        {"step": at, "loss": 1.0, "pairwise_f": one, "bcubed_f": two} for at, (one, two) in scores.items()
    ]
    curves.draw_training("x.png", rows, ["pairwise_f", "bcubed_f"])
    figure = pytest.importorskip("matplotlib.figure").Figure()
    figures[0](figure)
    assert "step 2" in figure.get_suptitle()
    for axes in figure.axes:
        assert [2, 2] in [list(line.get_xdata()) for line in axes.lines]


@pytest.mark.parametrize("n", [1, 2, 19, 200])
def test_smoothing_keeps_straight_lines_and_passes_over_what_is_not_finite(n):
    from fcdeploy.training.curves import smoothed

    line = 3.0 + 0.5 * np.arange(n)
    np.testing.assert_allclose(smoothed(line), line)
    if n > 2:
        broken = np.where(np.arange(n) == n // 2, np.nan, 1.0)
        np.testing.assert_allclose(smoothed(broken), 1.0)


def test_an_empty_album_is_one_of_too_few_faces():
    with pytest.raises(InputError, match="has 0 of the 5 training faces"):
        check_albums(np.zeros(5, dtype=np.int32), 2, 3, "training")
    assert list(check_albums(np.array([0, 1, 1, 0, 1]), 2, 2, "training")) == [2, 3]


def test_one_other_face_makes_it_other_features_on_either_side(people, vectors, identities, tmp_path):
    pse = CASES[0]
    trained(pse, people, vectors, identities, tmp_path / "a.pth", steps=2)
    validating = split_identities(identities_of(identities), 0.1, 0, "labels")
    for side in (validating, ~validating):
        changed = vectors.copy()
        changed[np.flatnonzero(side)[0]] *= -1
        with pytest.raises(InputError, match=r"\(--features\)"):
            trained(pse, people, changed, identities, tmp_path / "a.pth", steps=2)


def test_training_ends_when_validation_gets_no_better(
    case, people, vectors, identities, tmp_path, monkeypatch
):
    if case[1] in BEFORE:
        BEFORE[case[1]](people, vectors, identities)  # before validation is made up
    scores = iter([0.5, 0.6, 0.6, 0.4, 0.55, 0.9])
    monkeypatch.setattr(loop.Loop, "outcome", lambda *args: ({"pairwise_f": next(scores)}, {}))
    done = trained(case, people, vectors, identities, tmp_path / "a.pth", steps=100, patience=3)
    assert (done.ended, next(scores)) == ("no better for 3 checks", 0.9)
    assert done.step < done.steps < 100
    assert done.measures == {"pairwise_f": 0.6}


def test_a_network_that_says_the_same_of_all_has_collapsed(people, vectors, identities, tmp_path):
    """All refined features equal, from a checkpoint whose last layer knows its bias only."""
    case = CASES[0]
    trained(case, people, vectors, identities, tmp_path / "a.pth", steps=1)
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    state["classifier_out.weight"].zero_()
    state["classifier_out.bias"].fill_(1)
    torch.save(state, tmp_path / "flat.pth")
    with pytest.raises(FcdeployError, match=r"collapsed: since step 1, .* --lr") as said:
        train(
            get_system("pse-gcn"),
            features_from_array(vectors),
            identities,
            tmp_path / "b.pth",
            recipe=load_recipe(people / "pse-gcn.toml"),
            init=tmp_path / "flat.pth",
            choices=Choices(steps=100, batch=4, lr=1e-9, validation=0.0, threads=1, settings={"nodes": "12"}),
        )
    assert not isinstance(said.value, InputError)
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("seed", [-1, 2**63, 10**30])
def test_a_seed_that_generators_do_not_take_is_one_sentence(people, vectors, identities, tmp_path, seed):
    with pytest.raises(InputError, match=rf"--seed {seed}: should be"):
        train(
            get_system("sepfl"),
            features_from_array(vectors),
            identities,
            tmp_path / "a.pth",
            recipe=load_recipe(people / "sepfl.toml"),
            choices=Choices(steps=1, batch=4, seed=seed),
        )
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops_the_training(case, people, vectors, identities, tmp_path):
    with pytest.raises(FcdeployError, match=r"no longer finite at step .* lower --lr than [0-9.e+]+\.$"):
        trained(case, people, vectors, identities, tmp_path / "a.pth", lr=1e30, steps=30)


@settings(deadline=None)
@given(st.lists(st.integers(-1, 12), min_size=8, max_size=60), st.floats(0.01, 0.5), st.integers(0, 9))
def test_identities_are_split_and_never_faces(labels, share, seed):
    """No identity on both sides; both sides have pairs to learn from, or to measure; unknown faces stay alone."""
    labels = np.array(labels)
    identity = identities_of(labels)
    assert all(
        (identity[a] == identity[b]) == (a == b or (labels[a] == labels[b] != -1))
        for a in range(len(labels))
        for b in range(len(labels))
    )
    sizes = np.bincount(identity)
    if len(sizes) < 4 or (sizes > 1).sum() < 2:
        with pytest.raises(InputError, match="needs at least"):
            split_identities(identity, share, seed, "f.meta")
        return
    kept = split_identities(identity, share, seed, "f.meta")
    assert not set(identity[kept]) & set(identity[~kept])
    for side in (kept, ~kept):
        assert len(set(identity[side])) >= 2
        assert np.bincount(identity[side]).max() > 1
    wanted = round(share * len(sizes))
    assert len(set(identity[kept])) == min(max(2, wanted), len(sizes) - 2)
    assert np.array_equal(kept, split_identities(identity, share, seed, "f.meta"))


def test_trained_weights_export_tune_and_cluster(people, fcdeploy, tmp_path, monkeypatch):
    """The walk of docs/tutorials/training.md, at its smallest."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, tmp_path, dirs_exist_ok=True)
    data = ("--features", "f.bin", "--labels", "f.meta")
    done = fcdeploy(
        *("train", "pse-gcn", *data, "--recipe", "pse-gcn.toml", "-o", "saves/c.pth"),
        *("--steps", 4, "--batch", 4, "--set", "nodes=16", "--lr", 0.05, "--threads", 1),
    )
    assert (done.code, done.err.count("Error")) == (0, 0), done.err
    assert "saves/c.pth: pse-gcn refine, step" in done.out
    assert "step 4 of 4" in done.err
    assert fcdeploy("export", "--ckpt", "saves/c.pth", "--recipe", "saves/c.toml", "-o", "c.onnx").code == 0
    tuned = fcdeploy("tune", "--engine", "c.onnx", *data, "-o", "t.toml", "--threads", 1, "--repeats", 1)
    assert tuned.code == 0, tuned.err
    assert "recipe in t.toml, plot in t.png" in tuned.out
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    recipe = load_recipe("t.toml")
    tau = recipe.links.tau
    clustered = fcdeploy("cluster", "f.bin", "--engine", "c.onnx", "--tau", tau, "--labels", "f.meta")
    assert f"pairwise F {recipe.tuned.pairwise_f:.4f}" in clustered.out


def test_bad_input_is_refused_in_one_sentence_and_nothing_is_written(
    people, fcdeploy, tmp_path, monkeypatch, vectors
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, tmp_path, dirs_exist_ok=True)
    broken = vectors.copy()
    broken[3, 1] = np.nan
    np.save("nan.npy", broken)
    (tmp_path / "one.meta").write_text("7\n" * 400)
    (tmp_path / "file.run").write_text("")
    (tmp_path / "uneven.toml").write_text((people / "nsr-fc.toml").read_text().replace("k = 8", "k = 7"))
    levels = "\n[[proposals.merge]]\nk = 2\n"
    (tmp_path / "levels.toml").write_text((people / "gcn-d.toml").read_text() + levels)
    torch.save({"x": torch.zeros(3)}, "other.pth")
    before = sorted(path.name for path in tmp_path.iterdir())
    good = {"--features": "f.bin", "--labels": "f.meta", "--recipe": "pse-gcn.toml", "-o": "new/c.pth"}
    without = [name for name in NAMES if not get_system(name).trainings()]
    for system, changed, says in (
        ("pse", {}, "known: pse-gcn"),
        ("lce-pcenet", {}, "its networks are those of nsr-fc"),
        *((name, {}, "cannot be trained here; pse-gcn") for name in without),
        ("pse-gcn", {"--network": "detect"}, "--network refine"),
        ("pse-gcn", {"--labels": "one.meta"}, "1 identity"),
        ("pse-gcn", {"--features": "nan.npy"}, "row 3"),
        ("pse-gcn", {"--features": "none.npy"}, "no such file"),
        ("pse-gcn", {"--features": "f.meta"}, "f.meta: is a table of text"),
        ("pse-gcn", {"--dim": 8}, "400 labels for 800 faces"),
        ("pse-gcn", {"--recipe": "sepfl-ms1m"}, "for sepfl"),
        ("pse-gcn", {"--epochs": 1, "--steps": 3}, "give one of them"),
        ("pse-gcn", {"--set": "node=3"}, "it has nodes, margin"),
        ("pse-gcn", {"--set": "nodes=x"}, "type int"),
        ("pse-gcn", {"--set": "nodes=1"}, "2 or more"),
        ("pse-gcn", {"--set": "flips=1.5"}, "0 to 1"),
        ("pse-gcn", {"--set": "noise=nan"}, "0 to 10"),
        ("pse-gcn", {"--device": "cuda:99"}, "GPUs here"),
        ("pse-gcn", {"--device": "tpu"}, "none of auto"),
        ("pse-gcn", {"--init": "other.pth"}, "do not fit"),
        (
            "sepfl",
            {"--recipe": "sepfl.toml", "--init": "other.pth", "--set": "start=similarity"},
            "both determine the initial weights",
        ),
        ("sepfl", {"--recipe": "sepfl.toml", "--set": "start=cosine"}, "neither random nor similarity"),
        ("pse-gcn", {"--ckpt": "other.pth"}, "needs none"),
        ("pse-gcn", {"--splits": 30}, "training faces, fewer than the k = "),
        ("pse-gcn", {"--splits": 10**20}, "give a much smaller number"),
        ("pse-gcn", {"--lr": "1e39"}, "should be positive, and 1e+30 at most"),
        ("sepfl", {"--recipe": "sepfl.toml", "--set": "reach=8"}, "reach = 8, and lists of k = 8 hold 7"),
        ("sepfl", {"--recipe": "sepfl.toml", "--set": "group=9"}, "group = 9 is more than the k = 8"),
        ("l-gcn", {"--recipe": "l-gcn.toml", "--set": "one=370"}, "one = 370, and a face has 366 others"),
        ("l-gcn", {"--recipe": "l-gcn.toml", "--set": "two=10"}, "two = 10 and active = 0 should be 9"),
        ("l-gcn", {"--recipe": "l-gcn.toml", "--set": "active=10"}, "active = 10 should be 9"),
        ("pse-gcn", {"-o": "new/c.pth", "--run-dir": "none/x"}, "the folder none does not exist"),
        ("pse-gcn", {"--splits": 8}, "give fewer splits or --validation 0"),
        ("nsr-fc", {"--recipe": "nsr-fc.toml"}, "--network rescore|lce|pce"),
        ("nsr-fc", {"--recipe": "nsr-fc.toml", "--network": "pce"}, "trained networks of lce"),
        ("nsr-fc", {"--recipe": "nsr-fc-ms1m", "--network": "lce"}, "there are only"),
        ("nsr-fc", {"--recipe": "uneven.toml", "--network": "lce"}, "multiple of 8"),
        ("pse-gcn", {"-o": "f.bin"}, "also an input"),
        ("pse-gcn", {"-o": "c.toml"}, "where the recipe goes"),
        ("pse-gcn", {"-o": "file.run/c.pth"}, "file.run is a file, not a folder"),
        ("pse-gcn", {"-o": "file.run/new/c.pth"}, "is a file, not a folder"),
        (
            "gcn-d",
            {"--recipe": "levels.toml", "--network": "detect", "--splits": 2},
            "proposals.merge]]; leave",
        ),
        ("pse-gcn", {"-o": "c.run"}, "is the run folder, too"),
        ("pse-gcn", {"-o": "c.pth", "--run-dir": "c.pth"}, "is the run folder, too"),
        ("pse-gcn", {"-o": "c.pth", "--run-dir": "c.toml"}, "where the recipe goes"),
        ("pse-gcn", {"-o": "pse-gcn.pth"}, "pse-gcn.toml: is also an input"),
    ):
        options = [str(part) for pair in {**good, **changed}.items() for part in pair]
        done = fcdeploy("train", system, *options)
        assert (done.code, done.out) == (2, ""), (changed, done)
        assert says in done.err, (changed, done.err)
        said = [line for line in done.err.splitlines() if not line.startswith("Note: f.bin: read as ")]
        assert len(said) == 1, (changed, done.err)
        if changed == {"--features": "nan.npy"}:  # beside the output, whose folder is made for it
            assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.bad.txt"]
            shutil.rmtree(tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == before, changed


@pytest.mark.parametrize(
    ("validation", "says", "says_not"),
    [
        (0.1, "validation faces: k = 40 is more than the number of faces, 25; k = 25 is used", "none kept"),
        (0, "training faces of 45 identities, none held out for validation", "is used"),
    ],
)
def test_what_few_validation_faces_change_is_said(
    validation, says, says_not, people, fcdeploy, tmp_path, monkeypatch
):
    monkeypatch.chdir(people)
    data = ("--features", "f.bin", "--labels", "f.meta", "--recipe", "pse-gcn-demo", "-o", tmp_path / "c.pth")
    steps = ("--steps", 1, "--batch", 2, "--set", "nodes=16", "--threads", 1, "--unknown", "singleton")
    done = fcdeploy("train", "pse-gcn", *data, *steps, "--validation", validation)
    assert done.code == 0
    assert says in done.err
    assert says_not not in done.err


def test_checkpoints_that_do_not_fit_the_network_in_training_are_refused(
    people, fcdeploy, vectors, identities, tmp_path, monkeypatch
):
    """An LCENet of another length or width, and a re-scoring without the refinement that it was trained behind."""
    lce = trained_lce(people, vectors, identities)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, tmp_path, dirs_exist_ok=True)
    (tmp_path / "longer.toml").write_text((people / "nsr-fc.toml").read_text().replace("k = 8", "k = 16"))
    np.save("wider.npy", np.concatenate([vectors, vectors], axis=1))
    steps = ("--labels", "f.meta", "--steps", 1, "--threads", 1, "--quiet")
    own = ("--features", "f.bin", "--recipe", "nsr-fc.toml")
    first = ("--features", "f.bin", "--recipe", "pse-gcn.toml", "-o", "refine.pth", "--batch", 2)
    assert fcdeploy("train", "pse-gcn", *first, *steps).code == 0
    behind = ("--network", "rescore", "--ckpt", "refine.pth", "-o", "rescore.pth")
    assert fcdeploy("train", "nsr-fc", *own, *behind, *steps).code == 0
    for options, says in (
        (("--features", "f.bin", "--recipe", "longer.toml"), "k = 8, PCENet for 16-d features and k = 16"),
        (("--features", "wider.npy", "--recipe", "nsr-fc.toml"), "16-d features and k = 8, PCENet for 32-d"),
        ((*own, "--ckpt", "rescore.pth"), "32-d ones; give the refinement's checkpoint, too"),
    ):
        done = fcdeploy("train", "nsr-fc", "--network", "pce", "--ckpt", lce, *options, "-o", "p.pth", *steps)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert "pce, to be trained, has its width from the features" in done.err
        assert says in done.err
    wider = ("--features", "wider.npy", "--recipe", "nsr-fc.toml", "-o", "r.pth")
    done = fcdeploy("train", "nsr-fc", "--network", "rescore", "--ckpt", "refine.pth", *wider, *steps)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "give features and a recipe that fit the checkpoints" in done.err


def test_faces_behind_the_last_of_a_clusters_file_are_identities_of_their_own(
    people, fcdeploy, tmp_path, monkeypatch, vectors, identities
):
    """The last three faces are in no line; features as .npy, and as .bin with --dim."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, tmp_path, dirs_exist_ok=True)
    labels = identities.copy()
    labels[-3:] = -1
    write_labels("clusters.txt", labels)
    write_labels("f.meta", renumber(labels))
    np.save("f.npy", vectors)
    steps = ("--steps", 1, "--batch", 2, "--set", "nodes=16", "--threads", 1, "--quiet")
    weights = []
    for features in (("f.npy",), ("f.bin", "--dim", vectors.shape[1])):
        for name in ("clusters.txt", "f.meta"):
            output = f"{len(weights)}.pth"
            data = ("--features", *features, "--labels", name, "--recipe", "pse-gcn.toml", "-o", output)
            done = fcdeploy("train", "pse-gcn", *data, *steps)
            assert (done.code, done.err) == (0, ""), done.err
            weights.append(output)
    assert all(same_weights(weights[0], other) for other in weights[1:])
    data = ("--features", "f.bin", "--labels", "clusters.txt", "--recipe", "pse-gcn.toml", "-o", "new.pth")
    refused = fcdeploy("train", "pse-gcn", *data, *steps)
    assert refused.code == 2
    assert "give --dim" in refused.err


# What suits more and harder faces than the cases above, where it is not the same: settings, batch, rate, steps.
SUITED = {
    "sepfl": ({"group": "8", "start": "similarity"}, 64, 0.01, 100),
    "gcn-d": ({"dropout": "0.2"}, 32, 0.1, 600),
    "edge": ({"ignore_ratio": "0.3"}, 64, 0.1, 300),
}
# With proposals as small as those of the cases above, their order hardly matters.
PROPOSALS = "".join(
    f"[[proposals]]\nk = 20\nthreshold = {threshold}\nmax_size = 60\nmin_size = 2\n\n"
    for threshold in (0.3, 0.4, 0.5, 0.6)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", {case[:2]: case for case in CASES}.values(), ids=lambda case: "-".join(case[:2])
)
def test_a_short_training_raises_validation_f(case, people, strangers, tmp_path):
    """On other faces than those above, against the same network after one step of hardly any size."""
    shutil.copytree(people, tmp_path / "people")
    (tmp_path / "people/gcn-d.toml").write_text(f'system = "gcn-d"\nfeature_dim = 64\n\n{PROPOSALS}')
    name, network, *usual = case
    *suited, steps = SUITED.get(network, SUITED.get(name, (*usual, 300)))
    scores = []
    for rate, count in ((1e-9, 1), (suited[-1], steps)):
        choices = {"steps": count, "validation": 0.3, "patience": 0, "seed": 2, "threads": 2}
        files = (tmp_path / "people", *strangers, tmp_path / f"{count}.pth")
        done = trained((name, network, *suited[:-1], rate), *files, **choices)
        scores.append(np.mean(list(done.measures.values())))
    assert scores[1] > scores[0] + 0.01
