"""Fields of Options, options of commands and arguments in Python are the same, by name and default."""

import dataclasses
import inspect

import click
import numpy as np
import pytest

import fcdeploy
from fcdeploy.cli import cluster, estimate
from fcdeploy.errors import InputError
from fcdeploy.run.options import DESCRIBED, Options
from fcdeploy.runtime import api

DEFAULTS = {name: getattr(Options(), name) for name in DESCRIBED}
IN_PYTHON = {**DEFAULTS, "settings": None}


@pytest.mark.parametrize("command", [cluster.command, estimate.command])
def test_commands_take_every_field_with_its_default(command):
    found = {option.name: option for option in command.params if option.name in DEFAULTS}
    assert found.keys() == DEFAULTS.keys() == {field.name for field in dataclasses.fields(Options)}
    taken = command.make_context("command", ["features.bin", "--engine", "bundle"]).params
    assert {name: taken[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("function", [fcdeploy.cluster, fcdeploy.FaceClusterer])
def test_python_takes_every_field_with_its_default(function):
    found = {name: entry.default for name, entry in inspect.signature(function).parameters.items()}
    assert {name: default for name, default in found.items() if name in DEFAULTS} == IN_PYTHON
    own = {"features", "engine", "column", "on_bad", "run_dir", "progress", "detector", "embedder"}
    own |= {"table", "clusters_table", "drop_flagged", "pairs", "same_photo"}
    assert found.keys() - DEFAULTS.keys() <= own


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("k", 0), ("k", -1), ("batch", 0), ("batch", -1), ("threads", -1), ("memory", -1), ("vram", -1)),
        *(("hops", (5,)), ("hops", 5), ("hops", (5.5, 2)), ("hops", "5,2")),
    ],
)
def test_python_refuses_the_values_that_commands_refuse(bundle, few, name, value):
    with pytest.raises(InputError, match=f"^{name} = .*should be"):
        fcdeploy.cluster(few, engine=bundle, **{name: value})


def test_hops_may_be_any_two_whole_numbers(bundle, few):
    expected = fcdeploy.cluster(few, engine=bundle, hops=(5, 2))
    for hops in ([5, 2], np.array([5, 2])):
        assert np.array_equal(fcdeploy.cluster(few, engine=bundle, hops=hops), expected)


def test_every_argument_reaches_the_run(monkeypatch):
    """Each argument is given a value of its own; none is lost or swapped on its way."""

    class Empty:
        labels = None

    reached = {}

    def run(features, engine, chosen, on_bad, run_dir, *, quiet, column=None, wanted=None):
        reached.update(chosen, on_bad=on_bad)
        return Empty()

    monkeypatch.setattr(api, "_run", run)
    given = {name: f"value of {name}" for name in (*DEFAULTS, "on_bad")}
    fcdeploy.cluster([[0.0]], engine="x", **given)
    assert reached == given
    clusterer = fcdeploy.FaceClusterer("x", **given)
    assert clusterer.get_params() == {"engine": "x", "column": None, "run_dir": None, **given}


@pytest.mark.parametrize("function", [fcdeploy.cluster, fcdeploy.FaceClusterer])
def test_a_mistyped_argument_is_refused_as_python_does(function):
    with pytest.raises(TypeError, match="unexpected keyword argument 'taus'"):
        function("x", engine="y", taus=0.5) if function is fcdeploy.cluster else function("x", taus=0.5)


def test_a_setting_is_what_its_shorthand_is(bundle, few):
    expected = fcdeploy.cluster(few, engine=bundle, tau=0.9)
    assert not np.array_equal(expected, fcdeploy.cluster(few, engine=bundle, tau=0.3))
    for value in (0.9, np.float32(0.9).item(), "0.9"):
        found = fcdeploy.cluster(few, engine=bundle, settings={"links.tau": value})
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"links.taus": 0.5}, ("settings: unknown key 'links.taus'", "links.tau")),
        ({"links.tau": "much"}, ("links.tau should be a number",)),
        ({"links.tau": 7.0}, ("links.tau = 7.0 is not a cosine similarity",)),
        ({"feature_dim": 7}, ("settings:", "7-d features")),
        ({"system": "sepfl"}, ("settings: unknown key 'system'",)),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_sentence(bundle, few, settings, words):
    with pytest.raises(InputError) as caught:
        fcdeploy.cluster(few, engine=bundle, settings=settings)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "--" not in str(caught.value)


def test_set_on_the_command_line_may_be_repeated_and_needs_a_value(bundle, few, tmp_path):
    context = cluster.command.make_context(
        "cluster", ["f.npy", "--engine", "x", "--set", "links.tau=0.5", "--set", "neighborhood.hops=[5, 2]"]
    )
    assert context.params["settings"] == {"links.tau": "0.5", "neighborhood.hops": "[5, 2]"}
    with pytest.raises(click.UsageError, match="KEY=VALUE"):
        cluster.command.make_context("cluster", ["f.npy", "--engine", "x", "--set", "links.tau"])
    found = fcdeploy.cluster(few, engine=bundle, settings={"neighborhood.hops": "[5, 2]"})
    assert np.array_equal(found, fcdeploy.cluster(few, engine=bundle, hops=(5, 2)))
