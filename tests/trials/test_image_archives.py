"""Archives of images are lists: tar and WebDataset shards, zip, RecordIO as InsightFace writes it; .lst and tables too.

Reported at: insightface #121 #612 #1170 (train.rec and its records without images), #127 #265 (two kinds of .lst),
webdataset #48 (tars without unpacking). RecordIO: dmlc-core, doc/recordio_format; WebDataset: its README.
"""

import io
import json
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import embed_plainly, pictures_of, write_embedder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fcdeploy as package
from fcdeploy.data.filelist import Filelist
from fcdeploy.data.imagelist import open_images
from fcdeploy.data.images import FIRST_BAD, State, import_pillow, read_image
from fcdeploy.errors import FcdeployWarning, InputError

N = 9
MAGIC = struct.pack("<I", 0xCED7230A)


@pytest.fixture
def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Nine pictures of three people in turn, and an embedder in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_embedder(Path("e.onnx"))
    return pictures_of(N, people=3)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def tar(path: str, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def people_of(pixels: np.ndarray) -> dict[str, bytes]:
    return {f"./people/p{at % 3}/{at}.png": png(picture) for at, picture in enumerate(pixels)}


def record(payload: bytes, number: int, label: float | list[float], split: bool = False) -> bytes:
    """A record of an image, as mxnet.recordio.pack and MXRecordIO.write make it; in parts where it is split."""
    labels = label if isinstance(label, list) else []
    one = 0.0 if isinstance(label, list) else label
    content = struct.pack("<IfQQ", len(labels), one, number, 0)
    content += np.array(labels, "<f4").tobytes() + payload

    def part(kind: int, piece: bytes) -> bytes:
        return MAGIC + struct.pack("<I", kind << 29 | len(piece)) + piece + bytes(-len(piece) % 4)

    pieces = content.split(MAGIC) if split else [content]
    if len(pieces) == 1:
        return part(0, content)
    return b"".join(
        part(1 if at == 0 else 3 if at == len(pieces) - 1 else 2, piece) for at, piece in enumerate(pieces)
    )


def insightface_records(pixels: np.ndarray) -> list[bytes]:
    """As face2rec2.py writes: a header, the images, a record of the range of images of each person."""
    images = [record(png(picture), at + 1, float(at % 3)) for at, picture in enumerate(pixels)]
    people = [record(b"", N + 1 + person, [1.0, 2.0]) for person in range(3)]
    return [record(b"", 0, [N + 1.0, N + 4.0]), *images, *people]


def embedded(images: str, **options: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        return package.embed(images, model="e.onnx", **options)


def names_in(files: Filelist) -> list[str]:
    return [files.line(at).decode() for at in range(files.n)]


# tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_its_images_in_their_order_and_its_folders_are_people(
    fcdeploy: Command, pixels: np.ndarray, form: int
) -> None:
    members = people_of(pixels)
    others = {"./people/._x.png": b"x", "./people/notes.txt": b"hello"}
    tar("people.tar", others | members, form)
    options = ("--write-labels", "l.meta", "-o", "f.npy", "--json")
    code, out, told = fcdeploy("embed", "people.tar", "--model", "e.onnx", *options)
    assert code == 0, told
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(pixels), atol=1e-4)
    assert Path("f.filelist.txt").read_text().splitlines() == list(members)
    assert Path("l.meta").read_text().split() == [str(at % 3) for at in range(N)]
    assert json.loads(out)["skipped"] == {"hidden": 1, "other": 1}
    assert {path.name for path in Path().iterdir()} - {"f.npy.json"} == {
        "people.tar",
        "e.onnx",
        "f.npy",
        "f.filelist.txt",
        "l.meta",
    }


