"""An embedder is all its files, takes as many pictures per call as it declares, and gets constants for further inputs.

Reported at: onnxruntime #6696 and optimum #1736 (weights in files of other names), InsightFace-REST #8 #27 #139 (fixed
batch sizes, in the input or in the output only).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Command
from embedders import embed_plainly, mixing, pictures_of, write_embedder
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import fcdeploy as package
from fcdeploy.data.imagelist import open_images
from fcdeploy.engine.embedder import Embedder, EmbedderSettings
from fcdeploy.engine.onnx_file import model_digest
from fcdeploy.errors import InputError
from fcdeploy.runtime.embed import embed_to_file, new_job

N = 11


@pytest.fixture
def command(fcdeploy: Command) -> Callable[..., tuple[int, str]]:
    """Call ``fcdeploy ARGS`` in this process; its exit code and what it wrote to stderr."""
    return lambda *args: fcdeploy(*args)[::2]


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Eleven pictures, listed in ``faces.txt`` of the current folder; their pixels."""
    monkeypatch.chdir(tmp_path)
    pictures = pictures_of(N)
    for at, picture in enumerate(pictures):
        Image.fromarray(picture).save(f"{at}.png")
    Path("faces.txt").write_text("".join(f"{at}.png\n" for at in range(N)))
    return pictures


def move_weights(path: Path, location: str, *, parts: int = 1, write: bool = True) -> None:
    """Put the weights of an embedder into other files; of several parts, each holds rows and is named by number."""
    model = onnx.load(path)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    del model.graph.initializer[:]
    names = [location] if parts == 1 else [f"{location}{at}" for at in range(parts)]
    pieces = np.array_split(weights, parts)
    for at, (name, piece) in enumerate(zip(names, pieces, strict=True)):
        tensor = TensorProto(name=f"part{at}", dims=piece.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", "0"), ("length", str(piece.nbytes))):
            tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)
        if write:
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            (path.parent / name).write_bytes(piece.tobytes())
    join = helper.make_node("Concat", [f"part{at}" for at in range(parts)], ["mixing"], axis=0)
    model.graph.node.insert(0, join)
    path.write_bytes(model.SerializeToString())


def embed(path: Path | str, **options: Any) -> np.ndarray:
    return package.embed("faces.txt", model=path, **options)


# Weights in other files


@pytest.mark.parametrize(("location", "parts"), [("weights.bin", 1), ("sub/deep/w", 1), ("./e.data", 3)])
def test_the_digest_is_of_every_file_of_the_weights(tmp_path: Path, location: str, parts: int) -> None:
    path = write_embedder(tmp_path / "e.onnx")
    move_weights(path, location, parts=parts)
    digests = [model_digest(path, EmbedderSettings())]
    for at in range(parts):
        file = tmp_path / (location if parts == 1 else f"{location}{at}")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        digests.append(model_digest(path, EmbedderSettings()))
    assert len(set(digests)) == parts + 1


def test_other_weights_beside_the_same_graph_are_another_embedder(
    command: Callable[..., Any], faces: np.ndarray, pse_bundle: Any
) -> None:
    path = write_embedder(Path("e.onnx"))
    move_weights(path, "weights.bin")
    cluster = ("cluster", "faces.txt", "--engine", pse_bundle.path, "--embedder", "e.onnx", "-o", "o.meta")
    assert command(*cluster, "--k", 4, "--run-dir", "run", "--quiet")[0] == 0
    graph = path.read_bytes()
    move_weights(write_embedder(path, factor=-2.0), "weights.bin")
    assert path.read_bytes() == graph  # only the other file differs
    assert command(*cluster, "--k", 4, "--run-dir", "run", "--quiet")[0] == 0
    np.testing.assert_allclose(
        np.load("run/embedded/embedded.npy"), embed_plainly(faces, factor=-2.0), atol=1e-4
    )


def test_the_summary_says_which_embedder_it_was(faces: np.ndarray, tmp_path: Path) -> None:
    found = []
    for factor in (1.0, 2.0):
        path = write_embedder(Path("e.onnx"), factor=factor)
        move_weights(path, "weights.bin")
        job = new_job(open_images("faces.txt"), path)
        found.append(embed_to_file(job, tmp_path / "f.bin")["embedder"])
        assert found[-1] == {"file": "e.onnx", "sha256": model_digest(path, EmbedderSettings())}
    assert found[0] != found[1]


