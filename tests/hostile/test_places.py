"""Names and places: what is written goes nowhere else, and what is printed of a name is harmless."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import pictures_of, write_embedder
from PIL import Image
from system_cases import CASES

from fcdeploy.data.labels import write_labels
from fcdeploy.run.folder import RunFolder

PRECIOUS = "precious\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").write_text(PRECIOUS)
    return tmp_path / "victim"


@pytest.fixture
def victims(tmp_path: Path) -> Path:
    """A folder of somebody's files, one of them called as an artifact's are."""
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims/vectors.npy").write_text(PRECIOUS)
    (tmp_path / "victims/journal").write_text("key visit boot\n0 10\n")
    return tmp_path / "victims"


# Symlinks are replaced or refused, and never written through


def kept_by(name: str) -> tuple[str, ...]:
    return next(case.kept for case in CASES if case.name == name and not case.networks)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_in_a_run_folder_lead_nowhere(
    kind: str, bundle_of: Any, fcdeploy: Any, features: Path, tmp_path: Path, victim: Path, victims: Path
) -> None:
    """In the place of everything that a run wrote there they are replaced; elsewhere they are the user's."""
    target = victim if kind == "file" else victims
    before = {path.name: path.read_text() for path in victims.iterdir()}
    run = tmp_path / "run"
    line = (
        "cluster",
        features,
        "--engine",
        bundle_of("pse-gcn").path,
        "-o",
        tmp_path / "pred.meta",
        "--quiet",
    )
    assert fcdeploy(*line, "--knn", "ivf", "--run-dir", run).code == 0
    wanted = (tmp_path / "pred.meta").read_text()
    scratch = ("vectors", "tables", "placed", "mutual", "reciprocal", "holders", "cells", "knn.lists")
    names = [f"{name}.part" for name in (*kept_by("pse-gcn"), *scratch)]
    names += [*kept_by("pse-gcn"), *(f"{name}.scratch" for name in scratch)]
    names += ["summary.json"] if kind == "file" else []
    record = json.loads((run / "run.json").read_text())
    for name in names:  # as a killed run would have left them, each with its name recorded
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).unlink(missing_ok=True)
        os.symlink(target, run / name)
    (run / "run.json").write_text(json.dumps({**record, "names": [*record["names"], *names]}))
    outcome = fcdeploy(*line, "--knn", "ivf", "--memory", "1", "--run-dir", run)
    assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "pred.meta").read_text() == wanted
    assert {path.name: path.read_text() for path in victims.iterdir()} == before
    assert victim.read_text() == PRECIOUS
    assert not any((run / name).is_symlink() for name in (*kept_by("pse-gcn"), "summary.json", "run.json"))
    os.symlink(target, run / "mutual.scratch")  # not recorded
    outcome = fcdeploy(*line, "--run-dir", run, "--k", 11)
    assert outcome.code == 2
    assert f"{run / 'mutual.scratch'}: is not recorded" in outcome.sentence
    assert (run / "mutual.scratch").is_symlink()


