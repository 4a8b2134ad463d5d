"""A folder of images is a list, its folders are people; HEIC; names in another Unicode normalisation.

Reported at: learn-to-cluster #9 (people in folders), facerecognition #348 and Pillow #2806 (HEIC from phones, named
.jpg too), renpy #2327 and quodlibet #1760 (NFC in lists, NFD on disks).
"""

import io
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import embed_plainly, pictures_of, write_embedder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fcdeploy as package
from fcdeploy.data import images
from fcdeploy.data.filelist import filelist_from_paths, look_up
from fcdeploy.data.imagefolder import filelist_from_folder, labels_of_folders, natural
from fcdeploy.data.images import State, begins_like_an_image, read_image
from fcdeploy.errors import FcdeployWarning

N = 12
NAMES = [
    "Ada/2.png",
    "Ada/10.png",
    "Ada/x/1.png",
    "ben/a.png",
    "ben/b.JPG.png",
    "ben/c",
    "Çelik/1.png",
    "Çelik/2.png",
]


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Pictures in folders of people, with what else lies in such folders; pixels in the order of NAMES."""
    monkeypatch.chdir(tmp_path)
    write_embedder(Path("embedder.onnx"))
    pictures = pictures_of(len(NAMES))
    for name, picture in zip(NAMES, pictures, strict=True):
        Path("people", name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(Path("people", name), "PNG")
    for name in (".DS_Store", "Ada/.2.png", "@eaDir/thumb.jpg", "ben/notes.txt", "ben/P5", "ben/BMW.csv"):
        Path("people", name).parent.mkdir(parents=True, exist_ok=True)
        Path("people", name).write_text("P5 is no picture\n" if name.endswith("P5") else "BMW, GIF\n")
    Path("people/ben/P5").write_text("nothing")
    return pictures


def test_a_folder_is_its_images_in_natural_order(fcdeploy: Command, people: np.ndarray) -> None:
    code, out, told = fcdeploy(
        "embed", "people", "--model", "embedder.onnx", "-o", "p.npy", "--json", "--write-labels", "p.meta"
    )
    assert code == 0, told
    np.testing.assert_allclose(np.load("p.npy"), embed_plainly(people), atol=1e-4)
    assert Path("p.filelist.txt").read_text().splitlines() == NAMES
    assert Path("p.meta").read_text().split() == ["0", "0", "0", "1", "1", "1", "2", "2"]
    summary = json.loads(out)
    assert summary["skipped"] == {"hidden": 3, "other": 3}
    assert summary["rows"] == len(NAMES)
    assert [line for line in told.splitlines() if line.startswith("Note: ")] == [
        f"Note: {note}" for note in summary["notes"]
    ]
    assert "3 hidden" in summary["notes"][0]


def test_python_takes_a_folder_too(people: np.ndarray) -> None:
    with pytest.warns(FcdeployWarning, match="skipped"):
        rows = package.embed("people", model="embedder.onnx")
    np.testing.assert_allclose(rows, embed_plainly(people), atol=1e-4)


def test_skipped_images_have_no_label(fcdeploy: Command, people: np.ndarray) -> None:
    Path("people/ben/a.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    options = ("--on-bad", "skip", "--write-labels", "p.npy", "-o", "p.bin")
    assert fcdeploy("embed", "people", "--model", "embedder.onnx", *options, "--quiet")[0] == 0
    assert np.load("p.npy").tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert Path("p.filelist.txt").read_text().splitlines() == [name for name in NAMES if name != "ben/a.png"]


def test_clusters_of_a_folder_are_of_the_list_beside_them(
    fcdeploy: Command, people: np.ndarray, pse_bundle: Any
) -> None:
    args = ("--engine", pse_bundle.path, "--embedder", "embedder.onnx", "--k", 4, "--json")
    code, out, told = fcdeploy("cluster", "people", *args, "-o", "c.meta", "--labels", "people")
    assert code == 0, told
    assert len(Path("c.meta").read_text().split()) == len(NAMES)
    assert Path("c.filelist.txt").read_text().splitlines() == NAMES
    assert "pairwise" in json.loads(out)["quality"]
    assert any("skipped" in note for note in json.loads(out)["notes"])
    lists = fcdeploy("cluster", "c.filelist.txt", *args, "-o", "d.meta", "--labels", "c.filelist.txt")
    assert lists[0] == 2
    assert "holds no labels" in lists[2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("empty",), "holds no images"),
        (("flat/a.png",), "flat/a.png: is an image"),
        (("flat", "--write-labels", "l.meta"), "holds no labels"),
        (("people", "--write-labels", "l.h5"), "form of labels"),
        (("people", "--write-labels", "none/l.meta"), "none does not exist"),
        (("people", "-o", "x.npy", "--write-labels", "x.npy"), "another output"),
        (("people", "--write-labels", "embedder.onnx.npy"), "is also an input"),
    ],
)
def test_folders_and_labels_that_do_not_fit_are_one_sentence(
    fcdeploy: Command, people: np.ndarray, args: tuple[str, ...], says: str
) -> None:
    for name in ("empty", "flat"):
        Path(name).mkdir()
    Image.fromarray(people[0]).save("flat/a.png")
    Path("empty/notes.txt").touch()
    model = "embedder.onnx"
    if "embedder.onnx.npy" in args:
        model = "embedder.onnx.npy"
        Path("embedder.onnx").rename(model)
    code, _, told = fcdeploy("embed", *args, "--model", model, "--quiet")
    assert code == 2
    errors = [line for line in told.splitlines() if not line.startswith("Note: ")]
    assert len(errors) == 1
    assert says in errors[0]


def test_links_are_followed_and_circles_left(people: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "people/zoe").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(people[0]).save(tmp_path / "elsewhere/z.png")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "people")
    (tmp_path / "people/gone.png").symlink_to(tmp_path / "nothing")
    files = filelist_from_folder(tmp_path / "people")
    assert files is not None
    found = [files.line(at).decode() for at in range(files.n)]
    assert found == sorted([*NAMES, "zoe/z.png", "gone.png"], key=lambda name: natural(name.encode()))
    assert files.labels is not None
    assert files.labels[found.index("gone.png")] == -1


@given(st.lists(st.integers(0, 10**30), min_size=1, max_size=20))
def test_numbers_in_names_come_in_their_order(numbers: list[int]) -> None:
    names = [f"face{number}/x.png".encode() for number in numbers]
    wanted = [f"face{number}/x.png".encode() for number in sorted(numbers)]
    assert sorted(names, key=natural) == wanted


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["a.png", "b.png"], None),
        (["p/a.png", "p/b.png"], None),
        (["p/a.png", "q/b.png", "p/c.png"], [0, 1, 0]),
        (["train/p/a.png", "train/q/b.png"], [0, 1]),
        (["a.png", "p/b.png"], [-1, 0]),
        (["p/x/a.png", "p/y/b.png", "q/c.png"], [0, 0, 1]),
        (["p/a.png", "pp/b.png"], [0, 1]),
    ],
)
def test_people_are_the_first_folders_that_differ(paths: list[str], labels: list[int] | None) -> None:
    found = labels_of_folders([path.encode() for path in paths])
    assert (found if found is None else found.tolist()) == labels


# HEIC


def saved(picture: np.ndarray, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, form, **options)
    return file.getvalue()


def test_heic_is_read_upright_with_the_extra(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    images.import_pillow()
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = 255
    (tmp_path / "a.jpg").write_bytes(saved(picture, "HEIF", quality=95))  # told by content, not by name
    state, pixels = read_image(str(tmp_path / "a.jpg").encode(), (64, 96), "rgb", 10**6)
    assert state == State.GOOD
    assert pixels is not None
    assert abs(pixels.astype(int) - picture).mean() < 4
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "b.heic").write_bytes(saved(picture, "HEIF", quality=95, exif=exif.tobytes()))
    state, pixels = read_image(str(tmp_path / "b.heic").encode(), (96, 64), "rgb", 10**6)
    assert state == State.GOOD
    assert pixels is not None
    assert abs(pixels.astype(int) - np.rot90(picture, -1)).mean() < 4
    assert read_image(str(tmp_path / "a.jpg").encode(), (64, 96), "rgb", 1000)[0] == State.TOO_LARGE
    (tmp_path / "c.heic").write_bytes((tmp_path / "b.heic").read_bytes()[:60])
    assert read_image(str(tmp_path / "c.heic").encode(), (64, 96), "rgb", 10**6)[0] == State.DAMAGED


def test_without_the_extra_every_heic_line_says_what_to_install(
    fcdeploy: Command, people: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.import_pillow()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for form in ("HEIF", "AVIF"):
        if form in Image.OPEN:
            monkeypatch.delitem(Image.OPEN, form)
    heads = {
        "a.heic": b"heic\0\0\0\0mif1heic",
        "b.jpg": b"mif1\0\0\0\0mif1heic",
        "c.avif": b"avif\0\0\0\0avifmif1",
    }
    for name, brands in heads.items():
        Path(name).write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(50))
    Path("list.txt").write_text("a.heic\nb.jpg\nc.avif\npeople/ben/c\n")
    code, _, told = fcdeploy("embed", "list.txt", "--model", "embedder.onnx", "--quiet")
    assert code == 2
    assert "2 HEIC, which needs `pip install 'fcdeploy[heif]'`" in told
    reasons = [line.split("\t")[2] for line in Path("features.bad.txt").read_text().splitlines()]
    assert ["HEIC" in reason for reason in reasons] == [True, True, False]
    assert "AVIF" in reasons[2]


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF"]
)
def test_images_are_told_by_how_they_begin(form: str) -> None:
    images.import_pillow()
    if form not in Image.OPEN or form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    assert begins_like_an_image(saved(pictures_of(1)[0], form)[: images.HEAD_BYTES])


@pytest.mark.parametrize(
    "head", [b"", b"BM", b"P", b"P5", b"P7 x", b"RIFF....WAVE", b"\0\0\0\x18ftypmp42", b"BMW and more " * 4]
)
def test_other_files_are_not_taken_for_images(head: bytes) -> None:
    assert not begins_like_an_image(head[: images.HEAD_BYTES])


# Unicode


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_normalisation_are_found_and_told_once(
    fcdeploy: Command, people: np.ndarray, form: str, pse_bundle: Any
) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    names = ["Zoë/é1.png", "Zoë/plain.png", "Å.png", "missing-é.png"]
    for name, picture in zip(names[:3], people, strict=False):
        path = Path("faces", unicodedata.normalize(other, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    listed = [unicodedata.normalize(form, f"faces/{name}") for name in names]
    Path("list.txt").write_text("".join(f"{line}\n" for line in listed))
    options = ("--model", "embedder.onnx", "--on-bad", "skip", "-o", "f.npy", "--json")
    code, out, told = fcdeploy("embed", "list.txt", *options)
    assert code == 0
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(people[:3]), atol=1e-4)
    assert told.count("normalisation") == 1
    assert "3 of 4 lines" in json.loads(out)["notes"][0]
    assert Path("f.filelist.txt").read_text().splitlines() == listed[:3]  # as the user wrote them


def test_the_name_as_written_comes_before_one_that_is_alike(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "é.png")).write_text(form)
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system keeps one normalisation")
    for form in ("NFC", "NFD"):
        files = filelist_from_paths([tmp_path / unicodedata.normalize(form, "é.png")])
        assert look_up(files, 0, 1)[0][0] == State.GOOD
        assert not files.found_as
        assert Path(files.path(0).decode()).read_text() == form