@pytest.mark.parametrize("given", ["shards", "s-{000..002}.tar"])
def test_shards_of_webdataset_follow_one_another_with_their_classes(
    fcdeploy: Command, pixels: np.ndarray, given: str, pse_bundle: Any
) -> None:
    Path("shards").mkdir()
    for shard in range(3):
        members = {}
        for at in range(shard, N, 3):
            members |= {
                f"{at:05}.cls": str(at % 2 + 7).encode(),
                f"{at:05}.json": b"{}",
                f"{at:05}.jpg": png(pixels[at]),  # told by content
            }
        tar(f"shards/s-{shard:03}.tar", members)
    path = given if given == "shards" else f"shards/{given}"
    order = [at for shard in range(3) for at in range(shard, N, 3)]
    np.testing.assert_allclose(embedded(path), embed_plainly(pixels[order]), atol=1e-4)
    files = open_images(path)
    assert files.labels is not None
    assert files.labels.tolist() == [0 if at % 2 == 0 else 1 for at in order]
    assert names_in(files)[3] == "s-001.tar/00001.jpg"
    if given == "shards":
        options = ("--embedder", "e.onnx", "--k", 4, "--labels", "shards", "--json", "-o", "c.meta")
        code, out, told = fcdeploy("cluster", path, "--engine", pse_bundle.path, *options)
        assert code == 0, told
        assert "quality" in json.loads(out)
        assert Path("c.filelist.txt").read_text().splitlines() == names_in(files)


def test_a_missing_shard_is_named(pixels: np.ndarray) -> None:
    tar("s-0.tar", people_of(pixels))
    with pytest.raises(InputError, match=r"s-1\.tar is missing"):
        open_images("s-{0..1}.tar")


def test_names_of_members_are_no_paths(pixels: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(pixels[0]))
    hostile = {
        "../../etc/x.png": png(pixels[1]),
        "/abs.png": png(pixels[2]),
        "a\nb\x1b[1m.png": png(pixels[3]),
    }
    with tarfile.open("h.tar", "w") as archive:
        for name, content in hostile.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
    files = open_images("h.tar")
    assert names_in(files) == ["../../etc/x.png", "/abs.png", "a\\x0ab\\x1b[1m.png"]
    assert files.skipped["other"] == 4
    np.testing.assert_allclose(embedded("h.tar"), embed_plainly(pixels[1:4]), atol=1e-4)


def test_a_damaged_image_in_an_archive_is_a_bad_line(fcdeploy: Command, pixels: np.ndarray) -> None:
    members = people_of(pixels)
    third = list(members)[2]
    tar("people.tar", members | {third: members[third][:90], "people/p0/empty.png": b""})
    code, _, told = fcdeploy("embed", "people.tar", "--model", "e.onnx", "--on-bad", "zero", "-o", "f.npy")
    assert code == 0, told
    listed = [line.split("\t") for line in Path("f.bad.txt").read_text().splitlines()]
    assert listed == [["2", third, "damaged or cut short"], [str(N), "people/p0/empty.png", "empty file"]]


def test_an_archive_that_was_cut_short_is_refused(pixels: np.ndarray) -> None:
    tar("whole.tar", people_of(pixels))
    Path("whole.rec").write_bytes(b"".join(insightface_records(pixels)))
    with zipfile.ZipFile("whole.zip", "w") as archive:
        for name, content in people_of(pixels).items():
            archive.writestr(name, content)
    for name in ("whole.tar", "whole.rec", "whole.zip"):
        content = Path(name).read_bytes()
        for end in (len(content) // 3, len(content) // 2 + 7):
            cut = Path(f"cut{Path(name).suffix}")
            cut.write_bytes(content[:end])
            with pytest.raises(InputError, match="damaged or cut short"):
                open_images(cut)


def test_a_damaged_header_does_not_end_the_list_without_a_word(pixels: np.ndarray) -> None:
    tar("people.tar", people_of(pixels), tarfile.USTAR_FORMAT)
    content = bytearray(Path("people.tar").read_bytes())
    at = content.index(b"./people/p1/4.png")
    content[at] ^= 1  # the checksum of the header is wrong now
    Path("people.tar").write_bytes(content)
    with pytest.raises(InputError, match="no header of a member"):
        open_images("people.tar")


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_compressed_tars_say_how_to_unpack_them(pixels: np.ndarray, suffix: str) -> None:
    with tarfile.open(f"p.tar.{suffix}", f"w:{suffix}") as archive:
        archive.add("e.onnx")
    with pytest.raises(InputError, match=rf"is compressed.* -d p\.tar\.{suffix}"):
        open_images(f"p.tar.{suffix}")


# zip


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_its_images(pixels: np.ndarray, method: int) -> None:
    with zipfile.ZipFile("p.zip", "w", method) as archive:
        archive.writestr("people/", b"")
        archive.writestr("__MACOSX/people/._a.png", b"x")
        for name, content in people_of(pixels).items():
            archive.writestr(name[2:], content)
    np.testing.assert_allclose(embedded("p.zip"), embed_plainly(pixels), atol=1e-4)
    files = open_images("p.zip")
    assert files.labels is not None
    assert files.labels.tolist() == [at % 3 for at in range(N)]


def test_a_zip_member_of_a_kilobyte_is_not_unpacked_to_gigabytes(pixels: np.ndarray) -> None:
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 25))
        archive.writestr("b.png", png(pixels[0]))
    content = bytearray(Path("bomb.zip").read_bytes())
    at = content.index(b"PK\1\2") + 24  # the size, in the index: a hundred bytes, it says
    content[at : at + 4] = struct.pack("<I", 100)
    Path("bomb.zip").write_bytes(content)
    tracemalloc.start()
    rows = embedded("bomb.zip", on_bad="zero")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24
    assert not rows[0].any()
    assert rows[1].any()


