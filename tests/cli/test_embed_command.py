"""``fcdeploy embed``, and ``fcdeploy cluster`` from a list of images: ids are lines of that list."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import embed_plainly, pictures_of, write_embedder
from PIL import Image
from run_folders import load_artifact

import fcdeploy as package
from fcdeploy.data.labels import read_labels, renumber

N, PEOPLE = 60, 6
BAD = [7, 31, 59]

Run = Callable[..., Any]


@pytest.fixture
def pictures() -> np.ndarray:
    return pictures_of(N, people=PEOPLE)


@pytest.fixture
def faces(tmp_path: Path, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of 60 pictures of six people in a folder of its own, and an embedder in the current one."""
    monkeypatch.chdir(tmp_path)
    write_embedder(tmp_path / "embedder.onnx", batch=1)
    (tmp_path / "data/faces").mkdir(parents=True)
    for at, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"data/faces/{at:02}.png")
    path = tmp_path / "data/faces.txt"
    path.write_text("".join(f"faces/{at:02}.png\n" for at in range(N)))
    return path


@pytest.fixture
def broken(faces: Path) -> Path:
    """The list with three files broken: cut short, a text, empty."""
    folder = faces.parent / "faces"
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:150])
    (folder / "31.png").write_text("hello\n")
    (folder / "59.png").write_bytes(b"")
    return faces


@pytest.fixture
def cluster(fcdeploy: Any, bundle: Path) -> Run:
    """Run ``fcdeploy cluster LIST`` with the embedder; its outcome."""

    def run(faces: Path, *options: object, output: str = "clusters.txt") -> Any:
        args = ("cluster", faces, "--engine", bundle, "--embedder", "embedder.onnx", "-o", output)
        return fcdeploy(*args, "--tau", "0.9", *options)

    return run


def people_of(pictures: np.ndarray, bundle: Path, bad: list[int]) -> np.ndarray:
    """Labels of all lines by another way: embedded in NumPy, clustered as features, -1 for bad lines."""
    good = np.delete(np.arange(N), bad)
    labels = np.full(N, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", package.errors.FcdeployWarning)  # of pictures that are there twice
        labels[good] = package.cluster(embed_plainly(pictures[good]), engine=bundle, tau=0.9)
    return renumber(labels)


# embed


def test_json_and_the_talk(fcdeploy: Any, faces: Path, pictures: np.ndarray) -> None:
    outcome = fcdeploy("embed", faces, "--model", "embedder.onnx", "-o", "out.npy", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    summary = json.loads(outcome.out)
    assert summary.keys() == {
        *(
            "lines",
            "rows",
            "bad",
            "reasons",
            "resized",
            "stretched",
            "dim",
            "input",
            "seconds",
            "embedder",
            "computed",
        ),
    }
    assert summary["computed"]["device"] == {"device": "cpu", "provider": "CPUExecutionProvider"}
    assert summary["computed"]["versions"].keys() == {"fcdeploy", "python", "numpy", "pillow", "onnxruntime"}
    np.testing.assert_allclose(np.load("out.npy"), embed_plainly(pictures), rtol=0, atol=2e-5)
    outcome = fcdeploy("embed", faces, "--model", "embedder.onnx")
    assert outcome.code == 0
    assert "60 of 60 lines embedded" in outcome.out
    assert "NCHW, 16 x 16 (height x width), rgb, (pixel - 127.5) / 127.5 by default" in outcome.out
    assert "60 rows of 32-d features in features.bin" in outcome.out
    assert "embedding: 60 faces in" in outcome.err
    outcome = fcdeploy("embed", faces, "--model", "embedder.onnx", "--quiet", "-o", "features.bin")
    assert outcome == type(outcome)(0, "", "")


def test_options_win_over_the_toml(fcdeploy: Any, faces: Path, pictures: np.ndarray) -> None:
    Path("embedder.toml").write_text('channels = "bgr"\nmean = [1, 2, 3]\nscale = 50\nsize = 16\n')
    fcdeploy("embed", faces, "--model", "embedder.onnx", "--quiet")
    rows = np.fromfile("features.bin", "<f4").reshape(N, 32)
    wanted = embed_plainly(pictures[..., ::-1], mean=[1, 2, 3], scale=50)
    np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-4)
    options = ("--channels", "rgb", "--mean", "4,5,6", "--size", "16x16", "--layout", "nchw")
    outcome = fcdeploy("embed", faces, "--model", "embedder.onnx", "-o", "features.bin", "--quiet", *options)
    assert outcome.code == 0, outcome
    rows = np.fromfile("features.bin", "<f4").reshape(N, 32)
    wanted = embed_plainly(pictures, mean=[4, 5, 6], scale=50)
    np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-4)


