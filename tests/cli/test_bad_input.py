"""Whatever cannot be used is refused in one sentence, with exit code 2, and nothing on the disk changes."""

import itertools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdeploy.engine.bundle import FORMAT_VERSION

Refuse = Callable[..., str]
OLD = "7\n7\n8\n"  # the output of an earlier run


def everything_in(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder, hidden ones too; but for lists of bad rows, which are to be left."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if not path.name.endswith(".bad.txt")
    }


def sentence_of(err: str) -> str:
    """The one sentence that stderr holds; a usage error may stand under a line of usage."""
    assert "Traceback" not in err
    lines = err.strip().splitlines()
    assert lines[-1].startswith("Error: "), err
    assert len([line for line in lines if line.startswith("Error: ")]) == 1, err
    others = [line for line in lines[:-1] if line and not line.startswith(("Usage: ", "Try ", "Note: "))]
    assert not others, err
    assert lines[0].startswith("Usage: ") or lines[-1].endswith("."), err  # click's own have no full stop
    return lines[-1].removeprefix("Error: ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuse(fcdeploy: Any, here: Path) -> Refuse:
    """Run a command that has to be refused with every one of ``says`` in its sentence, and change nothing."""

    def run(*args: object, says: tuple[str, ...]) -> str:
        before = everything_in(here)
        outcome = fcdeploy(*args)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        sentence = sentence_of(outcome.err)
        for words in says:
            assert words in sentence
        assert everything_in(here) == before
        return sentence

    return run


@pytest.fixture
def refuse_cluster(refuse: Refuse, bundle: Path, here: Path) -> Refuse:
    """The same for ``fcdeploy cluster FEATURES``: once with no output there, once with an earlier one."""

    def run(features: object, *options: object, says: tuple[str, ...], engine: Path = bundle) -> str:
        output = here / "pred_labels.meta"
        args = ("cluster", features, "--engine", engine, "-o", output, "--quiet", *options)
        refuse(*args, says=says)
        output.write_text(OLD)
        sentence = refuse(*args, says=says)
        output.unlink()
        return sentence

    return run


@pytest.fixture
def refuse_export(refuse: Refuse, bundle: Path, here: Path) -> Refuse:
    """The same for ``fcdeploy export --ckpt CHECKPOINT``."""

    def run(checkpoint: object, *options: object, says: tuple[str, ...]) -> str:
        output = here / "new.onnx"
        args = ("export", "--ckpt", checkpoint, "-o", output, *options)
        refuse(*args, says=says)
        shutil.copytree(bundle, output)
        sentence = refuse(*args, says=says)
        shutil.rmtree(output)
        return sentence

    return run


@pytest.fixture
def features(here: Path, few: np.ndarray) -> Path:
    """200 good faces."""
    few.tofile(here / "features.bin")
    return here / "features.bin"


@pytest.fixture
def lists(few: np.ndarray) -> np.ndarray:
    """Their 20 nearest neighbors in the published form, (200, 2, 20) float64."""
    unit = few / np.linalg.norm(few, axis=1, keepdims=True)
    sims = unit @ unit.T
    np.fill_diagonal(sims, 2)  # the face itself first
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :20]
    return np.stack([ids, 1 - np.clip(np.take_along_axis(sims, ids, 1), 0, 1)], axis=1).astype(np.float64)


