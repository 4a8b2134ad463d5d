"""A run that will not fit on the disk says so before it begins; one that fits, or is there already, says nothing."""

import shutil
import warnings
from collections import namedtuple

import numpy as np
import pytest

import fcdeploy
from fcdeploy.errors import FcdeployWarning

FACES, DIM = 300, 32
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes are free, wherever it is asked."""

    def said(count):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, count))

    return said


@pytest.fixture
def faces():
    return np.random.default_rng(1).standard_normal((FACES, DIM), dtype=np.float32)


def notes(*args, **options):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        labels = fcdeploy.cluster(*args, **options)
    return labels, [str(one.message) for one in told if issubclass(one.category, FcdeployWarning)]


def test_a_run_that_will_not_fit_says_so_and_still_runs(pse_bundle, faces, free, tmp_path):
    free(1 << 30)
    labels, told = notes(faces, engine=pse_bundle.path, run_dir=tmp_path / "roomy")
    assert not any("free for it" in one for one in told)
    free(10_000)
    again, told = notes(faces, engine=pse_bundle.path, run_dir=tmp_path / "full")
    (one,) = [one for one in told if "free for it" in one]
    assert one.startswith(f"{tmp_path}/full: ")
    assert "run_dir" in one
    assert np.array_equal(labels, again)


def test_what_is_there_already_is_not_computed_again_and_takes_no_more(pse_bundle, faces, free, tmp_path):
    free(1 << 30)
    options = {"engine": pse_bundle.path, "run_dir": tmp_path / "run"}
    notes(faces, **options)
    free(0)
    _, told = notes(faces, **options, tau=0.7)
    assert not any("free for it" in one for one in told)


def test_room_for_scratch_is_looked_for_where_it_goes(pse_bundle, faces, free, tmp_path):
    free(10_000)
    (tmp_path / "scratch").mkdir()
    _, told = notes(faces, engine=pse_bundle.path, memory=1 << 20, scratch=tmp_path / "scratch")
    (one,) = [one for one in told if "free for it" in one]
    assert one.startswith(f"{tmp_path}/scratch/")
