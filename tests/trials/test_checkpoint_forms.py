"""Checkpoints as people have them: wrapped, prefixed, of any protocol, with things beside; or not one at all.

Reported at nanoGPT #325 (_orig_mod.), timm PR #2003, pytorch-lightning #2798 and #18066 (model. and what stands beside
it), AdaFace #43, open_clip PR #639 (model and ema), nerfstudio PR #3702 and pytorch #118092 (numbers of NumPy under
weights_only), pytorch #16203 (pickle protocols).
"""

import argparse
import collections
import io
import json
import pathlib
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fcdeploy.data.torch_file import read_torch_file  # noqa: E402
from fcdeploy.deploy.checkpoint import keys_of, load_state_dict, read_checkpoint  # noqa: E402
from fcdeploy.deploy.recognise import likeness, recognise  # noqa: E402
from fcdeploy.errors import FcdeployWarning, InputError  # noqa: E402

State = dict[str, Any]


@pytest.fixture(scope="session")
def weights(golden: Path) -> State:
    """PSE-GCN's golden weights, by name."""
    return dict(torch.load(golden / "dev/pse/checkpoint.pth", weights_only=True))


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(value: Any, **options: Any) -> Path:
        torch.save(value, tmp_path / "c.pth", **options)
        return tmp_path / "c.pth"

    return save


def equal(state: State, wanted: State) -> bool:
    return list(state) == list(wanted) and all(torch.equal(state[name], wanted[name]) for name in wanted)


def prefixed(weights: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "network.",
        "module._orig_mod.",
        "model.net.module.",
        "a.b.c.d.e.",
    ],
)
def test_a_prefix_that_all_tensors_share_is_stripped(prefix: str, weights: State, saved: Any) -> None:
    assert equal(load_state_dict(saved(prefixed(weights, prefix))), weights)


@pytest.mark.parametrize(
    "name",
    [
        "sepfl/checkpoint.pth",
        "gcnd/checkpoint.pth",
        "nsr/LCENet.pth",
        "nsr/checkpoint.tar",
        "lgcn/checkpoint.pth",
        "vegcn/gcn_v_checkpoint.pth",
        "vegcn/gcn_e_checkpoint.pth",
    ],
)
def test_what_all_names_of_a_known_network_begin_with_is_no_prefix(
    name: str, checkpoint: Any, tmp_path: Path
) -> None:
    plain = load_state_dict(checkpoint(name))
    assert likeness({key: tuple(tensor.shape) for key, tensor in plain.items()})[0]
    torch.save({"ckpt": prefixed(plain, "module.encoder.")}, tmp_path / "c.pth")
    assert equal(load_state_dict(tmp_path / "c.pth"), plain)


def test_a_prefix_of_some_tensors_is_none(weights: State, saved: Any) -> None:
    mixed = {
        f"module.{name}" if at % 2 else name: tensor for at, (name, tensor) in enumerate(weights.items())
    }
    assert list(load_state_dict(saved(mixed))) == list(mixed)


OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 4), "exp_avg_sq": torch.ones(4, 4)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}


@pytest.mark.parametrize(
    ("around", "key"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s, "epoch": 3}, "state_dict"),
        (
            lambda s: {"model_state_dict": s, "optimizer_state_dict": OPTIMIZER, "epoch": 3, "loss": 0.1},
            "model_state_dict",
        ),
        (
            lambda s: {
                "epoch": 1,
                "network": s,
                "optimizer": OPTIMIZER,
                "rng": torch.zeros(8, dtype=torch.uint8),
            },
            "network",
        ),
        (
            lambda s: {"trainer": {"state": {"weights": s}}, "optimizers": [OPTIMIZER]},
            "trainer.state.weights",
        ),
        (lambda s: {"nets": [s]}, "nets.0"),
        (lambda s: (s, 3), "0"),
        (
            lambda s: {
                "model": s,
                "mean": torch.zeros(3),
                "callbacks": {"Stop": {"best": torch.tensor(1.0)}},
            },
            "model",
        ),
        (lambda s: {"net": s, "head": {"weight": torch.ones(3, 32)}}, "net"),
        (lambda s: collections.OrderedDict(state_dict=collections.OrderedDict(s)), "state_dict"),
        (lambda s: {b"model": s}, "model"),
    ],
)
def test_the_one_state_dict_inside_is_found(around: Any, key: str, weights: State, saved: Any) -> None:
    read = read_checkpoint(saved(around(weights)))
    assert equal(read.state, weights)
    assert (read.key, read.beside) == (key, 0)