class Payload:
    """Pickled, it runs ``touch PATH`` when it is loaded by someone careless."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The header of an .npy file that promises an array of this shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def write_zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


# Features


def test_missing_features_file(refuse_cluster: Refuse, here: Path) -> None:
    refuse_cluster(here / "nowhere.bin", says=(f"{here}/nowhere.bin: no such file", "give a .bin"))


def test_folder_as_features(refuse_cluster: Refuse, here: Path) -> None:
    (here / "folder").mkdir()
    refuse_cluster(here / "folder", says=("folder: is a folder", "give a .bin"))


@pytest.mark.parametrize("name", ["empty.bin", "empty.npy", "empty.npz", "empty.csv", "empty.parquet"])
def test_empty_features_file(refuse_cluster: Refuse, here: Path, name: str) -> None:
    (here / name).touch()
    refuse_cluster(here / name, says=(f"{name}: is empty",))


def test_raw_file_that_holds_no_whole_number_of_rows(refuse_cluster: Refuse, features: Path) -> None:
    os.truncate(features, 1001)
    refuse_cluster(features, says=("features.bin: 1,001 bytes", "rows of 32 float32", "check the width"))


def test_broken_rows_are_counted_and_named(refuse_cluster: Refuse, here: Path, few: np.ndarray) -> None:
    few[[3, 50, 51], [0, 31, 7]] = np.nan, np.inf, -np.inf
    few.tofile(here / "broken.bin")
    refuse_cluster(here / "broken.bin", says=("broken.bin: 3 of 200 rows", "(rows 3, 50, 51,", "remove or"))


def test_of_many_broken_rows_the_first_five_are_named(
    refuse_cluster: Refuse, here: Path, few: np.ndarray
) -> None:
    few[10:20] = np.nan
    np.save(here / "broken.npy", few.astype(np.float64))
    refuse_cluster(here / "broken.npy", says=("10 of 200 rows", "rows 10, 11, 12, 13, 14, ..."))


def test_a_float64_value_beyond_float32_is_an_infinite_one(
    refuse_cluster: Refuse, here: Path, few: np.ndarray
) -> None:
    wide = few.astype(np.float64)
    wide[7, 7] = 1e300
    np.save(here / "wide.npy", wide)
    refuse_cluster(here / "wide.npy", says=("1 of 200 rows", "row 7"))


def test_zero_rows_are_counted_and_named(refuse_cluster: Refuse, here: Path, few: np.ndarray) -> None:
    few[[0, 199]] = 0
    few.tofile(here / "zero.bin")
    refuse_cluster(here / "zero.bin", says=("zero.bin: 2 of 200 rows are all zero (rows 0, 199", "remove or"))


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones(32, np.float32), "(32,) float32"),
        (np.ones((2, 3, 32), np.float32), "(2, 3, 32) float32"),
        (np.array(1.0), "() float64"),
        (np.ones((5, 32), np.int64), "(5, 32) int64"),
        (np.ones((5, 32), np.complex64), "(5, 32) complex64"),
        (np.full((5, 32), "1.0"), "(5, 32) <U3"),
        (np.ones((0, 32), np.float32), "(0, 32) float32"),
        (np.ones((5, 0), np.float32), "(5, 0) float32"),
        (np.ones((5, 31), np.float32), "(5, 31) float32"),
    ],
)
def test_npy_of_another_form_says_what_was_expected_and_found(
    refuse_cluster: Refuse, here: Path, array: np.ndarray, says: str
) -> None:
    np.save(here / "features.npy", array)
    refuse_cluster(here / "features.npy", says=("features.npy: expected ", says))


def test_npy_that_is_a_pickle_is_not_loaded(refuse_cluster: Refuse, here: Path) -> None:
    np.save(here / "features.npy", np.array([Payload(here / "ran")], object), allow_pickle=True)
    refuse_cluster(here / "features.npy", says=("features.npy: the array is a pickle of objects", "stack"))


@pytest.mark.parametrize("kept", [3, 8, 20, 127, 128, 1000])
def test_npy_cut_short(refuse_cluster: Refuse, here: Path, few: np.ndarray, kept: int) -> None:
    np.save(here / "features.npy", few)
    missing = os.path.getsize(here / "features.npy") - kept
    os.truncate(here / "features.npy", kept)
    says = "not a readable .npy array" if kept < 128 else f"of which {missing:,} are missing"
    refuse_cluster(here / "features.npy", says=("features.npy: ", says))


def test_npy_with_something_behind_its_array(refuse_cluster: Refuse, here: Path, few: np.ndarray) -> None:
    """As `cat a.npy b.npy` makes them, of which NumPy reads the first alone."""
    with open(here / "features.npy", "wb") as file:
        np.save(file, few)
        np.save(file, few)
    refuse_cluster(here / "features.npy", says=("features.npy: holds several arrays", f"{few.shape}"))
    np.save(here / "features.npy", few)
    with open(here / "features.npy", "ab") as file:
        file.write(bytes(7))
    refuse_cluster(here / "features.npy", says=("features.npy: holds 7 bytes behind",))


@pytest.mark.parametrize(
    "content",
    [
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',",
        b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((\n",
        b"\x93NUMPY\x01\x00\x10\x00'''aaaaaaaaaaaa\n",
        b"\x93NUMPY\x01\x00\x10\x00\xff\xfe\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\n",
        b"\x93NUMPY\x09\x00" + bytes(200),
        bytes(4096),
        npy_header((-5, 32), "<f4"),
    ],
    ids=["short", "brackets", "quotes", "bytes", "version", "zeros", "negative"],
)
def test_npy_of_garbage(refuse_cluster: Refuse, here: Path, content: bytes) -> None:
    (here / "features.npy").write_bytes(content)
    refuse_cluster(here / "features.npy", says=("features.npy: not a readable .npy array",))


@pytest.mark.parametrize("shape", [(10**12, 32), (10**18, 10**18)])
def test_npy_of_more_rows_than_there_are(refuse_cluster: Refuse, here: Path, shape: tuple[int, int]) -> None:
    (here / "features.npy").write_bytes(npy_header(shape, "<f4"))
    refuse_cluster(here / "features.npy", says=("features.npy: was cut short", f"{shape} float32"))


def test_text_under_the_name_npy(refuse_cluster: Refuse, here: Path) -> None:
    (here / "features.npy").write_bytes(b"this is text\n" * 100)
    refuse_cluster(here / "features.npy", says=("features.npy: is text",))


def test_a_name_that_no_file_can_have_is_an_error_of_the_system(
    fcdeploy: Any, bundle: Path, here: Path
) -> None:
    name = "f" * 300 + ".bin"
    outcome = fcdeploy("cluster", name, "--engine", bundle, "-o", here / "pred.meta")
    assert (outcome.code, outcome.out) == (1, "")
    assert sentence_of(outcome.err) == f"{name}: File name too long."
    assert everything_in(here) == {}


def test_wrong_dim(refuse_cluster: Refuse, features: Path) -> None:
    refuse_cluster(features, "--dim", 16, says=("features.bin: expected (n, 32)", "found (400, 16)"))


# Labels


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("labels.meta", "1\n" * 199, ("199 labels for 200 faces",)),
        ("labels.meta", "1\n" * 150 + "Ann\n" * 50, ("line 151", "'Ann'")),
        ("labels.meta", "1.5\n" * 200, ("line 1", "'1.5'")),
        ("labels.meta", "", ("is empty",)),
        ("clusters.txt", "0 1\n2 200\n", ("line 2", "200")),
        ("labels.yaml", "1\n" * 200, ("labels.yaml", ".meta")),
        ("labels.npy", "no array", ("np.save",)),
    ],
)
def test_labels_that_are_not_those_of_the_faces(
    refuse_cluster: Refuse, features: Path, here: Path, name: str, content: str, says: tuple[str, ...]
) -> None:
    (here / name).write_text(content)
    refuse_cluster(features, "--labels", here / name, says=(f"{name}: ", *says))


def test_missing_labels(refuse_cluster: Refuse, features: Path, here: Path) -> None:
    refuse_cluster(features, "--labels", here / "no.meta", says=("no.meta: there is no such file",))


# Lists


def test_missing_lists_or_a_mistyped_method(refuse_cluster: Refuse, features: Path) -> None:
    refuse_cluster(features, "--knn", "exakt", says=("exakt: no such file of neighbor lists",))


OPTIONS = pytest.mark.parametrize("option", ["--knn", "--reranked"])


@OPTIONS
def test_lists_of_another_number_of_faces(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, option: str
) -> None:
    np.savez(here / "lists.npz", data=lists[:199])
    refuse_cluster(features, option, here / "lists.npz", says=("lists.npz: ", "199 faces", "has 200"))


@OPTIONS
@pytest.mark.parametrize("value", [200, -1, 1e30, np.nan, np.inf, 3.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_id_that_is_no_face_is_named_with_its_row(
    refuse_cluster: Refuse,
    features: Path,
    here: Path,
    lists: np.ndarray,
    option: str,
    value: float,
    dtype: Any,
) -> None:
    lists[42, 0, 5] = value
    np.savez(here / "lists.npz", data=lists.astype(dtype))
    refuse_cluster(
        features,
        option,
        here / "lists.npz",
        says=(
            "lists.npz: face 42 has the neighbor ",
            "which stands for one" if value == -1 else "0..199",
        ),
    )


@OPTIONS
@pytest.mark.parametrize("value", [200, -1, 2**62])
def test_an_integer_id_that_is_no_face_is_named_with_its_row(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, option: str, value: int
) -> None:
    ids = lists[:, 0].astype(np.int64)
    ids[42, 5] = value
    np.save(here / "lists.npy", ids)
    refuse_cluster(
        features,
        option,
        here / "lists.npy",
        says=(f"face 42 has the neighbor {value}", "which stands for one" if value == -1 else "0..199"),
    )


@OPTIONS
def test_a_repeated_id_is_named_with_its_row(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, option: str
) -> None:
    lists[42, 0, 5] = lists[42, 0, 6]
    np.savez(here / "lists.npz", data=lists)
    refuse_cluster(
        features, option, here / "lists.npz", says=("lists.npz: face 42 has the same neighbor twice",)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_similarity_that_is_no_number_is_named_with_its_row(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, value: float
) -> None:
    lists[42, 1, 5] = value
    np.savez(here / "lists.npz", data=lists)
    refuse_cluster(features, "--knn", here / "lists.npz", says=("lists.npz: ", "face 42"))


@OPTIONS
def test_lists_that_are_a_pickle_are_not_loaded(
    refuse_cluster: Refuse, features: Path, here: Path, option: str
) -> None:
    ragged = np.empty((200, 2), object)
    ragged[:] = Payload(here / "ran")
    np.savez(here / "lists.npz", data=ragged)
    np.save(here / "lists.npy", ragged)
    for name in ("lists.npz", "lists.npy"):
        refuse_cluster(features, option, here / name, says=(f"{name}: ", "object array", "convert it"))


@OPTIONS
@pytest.mark.parametrize("name", ["lists.npz", "lists.npy"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_lists_cut_short(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, option: str, name: str, kept: float
) -> None:
    if name.endswith("z"):
        np.savez(here / name, data=lists)
    else:
        np.save(here / name, lists[:, 0].astype(np.int64))
    os.truncate(here / name, int(kept * (here / name).stat().st_size))
    refuse_cluster(features, option, here / name, says=(f"{name}: ",))


@OPTIONS
@pytest.mark.parametrize("compressed", [False, True])
def test_lists_damaged_in_the_middle(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray, option: str, compressed: bool
) -> None:
    (np.savez_compressed if compressed else np.savez)(here / "lists.npz", data=lists)
    content = bytearray((here / "lists.npz").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(range(64))
    (here / "lists.npz").write_bytes(content)
    refuse_cluster(features, option, here / "lists.npz", says=("lists.npz: ",))


@OPTIONS
@pytest.mark.parametrize(
    "shape", [(10**12, 2, 20), (200, 2, 10**12), (200, 2, 10**6), (200, 2, 20), (10**18, 2, 10**18)]
)
def test_lists_that_promise_more_than_they_hold_take_no_memory(
    refuse_cluster: Refuse, features: Path, here: Path, option: str, shape: tuple[int, ...]
) -> None:
    """A header of a hundred bytes must not make us allocate what it claims."""
    write_zip(here / "lists.npz", data=npy_header(shape, "<f8") + bytes(800))
    (here / "lists.npy").write_bytes(npy_header((shape[0], shape[2]), "<i8") + bytes(800))
    tracemalloc.start()
    try:
        for name in ("lists.npz", "lists.npy"):
            refuse_cluster(features, option, here / name, says=(f"{name}: ",))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64e6


def test_labels_and_features_that_promise_too_much_take_no_memory(
    refuse_cluster: Refuse, features: Path, here: Path
) -> None:
    (here / "labels.npy").write_bytes(npy_header((10**12,), "<i8") + bytes(800))
    (here / "features.npy").write_bytes(npy_header((10**12, 32), "<f4") + bytes(800))
    tracemalloc.start()
    try:
        refuse_cluster(features, "--labels", here / "labels.npy", says=("labels.npy: ",))
        refuse_cluster(here / "features.npy", says=("features.npy: ",))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64e6


def test_lists_shorter_than_k(refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray) -> None:
    np.savez(here / "lists.npz", data=lists[:, :, :12])
    refuse_cluster(
        features,
        "--knn",
        here / "lists.npz",
        says=("lists.npz: holds 12 neighbors", "20 are needed", "--k 12"),
    )


def test_reranked_lists_too_short_for_the_hops(
    refuse_cluster: Refuse, features: Path, here: Path, lists: np.ndarray
) -> None:
    np.save(here / "ranked.npy", lists[:, 0, :12].astype(np.int64))
    refuse_cluster(
        features,
        "--reranked",
        here / "ranked.npy",
        says=("ranked.npy: its lists of 12", "hops 20,5", "--hops"),
    )


@OPTIONS
@pytest.mark.parametrize(
    "arrays",
    [
        {"neighbors": np.zeros((200, 20), np.int64)},
        {"ids": np.zeros((200, 20), np.float64)},
        {"ids": np.zeros(200, np.int64)},
        {"ids": np.tile(np.arange(20), (200, 1)), "sims": np.zeros((200, 19), np.float32)},
        {"ids": np.tile(np.arange(20), (200, 1)), "sims": np.full((200, 20), "much")},
        {"data": np.zeros((200, 2, 20), np.int64)},
        {"data": np.zeros((200, 3, 20), np.float64)},
        {},
    ],
    ids=["name", "floats", "rank", "shape", "words", "whole", "three", "none"],
)
def test_archive_of_other_arrays(
    refuse_cluster: Refuse, features: Path, here: Path, option: str, arrays: dict[str, np.ndarray]
) -> None:
    np.savez(here / "lists.npz", **arrays)  # type: ignore[arg-type]
    refuse_cluster(features, option, here / "lists.npz", says=("lists.npz: ",))


@OPTIONS
def test_text_as_lists(refuse_cluster: Refuse, features: Path, here: Path, option: str) -> None:
    for name in ("lists.npz", "lists.npy", "lists.txt"):
        (here / name).write_text("0 1 2\n" * 200)
        refuse_cluster(features, option, here / name, says=(f"{name}: is not a readable .npz or .npy file",))


# Checkpoints


@pytest.fixture
def state(golden: Path) -> dict[str, Any]:
    """The weights of the goldens' checkpoint, by name."""
    import torch

    return dict(torch.load(golden / "dev/pse/checkpoint.pth", weights_only=True))


