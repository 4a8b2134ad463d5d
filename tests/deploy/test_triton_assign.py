"""The model that assigns faces in Triton's Python backend: its configuration, and its code against a stand-in.

The stand-in has what the model uses of ``triton_python_backend_utils``; with NVIDIA's own server the model is run by
hand (docs/how-to/triton.md).
"""

import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton_proto
from system_cases import CASES

import fcdeploy
from fcdeploy.deploy.triton_assign import write_assign_model
from fcdeploy.errors import InputError

pytest.importorskip("tritonclient")


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    @staticmethod
    def from_dlpack(name: str, array: Any) -> "Tensor":
        return Tensor(name, np.from_dlpack(array))

    def __dlpack__(self, **how: Any) -> Any:
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def stand_in() -> types.ModuleType:
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = lambda text: text
    module.get_input_tensor_by_name = lambda request, name: request[name]
    module.InferenceResponse = lambda output_tensors=(), error=None: (
        {tensor.name: tensor.array for tensor in output_tensors},
        error,
    )
    return module


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    rng = np.random.default_rng(0)
    people = np.repeat(rng.standard_normal((15, 32)), 10, axis=0)
    rows = (people + 0.45 * rng.standard_normal(people.shape)).astype("f4")
    return rows[rng.permutation(len(rows))]


@pytest.fixture(scope="module")
def run(exported: Any, faces: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "run"
    fcdeploy.cluster(faces[20:], engine=exported(CASES[0]).path, run_dir=folder)
    return folder


def test_the_model_answers_as_assign_does(
    run: Path, faces: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_assign_model(run, tmp_path / "models")
    config = triton_proto.parse((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("pse-gcn_assign", "python", 0)
    assert [(one.name, list(one.dims)) for one in config.input] == [("embeddings", [-1, 32])]
    assert [one.name for one in config.output] == ["cluster", "confidence", "margin"]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in())
    spec: Any = importlib.util.spec_from_file_location("model", folder / "1/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    parameters = {name: {"string_value": one.string_value} for name, one in config.parameters.items()}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    bad = np.full((2, 32), np.nan, np.float32)
    asked = [{"embeddings": Tensor("embeddings", rows)} for rows in (faces[:20], bad, faces[:1])]
    (found, nothing), (_, error), (one, _) = model.execute(asked)
    model.finalize()
    wanted = fcdeploy.assign(faces[:20], run_dir=run)
    assert (found["cluster"].dtype, nothing) == (np.int64, None)
    assert np.array_equal(found["cluster"], wanted.labels)
    assert len(set(wanted.labels.tolist())) > 3
    np.testing.assert_array_equal(found["confidence"], wanted.similarity)
    np.testing.assert_array_equal(found["margin"], wanted.margin)
    assert "holds NaN" in error
    assert one["cluster"] == wanted.labels[:1]


def test_it_stands_beside_an_engines_models_and_is_replaced_by_itself_only(
    run: Path, exported: Any, tmp_path: Path
) -> None:
    from fcdeploy.deploy.triton import write_model_repository

    models = tmp_path / "models"
    write_model_repository(exported(CASES[0]), models)
    folder = write_assign_model(run, models)
    assert write_assign_model(run, models) == folder
    assert {"pse-gcn_encode", "pse-gcn_assign"} <= {path.name for path in models.iterdir()}
    (folder / "config.pbtxt").write_text("name: mine")
    with pytest.raises(InputError, match="was changed since it was written"):
        write_assign_model(run, models)
    assert (folder / "config.pbtxt").read_text() == "name: mine"


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is not a run folder"):
        write_assign_model(tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ['with"quote', "with\\backslash"])
def test_a_path_that_no_configuration_can_hold_is_refused(
    run: Path, exported: Any, tmp_path: Path, name: str
) -> None:
    """Of the run folder, and of the engine."""
    folder, engine = (
        shutil.copytree(path, tmp_path / name / path.name) for path in (run, exported(CASES[0]).path)
    )
    for run_dir, at in ((folder, None), (run, engine)):
        with pytest.raises(InputError, match="a character that a model configuration cannot hold"):
            write_assign_model(run_dir, tmp_path / "models", engine=at)
    assert not (tmp_path / "models").exists()