def test_an_interrupted_embedding_takes_nothing_from_other_weights(
    command: Callable[..., Any], faces: np.ndarray
) -> None:
    path = write_embedder(Path("e.onnx"))
    move_weights(path, "sub/w.bin")
    Path("3.png").rename("aside.png")
    assert command("embed", "faces.txt", "--model", path, "--quiet")[0] == 2  # what is done is kept
    move_weights(write_embedder(path, factor=3.0), "sub/w.bin")
    Path("aside.png").rename("3.png")
    assert command("embed", "faces.txt", "--model", path, "--quiet")[0] == 0
    rows = np.fromfile("features.bin", "<f4").reshape(N, 32)
    np.testing.assert_allclose(rows, embed_plainly(faces, factor=3.0), atol=1e-4)


@pytest.mark.parametrize("found", ["nothing", "pointer", "short", "folder", "up", "absolute", "link"])
def test_weights_that_cannot_be_taken_are_named(
    command: Callable[..., Any], faces: np.ndarray, tmp_path: Path, pse_bundle: Any, found: str
) -> None:
    Path("model").mkdir()
    path = write_embedder(Path("model/e.onnx"))
    names = {"up": "../secret.bin", "absolute": str(tmp_path / "secret.bin")}
    name = names.get(found, "weights.bin")
    move_weights(path, name, write=False)
    Path("secret.bin").write_bytes(mixing(3, 32).tobytes())
    says = {"up": "leads out", "link": "leads out", "absolute": "not the name of a file"}.get(found, "")
    if found == "pointer":
        Path("model/weights.bin").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        )
        says = "git lfs pull"
    elif found == "short":
        Path("model/weights.bin").write_bytes(bytes(6000))
        says = "6,000 bytes"
    elif found == "folder":
        Path("model/weights.bin").mkdir()
        says = "not a file"
    elif found == "link":
        Path("model/weights.bin").symlink_to(tmp_path / "secret.bin")
    elif found == "nothing":
        says = "no such file"
    before = {file.name for file in Path().iterdir()}
    for args in (
        ("embed", "faces.txt", "--model", path),
        ("cluster", "faces.txt", "--embedder", path, "--engine", pse_bundle.path, "--k", 4, "-o", "o.meta"),
    ):
        code, told = command(*args, "--quiet")
        assert code == 2
        assert len(told.splitlines()) == 1
        assert name in told
        assert says in told
    assert {file.name for file in Path().iterdir()} == before


def test_models_in_a_cache_of_links_are_opened(faces: np.ndarray) -> None:
    # As huggingface_hub lays them out: snapshots of links into one folder of blobs.
    Path("blobs").mkdir()
    Path("snapshot").mkdir()
    path = write_embedder(Path("blobs/1234"))
    move_weights(path, "model.onnx_data")
    Path("blobs/model.onnx_data").rename("blobs/5678")
    Path("snapshot/model.onnx").symlink_to("../blobs/1234")
    Path("snapshot/model.onnx_data").symlink_to("../blobs/5678")
    np.testing.assert_allclose(embed("snapshot/model.onnx"), embed_plainly(faces), atol=1e-4)


def test_an_output_is_not_a_file_of_the_weights(command: Callable[..., Any], faces: np.ndarray) -> None:
    path = write_embedder(Path("e.onnx"))
    move_weights(path, "weights.bin")
    before = Path("weights.bin").read_bytes()
    code, told = command("embed", "faces.txt", "--model", path, "-o", "weights.bin")
    assert code == 2
    assert "weights.bin: is also an input" in told
    assert Path("weights.bin").read_bytes() == before


# Fixed batch sizes


def with_output(path: Path, shape: list[Any], nodes: list[Any], constants: dict[str, Any]) -> Path:
    """Put ``nodes`` between what an embedder computes, "embedding", and its output, "rows"."""
    model = onnx.load(path)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value), name) for name, value in constants.items()
    )
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape))
    path.write_bytes(model.SerializeToString())
    return path