@pytest.fixture
def refuse_state(refuse_export: Refuse, here: Path) -> Callable[..., str]:
    """Refuse to export what ``torch.save`` made of an object."""
    import torch

    def run(saved: Any, says: tuple[str, ...]) -> str:
        torch.save(saved, here / "checkpoint.pth")
        return refuse_export(here / "checkpoint.pth", says=("checkpoint.pth: ", *says))

    return run


def test_missing_checkpoint(refuse_export: Refuse, here: Path) -> None:
    refuse_export(here / "no.pth", says=("no.pth: no such checkpoint file",))
    (here / "folder").mkdir()
    refuse_export(here / "folder", says=("folder: ",))


def test_checkpoint_of_an_unknown_system(refuse_state: Callable[..., str]) -> None:
    import torch

    other = {f"encoder.{at}.weight": torch.ones(3, 3) for at in range(6)}
    refuse_state(other, ("6 tensors", "encoder.0.weight", "known: pse-gcn"))


def test_checkpoint_that_lacks_a_tensor(refuse_state: Callable[..., str], state: dict[str, Any]) -> None:
    del state["conv2.weight"]
    refuse_state(state, ("looks like PSE-GCN with 32-d features", "conv2.weight (128, 64) is missing"))


def test_checkpoint_with_a_tensor_of_another_shape(
    refuse_state: Callable[..., str], state: dict[str, Any]
) -> None:
    state["conv2.weight"] = state["conv2.weight"][:-1]
    refuse_state(state, ("conv2.weight has shape (127, 64) instead of (128, 64)",))