def test_a_network_beside_the_head_of_its_training_is_found_and_what_is_left_out_counted(
    weights: State, saved: Any
) -> None:
    """As Lightning saves a module that holds network and loss."""
    both = prefixed(weights, "model.") | {"head.kernel": torch.ones(64, 9), "loss.weight": torch.ones(9)}
    read = read_checkpoint(
        saved({"state_dict": both, "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2"})
    )
    assert equal(read.state, weights)
    assert (read.key, read.beside) == ("state_dict.model", 2)


def test_of_several_key_chooses(weights: State, saved: Any) -> None:
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = saved({"model": weights, "ema": {"decay": 0.9, "shadow": prefixed(other, "module.")}, "epoch": 3})
    with pytest.raises(InputError) as refused:
        load_state_dict(path)
    assert all(word in str(refused.value) for word in ("c.pth", "model", "ema.shadow", "--key"))
    assert equal(load_state_dict(path, "model"), weights)
    for key in ("ema", "ema.shadow"):
        assert equal(load_state_dict(path, key), other)
    for wrong in ("emma", "epoch", "ema.decay", "model.x", "optimizer"):
        with pytest.raises(InputError, match=rf"--key {wrong}: .*'model', 'ema\.shadow'"):
            load_state_dict(path, wrong)
    with pytest.raises(InputError, match="holds 2 state_dicts"):
        load_state_dict(saved({"model": weights, "ema": weights}))


def test_of_several_in_one_state_dict_key_chooses_by_prefix(weights: State, saved: Any) -> None:
    other = {name: tensor + 1 for name, tensor in weights.items()}
    path = saved({"state_dict": prefixed(weights, "model.") | prefixed(other, "ema_model.module.")})
    with pytest.raises(InputError, match=r"state_dict\.ema_model\.module, state_dict\.model"):
        load_state_dict(path)
    assert equal(load_state_dict(path, "state_dict.model"), weights)
    assert equal(load_state_dict(path, "state_dict.ema_model"), other)


def test_networks_of_a_chain_in_one_file_are_told_apart_by_their_keys(checkpoint: Any, saved: Any) -> None:
    names = {"lce": "nsr/LCENet.pth", "pce": "nsr/PCENet.pth.xz"}
    nets = {key: load_state_dict(checkpoint(name)) for key, name in names.items()}
    path = saved(nets)
    with pytest.raises(InputError, match=r"holds 2 state_dicts \(lce, pce\)"):
        load_state_dict(path)
    assert all(equal(load_state_dict(path, key), net) for key, net in nets.items())


