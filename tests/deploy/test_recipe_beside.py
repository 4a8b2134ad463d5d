"""The recipe beside a checkpoint is the one that is used, others are said, and contradictions refused by name."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import pytest

from fcdeploy.deploy.recipe import load_recipe, recipe_text
from fcdeploy.deploy.recipe_beside import (
    differences,
    note_of_another,
    recipe_beside,
    recipe_place,
    thresholds_of,
)
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.systems import NAMES, get_system
from fcdeploy.systems.settings import setting_of, with_settings

PSE, NSR = get_system("pse-gcn"), get_system("nsr-fc")


def leave(checkpoint, recipe, **values):
    """Write a recipe, with other ``values``, where train leaves that of a checkpoint."""
    changed = with_settings(recipe, {key.replace("__", "."): value for key, value in values.items()})
    recipe_place(checkpoint).write_text(recipe_text(changed))
    return changed


@pytest.mark.parametrize("name", ["c.pth", "c.tar", "c", "epoch-0.65.pth", "c.pth.tar"])
def test_it_is_found_where_train_leaves_it(name, tmp_path):
    recipe = leave(tmp_path / name, PSE.recipe(), links__tau=0.5)
    beside = recipe_beside(PSE, [tmp_path / name], PSE.recipe)
    assert beside.recipe == recipe
    assert beside.files == (recipe_place(tmp_path / name),)
    assert str(recipe_place(tmp_path / name)) in beside.sentence


def test_none_beside_is_none(tmp_path):
    (tmp_path / "other.toml").write_text("system = 'pse-gcn'")
    (tmp_path / "c.toml").mkdir()
    assert recipe_beside(PSE, [tmp_path / "c.pth"], PSE.recipe) is None


def test_it_is_found_beside_what_a_link_points_to_unless_one_lies_beside_the_link(tmp_path):
    (tmp_path / "saves").mkdir()
    there, link = tmp_path / "saves/c.pth", tmp_path / "linked.pth"
    there.touch()
    link.symlink_to(there)
    far = leave(there, PSE.recipe(), links__tau=0.5)
    assert recipe_beside(PSE, [link], PSE.recipe).recipe == far
    near = leave(link, PSE.recipe(), links__tau=0.6)
    assert recipe_beside(PSE, [link], PSE.recipe).recipe == near


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[tool.black]\nline-length = 88\n", "no key 'system'"),
        (b'system = "x"\n', "'x' is not a known system"),
        (b"lr: 0.1\n", "not valid TOML"),
        (b"", "no key 'system'"),
        (b"\xff\xfe", "not a text file"),
        (b'system = "pse-gcn"\n[links]\ntua = 0.5\n', "unknown key 'links.tua'"),
    ],
    ids=["settings of another tool", "system", "YAML", "empty", "bytes", "misspelt"],
)
def test_a_toml_file_that_is_no_recipe_is_named_with_what_to_do(content, says, tmp_path):
    (tmp_path / "c.toml").write_bytes(content)
    with pytest.raises(InputError) as refused:
        recipe_beside(PSE, [tmp_path / "c.pth"], PSE.recipe)
    assert all(word in str(refused.value) for word in (str(tmp_path / "c.toml"), says, "--recipe"))


def test_a_recipe_of_another_system_is_refused(tmp_path):
    leave(tmp_path / "c.pth", get_system("l-gcn").recipe())
    with pytest.raises(InputError, match=r"c\.toml: .* recipe of l-gcn, not of pse-gcn; .*--recipe"):
        recipe_beside(PSE, [tmp_path / "c.pth"], PSE.recipe)


def test_recipes_of_a_chain_have_to_agree_in_what_networks_were_trained_with(tmp_path):
    """Thresholds are chosen anew behind each network: those of the last are taken, and it is said."""
    lce, pce = tmp_path / "lce.pth", tmp_path / "pce.pth"
    leave(lce, NSR.recipe(), pairs__min_probability=0.3)
    last = leave(pce, NSR.recipe(), pairs__min_probability=0.6)
    beside = recipe_beside(NSR, [lce, pce], NSR.recipe)
    assert beside.recipe == last
    assert "pairs.min_probability (0.3 in " in beside.sentence
    leave(lce, NSR.recipe(), pairs__k=40)
    with pytest.raises(InputError) as refused:
        recipe_beside(NSR, [lce, pce], NSR.recipe)
    for word in (
        str(tmp_path / "lce.toml"),
        str(tmp_path / "pce.toml"),
        "pairs.k (40 in",
        "80 in",
        "--recipe",
    ):
        assert word in str(refused.value)


def test_the_refinement_s_own_recipe_says_its_neighborhoods_in_a_chain(tmp_path):
    refine, rescore = tmp_path / "refine.pth", tmp_path / "rescore.pth"
    own = leave(refine, load_recipe("pse-gcn-demo"))
    beside = recipe_beside(NSR, [refine, rescore], lambda: dataclasses.replace(NSR.recipe(), feature_dim=128))
    assert beside.recipe.system == "nsr-fc"
    assert beside.recipe.neighborhood == own.neighborhood
    assert beside.recipe.rescore == NSR.recipe().rescore
    leave(rescore, NSR.recipe(), feature_dim=128)
    with pytest.raises(InputError, match=r"neighborhood\.k \(40 in .*refine\.toml, 80 in .*rescore\.toml\)"):
        recipe_beside(NSR, [refine, rescore], NSR.recipe)


def test_weights_in_a_run_folder_have_the_recipe_of_its_configuration(tmp_path):
    table = {"system": "pse-gcn", "neighborhood": {"k": 40, "hops": [40, 8]}}
    (tmp_path / "config.json").write_text(json.dumps({"config": {"recipe": table}}))
    published = dataclasses.replace(PSE.recipe(), feature_dim=64)
    for name in ("best.pth", "last.pth"):
        beside = recipe_beside(PSE, [tmp_path / name], lambda: published)
        assert (beside.recipe.neighborhood.k, beside.recipe.feature_dim) == (40, 64)
    assert recipe_beside(PSE, [tmp_path / "other.pth"], lambda: published) is None
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    assert recipe_beside(PSE, [tmp_path / "best.pth"], lambda: published) is None


def test_a_recipe_that_was_given_is_compared_with_the_one_beside(tmp_path):
    leave(tmp_path / "c.pth", PSE.recipe(), links__tau=0.5)
    tuned = with_settings(PSE.recipe(), {"links.tau": 0.6})
    note = note_of_another(PSE, [tmp_path / "c.pth"], tuned, "tuned.toml")
    assert "links.tau (0.6 in --recipe tuned.toml, 0.5 in " in note
    assert note_of_another(PSE, [tmp_path / "c.pth"], tuned, thresholds=False) is None
    assert note_of_another(PSE, [tmp_path / "c.pth"], with_settings(tuned, {"links.tau": 0.5})) is None
    assert note_of_another(PSE, [tmp_path / "d.pth"], tuned, "tuned.toml") is None
    (tmp_path / "c.toml").write_text("something = 1")
    assert note_of_another(PSE, [tmp_path / "c.pth"], tuned, "tuned.toml") is None


@pytest.mark.parametrize("name", NAMES)
def test_thresholds_are_places_of_the_recipe(name):
    recipe = get_system(name).recipe()
    for key in thresholds_of(get_system(name)):
        value = setting_of(recipe, key)
        other = with_settings(recipe, {key: value[:-1] if isinstance(value, tuple) else value + 1})
        assert [place for place, _ in differences(recipe, other)] == [key]


@pytest.fixture
def sepfl(golden, tmp_path):
    """SEPFL's golden checkpoint with a recipe beside it."""
    pytest.importorskip("onnxscript")
    checkpoint = tmp_path / "saves/mine.pth"
    checkpoint.parent.mkdir()
    shutil.copy(golden / "dev/sepfl/checkpoint.pth", checkpoint)
    checkpoint.with_suffix(".toml").write_text(
        'system = "sepfl"\nfeature_dim = 32\n[links]\nk = 20\nrho = 0.61\n'
    )
    return checkpoint