# RecordIO


@pytest.mark.parametrize("named", ["train.rec", "train.idx", "."])
def test_records_of_insightface_are_its_images_and_people(
    fcdeploy: Command, pixels: np.ndarray, named: str
) -> None:
    Path("train.rec").write_bytes(b"".join(insightface_records(pixels)))
    Path("train.idx").write_text("0\t0\n")  # not needed
    np.testing.assert_allclose(embedded(named), embed_plainly(pixels), atol=1e-4)
    options = ("--write-labels", "l.npy", "-o", "f.npy", "--quiet")
    assert fcdeploy("embed", named, "--model", "e.onnx", *options)[0] == 0
    assert np.load("l.npy").tolist() == [at % 3 for at in range(N)]
    assert Path("f.filelist.txt").read_text().split() == [str(at + 1) for at in range(N)]


def test_records_in_parts_and_with_several_labels(pixels: np.ndarray) -> None:
    def with_magic(picture: np.ndarray) -> bytes:
        file = io.BytesIO()  # a bitmap, whose pixels hold the magic number at will
        bare = picture.copy()
        bare[3, :8] = np.frombuffer(MAGIC * 6, np.uint8).reshape(8, 3)[:, ::-1]
        Image.fromarray(bare).save(file, "BMP")
        return file.getvalue()

    contents = [with_magic(picture) for picture in pixels]
    assert all(MAGIC in content for content in contents)
    records = [record(content, at, [float(at % 2), 5.0], split=True) for at, content in enumerate(contents)]
    Path("a.rec").write_bytes(b"".join(records))
    wanted = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents])
    np.testing.assert_allclose(embedded("a.rec"), embed_plainly(wanted), atol=1e-4)
    files = open_images("a.rec")
    assert files.labels is not None
    assert files.labels.tolist() == [at % 2 for at in range(N)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_archive_is_a_list_or_one_sentence(pixels: np.ndarray, data: Any) -> None:
    import_pillow()
    if not Path("good.rec").exists():
        Path("good.rec").write_bytes(b"".join(insightface_records(pixels)))
        tar("good.tar", people_of(pixels))
        with zipfile.ZipFile("good.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in people_of(pixels).items():
                archive.writestr(name, content)
    suffix = data.draw(st.sampled_from(["rec", "tar", "zip"]))
    content = bytearray(Path(f"good.{suffix}").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = Path(f"bad.{suffix}")
    path.write_bytes(content)
    try:
        files = open_images(path)
        for at in range(files.n):
            source = files.source(at)
            assert not isinstance(source, bytes)
            state, _ = read_image(source, (16, 16), "rgb", 10**6)
            assert state < FIRST_BAD or state in (State.DAMAGED, State.NOT_AN_IMAGE, State.TOO_LARGE)
    except InputError as error:
        sentence = str(error)
    else:
        return
    assert len(sentence.splitlines()) == 1
    assert str(path) in sentence


# Resuming


def test_an_interrupted_archive_goes_on_and_a_changed_one_is_embedded_again(
    fcdeploy: Command, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.engine.embedder import Embedder
    from fcdeploy.runtime import embed

    monkeypatch.setattr(embed, "COMMIT_LINES", 3)
    counts: list[int] = []
    original = Embedder.embed

    def counted(self: Embedder, pictures: Any) -> np.ndarray:
        counts.append(len(pictures))
        if sum(counts) > 6:
            raise KeyboardInterrupt
        return original(self, pictures)

    tar("people.tar", people_of(pixels))
    args = ("embed", "people.tar", "--model", "e.onnx", "-o", "f.npy", "--batch", 3, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", counted)
        assert fcdeploy(*args)[0] == 130
        counts.clear()
        assert fcdeploy(*args)[0] == 0
        assert sum(counts) == 3
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(pixels), atol=1e-4)
    tar("people.tar", people_of(pixels[::-1]))
    assert fcdeploy(*args)[0] == 0
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(pixels[::-1]), atol=1e-4)


def test_an_archive_is_not_written_over(fcdeploy: Command, pixels: np.ndarray) -> None:
    tar("people.bin", people_of(pixels))
    before = Path("people.bin").read_bytes()
    code, _, told = fcdeploy("embed", "people.bin", "--model", "e.onnx", "-o", "people.bin", "--quiet")
    assert code == 2
    assert "is also an input" in told
    assert Path("people.bin").read_bytes() == before


# Lists with labels


@pytest.fixture
def crops(pixels: np.ndarray) -> np.ndarray:
    Path("crops").mkdir()
    for at, picture in enumerate(pixels):
        Path(f"crops/{at}.png").write_bytes(png(picture))
    return pixels


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a.lst", "{at}\t{person}.000000\tcrops/{at}.png"),
        ("a.lst", "1\tcrops/{at}.png\t{person}"),
        ("a.lst", "{at}\t{person}\t0.5\tcrops/{at}.png"),
        ("a.csv", "who {person},crops/{at}.png"),
        ("a.tsv", "{person}\tcrops/{at}.png"),
    ],
)
def test_lists_that_say_people_are_lists_with_labels(
    fcdeploy: Command, crops: np.ndarray, name: str, line: str
) -> None:
    head = {"a.csv": "identity,Path\r\n", "a.tsv": "person\timage\n"}.get(name, "")
    end = "\r\n" if head.endswith("\r\n") else "\n"
    Path(name).write_text(
        head + end.join(line.format(at=at, person=at % 3) for at in range(N)) + end, newline=""
    )
    options = ("--write-labels", "l.meta", "-o", "f.npy", "--quiet")
    code, _, told = fcdeploy("embed", name, "--model", "e.onnx", *options)
    assert code == 0, told
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(crops), atol=1e-4)
    assert Path("l.meta").read_text().split() == [str(at % 3) for at in range(N)]
    assert not Path("f.filelist.txt").exists()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.csv",
            "name,where\nx,y\n",
            "name, where; choose the column of the image paths with --path-column",
        ),
        (
            "a.csv",
            "path,image\nx,y\n",
            "path, image; choose the column of the image paths with --path-column",
        ),
        ("a.csv", "path,label\nx\n", "row 0, counted from 0, has 1 cells"),
        ("a.csv", "path\n", "is empty"),
        ("a.csv", "", "is not a table"),
        ("a.lst", "0\tcrops/1.png\n", "line 0, counted from 0, has 2"),
        ("a.lst", "", "is empty"),
        ("a.csv", "path\n\0", "is not a text file"),
    ],
)
def test_lists_that_are_none_are_one_sentence(pixels: np.ndarray, name: str, text: str, says: str) -> None:
    Path(name).write_text(text)
    with pytest.raises(InputError) as error:
        open_images(name)
    assert says in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("asked", ["where", " Where", "2"])
