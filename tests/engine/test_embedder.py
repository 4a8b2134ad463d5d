"""Any ONNX face embedder: what the graph says is taken from it, the rest from settings; batches change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import embed_plainly, pictures_of, write_embedder
from onnx import TensorProto

from fcdeploy.engine.embedder import (
    Embedder,
    EmbedderSettings,
    settings_beside,
    settings_from_table,
)
from fcdeploy.engine.onnx_file import model_digest
from fcdeploy.errors import InputError


def embed(path: Path, pictures: np.ndarray, *, batch: int | None = None, **settings: Any) -> np.ndarray:
    """Embed pictures of RGB, whose channels come as the embedder wants them."""
    with Embedder(path, EmbedderSettings(**settings), batch=batch) as embedder:
        if embedder.channels == "bgr":
            pictures = pictures[..., ::-1]
        prepared = [embedder.prepare(picture) for picture in pictures]
        return np.concatenate(
            [
                embedder.embed(prepared[at : at + embedder.batch])
                for at in range(0, len(prepared), embedder.batch)
            ]
        )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("said", [True, False])
def test_layout_size_and_batch_are_read_off_the_graph_or_said(
    tmp_path: Path, layout: str, batch: Any, said: bool
) -> None:
    path = write_embedder(tmp_path / "e.onnx", layout=layout, batch=batch, said=said, size=(16, 24))
    settings = {} if said else {"layout": layout, "size": (16, 24)}
    with Embedder(path, EmbedderSettings(**settings)) as embedder:
        assert (embedder.layout, embedder.size, embedder.channels) == (layout, (16, 24), "rgb")
        assert embedder.batch == (32 if batch == "n" else batch)
        assert embedder.dim == 32
    pictures = pictures_of(7, (16, 24))
    found = embed(path, pictures, **settings)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, embed_plainly(pictures), rtol=0, atol=2e-5)  # float32 sums of 48 terms


def test_what_the_graph_leaves_open_is_112_by_convention(tmp_path: Path) -> None:
    path = write_embedder(tmp_path / "e.onnx", said=False, size=(112, 112))
    with Embedder(path, EmbedderSettings(layout="NCHW")) as embedder:
        assert embedder.size == (112, 112)


def test_mean_and_scale_are_of_pixels_and_in_the_order_of_the_channels(tmp_path: Path) -> None:
    path, pictures = write_embedder(tmp_path / "e.onnx"), pictures_of(5)
    for mean, scale in (((127.0,), (128.0,)), ((10.0, 20.0, 30.0), (1.0, 2.0, 4.0)), ((0.0,), (255.0,))):
        found = embed(path, pictures, mean=mean, scale=scale)
        wanted = embed_plainly(pictures, mean=mean, scale=scale)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
        found = embed(path, pictures, channels="bgr", mean=mean, scale=scale)
        wanted = embed_plainly(pictures[..., ::-1], mean=mean, scale=scale)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_one_channel_is_gray(tmp_path: Path) -> None:
    path = write_embedder(tmp_path / "e.onnx", channels=1, dim=8)
    gray = pictures_of(3)[..., :1]
    np.testing.assert_allclose(embed(path, gray), embed_plainly(gray, 8), rtol=0, atol=2e-5)
    with pytest.raises(InputError, match="1 channel, not rgb"):
        Embedder(path, EmbedderSettings(channels="rgb"))


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floats_are_converted(tmp_path: Path, dtype: int) -> None:
    path, pictures = write_embedder(tmp_path / "e.onnx", dtype=dtype), pictures_of(3)
    # Half precision keeps 11 bits of each pixel.
    np.testing.assert_allclose(embed(path, pictures), embed_plainly(pictures), rtol=0, atol=2e-2)


def test_a_graph_that_takes_bytes_gets_pixels_as_they_are(tmp_path: Path) -> None:
    path, pictures = write_embedder(tmp_path / "e.onnx", dtype=TensorProto.UINT8), pictures_of(3)
    found = embed(path, pictures)
    np.testing.assert_allclose(found, embed_plainly(pictures, mean=0, scale=1), rtol=1e-4, atol=1e-3)
    with pytest.raises(InputError, match="leave out mean"):
        Embedder(path, EmbedderSettings(mean=(1.0,)))


def test_batches_change_no_bit(tmp_path: Path) -> None:
    path, pictures = write_embedder(tmp_path / "e.onnx"), pictures_of(20)
    found = embed(path, pictures)
    for batch in (1, 3, 20):
        assert np.array_equal(embed(path, pictures, batch=batch), found)


def test_of_several_outputs_one_has_to_be_named(tmp_path: Path) -> None:
    path, pictures = write_embedder(tmp_path / "e.onnx", outputs=2), pictures_of(3)
    with pytest.raises(InputError, match="outputs cells, embedding; say which"):
        Embedder(path, EmbedderSettings())
    with pytest.raises(InputError, match="'other' is none of them"):
        Embedder(path, EmbedderSettings(output_tensor="other"))
    found = embed(path, pictures, output_tensor="embedding")
    np.testing.assert_allclose(found, embed_plainly(pictures), rtol=0, atol=2e-5)
    assert embed(path, pictures, output_tensor="cells").shape == (3, 48)


@pytest.mark.parametrize(
    ("graph", "settings", "says"),
    [
        ({"said": False}, {}, "give --layout"),
        ({}, {"layout": "NHWC"}, "which is not NHWC"),
        ({}, {"size": (112, 112)}, "16 x 16 (height x width), not 112 x 112"),
        ({"channels": 2}, {}, "no axis of 3 channels"),
        ({}, {"channels": "gray"}, "3 channels, not gray"),
        ({"channels": 1}, {"mean": (1.0, 2.0, 3.0)}, "3 numbers of mean for 1 channel;"),
        ({"said": False}, {"layout": "NCHW", "size": (20, 20)}, "another --size"),
        ({"batch": 8, "said": False}, {"layout": "NCHW", "size": (20, 20)}, "another --size"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_before_the_work(
    tmp_path: Path, graph: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    path = write_embedder(tmp_path / "e.onnx", **graph)
    with pytest.raises(InputError) as error:
        Embedder(path, EmbedderSettings(**settings))
    assert says in str(error.value)
    assert str(path) in str(error.value)


def test_files_that_are_no_embedders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(InputError, match="cannot load this graph"):
        Embedder(tmp_path / "text.onnx", EmbedderSettings())
    from onnx import helper, save

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "rows.onnx",
    )
    with pytest.raises(InputError, match="four axes"):
        Embedder(tmp_path / "rows.onnx", EmbedderSettings())
    pictures = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", pictures[:1], pictures[1:])
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "maps.onnx",
    )
    with pytest.raises(InputError, match="expected an embedding"):
        Embedder(tmp_path / "maps.onnx", EmbedderSettings())


# Settings


def test_settings_are_read_from_the_toml_beside_the_model(tmp_path: Path) -> None:
    model = tmp_path / "e.onnx"
    assert settings_beside(model) == EmbedderSettings()
    (tmp_path / "e.toml").write_text(
        'layout = "nhwc"\nsize = [112, 96]\nchannels = "bgr"\nmean = 127\nscale = [1, 2.5, 3]\noutput_tensor = "y"\n'
    )
    assert settings_beside(model) == EmbedderSettings(
        "NHWC", (112, 96), "bgr", (127.0,), (1.0, 2.5, 3.0), "y"
    )
    assert settings_from_table({"size": 112}, "x") == EmbedderSettings(size=(112, 112))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("means = 1", "unknown key 'means'; known here: layout, size"),
        ('system = "pse-gcn"', "unknown key 'system'"),
        ('layout = "HWC"', 'layout should be "NCHW" or "NHWC"'),
        ('channels = "rbg"', 'channels should be "rgb" or "bgr" or "gray"'),
        ("size = 0", "size should be a whole number"),
        ("size = [1, 2, 3]", "size should be"),
        ("size = 112.0", "size should be"),
        ("mean = [1, 2]", "mean should be a number"),
        ("mean = nan", "mean should be a number"),
        ("mean = true", "mean should be a number"),
        ("scale = 0", "scale of 0"),
        ("scale = [1, 0, 1]", "scale of 0"),
        ('scale = "128"', "scale should be a number"),
        ("output_tensor = 1", "output_tensor should be"),
        ("layout", "not valid TOML"),
        ("\xff", "not valid TOML"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "e.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as error:
        settings_beside(tmp_path / "e.onnx")
    assert says in str(error.value)
    assert "e.toml" in str(error.value)


def test_the_digest_is_of_the_graph_and_the_settings(tmp_path: Path) -> None:
    path = write_embedder(tmp_path / "e.onnx")
    digests = [model_digest(path, EmbedderSettings())]
    digests.append(model_digest(path, EmbedderSettings(mean=(127.0,))))
    digests.append(model_digest(path, EmbedderSettings(inputs=(("training", False),))))
    digests.append(model_digest(path, EmbedderSettings(inputs=(("training", 0),))))
    write_embedder(path, factor=2.0)
    digests.append(model_digest(path, EmbedderSettings()))
    assert len(set(digests)) == 5
    (tmp_path / "e.onnx.data").write_bytes(b"that the graph says nothing of")
    assert model_digest(path, EmbedderSettings()) == digests[-1]