def test_export_takes_it_and_says_so_on_stderr_and_in_the_manifest(sepfl, tmp_path):
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    with pytest.warns(FcdeployWarning, match=r"mine\.toml, the recipe beside the checkpoint"):
        bundle, _ = export_checkpoint(sepfl, tmp_path / "a.onnx")
    assert bundle.manifest["recipe"]["links"]["rho"] == 0.61
    assert bundle.manifest["recipe_from"] == {"source": "beside the checkpoint", "files": ["mine.toml"]}
    (tmp_path / "tuned.toml").write_text(sepfl.with_suffix(".toml").read_text().replace("0.61", "0.7"))
    with pytest.warns(
        FcdeployWarning, match=r"links\.rho \(0\.7 in --recipe .*tuned\.toml, 0\.61 in .*mine\.toml\)"
    ):
        bundle, _ = export_checkpoint(sepfl, tmp_path / "a.onnx", tmp_path / "tuned.toml")
    assert bundle.manifest["recipe"]["links"]["rho"] == 0.7
    assert bundle.manifest["recipe_from"] == {"source": "given", "files": ["tuned.toml"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('system = "sepfl"\nfeature_dim = 64\n[links]\nk = 20\n', "64-d features"),
        ('system = "sepfl"\nfeature_dim = 32\n', "k = 80"),
        ('system = "pse-gcn"\nfeature_dim = 32\n', "recipe of pse-gcn"),
        ("[project]\nname = 'x'\n", "no key 'system'"),
    ],
    ids=["width", "k", "system", "somebody else's"],
)
def test_export_writes_nothing_where_it_does_not_fit(text, says, sepfl, tmp_path):
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    sepfl.with_suffix(".toml").write_text(text)
    with pytest.raises(InputError) as refused:
        export_checkpoint(sepfl, tmp_path / "a.onnx")
    assert all(word in str(refused.value) for word in (says, "mine.toml", "--recipe"))
    assert not (tmp_path / "a.onnx").exists()