def reshaped(path: Path, shape: list[int], said: list[Any]) -> Path:
    node = helper.make_node("Reshape", ["embedding", "shape"], ["rows"])
    return with_output(path, said, [node], {"shape": np.array(shape, np.int64)})


@pytest.mark.parametrize("kind", ["float", "half", "bytes", "rows first", "nhwc"])
@pytest.mark.parametrize("batch", [1, 8, 64])
def test_whatever_batch_the_graph_declares_gives_the_same_rows(
    faces: np.ndarray, batch: int, kind: str
) -> None:
    options: dict[str, Any] = {
        "half": {"dtype": TensorProto.FLOAT16},
        "bytes": {"dtype": TensorProto.UINT8},
        "nhwc": {"layout": "NHWC"},
    }.get(kind, {})
    free = embed(write_embedder(Path("free.onnx"), **options))
    path = write_embedder(Path("fixed.onnx"), batch="n" if kind == "rows first" else batch, **options)
    if kind == "rows first":  # the input leaves the batch open, and only the output declares it
        reshaped(path, [batch, -1], [batch, 32])
    with Embedder(path, EmbedderSettings()) as embedder:
        assert embedder.batch == batch
    assert np.array_equal(embed(path), free)


def test_a_graph_that_says_nowhere_that_it_takes_one_picture(faces: np.ndarray) -> None:
    path = reshaped(write_embedder(Path("e.onnx")), [1, 32], ["n", 32])
    with Embedder(path, EmbedderSettings()) as embedder:
        assert embedder.batch == 1
    np.testing.assert_allclose(embed(path), embed_plainly(faces), atol=1e-4)


def test_a_declared_output_that_the_graph_does_not_keep_to_slows_nothing_down(faces: np.ndarray) -> None:
    # As in InsightFace's own models: a free batch, and an output that is declared (1, 512).
    path = reshaped(write_embedder(Path("e.onnx")), [-1, 32], [1, 32])
    with Embedder(path, EmbedderSettings()) as embedder:
        assert embedder.batch == 32
    np.testing.assert_allclose(embed(path), embed_plainly(faces), atol=1e-4)


@pytest.mark.parametrize("shape", [[0, 32, 1, 1], [0, 1, 1, 32], [0, 32, 1]])
def test_axes_of_length_one_are_dropped_from_embeddings(faces: np.ndarray, shape: list[int]) -> None:
    path = reshaped(write_embedder(Path("e.onnx")), shape, ["n", *shape[1:]])
    np.testing.assert_allclose(embed(path), embed_plainly(faces), atol=1e-4)


def test_clusters_do_not_depend_on_the_declared_batch(
    command: Callable[..., Any], faces: np.ndarray, pse_bundle: Any
) -> None:
    found = []
    for batch in ("n", 1, 64):
        path = write_embedder(Path(f"e{batch}.onnx"), batch=batch)
        cluster = ("cluster", "faces.txt", "--engine", pse_bundle.path, "--embedder", path, "--k", 4)
        assert command(*cluster, "-o", "o.meta", "--quiet")[0] == 0
        found.append(Path("o.meta").read_bytes())
    assert found[0] == found[1] == found[2]


