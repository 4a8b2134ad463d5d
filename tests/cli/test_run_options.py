"""Fields of Options, options of commands and arguments in Python are the same, by name and default."""

import dataclasses
import inspect

import numpy as np
import pytest

import fcdeploy
from fcdeploy.cli import cluster, plan
from fcdeploy.cli.run_options import RUN_OPTIONS
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.runtime import api

DEFAULTS = {field.name: field.default for field in dataclasses.fields(Options)}


@pytest.mark.parametrize("command", [cluster.command, plan.command])
def test_commands_take_every_field_with_its_default(command):
    found = {option.name: option for option in command.params if option.name in DEFAULTS}
    assert found.keys() == DEFAULTS.keys() == RUN_OPTIONS.keys()
    taken = command.make_context("command", ["features.bin", "--engine", "bundle"]).params
    assert {name: taken[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("function", [fcdeploy.cluster, fcdeploy.FaceClusterer])
def test_python_takes_every_field_with_its_default(function):
    found = {name: entry.default for name, entry in inspect.signature(function).parameters.items()}
    assert {name: default for name, default in found.items() if name in DEFAULTS} == DEFAULTS
    assert found.keys() - DEFAULTS.keys() <= {"features", "engine", "column", "on_bad", "run_dir", "progress"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("k", 0), ("k", -1), ("batch", 0), ("batch", -1), ("threads", -1), ("memory", -1), ("vram", -1)),
        *(("hops", (5,)), ("hops", 5), ("hops", (5.5, 2)), ("hops", "5,2")),
    ],
)
def test_python_refuses_the_values_that_commands_refuse(bundle, few, name, value):
    with pytest.raises(InputError, match=f"--{name} .*should be"):
        fcdeploy.cluster(few, engine=bundle, **{name: value})


def test_hops_may_be_any_two_whole_numbers(bundle, few):
    expected = fcdeploy.cluster(few, engine=bundle, hops=(5, 2))
    for hops in ([5, 2], np.array([5, 2])):
        assert np.array_equal(fcdeploy.cluster(few, engine=bundle, hops=hops), expected)


def test_every_argument_of_cluster_reaches_the_run(monkeypatch):
    """Each argument is given a value of its own; none is lost or swapped on its way."""

    class Empty:
        labels = None

    reached = {}
    monkeypatch.setattr(
        api, "_run", lambda features, engine, chosen, run_dir, **_: reached.update(chosen) or Empty()
    )
    given = {name: f"value of {name}" for name in (*DEFAULTS, "on_bad")}
    fcdeploy.cluster([[0.0]], engine="x", **given)
    assert reached == given
    clusterer = fcdeploy.FaceClusterer("x", **given)
    assert clusterer.get_params() == {"engine": "x", **given}