def test_checkpoint_with_a_tensor_too_many(refuse_state: Callable[..., str], state: dict[str, Any]) -> None:
    state["conv3.weight"] = state["conv2.weight"]
    refuse_state(state, ("conv3.weight (128, 64) is not part of it",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_checkpoint_with_weights_that_are_no_numbers(
    refuse_state: Callable[..., str], state: dict[str, Any], value: float
) -> None:
    state["conv2.weight"][5, 5] = value
    refuse_state(state, ("conv2.weight holds NaN or infinite weights",))


def test_checkpoint_without_weights(refuse_state: Callable[..., str]) -> None:
    refuse_state({}, ("0 tensors (none)", "known: pse-gcn"))
    refuse_state({"state_dict": {}}, ("0 tensors (none)", "known: pse-gcn"))
    refuse_state({"epoch": 3, "optimizer": [1, 2]}, ("holds no state_dict (keys epoch, optimizer)",))
    refuse_state([1, 2, 3], ("holds no state_dict (list)",))


def test_the_payload_of_the_next_tests_does_run_when_it_is_unpickled(here: Path) -> None:
    pickle.loads(pickle.dumps(Payload(here / "ran")))
    assert (here / "ran").exists()


def test_checkpoint_that_wants_to_run_code_is_refused_and_does_not_run(
    refuse_state: Callable[..., str], refuse_export: Refuse, here: Path, state: dict[str, Any]
) -> None:
    for saved in (Payload(here / "ran"), {"state_dict": state, "note": Payload(here / "ran")}):
        refuse_state(saved, ("wants to import", "system", "weights only"))
        (here / "plain.pth").write_bytes(pickle.dumps(saved))
        refuse_export(here / "plain.pth", says=("plain.pth: ",))
    assert not (here / "ran").exists()


def test_a_whole_network_instead_of_its_weights(refuse_state: Callable[..., str]) -> None:
    import torch

    refuse_state(torch.nn.Linear(3, 3), ("wants to import torch.nn.modules.linear.Linear", "state_dict()"))


@pytest.mark.parametrize("content", [b"", b"weights\n" * 100, bytes(1000), b"PK\x03\x04 nothing"])
def test_a_file_that_is_no_checkpoint(refuse_export: Refuse, here: Path, content: bytes) -> None:
    (here / "checkpoint.pth").write_bytes(content)
    refuse_export(here / "checkpoint.pth", says=("checkpoint.pth: is not a",))


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.99])
def test_a_checkpoint_cut_short(refuse_export: Refuse, golden: Path, here: Path, kept: float) -> None:
    content = (golden / "dev/pse/checkpoint.pth").read_bytes()
    (here / "checkpoint.pth").write_bytes(content[: int(kept * len(content))])
    refuse_export(here / "checkpoint.pth", says=("checkpoint.pth: is not a",))


