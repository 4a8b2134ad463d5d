"""Exports hold every face once, in the form that each tool's own pages describe, and replace nothing."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest

import fcdeploy
from fcdeploy.errors import InputError


@pytest.fixture
def pyarrow():
    return pytest.importorskip("pyarrow.parquet")


@pytest.mark.parametrize("files", ["symlink", "hardlink", "copy"])
def test_folders_hold_every_image_once_largest_cluster_first(
    made_run, coloured_faces, labels_of_run, tmp_path, files
):
    output = fcdeploy.export_clusters(
        made_run, tmp_path / "out", to="folders", images=coloured_faces, files=files
    )
    folders = sorted(path.name for path in output.iterdir())
    several = [name for name in folders if name != "singles"]
    counts = [len(list((output / name).iterdir())) for name in several]
    assert counts == sorted(counts, reverse=True)
    assert counts == sorted(np.bincount(labels_of_run)[np.bincount(labels_of_run) > 1].tolist(), reverse=True)
    seen = []
    for name in folders:
        faces = [int(path.stem) for path in (output / name).iterdir()]
        seen += faces
        if name != "singles":
            _, _, cluster, size, _ = name.split("-")
            assert set(labels_of_run[faces]) == {int(cluster)}
            assert len(faces) == int(size)
    assert sorted(seen) == list(range(len(labels_of_run)))
    one = next((output / several[0]).iterdir())
    assert one.is_symlink() == (files == "symlink")
    original = coloured_faces.parent / f"{int(one.stem)}.png"
    assert one.read_bytes() == original.read_bytes()
    assert (os.stat(one).st_ino == original.stat().st_ino) == (files != "copy")


def test_no_name_of_an_image_leads_out_of_the_folders(made_run, labels_of_run, tmp_path):
    """Names of faces are their numbers; an ending is kept only where it is a plain one."""
    outside = tmp_path / "passwd"
    outside.write_text("secret")
    names = ["../passwd", "../passwd.j/../pass", "a.png;rm", "missing.png"]
    (tmp_path / "list").mkdir()
    listed = tmp_path / "list/faces.txt"
    listed.write_text("".join(f"{names[at % 4]}\n" for at in range(len(labels_of_run))))
    output = fcdeploy.export_clusters(made_run, tmp_path / "out", to="folders", images=listed)
    made = [path for path in output.rglob("*") if path.is_symlink()]
    assert made
    assert all(path.name.isdigit() and path.resolve() == outside for path in made)
    assert outside.read_text() == "secret"


def test_fiftyone_reads_labels_by_the_stems_of_its_images(made_run, coloured_faces, labels_of_run, tmp_path):
    """As its documentation describes FiftyOneImageClassificationDataset: classes, and an index per stem."""
    output = fcdeploy.export_clusters(made_run, tmp_path / "set", to="fiftyone", images=coloured_faces)
    found = json.loads((output / "labels.json").read_text())
    assert found.keys() == {"classes", "labels"}
    assert {path.stem for path in (output / "data").iterdir()} == found["labels"].keys()
    for stem, label in found["labels"].items():
        index = label["label"] if isinstance(label, dict) else label
        assert found["classes"][index] == f"cluster {labels_of_run[int(stem)]}"


def test_tables_hold_a_row_per_face(made_run, labels_of_run, tmp_path, pyarrow):
    table = fcdeploy.export_clusters(made_run, tmp_path / "faces.csv", to="csv")
    rows = list(csv.DictReader(table.open()))
    assert [int(row["cluster"]) for row in rows] == labels_of_run.tolist()
    lines = fcdeploy.export_clusters(made_run, tmp_path / "faces.jsonl", to="jsonl")
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["cluster"] for row in found] == labels_of_run.tolist()
    assert {type(row["confidence"]) for row in found} == {float, type(None)}
    parquet = fcdeploy.export_clusters(made_run, tmp_path / "faces.parquet", to="parquet")
    assert pyarrow.read_table(parquet)["cluster"].to_pylist() == labels_of_run.tolist()


def test_embedding_atlas_gets_neighbors_and_thumbnails(
    made_run, coloured_faces, labels_of_run, tmp_path, pyarrow, colour
):
    """neighbors: {"ids", "distances"}, ids zero-based rows; image: {"bytes", "path"}, as its pages say."""
    import io

    from PIL import Image

    output = fcdeploy.export_clusters(
        made_run, tmp_path / "faces.parquet", to="embedding-atlas", images=coloured_faces
    )
    rows = pyarrow.read_table(output).to_pylist()
    assert len({len(row["neighbors"][part]) for row in rows for part in ("ids", "distances")}) == 1
    ids, sims = np.load(made_run / "knn/ids.npy"), np.load(made_run / "knn/sims.npy")
    for row in (0, 17, len(rows) - 1):
        assert rows[row]["cluster"] == f"cluster {labels_of_run[row]}"
        others = ids[row] != row
        near = rows[row]["neighbors"]
        known = 1 + others.sum()
        assert near["ids"][:known] == [row, *ids[row][others].tolist()]
        assert near["distances"][:known] == pytest.approx([0.0, *(1 - sims[row][others]).tolist()], abs=1e-6)
        assert near["ids"][known:] == [row] * (len(near["ids"]) - known)
        picture = np.asarray(Image.open(io.BytesIO(rows[row]["image"]["bytes"]))).astype(int)
        assert np.abs(picture[48, 48] - colour(row)).max() <= 6


def test_spotlight_gets_paths_that_are_there(made_run, coloured_faces, tmp_path, pyarrow):
    output = fcdeploy.export_clusters(
        made_run, tmp_path / "faces.parquet", to="spotlight", images=coloured_faces
    )
    rows = pyarrow.read_table(output).to_pylist()
    assert all(Path(row["image"]).is_file() and Path(row["image"]).stem == str(row["id"]) for row in rows)


def test_nothing_is_replaced_and_wrong_names_are_told(fcdeploy, made_run, coloured_faces, tmp_path):
    (tmp_path / "faces.csv").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("mine")
    for args in (
        ("--to", "csv", "-o", tmp_path / "faces.csv"),
        ("--to", "folders", "-o", tmp_path / "mine", "--images", coloured_faces),
        ("--to", "folders", "-o", tmp_path / "new"),
        ("--to", "parquet", "-o", tmp_path / "new.csv"),
        ("--to", "jsonl", "-o", tmp_path / "new"),
    ):
        assert fcdeploy("export-clusters", made_run, *args).code == 2, args
    assert (tmp_path / "faces.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faces.csv", "mine"]


def test_a_target_that_there_is_not_is_told_from_python(made_run, tmp_path):
    with pytest.raises(InputError, match="folders"):
        fcdeploy.export_clusters(made_run, tmp_path / "x", to="excel")