def test_a_stop_is_one_sentence_and_then_skip_goes_on(fcdeploy: Any, broken: Path) -> None:
    outcome = fcdeploy("embed", broken, "--model", "embedder.onnx", "--quiet")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ")
    assert len(outcome.err.splitlines()) == 1
    assert "3 of 60 lines" in outcome.err
    assert "features.bad.txt" in outcome.err
    assert not Path("features.bin").exists()
    outcome = fcdeploy("embed", broken, "--model", "embedder.onnx", "--quiet", "--on-bad", "skip")
    assert outcome.code == 0
    assert outcome.err.startswith("Note: ")
    lines = broken.read_text().splitlines()
    assert Path("features.filelist.txt").read_text().splitlines() == [
        line for at, line in enumerate(lines) if at not in BAD
    ]
    listed = [line.split("\t")[:2] for line in Path("features.bad.txt").read_text().splitlines()]
    assert listed == [[str(at), lines[at]] for at in BAD]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--model", "none.onnx"), "none.onnx: no such file"),
        (("--model", "data"), "data: is a folder"),
        (("--model", "embedder.onnx", "-o", "none/features.bin"), "the folder none does not exist"),
        (("--model", "embedder.onnx", "-o", "features.h5"), "name the output .bin"),
        (("--model", "embedder.onnx", "--size", "112"), "16 x 16 (height x width), not 112 x 112"),
        (("--model", "embedder.onnx", "--size", "0"), "'0' is not a size"),
        (("--model", "embedder.onnx", "--mean", "1,2"), "'1,2' is neither one number nor three"),
        (("--model", "embedder.onnx", "--mean", "nan"), "'--mean': 'nan'"),
        (("--model", "embedder.onnx", "--scale", "0"), "a scale of 0"),
        (("--model", "embedder.onnx", "--layout", "NHWC"), "which is not NHWC"),
        (("--model", "embedder.onnx", "--output-tensor", "x"), "'x' is none of them"),
        (("--model", "data/faces/00.png"), "cannot load this graph"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    fcdeploy: Any, faces: Path, options: tuple[str, ...], says: str
) -> None:
    outcome = fcdeploy("embed", faces, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err.splitlines()[-1]
    assert {path.name for path in Path().iterdir()} == {"data", "embedder.onnx"}


# cluster


@pytest.mark.parametrize("run_dir", [False, True])
def test_clusters_hold_lines_of_the_original_list(
    cluster: Run, broken: Path, pictures: np.ndarray, bundle: Path, run_dir: bool
) -> None:
    options = ("--run-dir", "run") if run_dir else ()
    outcome = cluster(broken, *options, "--quiet")
    assert outcome.code == 2
    assert "3 of 60 lines" in outcome.err
    assert "clusters.bad.txt" in outcome.err
    assert not Path("clusters.txt").exists()

    outcome = cluster(broken, *options, "--quiet", "--on-bad", "skip")
    assert outcome.code == 0, outcome
    assert "they are in no cluster" in outcome.err
    clusters = [
        [int(word) for word in line.split()] for line in Path("clusters.txt").read_text().splitlines()
    ]
    assert sorted(face for cluster in clusters for face in cluster) == sorted(set(range(N)) - set(BAD))
    assert all(len({face % PEOPLE for face in cluster}) == 1 for cluster in clusters)
    assert np.array_equal(read_labels("clusters.txt", N), people_of(pictures, bundle, BAD))
    assert Path("clusters.txt.part").exists() is False
    assert Path("run").exists() is run_dir

    cluster(broken, *options, "--quiet", "--on-bad", "skip", output="pred.meta")
    assert np.array_equal(read_labels("pred.meta"), read_labels("clusters.txt", N))
    cluster(broken, *options, "--quiet", "--on-bad", "zero", output="pred.meta")
    labels = read_labels("pred.meta")
    assert np.array_equal(labels, renumber(labels))
    assert np.array_equal(np.bincount(labels)[labels[BAD]], [1, 1, 1])
    assert np.array_equal(
        renumber(np.delete(labels, BAD)), renumber(np.delete(people_of(pictures, bundle, BAD), BAD))
    )


def test_a_run_folder_takes_what_is_there_and_embeds_what_is_new(
    cluster: Run, broken: Path, pictures: np.ndarray, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.engine.embedder import Embedder

    options = ("--run-dir", "run", "--on-bad", "skip")
    cluster(broken, *options, "--quiet")
    assert {"embedded", "embedded_lines"} <= {path.name for path in Path("run").iterdir()}
    kept = np.load("run/embedded/embedded.npy")
    np.testing.assert_allclose(kept, embed_plainly(np.delete(pictures, BAD, axis=0)), rtol=0, atol=2e-5)
    assert np.flatnonzero(load_artifact("run/embedded_lines")["states"]).tolist() == BAD
    made = Path("run/embedded/embedded.npy").stat().st_mtime_ns

    counts: list[int] = []
    original = Embedder.embed
    monkeypatch.setattr(
        Embedder, "embed", lambda self, given: counts.append(len(given)) or original(self, given)
    )
    first = Path("clusters.txt").read_bytes()
    outcome = cluster(broken, *options, "--quiet")
    assert outcome.code == 0
    assert Path("run/embedded/embedded.npy").stat().st_mtime_ns == made
    assert Path("clusters.txt").read_bytes() == first
    assert not counts

    Image.fromarray(pictures[7]).save(broken.parent / "faces/07.png")
    shutil.copy(broken.parent / "faces/00.png", broken.parent / "faces/01.png")
    assert cluster(broken, *options, "--quiet").code == 0
    assert counts == [1, 1]
    changed = pictures.copy()
    changed[1] = pictures[0]
    assert np.array_equal(read_labels("clusters.txt", N), people_of(changed, bundle, [31, 59]))

    Path("embedder.toml").write_text("mean = 100\n")
    assert cluster(broken, *options, "--quiet").code == 0
    assert len(counts) == 2 + 58


def test_a_grown_list_embeds_only_what_is_new(
    cluster: Run, faces: Path, pictures: np.ndarray, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.engine.embedder import Embedder

    lines = faces.read_text().splitlines(keepends=True)
    faces.write_text("".join(lines[:50]))
    assert cluster(faces, "--run-dir", "run", "--quiet").code == 0
    counts: list[int] = []
    original = Embedder.embed
    monkeypatch.setattr(
        Embedder, "embed", lambda self, given: counts.append(len(given)) or original(self, given)
    )
    faces.write_text("".join(lines))
    assert cluster(faces, "--run-dir", "run", "--quiet").code == 0
    assert sum(counts) == 10
    assert np.array_equal(read_labels("clusters.txt", N), people_of(pictures, bundle, []))


def test_the_summary_is_of_the_list(cluster: Run, fcdeploy: Any, broken: Path) -> None:
    truth = np.arange(N) % PEOPLE
    np.savetxt("truth.meta", truth, fmt="%d")
    options = ("--run-dir", "run", "--on-bad", "skip", "--labels", "truth.meta", "--json")
    outcome = cluster(broken, *options, output="pred.meta")
    assert outcome.code == 0, outcome
    summary = json.loads(outcome.out)
    assert [summary[key] for key in ("lines", "bad", "faces")] == [60, 3, 57]
    assert next(iter(summary["stages"])) == "embed"
    assert json.loads(Path("run/summary.json").read_text()) == summary
    evaluated = fcdeploy("evaluate", "pred.meta", "truth.meta", "--json")
    assert summary["quality"] == json.loads(evaluated.out)
    np.savetxt("truth.meta", truth[:57], fmt="%d")
    outcome = cluster(broken, *options)
    assert outcome.code == 2
    assert "57 labels for 60 faces" in outcome.err


def test_the_talk_of_a_list(cluster: Run, broken: Path) -> None:
    outcome = cluster(broken, "--on-bad", "skip")
    assert outcome.code == 0
    assert "3 of 60 lines could not be embedded" in outcome.out
    assert "57 faces in" in outcome.out
    assert "embedding: 60 faces in" in outcome.err


def test_an_interrupted_clustering_goes_on_from_the_embeddings(
    cluster: Run, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.engine.embedder import Embedder
    from fcdeploy.runtime import cluster_images

    def dies(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cluster_images, "run_clustering", dies)
        assert cluster(faces, "--quiet").code == 130
    assert Path("clusters.txt.part/embedded").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", dies)
        assert cluster(faces, "--quiet").code == 0
    assert {path.name for path in Path().iterdir()} == {"data", "embedder.onnx", "clusters.txt"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("data/faces.txt",), "data/faces.txt: is a list of images by its name; give --embedder"),
        (("data/faces.txt", "--on-bad", "skip"), "is a list of images by its name"),
        (("features.bin", "--embedder", "embedder.onnx"), "--embedder is for a list of images"),
        (("data/faces.txt", "--embedder", "embedder.onnx", "--dim", 32), "--dim does not apply"),
        (("data/faces.txt", "--embedder", "none.onnx"), "none.onnx: no such file"),
        (("data/faces.txt", "--embedder", "wide.onnx"), "wide.onnx: gives embeddings of width 31"),
        (("none.txt", "--embedder", "embedder.onnx"), "none.txt: no such file"),
        (("data/faces.txt", "--embedder", "embedder.onnx", "--knn", "none.npz"), "none.npz: no such file"),
        (
            ("data/faces.txt", "--embedder", "embedder.onnx", "--min-probability", "0.5"),
            "does not apply to PSE-GCN",
        ),
        (("data/faces.txt", "--embedder", "embedder.onnx", "-o", "embedder.onnx"), "embedder.onnx: "),
    ],
)
def test_lists_and_embedders_that_do_not_fit_are_one_sentence(
    fcdeploy: Any, bundle: Path, faces: Path, pictures: np.ndarray, args: tuple[Any, ...], says: str
) -> None:
    embed_plainly(pictures).astype("<f4").tofile("features.bin")
    write_embedder(Path("wide.onnx"), dim=31)
    before = {path.name for path in Path().iterdir()}
    output = () if "-o" in args else ("-o", "clusters.txt")
    outcome = fcdeploy("cluster", *args, "--engine", bundle, *output)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert says in outcome.err
    assert {path.name for path in Path().iterdir()} == before


def test_other_places_for_features_do_not_read_lists_as_numbers(
    fcdeploy: Any, bundle: Path, faces: Path
) -> None:
    outcome = fcdeploy("estimate", faces, "--engine", bundle)
    assert outcome.code == 2
    assert "a list of images" in outcome.err
    with pytest.raises(ValueError, match="a list of images"):
        package.cluster(faces, engine=bundle)
