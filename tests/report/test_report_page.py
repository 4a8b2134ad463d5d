"""The page shows what the run holds, whole or not at all, and nothing that others have named can act in it."""

import base64
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcdeploy
from fcdeploy.errors import InputError
from fcdeploy.report.opened import open_run
from fcdeploy.report.overview import overview_of
from fcdeploy.report.thumbnails import EDGE, write_sprites
from fcdeploy.report.writing import short


class Page(HTMLParser):
    """What of a page matters here: cards with their faces, pairs, tags and attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.sheets: dict[str, list[int]] = {}
        self.sizes: dict[str, int] = {}
        self.pairs: list[tuple[int, int]] = []
        self.places: dict[int, tuple[int, int, int]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._card, self._in_pair, self._face = "", False, -1
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        kinds = (found.get("class") or "").split()
        if tag == "article":
            self._card = found["id"] or ""
            self.sheets[self._card], self.sizes[self._card] = [], int(found["data-size"] or 0)
        if tag == "figure":
            self._in_pair = True
            self.pairs.append((int(found["data-a"] or -1), int(found["data-b"] or -1)))
        if tag == "li" and "tile" in kinds:
            self._face = int(found["data-face"] or -1)
            if self._card and not self._in_pair:
                self.sheets[self._card].append(self._face)
        if tag == "i" and "s0" in kinds:
            self.places[self._face] = tuple(int(kind[1:]) for kind in kinds[1:4])  # type: ignore[assignment]

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._card = ""
        if tag == "figure":
            self._in_pair = False


@pytest.fixture(scope="module")
def page(made_run, coloured_faces, tmp_path_factory) -> Path:
    return fcdeploy.report(made_run, tmp_path_factory.mktemp("page") / "report", images=coloured_faces)


def test_every_contact_sheet_holds_faces_of_its_cluster_alone(page, labels_of_run):
    found = Page(page)
    sizes = np.bincount(labels_of_run)
    checked = 0
    for card, faces in found.sheets.items():
        section, _, number = card.partition("-")
        if section != "suspect":
            assert set(labels_of_run[faces]) == {int(number)}
            assert found.sizes[card] == sizes[int(number)]
            assert len(faces) == len(set(faces)) == min(sizes[int(number)], {"largest": 24}.get(section, 12))
            checked += 1
    assert checked > 40
    first = next(int(card.partition("-")[2]) for card in found.sheets if card.startswith("largest-"))
    assert sizes[first] == sizes.max()


def test_the_weakest_links_of_a_suspicious_cluster_are_shown(made_run, labels_of_run):
    """Against all links of the cluster, sorted by hand."""
    overview = overview_of(open_run(made_run).clusters)
    links, strength = np.load(made_run / "evidence/links.npy"), np.load(made_run / "evidence/strength.npy")
    assert overview.suspicious
    for sheet in overview.suspicious:
        own = np.flatnonzero(labels_of_run[links[:, 0]] == sheet.cluster)
        weakest = np.sort(strength[own])[: len(sheet.links)]
        assert [link.strength for link in sheet.links] == pytest.approx(weakest.tolist())
        assert all(sheet.cluster in link.clusters for link in sheet.links)


def test_merge_suspects_and_single_faces_are_what_they_are_called(made_run, labels_of_run):
    overview = overview_of(open_run(made_run).clusters)
    sizes = np.bincount(labels_of_run)
    assert overview.suspects
    for suspect in overview.suspects:
        assert "duplicate" in suspect.small.flags or "duplicate" in suspect.large.flags
        assert set(suspect.link.clusters) == {suspect.small.cluster, suspect.large.cluster}
        assert suspect.small.size <= suspect.large.size
    assert overview.singles
    for pair in overview.singles:
        assert sizes[labels_of_run[pair.a]] == 1 < sizes[labels_of_run[pair.b]]
    similarities = [pair.strength for pair in overview.singles]
    assert similarities == sorted(similarities, reverse=True)


def test_the_sample_is_drawn_anew_by_another_seed_alone(made_run):
    clusters = open_run(made_run).clusters
    first, again, other = (overview_of(clusters, seed).sample for seed in (0, 0, 1))
    assert first == again != other
    assert all(sheet.size > 1 for sheet in first)


def test_a_thumbnail_is_the_face_that_its_number_says(page, colour):
    found = Page(page)
    sheets = [np.asarray(Image.open(file)).astype(int) for file in sorted(page.parent.glob("thumbs-*.jpg"))]
    assert len(found.places) > 100
    for face, (sheet, x, y) in found.places.items():
        middle = sheets[sheet][y * EDGE + EDGE // 2, x * EDGE + EDGE // 2]
        assert np.abs(middle - colour(face)).max() <= 6, face


def test_orientation_in_exif_is_applied_and_what_is_no_picture_has_none(tmp_path):
    """The left half is red once the picture is turned upright; a FIFO among the files is not waited for."""
    import os

    from fcdeploy.data.filelist import filelist_from_paths

    upright = np.zeros((60, 60, 3), np.uint8)
    upright[:, :30] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [tmp_path / name for name in ("turned.jpg", "broken.jpg", "pipe.jpg", "missing.jpg")]
    sprites = write_sprites(tmp_path, filelist_from_paths(names), np.arange(4))
    assert sprites.shown.tolist() == [True, False, False, False]
    assert sprites.place(0) == (0, 0, 0)
    assert sprites.place(1) is None
    sheet = np.asarray(Image.open(tmp_path / sprites.sheets[0])).astype(int)
    assert sheet[EDGE // 2, EDGE // 4, 0] > 200
    assert sheet[EDGE // 2, 3 * EDGE // 4, 0] < 60


def test_the_search_finds_the_clusters_of_the_run(page, made_run, labels_of_run):
    """The arrays of data.js, taken apart by hand; measures within the step of sixteen bits."""
    text = (page.parent / "data.js").read_text()
    data = json.loads(text.removeprefix("window.fcdeployData=").rstrip(";\n"))
    found = np.frombuffer(base64.b64decode(data["labels"]), "<i4")
    assert found.tolist() == labels_of_run.tolist()
    values = struct.unpack(f"<{len(found)}H", base64.b64decode(data["confidence"]))
    given = fcdeploy.confidence(made_run).faces.confidence
    for value, expected in zip(values, given.tolist(), strict=True):
        assert (value == 0) == (expected != expected)
        assert value == 0 or abs((value - 1) / 65534 * 2 - 1 - expected) < 2e-5


def test_a_page_asks_for_nothing_but_its_own_files(page):
    found = Page(page)
    policy = next(
        at["content"] for tag, at in found.tags if at.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    own = {path.name for path in page.parent.iterdir()}
    for tag, attributes in found.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target in own or target.startswith("#") or target == "data:,", (
                tag,
                target,
            )
    record = json.loads((page.parent / "report.json").read_text())
    assert set(record["files"]) == own


def test_hostile_names_are_text(made_run, tmp_path, labels_of_run):
    n = len(labels_of_run)
    names = [
        "<img src=x onerror=alert(1)>.png",
        "../../etc/passwd",
        '"><script>alert(2)</script>',
        "{{ 7 * 7 }}",
    ]
    listed = tmp_path / "faces.txt"
    listed.write_bytes(b"".join(names[at % 4].encode() + b"\n" for at in range(n - 1)) + b"\xff\xfe<b>\n")
    text = fcdeploy.report(made_run, tmp_path / "report", images=listed).read_text()
    assert "<img" not in text
    assert "<b>" not in text.replace("<b>", "", text.count("<li><b>"))
    assert len(re.findall("<script", text)) == 2
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "49" not in re.findall(r'title="([^"]*)"', text)
    assert "root:" not in text


def test_without_images_the_page_shows_numbers(made_run, tmp_path):
    page = fcdeploy.report(made_run, tmp_path / "report")
    assert not list(page.parent.glob("*.jpg"))
    assert Page(page).sheets
    assert not Page(page).places


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("a/b/c.jpg#0", "c.jpg#0"),
        ("17", "17"),
        ("a/b/", "b/"),
        ("/", "/"),
        ("", ""),
        ("/a", "a"),
        ("x//", "x//"),
    ],
)
def test_what_stands_below_a_face_is_the_end_of_a_path(name, below):
    assert short(name) == below


def test_labels_give_quality_and_mark_the_faces_of_others(made_run, tmp_path, labels_of_run):
    """One face of the largest cluster is said to be of another person: it alone is marked there."""
    largest = int(np.bincount(labels_of_run).argmax())
    truth = labels_of_run.copy()
    wrong = int(np.flatnonzero(labels_of_run == largest)[0])
    truth[wrong] = 10_000
    (tmp_path / "truth.txt").write_text("".join(f"{one}\n" for one in truth))
    page = fcdeploy.report(made_run, tmp_path / "report", labels=tmp_path / "truth.txt")
    odd = {at["data-face"] for tag, at in Page(page).tags if tag == "li" and "odd" in (at.get("class") or "")}
    assert odd <= {str(wrong)}
    assert "pairwise" in page.read_text()


def test_a_folder_of_ours_is_replaced_with_the_users_files_in_it(made_run, tmp_path, coloured_faces):
    output = tmp_path / "report"
    fcdeploy.report(made_run, output, images=coloured_faces)
    (output / "notes.txt").write_text("mine")
    fcdeploy.report(made_run, output)
    assert (output / "notes.txt").read_text() == "mine"
    assert not list(output.glob("thumbs-*.jpg"))


def test_what_is_refused_leaves_everything_as_it_was(fcdeploy, made_run, tmp_path, coloured_faces):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    done = fcdeploy("report", made_run, "-o", tmp_path / "mine")
    assert done.code == 2
    assert "not written by fcdeploy" in done.sentence
    assert (tmp_path / "mine/index.html").read_text() == "mine"
    short = tmp_path / "short.txt"
    short.write_text("a.png\n")
    done = fcdeploy("report", made_run, "-o", tmp_path / "new", "--images", short)
    assert done.code == 2
    assert "400" in done.sentence
    (tmp_path / "empty").mkdir()
    done = fcdeploy("report", tmp_path / "empty", "-o", tmp_path / "new")
    assert done.code == 2
    assert not (tmp_path / "new").exists()
    done = fcdeploy("report", made_run, "-o", tmp_path / "new", "--images", coloured_faces)
    assert (done.code, done.out) == (0, f"report in {tmp_path / 'new' / 'index.html'}\n")


def test_the_package_can_be_called_for_the_function(made_run, tmp_path):
    import fcdeploy.report.writing as writing

    assert fcdeploy.report(made_run, tmp_path / "a") == tmp_path / "a/index.html"
    with pytest.raises(InputError):
        writing.report(tmp_path / "nothing", tmp_path / "b")
