"""``fcdeploy faces``, and ``fcdeploy cluster`` from photos: four generated ones, and whatever else people have."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import write_embedder
from photo_albums import as_bytes
from PIL import Image

import fcdeploy as package
from fcdeploy.engine.bundle import Bundle

PHOTOS = Path(__file__).parent.parent.parent / "benchmarks/photos"
ALBUM, DETECTOR = PHOTOS / "album", PHOTOS / "yunet.onnx"
FACES = [2, 2, 1, 3]  # in each of the four photos


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the four photos; the current folder is the one above."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(ALBUM, tmp_path / "album"))


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def content(folder: Path) -> dict[str, bytes]:
    """What a run is for: lists and crops."""
    files = [
        *folder.glob("*.csv"),
        *folder.glob("*.txt"),
        *folder.glob("*.bin"),
        *(folder / "faces").rglob("*"),
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


def boxes(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([[float(row[name]) for name in ("x", "y", "width", "height")] for row in rows])


def points(rows: list[dict[str, str]]) -> np.ndarray:
    names = [name for name in rows[0] if name.endswith(("_x", "_y"))]
    return np.array([[float(row[name]) for name in names] for row in rows]).reshape(-1, 5, 2)


def test_lists_and_crops_belong_together(album: Path, fcdeploy: Command) -> None:
    done = fcdeploy("faces", album, "--detector", DETECTOR, "-o", "crops")
    assert done.code == 0, done.err
    assert "8 faces in 4 photos (0 without any)" in done.out
    rows = table(Path("crops/faces.csv"))
    assert [row["photo"] for row in rows] == [f"{at + 1}.jpg" for at, n in enumerate(FACES) for _ in range(n)]
    assert [row["face"] for row in rows] == [
        f"{at + 1}.jpg#{i}" for at, n in enumerate(FACES) for i in range(n)
    ]
    assert Path("crops/photos.txt").read_text().split() == [row["photo"] for row in rows]
    assert Path("crops/faces.txt").read_text().split() == [row["crop"] for row in rows]
    for row in rows:
        with Image.open(Path("crops") / row["crop"]) as crop:
            assert (crop.size, crop.mode, crop.format) == ((112, 112), "RGB", "JPEG")
    for photo in {row["photo"] for row in rows}:
        scores = [float(row["score"]) for row in rows if row["photo"] == photo]
        assert scores == sorted(scores, reverse=True)
    assert not list(Path("crops").glob("gated*")) + list(Path("crops").glob("*.bad.txt"))


def test_faces_are_those_of_opencv(album: Path, fcdeploy: Command) -> None:
    cv2 = pytest.importorskip("cv2")
    assert fcdeploy("faces", album, "--detector", DETECTOR, "-o", "crops").code == 0
    rows = table(Path("crops/faces.csv"))
    for at, photo in enumerate(sorted(album.iterdir())):
        image = cv2.imread(str(photo))
        size = image.shape[1], image.shape[0]
        found = cv2.FaceDetectorYN.create(str(DETECTOR), "", size, 0.6, 0.3, 5000).detect(image)[1]
        ours = [row for row in rows if row["photo"] == f"{at + 1}.jpg"]
        assert len(found) == len(ours)
        np.testing.assert_allclose(boxes(ours), found[:, :4], atol=0.01)
        np.testing.assert_allclose(points(ours), found[:, 4:14].reshape(-1, 5, 2), atol=0.01)


def test_the_shared_photos_give_what_opencv_finds(
    shared: Path, tmp_path: Path, fcdeploy: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.chdir(tmp_path)
    model = shared / "models/face-detector-yunet.onnx"
    assert fcdeploy("faces", shared / "data/photos", "--detector", model, "-o", "crops").code == 0
    rows = table(Path("crops/faces.csv"))
    assert len(rows) == 16
    for photo in sorted((shared / "data/photos").iterdir()):
        image = cv2.imread(str(photo))
        size = image.shape[1], image.shape[0]
        found = cv2.FaceDetectorYN.create(str(model), "", size, 0.6, 0.3, 5000).detect(image)[1]
        ours = [row for row in rows if row["photo"] == photo.name]
        np.testing.assert_allclose(boxes(ours), found[:, :4], atol=0.05)
        np.testing.assert_allclose(points(ours), found[:, 4:14].reshape(-1, 5, 2), atol=0.05)


def test_photos_of_every_kind_are_answered(album: Path, fcdeploy: Command) -> None:
    """Turned by EXIF, greyscale, CMYK, 16 bits, without a face; and broken ones, which are listed by line."""
    with Image.open(album / "1.jpg") as opened:
        photo = opened.convert("RGB")
    folder = Path("kinds")
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.rotate(90, expand=True).save(folder / "a-turned.jpg", exif=exif, quality=95)
    photo.convert("L").save(folder / "b-grey.png")
    photo.convert("CMYK").save(folder / "c-cmyk.jpg", quality=95)
    wide = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(folder / "d-wide.png")
    Image.new("RGB", (700, 500), (90, 120, 150)).save(folder / "e-empty.jpg")
    (folder / "f-cut.jpg").write_bytes((album / "1.jpg").read_bytes()[:20_000])
    (folder / "g-nothing.jpg").write_bytes(b"")
    (folder / "h-text.jpg").write_text("no photo")
    Image.new("RGB", (1, 1)).save(folder / "i-tiny.png")
    done = fcdeploy("faces", folder, "--detector", DETECTOR, "-o", "crops")
    assert done.code == 0, done.err
    rows = table(Path("crops/faces.csv"))
    whole = ["a-turned.jpg", "b-grey.png", "c-cmyk.jpg", "d-wide.png"]
    assert [row["photo"] for row in rows] == sorted(2 * whole)
    upright = boxes([row for row in rows if row["photo"] == "b-grey.png"])
    turned = boxes([row for row in rows if row["photo"] == "a-turned.jpg"])
    order = np.argsort(upright[:, 0]), np.argsort(turned[:, 0])
    assert np.abs(upright[order[0]] - turned[order[1]]).max() < 12  # other greys, the same places
    bad = Path("crops/photos.bad.txt").read_text().splitlines()
    assert [line.split("\t") for line in bad] == [
        ["5", "f-cut.jpg", "damaged or cut short"],
        ["6", "g-nothing.jpg", "empty file"],
        ["7", "h-text.jpg", "not an image of a known format"],
    ]
    assert "3 of 9 photos could not be read" in done.err
    stopped = fcdeploy("faces", folder, "--detector", DETECTOR, "-o", "other", "--on-bad", "stop", "--quiet")
    assert stopped.code == 2
    assert "--on-bad skip" in stopped.sentence
    assert not Path("other/faces.csv").exists()
    assert Path("other/photos.bad.txt").read_text().splitlines() == bad


@pytest.mark.parametrize("width", [5600, pytest.param(8000, marks=pytest.mark.slow)])
def test_a_large_photo_is_tiled_for_small_faces(album: Path, fcdeploy: Command, width: int) -> None:
    """Faces of about 20 pixels: too small at 2048 pixels, found with --min-face, each once."""
    folder = Path("large")
    folder.mkdir()
    large = Image.new("RGB", (width, width * 3 // 4), (120, 130, 110))
    with Image.open(album / "2.jpg") as photo:
        small = photo.resize((480, 320), Image.Resampling.LANCZOS)
    places = [(100, 100), (width // 2 - 100, width * 3 // 8 - 100), (width - 600, width * 3 // 4 - 400)]
    for place in places:
        large.paste(small, place)
    large.save(folder / "large.jpg", quality=90)
    found = {}
    for name, options in (("usual", ()), ("small", ("--min-face", 20))):
        done = fcdeploy("faces", folder, "--detector", DETECTOR, "-o", name, *options)
        assert done.code == 0, done.err
        found[name] = (
            boxes(table(Path(name) / "faces.csv")) if "0 faces" not in done.out else np.zeros((0, 4))
        )
    middles = found["small"][:, :2] + found["small"][:, 2:] / 2
    for x, y in places:
        inside = (middles >= [x, y]).all(axis=1) & (middles <= [x + 480, y + 320]).all(axis=1)
        assert inside.sum() == 2
    assert len(found["small"]) == 6 > len(found["usual"])


def test_packed_crops_are_the_same_faces(album: Path, fcdeploy: Command) -> None:
    assert fcdeploy("faces", album, "--detector", DETECTOR, "-o", "files", "--format", "png").code == 0
    done = fcdeploy("faces", album, "--detector", DETECTOR, "-o", "packed", "--format", "png", "--shards")
    assert done.code == 0, done.err
    assert [path.name for path in Path("packed/faces").iterdir()] == ["000000.tar"]
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    embedded = {}
    for name in ("files", "packed"):
        done = fcdeploy("embed", f"{name}/faces.txt", "--model", "embedder.onnx", "-o", f"{name}.bin")
        assert done.code == 0, done.err
        embedded[name] = Path(f"{name}.bin").read_bytes()
    assert embedded["files"] == embedded["packed"]
    assert len(embedded["files"]) == 8 * 32 * 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "faces/000000.tar/no.jpg",
            "line 1, counted from 0, 'faces/000000.tar/no.jpg': there is no such member",
        ),
        ("faces/a.jpg", "line 1, counted from 0, 'faces/a.jpg', is not in an archive"),
        ("faces/000009.tar/a.jpg", "000009.tar, which is not a tar archive"),
    ],
)
def test_a_list_that_leads_into_archives_names_the_line_that_does_not(
    album: Path, fcdeploy: Command, line: str, words: str
) -> None:
    assert fcdeploy("faces", album, "--detector", DETECTOR, "-o", "packed", "--shards").code == 0
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    listed = Path("packed/faces.txt").read_text().splitlines()
    Path("packed/mine.txt").write_text("\n".join([listed[0], line]))
    done = fcdeploy("embed", "packed/mine.txt", "--model", "embedder.onnx")
    assert done.code == 2
    assert words in done.sentence
    Path("packed/mine.txt").write_text("\n".join(listed[::-1]))
    assert fcdeploy("embed", "packed/mine.txt", "--model", "embedder.onnx", "-o", "back.bin").code == 0
    assert fcdeploy("embed", "packed/faces.txt", "--model", "embedder.onnx", "-o", "on.bin").code == 0
    back, on = (np.fromfile(name, np.float32).reshape(8, 32) for name in ("back.bin", "on.bin"))
    assert np.array_equal(back[::-1], on)


def test_gated_faces_are_listed_with_the_reason_and_kept(album: Path, fcdeploy: Command) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    command = ("faces", album, "--detector", DETECTOR, "--embedder", "embedder.onnx", "-o", "crops")
    assert fcdeploy(*command).code == 0
    rows = table(Path("crops/faces.csv"))
    sizes = np.array([float(row["size"]) for row in rows])
    assert np.array_equal(sizes, boxes(rows)[:, 2:].min(axis=1))
    features = np.fromfile("crops/features.bin", np.float32).reshape(8, 32)
    np.testing.assert_allclose(
        [float(row["norm"]) for row in rows], np.linalg.norm(features, axis=1), rtol=1e-4
    )
    least = float(np.sort(sizes)[3]) + 0.5
    before = {path: path.stat().st_mtime_ns for path in Path("crops/faces").rglob("*.jpg")}
    done = fcdeploy(*command, "--min-size", least, "--json")
    summary = json.loads(done.out)
    assert (summary["faces"], summary["gated"], summary["gated_by"]) == (4, 4, {"size": 4})
    passed, gated = table(Path("crops/faces.csv")), table(Path("crops/gated.csv"))
    assert [row["face"] for row in passed] == [row["face"] for row in rows if float(row["size"]) >= least]
    assert [row["face"] for row in gated] == [row["face"] for row in rows if float(row["size"]) < least]
    assert all(
        row["reason"].startswith("size ") and row["reason"].endswith(f"below {least:g}") for row in gated
    )
    assert Path("crops/gated.txt").read_text().split() == [row["crop"] for row in gated]
    kept = np.fromfile("crops/features.bin", np.float32).reshape(4, 32)
    left_out = np.fromfile("crops/gated.bin", np.float32).reshape(4, 32)
    assert np.array_equal(kept, features[sizes >= least])
    assert np.array_equal(left_out, features[sizes < least])
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was found again
    assert fcdeploy(*command).code == 0
    assert table(Path("crops/faces.csv")) == rows
    assert not Path("crops/gated.csv").exists()


@pytest.mark.parametrize(
    ("gate", "column"), [("--min-sharpness", "sharpness"), ("--max-yaw", "yaw"), ("--min-norm", "norm")]
)
def test_each_gate_goes_by_its_column(album: Path, fcdeploy: Command, gate: str, column: str) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    more = ("--embedder", "embedder.onnx") if column == "norm" else ()
    command = ("faces", album, "--detector", DETECTOR, "-o", "crops", *more)
    assert fcdeploy(*command).code == 0
    values = {row["face"]: abs(float(row[column])) for row in table(Path("crops/faces.csv"))}
    limit = float(np.median(list(values.values())))
    assert fcdeploy(*command, gate, limit).code == 0
    passed = {row["face"] for row in table(Path("crops/faces.csv"))}
    beyond = {face for face, value in values.items() if (value > limit if "max" in gate else value < limit)}
    assert passed == values.keys() - beyond
    assert 0 < len(beyond) < 8


def test_new_and_changed_photos_alone_are_looked_at_again(album: Path, fcdeploy: Command) -> None:
    command = ("faces", album, "--detector", DETECTOR, "-o", "crops")
    (album / "0.jpg").write_bytes(b"broken")
    assert fcdeploy(*command).code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("crops/faces").rglob("*.jpg")}
    shutil.copyfile(album / "3.jpg", album / "0.jpg")  # mended
    shutil.copyfile(album / "3.jpg", album / "5.jpg")  # new
    (album / "4.jpg").unlink()
    assert fcdeploy(*command).code == 0
    rows = table(Path("crops/faces.csv"))
    assert [row["photo"] for row in rows] == ["0.jpg", "1.jpg", "1.jpg", "2.jpg", "2.jpg", "3.jpg", "5.jpg"]
    after = {path: path.stat().st_mtime_ns for path in Path("crops/faces").rglob("*.jpg")}
    assert after.keys() == {Path("crops") / row["crop"] for row in rows}
    assert sum(before.get(path) == changed for path, changed in after.items()) == 5
    assert fcdeploy("faces", album, "--detector", DETECTOR, "-o", "anew").code == 0
    assert content(Path("anew")) == content(Path("crops"))


@pytest.mark.parametrize("name", ["faces", "faces.rows"])
def test_links_in_the_folder_of_crops_lead_nowhere(album: Path, fcdeploy: Command, name: str) -> None:
    command = ("faces", album, "--detector", DETECTOR, "-o", "crops", "--quiet")
    assert fcdeploy(*command).code == 0
    Path("crops", name).rename("elsewhere")
    Path("crops", name).symlink_to(Path("elsewhere").absolute())
    (album / "1.jpg").unlink()
    kept = [*Path("elsewhere").rglob("*.jpg"), Path("elsewhere")]
    before = [path.read_bytes() for path in kept if path.is_file()]
    done = fcdeploy(*command)
    assert done.code == 2
    assert f"{name}: is a symbolic link" in done.sentence
    assert [path.read_bytes() for path in kept if path.is_file()] == before


@pytest.mark.faults
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(album: Path, fcdeploy: Command) -> None:
    for at in range(40):
        shutil.copyfile(album / "3.jpg", album / f"more-{at}.jpg")
    code = "import fcdeploy.runtime.faces as f; f.COMMIT_PHOTOS = 8; from fcdeploy.cli import main; main()"
    command = [sys.executable, "-c", code, "faces", "album", "--detector", str(DETECTOR), "--quiet", "-o"]
    assert subprocess.run([*command, "whole"], check=False).returncode == 0
    kills = 0
    for _ in range(30):
        process = subprocess.Popen([*command, "killed"])
        started = time.monotonic()
        rows = Path("killed/faces.rows")
        size = rows.stat().st_size if rows.exists() else 0
        while process.poll() is None and time.monotonic() - started < 60:
            if rows.exists() and rows.stat().st_size > size + 8 * 72:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        if process.wait() == 0:
            break
    assert process.returncode == 0
    assert kills >= 2
    assert content(Path("killed")) == content(Path("whole"))


@pytest.mark.parametrize("output", ["clusters.csv", "labels.meta"])
def test_clusters_in_one_go_are_those_step_by_step(
    album: Path, fcdeploy: Command, pse_bundle: Bundle, output: str
) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    both = ("--detector", DETECTOR, "--embedder", "embedder.onnx")
    done = fcdeploy("cluster", "album", *both, "--engine", pse_bundle.path, "-o", output)
    assert done.code == 0, done.err
    assert fcdeploy("faces", "album", *both, "-o", "crops").code == 0
    steps = ("--engine", pse_bundle.path, "-o", "steps.meta")
    assert fcdeploy("cluster", "crops/features.bin", *steps).code == 0
    labels = Path("steps.meta").read_text().split()
    ids = [row["face"] for row in table(Path("crops/faces.csv"))]
    beside = table(Path(output).with_suffix(".faces.csv"))
    assert [row["face"] for row in beside] == ids
    if output.endswith(".csv"):
        assert [(row["id"], row["label"]) for row in table(Path(output))] == list(
            zip(ids, labels, strict=True)
        )
    else:
        assert Path(output).read_text().split() == labels
    assert not Path(f"{output}.crops").exists()
    found = package.faces("album", detector=DETECTOR, embedder="embedder.onnx")
    assert found.ids.tolist() == ids
    assert np.array_equal(found.features.ravel(), np.fromfile("crops/features.bin", np.float32))
    assert found.crops is not None
    assert found.crops.shape == (8, 112, 112, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a k that is more than the number of faces
        again = package.cluster("album", detector=DETECTOR, embedder="embedder.onnx", engine=pse_bundle.path)
    assert list(map(str, again.tolist())) == labels


def test_a_run_folder_keeps_crops_and_embeddings(album: Path, fcdeploy: Command, pse_bundle: Bundle) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    command = (
        "cluster",
        "album",
        "--detector",
        DETECTOR,
        "--embedder",
        "embedder.onnx",
        "--engine",
        pse_bundle.path,
    )
    first = fcdeploy(*command, "-o", "a.csv", "--run-dir", "run")
    assert first.code == 0, first.err
    kept = content(Path("run/crops"))
    assert len([name for name in kept if name.startswith("faces/")]) == 8
    assert fcdeploy(*command, "-o", "b.csv", "--run-dir", "run").code == 0
    assert content(Path("run/crops")) == kept
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert fcdeploy("report", "run").code == 0  # shows the crops, without being told where they are
    assert Path("report/index.html").read_text().count('class="t s0 ') >= 8
    assert Path("report/thumbs-000.jpg").exists()
    assert fcdeploy("export-clusters", "run", "--to", "folders", "-o", "people").code == 0
    assert len([path for path in Path("people").rglob("*") if path.is_file()]) == 8
    gated = fcdeploy(*command, "-o", "a.csv", "--run-dir", "run", "--min-size", "100000")
    assert gated.code == 2
    assert fcdeploy("report", "run").code == 0  # crops of other faces than the run's are not shown
    assert not Path("report/thumbs-000.jpg").exists()


def clustered(fcdeploy: Command, bundle: Bundle, *more: object) -> dict[str, Any]:
    """What ``cluster --json`` says of the photos in album/; notes are in "err", a refusal in "refused"."""
    both = ("--detector", DETECTOR, "--embedder", "embedder.onnx", "--run-dir", "run")
    done = fcdeploy("cluster", "album", *both, "--engine", bundle.path, "-o", "found.csv", "--json", *more)
    assert done.code in (0, 2), done.err
    return {"refused": done.sentence} if done.code else {**json.loads(done.out), "err": done.err}


def test_identities_are_given_by_face_or_by_photo(album: Path, fcdeploy: Command, pse_bundle: Bundle) -> None:
    """By face in any order; by photo for those with one face, of 8 faces in 4 photos and 2 copies of one of them."""
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    for name in ("5.jpg", "6.jpg"):
        with Image.open(album / "3.jpg") as photo:
            photo.save(album / name, quality=60)
    assert "quality" not in clustered(fcdeploy, pse_bundle)
    rows = table(Path("found.csv"))
    Path("truth.csv").write_text(
        "face,label\n" + "".join(f"{row['id']},person {row['label']}\n" for row in reversed(rows))
    )
    found = clustered(fcdeploy, pse_bundle, "--labels", "truth.csv")
    assert found["quality"]["pairwise"]["f"] == found["quality"]["bcubed"]["f"] == 1
    assert "unknown" not in found["quality"]
    Path("truth.csv").write_text("label,photo\nb,6.jpg\na,5.jpg\na,3.jpg\nc,1.jpg\n")
    by_path = clustered(fcdeploy, pse_bundle, "--labels", "truth.csv")
    assert by_path["quality"]["unknown"] == 7
    assert "faces that therefore count as unknown: 2" in by_path["err"]
    Path("truth.meta").write_text("2\n-1\n0\n-1\n0\n1\n")
    assert clustered(fcdeploy, pse_bundle, "--labels", "truth.meta")["quality"] == by_path["quality"]
    Path("truth.csv").write_text(
        "".join(
            f"{line},{person}\n"
            for line, person in zip(
                Path("found.faces.csv").read_text().splitlines(),
                ["label", *(row["label"] for row in rows)],
                strict=True,
            )
        )
    )
    labelled = clustered(fcdeploy, pse_bundle, "--labels", "truth.csv", "--label-column", "label")
    assert labelled["quality"] == found["quality"]
    report = fcdeploy("report", "run", "--labels", "truth.meta", "-o", "page")
    assert report.code == 2  # ten faces, six labels
    Path("truth.csv").write_text("id,label\n" + "".join(f"{row['id']},1\n" for row in rows[:3]))
    assert fcdeploy("report", "run", "--labels", "truth.csv", "-o", "page").code == 0
    assert "7 faces of unknown identity" in Path("page/index.html").read_text()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ("face,label\nelsewhere/1.jpg#0,1\n", "'elsewhere/1.jpg#0'"),
        ("photo,label\nelsewhere/1.jpg,1\n", "'elsewhere/1.jpg'"),
        ("photo,label\n1.jpg,1\n1.jpg,2\n", "'1.jpg' twice"),
        ("1\n2\n3\n", "3 labels for 4 photos"),
    ],
)
def test_identities_of_other_photos_are_refused_before_anything_is_detected(
    album: Path, fcdeploy: Command, pse_bundle: Bundle, labels: str, told: str
) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    Path("truth.csv").write_text(labels)
    assert told in clustered(fcdeploy, pse_bundle, "--labels", "truth.csv")["refused"]
    assert not Path("run").exists()


def test_faces_of_one_photo_are_different_people_where_that_is_asked_for(
    album: Path, fcdeploy: Command, pse_bundle: Bundle
) -> None:
    """The same face twice in a photo; by the file of the step before, or by the photos that are known anyway."""
    with Image.open(album / "3.jpg") as photo:
        twice = Image.new("RGB", (photo.width * 2, photo.height))
        twice.paste(photo, (0, 0))
        twice.paste(photo, (photo.width, 0))
    twice.save(album / "3.jpg", quality=95)
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    both = ("--detector", DETECTOR, "--embedder", "embedder.onnx")
    engine = ("--engine", pse_bundle.path)
    found = {}
    for name, options in (("free", ()), ("auto", ("--same-photo", "auto"))):
        done = fcdeploy("cluster", album, *both, *engine, "-o", f"{name}.csv", *options)
        assert done.code == 0, done.err
        rows = table(Path(f"{name}.csv"))
        found[name] = {row["id"]: row["label"] for row in rows}
    assert found["free"]["3.jpg#0"] == found["free"]["3.jpg#1"]
    for photo_name in {face.partition("#")[0] for face in found["auto"]}:
        labels = [label for face, label in found["auto"].items() if face.startswith(f"{photo_name}#")]
        assert len(set(labels)) == len(labels)
    assert fcdeploy("faces", album, *both, "-o", "crops").code == 0
    done = fcdeploy(
        *("cluster", "crops/features.bin", *engine, "--same-photo", "crops/photos.txt", "-o", "steps.meta")
    )
    assert done.code == 0, done.err
    assert Path("steps.meta").read_text().split() == list(found["auto"].values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a k that is more than the number of faces
        labels = package.cluster(
            album,
            detector=DETECTOR,
            embedder="embedder.onnx",
            engine=pse_bundle.path,
            same_photo=True,
        )
    assert list(map(str, labels.tolist())) == list(found["auto"].values())


CASES: dict[str, tuple[tuple[Any, ...], str]] = {
    "no such detector": (("faces", "album", "--detector", "no.onnx"), "no.onnx: no such file"),
    "a detector that is an embedder": (
        ("faces", "album", "--detector", "embedder.onnx"),
        "its outputs are not those of YuNet, SCRFD or RetinaFace",
    ),
    "crops among the photos": (
        ("faces", "album", "--detector", DETECTOR, "-o", "album/crops"),
        "lies in album, all images below which are photos",
    ),
    "a norm without an embedder": (
        ("faces", "album", "--detector", DETECTOR, "--min-norm", 3),
        "--min-norm 3: is for embeddings; give --embedder",
    ),
    "somebody's folder": (("faces", "album", "--detector", DETECTOR, "-o", "mine"), "mine: holds note.txt"),
    "no photos": (("faces", "mine", "--detector", DETECTOR), "holds no images"),
    "no embedder": (
        ("cluster", "album", "--detector", DETECTOR, "--engine", "BUNDLE", "-o", "a.csv"),
        "needs an embedder, too; give --embedder",
    ),
    "an embedder of another width": (
        *(("cluster", "album", "--detector", DETECTOR, "--embedder", "wide.onnx", "--engine", "BUNDLE"),),
        "gives embeddings of width 48",
    ),
    "an option of photos for features": (
        ("cluster", "f.bin", "--engine", "BUNDLE", "--min-face", 30, "-o", "a.csv"),
        "--min-face is for photos, which need --detector",
    ),
    "truth of faces unknown": (
        *(
            (
                *("cluster", "album", "--detector", DETECTOR, "--embedder", "embedder.onnx"),
                *("--engine", "BUNDLE", "--labels", "truth.meta"),
            ),
        ),
        "truth.meta: 1 label for 4 photos",
    ),
    "bad photos only": (
        ("faces", "broken", "--detector", DETECTOR, "--quiet"),
        "nothing is left",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_said_in_one_sentence(
    album: Path, fcdeploy: Command, pse_bundle: Bundle, case: str
) -> None:
    write_embedder(Path("embedder.onnx"), size=(112, 112))
    write_embedder(Path("wide.onnx"), size=(112, 112), dim=48)
    Path("mine").mkdir()
    Path("mine/note.txt").write_text("mine")
    Path("broken").mkdir()
    Path("broken/a.jpg").write_bytes(as_bytes(Image.new("RGB", (90, 90)), "JPEG")[:200])
    np.zeros((3, 32), np.float32).tofile("f.bin")
    Path("truth.meta").write_text("0\n")
    args, words = CASES[case]
    done = fcdeploy(*(pse_bundle.path if arg == "BUNDLE" else arg for arg in args))
    assert done.code == 2
    assert words in done.sentence
    assert Path("mine/note.txt").read_text() == "mine"
    assert not list(Path().rglob("faces.csv"))


def test_photos_without_any_face_leave_empty_lists(album: Path, fcdeploy: Command) -> None:
    Path("empty").mkdir()
    Image.new("RGB", (640, 480), (90, 120, 150)).save("empty/a.jpg")
    done = fcdeploy("faces", "empty", "--detector", DETECTOR, "-o", "crops")
    assert done.code == 0
    assert "no face was found in 1 photo;" in done.err
    assert table(Path("crops/faces.csv")) == []
    assert Path("crops/faces.txt").read_bytes() == Path("crops/photos.txt").read_bytes() == b""