def test_without_any_the_published_settings_are_said_to_be_used(golden, tmp_path):
    pytest.importorskip("torch")
    from fcdeploy.deploy.onnx_from_checkpoint import _chosen_recipe

    weights = {"refine": {"dim": 32}}
    with pytest.warns(
        FcdeployWarning, match=r"no .*c\.toml beside the checkpoint: the published settings"
    ) as told:
        recipe, source = _chosen_recipe(PSE, [Path("saves/c.pth")], weights, None, None)
    assert len(told) == 1
    assert (recipe.feature_dim, recipe.links.tau) == (32, PSE.recipe().links.tau)
    assert source == {"source": "published", "files": []}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, source = _chosen_recipe(PSE, [Path("saves/c.pth")], weights, recipe, None)
    assert source == {"source": "given", "files": []}


def test_training_takes_those_beside_the_networks_before_it_and_says_so(tmp_path):
    pytest.importorskip("torch")
    from fcdeploy.training.train import recipe_to_train_for

    leave(tmp_path / "refine.pth", load_recipe("pse-gcn-demo"))
    recipe, note = recipe_to_train_for(NSR, None, [tmp_path / "refine.pth"], 128)
    assert (recipe.system, recipe.neighborhood.k, recipe.feature_dim) == ("nsr-fc", 40, 128)
    assert "refine.toml" in note
    recipe, note = recipe_to_train_for(NSR, NSR.recipe(), [tmp_path / "refine.pth"], 128)
    assert recipe == NSR.recipe()
    assert "neighborhood.k (80 in --recipe, 40 in " in note
    assert recipe_to_train_for(NSR, None, [], 64) == (dataclasses.replace(NSR.recipe(), feature_dim=64), None)