def test_keys_are_one_for_all_or_one_each() -> None:
    assert keys_of(None, 2) == keys_of((), 2) == [None, None]
    assert keys_of("ema", 2) == keys_of(["ema"], 2) == ["ema", "ema"]
    assert keys_of(["ema", ""], 2) == ["ema", None]
    with pytest.raises(InputError, match="--key is given 2 times for 3 checkpoints"):
        keys_of(["a", "b"], 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
def test_every_protocol_is_read_in_both_forms(
    protocol: int, legacy: bool, weights: State, saved: Any
) -> None:
    beside = {
        "state_dict": weights,
        "optimizer": OPTIMIZER,
        "best": 0.5,
        "big": 1 << 70,
        "none": None,
        "s": {1, 2},
    }
    path = saved(beside, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert equal(load_state_dict(path), weights)


def test_numbers_and_settings_beside_the_weights_are_passed_over(weights: State, saved: Any) -> None:
    beside = {
        "best_f": np.float64(0.9),
        "classes": np.int64(3),
        "history": np.arange(5.0),
        "dtype": np.dtype("f4"),
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
        "torch": (torch.float32, torch.device("cpu"), torch.Size([3])),
        "counts": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
    }
    for protocol in (2, 4):
        path = saved({"state_dict": weights, **beside}, pickle_protocol=protocol)
        assert equal(load_state_dict(path), weights)


class Config:
    """Somebody's own settings."""


def test_anything_else_is_named_with_the_line_that_saves_the_weights_alone(
    weights: State, saved: Any
) -> None:
    path = saved({"nets": {"G": weights}, "config": Config()})
    with pytest.raises(InputError) as refused:
        load_state_dict(path)
    sentence = str(refused.value)
    assert "Config" in sentence
    code = (
        sentence.partition("`")[2]
        .partition("`")[0]
        .replace("'weights.pth'", repr(str(path.parent / "w.pth")))
    )
    exec(code)  # as a user would, who trusts the file
    assert equal(load_state_dict(path.parent / "w.pth"), weights)


def test_a_whole_network_is_named_with_the_line_that_saves_its_weights(saved: Any) -> None:
    net = torch.nn.Linear(3, 3)
    path = saved(net)
    with pytest.raises(InputError) as refused:
        load_state_dict(path)
    code = str(refused.value).partition("`")[2].partition("`")[0]
    exec(code.replace("'weights.pth'", repr(str(path.parent / "w.pth"))))
    assert equal(load_state_dict(path.parent / "w.pth"), net.state_dict())


def safetensors(tensors: dict[str, tuple[str, np.ndarray]]) -> bytes:
    header, body = {}, b""
    for name, (dtype, array) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": array.shape,
            "data_offsets": [len(body), len(body) + array.nbytes],
        }
        body += array.tobytes()
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_safetensors_are_read(weights: State, tmp_path: Path) -> None:
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    arrays = {f"model.{name}": (kinds[tensor.dtype], tensor.numpy()) for name, tensor in weights.items()}
    (tmp_path / "model.safetensors").write_bytes(safetensors(arrays))
    assert equal(load_state_dict(tmp_path / "model.safetensors"), weights)
    content = safetensors(
        {"a": ("BF16", np.array([[0x3F80, 0xC000]], "<u2")), "b": ("F16", np.ones(2, "<f2"))}
    )
    (tmp_path / "b.safetensors").write_bytes(content)
    assert load_state_dict(tmp_path / "b.safetensors")["a"].tolist() == [[1.0, -2.0]]
    (tmp_path / "b.safetensors").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"b\.safetensors: is not a whole \.safetensors file"):
        load_state_dict(tmp_path / "b.safetensors")


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = (*FLOATS, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_tensors_are_those_that_pytorch_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Views of any offset and stride, of any type, in either form and protocol, against torch.load."""
    path = tmp_path_factory.mktemp("law") / "c.pth"
    state = {}
    for at in range(data.draw(st.integers(1, 4))):
        shape = data.draw(st.lists(st.integers(0, 4), max_size=3))
        tensor = (torch.rand([n + 1 for n in shape]) * 100).to(data.draw(st.sampled_from(KINDS)))
        for axis in range(len(shape)):
            tensor = tensor.narrow(axis, data.draw(st.integers(0, 1)), shape[axis])
        if len(shape) > 1 and data.draw(st.booleans()):
            tensor = tensor.transpose(0, 1)
        state[f"t{at}"] = tensor
    options = {"_use_new_zipfile_serialization": data.draw(st.booleans())}
    torch.save(state, path, pickle_protocol=data.draw(st.sampled_from([2, 4])), **options)
    wanted = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in torch.load(path, weights_only=False).items()
    }
    loaded = load_state_dict(path)
    assert equal(loaded, wanted)
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in wanted.items())


def test_a_parameter_and_a_tensor_of_a_subclass_are_weights(saved: Any) -> None:
    state = {"a": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Buffer(torch.ones(2))}
    assert load_state_dict(saved(state))["a"].tolist() == [[1, 1], [1, 1]]


def test_tensors_of_a_gpu_are_read_without_one(weights: State, saved: Any) -> None:
    """The pickle names the device beside each storage: here the name alone is changed, which is as long."""
    content = saved(weights).read_bytes()
    archive = zipfile.ZipFile(io.BytesIO(content))
    path = saved(weights)
    with zipfile.ZipFile(path, "w") as changed:
        for info in archive.infolist():
            body = archive.read(info)
            if info.filename.endswith("data.pkl"):
                body = body.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in body
            changed.writestr(info.filename, body)
    assert equal(load_state_dict(path), weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_gcn_v_and_gcn_e_are_told_from_l_gcn_and_one_that_lacks_the_other_is_told_so(
    prefix: str, checkpoint: Any, tmp_path: Path
) -> None:
    """GCN-E has the names of L-GCN's tensors but for bn0, and is no damaged L-GCN."""
    shapes = {}
    for name in ("gcn_v", "gcn_e"):
        plain = load_state_dict(checkpoint(f"vegcn/{name}_checkpoint.pth"))
        torch.save({"meta": {}, "state_dict": prefixed(plain, prefix)}, tmp_path / f"{name}.pth")
        loaded = load_state_dict(tmp_path / f"{name}.pth")
        assert equal(loaded, plain)
        shapes[name] = {key: tuple(tensor.shape) for key, tensor in loaded.items()}
    system, networks, _ = recognise(shapes)
    assert (system.name, networks) == ("ve-gcn", {"gcn_v": "vertex", "gcn_e": "edge"})
    with pytest.raises(InputError, match=r"^gcn_e: GCN-E .*; give GCN-V's checkpoint, too\.$"):
        recognise({"gcn_e": shapes["gcn_e"]})


@pytest.mark.parametrize(
    "first", ["conv1.weight", "input_layer.0.weight", "conv2d_1a.conv.weight", "features.0.weight"]
)
def test_a_face_embedder_is_named_and_the_command_that_takes_it(first: str) -> None:
    shapes = {first: (64, 3, 3, 3), "bn1.weight": (64,), "fc.weight": (512, 25088)}
    with pytest.raises(InputError, match=r"c\.pth: .*face embedder.*ONNX.*fcdeploy embed"):
        recognise({"c.pth": shapes})


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("checkpoint.pth"))
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("checkpoint.pth", b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 22643043\n",
            ("Git LFS", "git lfs pull"),
        ),
        (b"<!DOCTYPE html><html><title>Sign in</title></html>" * 9, ("web page",)),
        (b"\n  <html lang='en'></html>", ("web page",)),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ("web page",)),
        (b"<Error><Code>NoSuchKey</Code></Error>", ("web page",)),
        (b"", ("empty",)),
        (b"\x1f\x8b\x08" + bytes(100), ("gzip",)),
        (tarred(), ("tar archive", "tar -xf")),
        (zipped(), ("zip archive",)),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), ("HDF5", "PyTorch")),
        (b"\x93NUMPY\x01\x00" + bytes(100), ("NumPy",)),
        (b'{"weight_map": {"a": "model-00001.safetensors"}}', ("JSON",)),
        (pickle.dumps({"a": [1, 2]}), ("plain pickle", "torch.save(pickle.load")),
        (b"hello", ("not a PyTorch checkpoint",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_file_that_is_something_else_is_named(
    content: bytes, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(InputError) as refused:
        load_state_dict(tmp_path / "c.pth")
    assert str(refused.value).startswith(f"{tmp_path}/c.pth: ")
    assert all(word in str(refused.value) for word in words)


def test_an_onnx_model_is_named(tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx.helper")
    graph = helper.make_graph([], "g", [], [])
    (tmp_path / "c.pth").write_bytes(helper.make_model(graph, producer_name="pytorch").SerializeToString())
    with pytest.raises(InputError, match="is an ONNX model"):
        load_state_dict(tmp_path / "c.pth")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_network_is_named_with_the_line_that_saves_its_weights(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 3)
    torch.jit.save(torch.jit.script(net), tmp_path / "c.pt")
    with pytest.raises(InputError, match="TorchScript") as refused:
        load_state_dict(tmp_path / "c.pt")
    code = str(refused.value).partition("`")[2].partition("`")[0]
    exec(code.replace("'weights.pth'", repr(str(tmp_path / "w.pth"))))
    assert equal(load_state_dict(tmp_path / "w.pth"), net.state_dict())


def test_folders_are_named_and_an_unpacked_checkpoint_has_the_command_that_packs_it(
    weights: State, saved: Any
) -> None:
    path = saved(weights)
    folder = path.parent / "unpacked"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    (inside,) = folder.iterdir()
    with pytest.raises(InputError, match=r"unpacked into a folder; .*zip -0 -r") as refused:
        load_state_dict(inside)
    assert str(inside) in str(refused.value)
    shutil.make_archive(str(path.parent / "again"), "zip", folder)  # compressed: the command says without
    with pytest.raises(InputError, match="never packs weights"):
        load_state_dict(path.parent / "again.zip")
    with zipfile.ZipFile(path.parent / "packed.pth", "w") as packed:
        for file in inside.rglob("*"):
            packed.write(file, file.relative_to(folder))
    assert equal(load_state_dict(path.parent / "packed.pth"), weights)
    with pytest.raises(
        InputError, match=r"is a folder, not a checkpoint; .* such as again\.zip|such as c\.pth"
    ):
        load_state_dict(path.parent)


@pytest.mark.parametrize("kept", [3, 200, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_download_that_broke_off_is_told(kept: float, legacy: bool, weights: State, saved: Any) -> None:
    path = saved(weights, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(InputError, match=r"c\.pth: is not a "):
        load_state_dict(path)


def test_a_pickle_that_nests_without_end_is_refused_at_once(tmp_path: Path) -> None:
    """A tuple of two of itself, sixty levels deep, as value and as key: walking or hashing it would never end."""
    doubled = b"\x80\x02)" + b"2\x86" * 60
    for body in (b"\x80\x02}X\x01\0\0\0a" + doubled[2:] + b"s.", b"\x80\x02}" + doubled[2:] + b"Ns."):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", body)
        (tmp_path / "c.pth").write_bytes(file.getvalue())
        read_torch_file(tmp_path / "c.pth")
        with pytest.raises(InputError, match="holds no state_dict"):
            load_state_dict(tmp_path / "c.pth")


def test_damage_to_the_values_of_a_tensor_is_told_with_its_name(weights: State, saved: Any) -> None:
    path = saved({"state_dict": weights})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(255 - byte for byte in content[middle : middle + 4])
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"c\.pth: is not a whole checkpoint: the values of [\w.]+ are damaged"
    ):
        load_state_dict(path)


def test_export_takes_the_key_and_records_where_the_weights_were(golden: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from click.testing import CliRunner

    from fcdeploy.cli import cli

    weights = torch.load(golden / "dev/sepfl/checkpoint.pth", weights_only=True)
    whole = {
        "model": prefixed(weights, "net."),
        "ema": prefixed(weights, "net.") | {"head.w": torch.ones(3, 3)},
    }
    torch.save(whole, tmp_path / "c.pth")
    with pytest.raises(InputError, match=r"holds 2 state_dicts \(model, ema\)"):
        load_state_dict(tmp_path / "c.pth")
    (tmp_path / "c.toml").write_text('system = "sepfl"\nfeature_dim = 32\n[links]\nk = 20\n')
    args = ["export", "--ckpt", str(tmp_path / "c.pth"), "-o", str(tmp_path / "x.onnx")]
    refused = CliRunner().invoke(cli, args)
    assert isinstance(refused.exception, InputError)
    assert "--key" in str(refused.exception)
    with pytest.warns(FcdeployWarning) as told:
        done = CliRunner().invoke(cli, [*args, "--key", "ema.net"])
    assert done.exit_code == 0, done.output
    assert any("c.toml" in str(note.message) for note in told)
    manifest = json.loads((tmp_path / "x.onnx/manifest.json").read_text())
    assert manifest["networks"]["pairwise"]["checkpoint"]["key"] == "ema.net"