# Engines


@pytest.fixture
def copied(bundle: Path, here: Path) -> Path:
    """A copy of the bundle that a test may spoil."""
    return Path(shutil.copytree(bundle, here / "pse.onnx"))


@pytest.fixture
def edit(copied: Path) -> Callable[..., Path]:
    """Change the copy's manifest: keys that lead to a place in it, and what stands there then."""

    def run(*keys: str, to: Any) -> Path:
        file = copied / "manifest.json"
        place = manifest = json.loads(file.read_text())
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to
        file.write_text(json.dumps(manifest))
        return copied

    return run


def test_engine_of_another_width(refuse_cluster: Refuse, here: Path, few: np.ndarray) -> None:
    np.save(here / "wide.npy", np.concatenate([few, few], axis=1))
    refuse_cluster(here / "wide.npy", says=("wide.npy: expected (n, 32)", "(200, 64) float32"))


def test_no_engine(refuse_cluster: Refuse, features: Path, here: Path) -> None:
    refuse_cluster(features, engine=here / "no.onnx", says=("no.onnx: no such engine", "fcdeploy export"))
    (here / "folder").mkdir()
    refuse_cluster(features, engine=here / "folder", says=("folder: no manifest.json",))
    refuse_cluster(features, engine=features, says=("features.bin: no manifest.json",))


@pytest.mark.parametrize("name", ["../neighborhood.onnx", "/etc/hostname", "..", "sub/neighborhood.onnx", ""])
def test_manifest_that_names_a_file_elsewhere(
    refuse_cluster: Refuse, features: Path, edit: Callable[..., Path], here: Path, name: str
) -> None:
    engine = edit("passes", "neighborhood", "file", to=name)
    shutil.copy(engine / "neighborhood.onnx", here / "neighborhood.onnx")
    refuse_cluster(features, engine=engine, says=("pse.onnx", "neighborhood"))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "something else"),
        (("format_version",), "one"),
        (("feature_dim",), "wide"),
        (("feature_dim",), None),
        (("passes",), ["encode"]),
        (("passes",), {}),
        (("passes", "encode", "inputs"), 3),
        (("passes", "encode", "sha256"), None),
        (("recipe",), [1, 2]),
        (("recipe", "neighborhood", "k"), "many"),
        (("recipe", "shoe_size"), 43),
        (("precision",), 16),
        (("networks",), "checkpoint.pth"),
        (("networks", "refine", "checkpoint"), "checkpoint.pth"),
        (("networks", "refine", "widths"), {"dim": "wide"}),
        (("networks", "refine", "widths"), {"dim": 0}),
        (("networks", "refine", "widths"), {}),
        (("networks",), {}),
        (("system",), "gcn-x"),
    ],
)
def test_manifest_with_an_impossible_value(
    refuse_cluster: Refuse, features: Path, edit: Callable[..., Path], keys: tuple[str, ...], value: Any
) -> None:
    refuse_cluster(features, engine=edit(*keys, to=value), says=("pse.onnx",))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"{}"])