def test_a_link_in_the_place_of_the_lock_is_refused(
    bundle_of: Any, fcdeploy: Any, features: Path, tmp_path: Path, victim: Path
) -> None:
    """It would be emptied and given a number of a process."""
    with RunFolder(tmp_path / "run"):
        pass
    (tmp_path / "run/run.lock").unlink()
    os.symlink(victim, tmp_path / "run/run.lock")
    line = ("cluster", features, "--engine", bundle_of("sepfl").path, "-o", tmp_path / "pred.meta")
    outcome = fcdeploy(*line, "--quiet", "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert "run.lock: is not the lock that fcdeploy keeps there" in outcome.sentence
    assert victim.read_text() == PRECIOUS


@pytest.mark.parametrize("name", ["pred.meta", "pred.npy", "clusters.txt"])
def test_a_link_in_the_place_of_labels_is_replaced(name: str, tmp_path: Path, victim: Path) -> None:
    os.symlink(victim, tmp_path / name)
    write_labels(tmp_path / name, np.arange(5))
    assert victim.read_text() == PRECIOUS
    assert not (tmp_path / name).is_symlink()


@pytest.mark.parametrize(
    "name", ["features.bin", "features.bad.txt", "features.filelist.txt", "features.bin.part"]
)
@pytest.mark.parametrize("on_bad", ["skip", "zero"])
def test_links_in_the_places_of_embeddings_lead_nowhere(
    name: str, on_bad: str, fcdeploy: Any, tmp_path: Path, victim: Path
) -> None:
    write_embedder(tmp_path / "embedder.onnx", dim=4)
    for at, picture in enumerate(pictures_of(3)):
        Image.fromarray(picture).save(tmp_path / f"{at}.png")
    (tmp_path / "faces.txt").write_text("0.png\nno.png\n1.png\n2.png\n")
    os.symlink(victim, tmp_path / name)
    line = (
        "embed",
        tmp_path / "faces.txt",
        "--model",
        tmp_path / "embedder.onnx",
        "-o",
        tmp_path / "features.bin",
    )
    outcome = fcdeploy(*line, "--on-bad", on_bad, "--quiet")
    refused = name.endswith((".part", ".bad.txt")) or (name, on_bad) == ("features.filelist.txt", "skip")
    assert outcome.code == (2 if refused else 0), outcome.err
    assert (tmp_path / name).is_symlink() == (name != "features.bin")
    assert victim.read_text() == PRECIOUS
    if outcome.code == 0:
        assert (tmp_path / "features.bin").stat().st_size == 4 * 4 * (3 if on_bad == "skip" else 4)


def test_links_in_the_places_of_bundles_and_logs_are_refused(
    bundle_of: Any, fcdeploy: Any, tmp_path: Path, victim: Path, victims: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    before = {path.name: path.read_text() for path in victims.iterdir()}
    bundle = bundle_of("sepfl").path
    os.symlink(victim, tmp_path / "a.plan.log")
    os.symlink(victims, tmp_path / "b.plan")
    os.symlink(victims, tmp_path / "repository")
    for args in (
        ("build", bundle, "-o", tmp_path / "a.plan"),
        ("build", bundle, "-o", tmp_path / "b.plan"),
        ("triton", bundle, "-o", tmp_path / "repository"),
    ):
        outcome = fcdeploy(*args, "--quiet")
        assert outcome.code == 2
        assert "symbolic link" in outcome.sentence or "was not written by fcdeploy" in outcome.sentence
    assert victim.read_text() == PRECIOUS
    assert {path.name: path.read_text() for path in victims.iterdir()} == before


# What is printed

NAMES = ["[/x]", "[red]x", ":smile:", "\x1b[31mred\x07", "two\nlines", "\udcff\udcfe", "e\u0301\u202e"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_are_printed_and_not_obeyed(
    name: str, fcdeploy: Callable[..., Any], bundle_of: Any, features: Path, tmp_path: Path
) -> None:
    """Neither by the terminal nor by what formats tables; and one sentence stays one line."""
    folder = tmp_path / name.replace("/", "") if name != "[/x]" else tmp_path / "[" / "x]"
    folder.parent.mkdir(exist_ok=True)
    shutil.copytree(bundle_of("sepfl").path, folder)
    output = tmp_path / f"{folder.name}.meta"
    for args in (
        ("inspect", folder),
        ("cluster", features, "--engine", folder, "-o", output),
        ("estimate", features, "--engine", folder),
        ("bench", folder, "--faces", "0", "--seconds", "0", "--pass", "near"),
    ):
        outcome = fcdeploy(*args)
        assert outcome.code == 0, outcome.err
        assert "\x1b" not in outcome.out
        assert "\x1b" not in outcome.err
        if args[0] in ("inspect", "cluster") and name in NAMES[:3]:
            assert folder.name in outcome.out.replace("\n", "")
    outcome = fcdeploy("cluster", features, "--engine", f"{folder}.gone")
    assert outcome.code == 2
    assert outcome.sentence
    outcome.out.encode()
    outcome.err.encode()