def test_the_column_of_paths_can_be_named(
    fcdeploy: Command, crops: np.ndarray, asked: str, pse_bundle: Any
) -> None:
    """Of two columns that could be, too, as `name` is a person's or a file's."""
    rows = "".join(f"p{at % 3}\tcrops/{at}.png\t{at}\n" for at in range(N))
    Path("a.tsv").write_text(f"name\tWhere\tpath\n{rows}")
    options = ("--path-column", asked, "--write-labels", "l.meta", "-o", "f.npy", "--quiet")
    code, _, told = fcdeploy("embed", "a.tsv", "--model", "e.onnx", *options)
    assert code == 0, told
    np.testing.assert_allclose(np.load("f.npy"), embed_plainly(crops), atol=1e-4)
    assert Path("l.meta").read_text().split() == [str(at % 3) for at in range(N)]
    line = ("cluster", "a.tsv", "--engine", pse_bundle.path, "--k", 4, "--path-column", asked, "-o", "c.meta")
    code, out, told = fcdeploy(*line, "--embedder", "e.onnx", "--labels", "a.tsv", "--json")
    assert code == 0, told
    assert json.loads(out)["lines"] == N
    assert "quality" in json.loads(out)
    code, _, told = fcdeploy(*line)
    assert code == 2
    assert "--path-column is for lists of images, which need --embedder" in told