def test_manifest_of_garbage(refuse_cluster: Refuse, features: Path, copied: Path, content: bytes) -> None:
    (copied / "manifest.json").write_bytes(content)
    refuse_cluster(features, engine=copied, says=("manifest.json: is not a bundle's manifest",))


def test_manifest_of_a_newer_fcdeploy(
    refuse_cluster: Refuse, features: Path, edit: Callable[..., Path]
) -> None:
    engine = edit("format_version", to=FORMAT_VERSION + 1)
    says = (f"has format {FORMAT_VERSION + 1}", f"reads up to {FORMAT_VERSION}", "upgrade fcdeploy")
    refuse_cluster(features, engine=engine, says=says)


def test_manifest_of_an_older_fcdeploy(
    refuse_cluster: Refuse, features: Path, edit: Callable[..., Path]
) -> None:
    engine = edit("format_version", to=1)
    refuse_cluster(features, engine=engine, says=("has format 1, of an older fcdeploy", "export"))


@pytest.mark.parametrize("name", ["encode", "neighborhood"])
def test_changed_graph(
    refuse_cluster: Refuse, refuse: Refuse, features: Path, copied: Path, name: str
) -> None:
    content = bytearray((copied / f"{name}.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / f"{name}.onnx").write_bytes(content)
    says = (f"{name}.onnx: is not the file that the manifest was written for",)
    refuse_cluster(features, engine=copied, says=says)
    refuse("inspect", copied, says=says)


@pytest.mark.parametrize("name", ["encode", "neighborhood"])
@pytest.mark.parametrize("kept", [0, 100, 5000])
def test_graph_cut_short(
    refuse_cluster: Refuse, features: Path, edit: Callable[..., Path], copied: Path, name: str, kept: int
) -> None:
    from fcdeploy.data.digests import sha256_of

    os.truncate(copied / f"{name}.onnx", kept)
    refuse_cluster(features, engine=copied, says=(f"{name}.onnx: is not the file that",))
    edit("passes", name, "sha256", to=sha256_of(copied / f"{name}.onnx"))
    refuse_cluster(features, engine=copied, says=(f"{name}.onnx",))


def test_missing_graph(refuse_cluster: Refuse, features: Path, copied: Path) -> None:
    (copied / "encode.onnx").unlink()
    refuse_cluster(
        features, engine=copied, says=("pse.onnx: the file encode.onnx of pass encode is missing",)
    )


def test_graphs_exchanged(refuse_cluster: Refuse, features: Path, edit: Callable[..., Path]) -> None:
    """A manifest whose hashes are right but whose passes name each other's files."""
    copied = edit("precision", to="fp32")
    passes = json.loads((copied / "manifest.json").read_text())["passes"]
    for name, other in (("encode", "neighborhood"), ("neighborhood", "encode")):
        for key in ("file", "sha256"):
            edit("passes", name, key, to=passes[other][key])
    refuse_cluster(features, engine=copied, says=("(pass encode): the graph's inputs are not those",))


# Outputs


def test_output_in_a_folder_that_does_not_exist(
    refuse: Refuse, features: Path, bundle: Path, golden: Path, here: Path
) -> None:
    says = ("the folder ", "no/such does not exist", "create it or")
    refuse("cluster", features, "--engine", bundle, "-o", here / "no/such/pred.meta", says=says)
    refuse("export", "--ckpt", golden / "dev/pse/checkpoint.pth", "-o", here / "no/such/pse.onnx", says=says)


def test_output_that_is_a_folder(refuse: Refuse, features: Path, bundle: Path, here: Path) -> None:
    (here / "pred.meta").mkdir()
    refuse(
        "cluster", features, "--engine", bundle, "-o", here / "pred.meta", says=("pred.meta: is a folder",)
    )


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_export_does_not_replace_what_it_did_not_write(
    refuse: Refuse, golden: Path, bundle: Path, here: Path, kind: str
) -> None:
    output = here / "photos"
    if kind == "file":
        output.write_text("holiday")
    elif kind == "folder":
        output.mkdir()
        (output / "a.jpg").write_text("holiday")
    else:
        output.symlink_to(bundle)
    says = ("photos: exists and was not written by fcdeploy",)
    refuse("export", "--ckpt", golden / "dev/pse/checkpoint.pth", "-o", output, says=says)
    assert not output.is_symlink() or output.resolve() == bundle.resolve()


def test_output_that_is_also_an_input(
    refuse: Refuse, features: Path, bundle: Path, here: Path, few: np.ndarray, lists: np.ndarray
) -> None:
    np.save(here / "features.npy", few)
    np.save(here / "lists.npy", lists[:, 0].astype(np.int64))
    (here / "truth.meta").write_text("1\n" * 200)
    (here / "link.npy").symlink_to(here / "features.npy")
    says = ("is also an input",)
    refuse("cluster", "features.npy", "--engine", bundle, "-o", here / "features.npy", says=says)
    refuse("cluster", "features.npy", "--engine", bundle, "-o", here / "link.npy", says=says)
    for option in ("--knn", "--reranked"):
        args = ("cluster", features, "--engine", bundle, option, "lists.npy", "-o", here / "lists.npy")
        refuse(*args, says=says)
    truth = here / "truth.meta"
    refuse("cluster", features, "--engine", bundle, "--labels", truth, "-o", truth, says=says)


@pytest.mark.parametrize("name", ["pred.json", "pred.yaml", "pred", "pred.meta.gz"])
def test_output_of_an_unknown_form(
    refuse: Refuse, features: Path, bundle: Path, here: Path, name: str
) -> None:
    says = (f"{name}: ", ".meta", ".npy", ".txt")
    refuse("cluster", features, "--engine", bundle, "-o", here / name, says=says)


# Run folders


def test_run_folder_inside_a_folder_that_does_not_exist(
    refuse_cluster: Refuse, features: Path, here: Path
) -> None:
    says = ("no/run: the folder ", "does not exist", "--run-dir")
    refuse_cluster(features, "--run-dir", here / "no/run", says=says)


def test_run_folder_that_is_a_file(refuse_cluster: Refuse, features: Path, here: Path) -> None:
    (here / "run").write_text("a file")
    refuse_cluster(features, "--run-dir", here / "run", says=("run: is a file", "--run-dir"))
    refuse_cluster(features, "--run-dir", here / "run/in", says=("run/in: ",))


def test_run_folder_that_another_process_uses(refuse_cluster: Refuse, features: Path, here: Path) -> None:
    (here / "run").mkdir()
    holder = (
        "import fcntl, os, sys\n"
        "lock = open(sys.argv[1], 'a+')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "lock.write(f'{os.getpid()}\\n'); lock.flush()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", holder, str(here / "run/run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        says = ("run: another run is using this folder", f"(process {other.pid})", "wait for it")
        refuse_cluster(features, "--run-dir", here / "run", says=says)


# Recipes


@pytest.mark.parametrize(
    ("find", "replace", "says"),
    [
        ("k = 20\nhops", "kk = 20\nhops", ("unknown key 'neighborhood.kk'", "k, hops, active")),
        ("[links]", "[lynx]", ("unknown key 'lynx'", "links")),
        ("k = 20\nhops", "k = 'many'\nhops", ("neighborhood.k should be a whole number", "'many'")),
        ("k = 20\nhops", "k = 20.0\nhops", ("neighborhood.k should be a whole number", "20.0")),
        ("k = 20\nhops", "k = true\nhops", ("neighborhood.k should be a whole number", "True")),
        ("tau = 0.8", "tau = true", ("links.tau should be a number", "True")),
        ("tau = 0.8", "tau = nan", ("links.tau = nan",)),
        ("tau = 0.8", "tau = 80", ("links.tau = 80",)),
        ("[20, 5]", "20", ("neighborhood.hops should be a list of 2 values",)),
        ("[20, 5]", "[20, 5, 2]", ("neighborhood.hops should be a list of 2 values",)),
        ("[20, 5]", "[21, 5]", ("hops = [21, 5] reaches beyond", "k = 20")),
        ("[20, 5]", "[20, 20]", ("hops = [20, 20] reaches beyond", "k = 20")),
        ("[20, 5]", "[0, 5]", ("must be positive",)),
        ("active = 10", "active = 21", ("active = 21 is more than", "k = 20")),
        ("feature_dim = 32", "feature_dim = -32", ("must be positive",)),
        ('system = "pse-gcn"', "", ("no key 'system'", "pse-gcn")),
        ('system = "pse-gcn"', 'system = "gcn-x"', ("'gcn-x' is not a known system", "known: pse-gcn")),
        ('system = "pse-gcn"', "system = 5", ("'5' is not a known system",)),
        ("[links]", "[links", ("is not valid TOML", "line 9")),
        ("[links]", "[neighborhood]", ("is not valid TOML",)),
        ("[neighborhood]", "neighborhood = 3\n[tolerance]", ("neighborhood should be a table",)),
    ],
)
def test_recipe_that_cannot_be_used(
    refuse_export: Refuse,
    golden: Path,
    here: Path,
    recipe_text: str,
    find: str,
    replace: str,
    says: tuple[str, ...],
) -> None:
    assert find in recipe_text
    if find.startswith("[neighborhood]"):
        recipe_text = recipe_text.split("[links]")[0]
        recipe_text = re.sub(r"(k|hops|active) = .*\n", "", recipe_text)
    (here / "mine.toml").write_text(recipe_text.replace(find, replace))
    checkpoint = golden / "dev/pse/checkpoint.pth"
    refuse_export(checkpoint, "--recipe", here / "mine.toml", says=("mine.toml: ", *says))


def test_recipe_that_is_no_text(refuse_export: Refuse, golden: Path, here: Path) -> None:
    (here / "mine.toml").write_bytes(b"\xff\xfe\x00")
    checkpoint = golden / "dev/pse/checkpoint.pth"
    refuse_export(checkpoint, "--recipe", here / "mine.toml", says=("mine.toml: is not a text file",))


def test_unknown_recipe(refuse_export: Refuse, refuse: Refuse, golden: Path) -> None:
    says = ("pse-gcn-ms2m", "pse-gcn-ms1m")
    refuse_export(golden / "dev/pse/checkpoint.pth", "--recipe", "pse-gcn-ms2m", says=says)
    refuse("recipe", "pse-gcn-ms2m", says=says)


def test_recipe_of_another_width_than_the_checkpoint(refuse_export: Refuse, golden: Path) -> None:
    checkpoint = golden / "dev/pse/checkpoint.pth"
    says = ("checkpoint.pth: the recipe is for 256-d", "PSE-GCN's for 32-d")
    refuse_export(checkpoint, "--recipe", "pse-gcn-ms1m", says=says)


# The command line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--hops", "many"), ("--hops", "'many' is not two whole numbers", "80,10")),
        (("--hops", "80"), ("'80' is not two whole numbers",)),
        (("--hops", "80,10,5"), ("'80,10,5' is not two whole numbers",)),
        (("--hops", "8.0,1"), ("'8.0,1' is not two whole numbers",)),
        (("--hops", "21,5"), ("hops = [21, 5] reaches beyond", "k = 20")),
        (("--hops", "-1,5"), ("must be positive",)),
        (("--k", "0"), ("--k", "0 is not in the range x>=1")),
        (("--k", "few"), ("--k", "'few' is not a valid whole number")),
        (("--tau", "1.5"), ("--tau", "1.5")),
        (("--tau", "nan"), ("nan",)),
        (("--dim", "0"), ("--dim",)),
        (("--threads", "-1"), ("--threads",)),
        (("--batch", "0"), ("--batch",)),
        (("--inference", "quick"), ("--inference", "exact")),
        (("--knnn", "exact"), ("--knnn", "--knn")),
        (("more.bin",), ("more.bin",)),
    ],
)
def test_option_that_cannot_be_used(
    refuse_cluster: Refuse, features: Path, options: tuple[str, ...], says: tuple[str, ...]
) -> None:
    refuse_cluster(features, *options, says=says)


def test_an_output_that_is_a_pipe_is_left_as_it_is(
    refuse_cluster: Refuse, features: Path, here: Path
) -> None:
    os.mkfifo(here / "table.csv")
    refuse_cluster(features, "--table", here / "table.csv", says=("table.csv: is a pipe or a device",))


def test_no_engine_given(refuse: Refuse, features: Path) -> None:
    refuse("cluster", features, says=("--engine",))


def test_mistyped_verb(refuse: Refuse) -> None:
    refuse("clutser", "features.bin", says=("clutser", "known commands: ", "cluster", "export"))


# The same in processes of their own: what a shell sees


def fcdeploy_process(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fcdeploy", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_a_process_says_one_sentence_and_exits_with_2(here: Path, bundle: Path, few: np.ndarray) -> None:
    few[3] = np.nan
    few.tofile(here / "broken.bin")
    before = everything_in(here)
    for args, says in (
        (("cluster", "broken.bin", "--engine", bundle), "1 of 200 rows"),
        (("cluster", "nowhere.bin", "--engine", bundle), "nowhere.bin: no such file"),
        (("clutser",), "known commands"),
    ):
        done = fcdeploy_process(*args, cwd=here)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in sentence_of(done.stderr)
        assert everything_in(here) == before


def test_lists_that_lie_in_the_run_folder_itself(
    refuse_cluster: Refuse, features: Path, bundle: Path, here: Path
) -> None:
    """The folder's own lists would be written over while they are read."""
    (here / "run").mkdir()
    lists = np.stack([np.roll(np.arange(200), -i)[:20] for i in range(200)])
    (here / "run/knn").mkdir()
    np.savez(here / "run/knn.npz", ids=lists)
    np.save(here / "run/knn/ids.npy", lists)
    for option, name in itertools.product(("--knn", "--reranked"), ("knn.npz", "knn")):
        args = (option, here / "run" / name, "--run-dir", here / "run")
        refuse_cluster(features, *args, says=(f"{option} ", "lies in the run folder", "leave"))


def test_of_two_processes_with_one_run_folder_one_is_refused(
    here: Path, bundle: Path, few: np.ndarray
) -> None:
    """The first only holds the folder; the second is a whole command."""
    few.tofile(here / "features.bin")
    (here / "run").mkdir()
    code = (
        "import sys\n"
        "from fcdeploy.run.folder import RunFolder\n"
        "with RunFolder(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(here / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        args = ("cluster", "features.bin", "--engine", bundle, "--run-dir", "run")
        done = fcdeploy_process(*args, cwd=here)
        assert done.returncode == 2
        assert f"(process {first.pid})" in sentence_of(done.stderr)
        assert not (here / "pred_labels.meta").exists()