def test_embeddings_that_mix_pictures_are_made_one_by_one_or_refused(faces: np.ndarray) -> None:
    # What BatchNorm in training mode does: the mean of the batch is subtracted.
    def mixed(path: Path) -> Path:
        nodes = [
            helper.make_node("ReduceMean", ["embedding"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Mul", ["mean", "half"], ["part"]),
            helper.make_node("Sub", ["embedding", "part"], ["rows"]),
        ]
        return with_output(path, ["n", 32], nodes, {"half": np.float32(0.5)})

    np.testing.assert_allclose(
        embed(mixed(write_embedder(Path("free.onnx")))), embed_plainly(faces) / 2, atol=1e-4
    )
    with pytest.raises(InputError, match=r"model\.eval"):
        embed(mixed(write_embedder(Path("fixed.onnx"), batch=8)))


# Further inputs


def with_inputs(path: Path) -> Path:
    """An embedder with a flag that doubles embeddings, a scalar that they are multiplied with and a row to add."""
    model = onnx.load(path)
    model.graph.input.extend(
        [
            helper.make_tensor_value_info("training", TensorProto.BOOL, []),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("steps", TensorProto.INT64, ["n", 1]),
        ]
    )
    nodes = [
        helper.make_node("Where", ["training", "two", "factor"], ["scale"]),
        helper.make_node("Mul", ["embedding", "scale"], ["scaled"]),
        helper.make_node("Cast", ["steps"], ["floats_of_steps"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["scaled", "floats_of_steps"], ["rows"]),
    ]
    path.write_bytes(model.SerializeToString())
    return with_output(path, ["n", 32], nodes, {"two": np.float32(2)})


def test_further_inputs_are_constants_of_the_toml_in_every_command(
    command: Callable[..., Any], faces: np.ndarray, pse_bundle: Any
) -> None:
    path = with_inputs(write_embedder(Path("e.onnx"), batch=4))
    Path("e.toml").write_text("mean = 127\n[inputs]\ntraining = false\nfactor = 3\nsteps = 1\n")
    wanted = embed_plainly(faces, mean=127, factor=3) + 1
    assert command("embed", "faces.txt", "--model", path, "--quiet")[0] == 0
    np.testing.assert_allclose(np.fromfile("features.bin", "<f4").reshape(N, 32), wanted, atol=1e-4)
    cluster = ("cluster", "faces.txt", "--engine", pse_bundle.path, "--embedder", path, "--k", 4)
    assert command(*cluster, "-o", "o.meta", "--run-dir", "run", "--quiet")[0] == 0
    np.testing.assert_allclose(np.load("run/embedded/embedded.npy"), wanted, atol=1e-4)
    Path("e.toml").write_text("mean = 127\n[inputs]\ntraining = true\nfactor = [3.0]\nsteps = [[1]]\n")
    assert command(*cluster, "-o", "o.meta", "--run-dir", "run", "--quiet")[0] == 0
    wanted = embed_plainly(faces, mean=127, factor=2) + 1
    np.testing.assert_allclose(np.load("run/embedded/embedded.npy"), wanted, atol=1e-4)
    found = embed(path, inputs={"steps": np.int32(-4)})
    np.testing.assert_allclose(found, wanted - 5, atol=1e-4)


def test_inputs_without_a_value_are_named_with_what_to_write(
    command: Callable[..., Any], faces: np.ndarray, pse_bundle: Any
) -> None:
    path = with_inputs(write_embedder(Path("e.onnx")))
    for args in (
        ("embed", "faces.txt", "--model", path),
        ("cluster", "faces.txt", "--engine", pse_bundle.path, "--embedder", path, "--k", 4, "-o", "o.meta"),
    ):
        code, told = command(*args, "--quiet")
        assert code == 2
        assert len(told.splitlines()) == 1
        assert "e.toml" in told
        assert "[inputs]: training = false, factor = 0, steps = 0" in told


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("training = 2", "training is [] tensor(bool); the value 2"),
        ('factor = "a"', "factor is [1] tensor(float); the value 'a'"),
        ("factor = [1, 2]", "factor is [1]"),
        ("steps = 1.5", "expected int64"),
        ("steps = [[1, 2]]", "steps is ['n', 1]"),
        ("steps = [[1], [2, 3]]", "steps is ['n', 1]"),
        ("other = 1", "no input 'other'"),
        ("factor = 2000-01-01", "inputs should be"),
        ("pictures = 0", "none is left for the images"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(
    command: Callable[..., Any], faces: np.ndarray, lines: str, says: str
) -> None:
    path = with_inputs(write_embedder(Path("e.onnx")))
    name = lines.split(" =")[0]
    others = {"training": "training = false", "factor": "factor = 1", "steps": "steps = 0"}
    table = "\n".join([text for key, text in others.items() if key != name] + [lines])
    Path("e.toml").write_text(f"[inputs]\n{table}\n")
    code, told = command("embed", "faces.txt", "--model", path)
    assert code == 2
    assert len(told.splitlines()) == 1
    assert says in told


def test_a_table_of_inputs_is_a_table(faces: np.ndarray) -> None:
    path = write_embedder(Path("e.onnx"))
    Path("e.toml").write_text("inputs = 3\n")
    with pytest.raises(InputError, match="inputs should be a table"):
        embed(path)
