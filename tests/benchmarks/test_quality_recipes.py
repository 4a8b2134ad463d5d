"""The recipes of benchmarks/quality are read, fit the faces there, and are those that its commands name."""

import re
from pathlib import Path

import pytest

from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.systems import NAMES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "benchmarks/quality").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_for_256_d_features(path):
    assert load_recipe(path).feature_dim == 256


def test_there_is_one_for_each_other_system_than_the_demo_s_and_the_commands_use_them_all():
    assert {load_recipe(path).system for path in RECIPES} | {"pse-gcn"} == set(NAMES)
    named = re.findall(
        r"--recipe (benchmarks/quality/\S+)", (ROOT / "benchmarks/quality/README.md").read_text()
    )
    assert {ROOT / name for name in named} == set(RECIPES)