@pytest.mark.parametrize(
    ("name", "column", "says"),
    [
        (
            "a.csv",
            "none",
            "has no column 'none'; the columns are x, y, x; give one of these names, or a number from 1 to 3",
        ),
        ("a.csv", "4", "has no column '4'"),
        ("a.csv", "0", "has no column '0'"),
        ("a.csv", "x", "has several columns 'x'"),
        ("a.txt", "x", "has no columns; --path-column is for lists in .csv and .tsv files"),
        ("folder", "x", "has no columns"),
    ],
)
def test_a_column_of_paths_that_is_none_is_named(
    pixels: np.ndarray, name: str, column: str, says: str
) -> None:
    Path("folder").mkdir()
    Path("a.csv").write_text("x,y,x\na,b,c\n")
    Path("a.txt").write_text("a\n")
    with pytest.raises(InputError) as error:
        open_images(name, column)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("beside", "people"),
    [
        ([{"label": 7}, {"label": 3}, {"label": 7}], [0, 1, 0]),
        ([{"identity": "ada"}, {"identity": "bob", "cls": 1}, {"cls": "ada"}], [0, 1, 0]),
        ([{"label": 7.0}, {"label": "7"}, {"label": 7}], [0, 0, 0]),
        ([{"label": 7}, {"label": -1}, {"label": None}], [0, -1, -1]),
        ([{"label": 7}, {"label": True}, {"label": [7]}], [0, -1, -1]),
        ([{"label": 7}, [7], {"name": "7"}], [0, -1, -1]),
        ([{"width": 7}, {}, []], None),
    ],
)
def test_a_sample_s_json_says_its_person(
    pixels: np.ndarray, beside: list[Any], people: list[int] | None
) -> None:
    members = {}
    for at, fields in enumerate(beside):
        members |= {f"{at}.png": png(pixels[at]), f"{at}.json": json.dumps(fields).encode()}
    tar("s.tar", members)
    labels = open_images("s.tar").labels
    assert (labels is None) if people is None else (labels is not None and labels.tolist() == people)


def test_a_class_is_taken_before_what_json_says_and_damaged_json_says_nothing(pixels: np.ndarray) -> None:
    contents = [b'{"label": 1}', b'{"label": ', b"[" * 60_000, b'{"label": 5}' + b" " * (1 << 16)]
    members = {}
    for at, content in enumerate(contents):
        members |= {f"{at}.json": content, f"{at}.png": png(pixels[at])}
    members |= {
        "0.cls": b"9\n",
        "4.png": png(pixels[4]),
        "4.cls": b"9",
        "5.png": png(pixels[5]),
        "5.cls": b"-1",
    }
    tar("s.tar", members)
    labels = open_images("s.tar").labels
    assert labels is not None
    assert labels.tolist() == [0, -1, -1, -1, 0, -1]


def test_a_missing_member_state_is_of_the_archive(pixels: np.ndarray) -> None:
    from fcdeploy.data.filelist import look_up

    tar("people.tar", people_of(pixels))
    files = open_images("people.tar")
    assert (look_up(files, 0, N)[0] == State.GOOD).all()
    assert len(set(look_up(files, 0, N)[1].tolist())) == N
    Path("people.tar").unlink()
    assert (look_up(files, 0, N)[0] == State.MISSING).all()
