"""What an engine may do to a run: find no memory, or give what is no number."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import load_artifact
from system_cases import CASES

import fcdeploy
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine, run_error
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.lists import ListsFile
from fcdeploy.run.blocks import LocalBlocks
from fcdeploy.run.stage import Stage

N = 120


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """120 faces of 12 people, (120, 32) float32."""
    rng = np.random.default_rng(3)
    people = np.repeat(rng.standard_normal((12, 32)), N // 12, axis=0)
    return (people + 0.45 * rng.standard_normal(people.shape)).astype(np.float32)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def bundle(case: Any, exported: Any, cut_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    whole = exported(case)
    if not case.networks:
        return whole
    return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx")


def passes_of(case: Any, bundle: Bundle) -> list[tuple[str, str]]:
    """The passes of a bundle, each with a way of inference that uses it."""
    from fcdeploy.systems import get_system

    ways = get_system(case.name).inferences
    found = []
    for name in bundle.passes:
        way = next((way for way, used in ways.items() if name in used), "exact")
        found.append((name, way))
    return found


@pytest.mark.parametrize("value", [np.nan, pytest.param(np.inf, marks=pytest.mark.faults)])
def test_whichever_pass_gives_no_number_the_face_is_named_and_nothing_linked(
    case: Any, bundle: Bundle, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float
) -> None:
    """NaN or infinity, in the last number of the first row of each output in turn; whatever follows might hide it."""
    straight = OnnxRuntimeEngine.run
    tried = 0
    for name, way in passes_of(case, bundle):
        for output in [tensor.name for tensor in bundle.passes[name].outputs]:
            broken = []

            def run(self: Any, feeds: Any, name: str, output: str, value: float, broken: list[int]) -> Any:
                outputs = straight(self, feeds)
                if self.spec.name == name and not broken:
                    broken.append(1)
                    outputs[output] = np.array(outputs[output])
                    outputs[output][(0, *(-1,) * (outputs[output].ndim - 1))] = value
                return outputs

            changed = functools.partialmethod(run, name=name, output=output, value=value, broken=broken)
            monkeypatch.setattr(OnnxRuntimeEngine, "run", changed)
            folder = tmp_path / f"{name}-{output}-{value}"
            said = ""
            try:
                fcdeploy.cluster(rows, engine=bundle.path, inference=way, run_dir=folder)
            except InputError:
                raise
            except FcdeployError as error:
                said = str(error)
            if not broken:  # a pass of another way, which is not asked for
                assert (case.name, name) == ("nsr-fc", "rescore_neighbors")
                continue
            assert "not finite" in said, f"{name}: {output} was {value}, and nobody noticed"
            assert "rows " in said or "made-up row" in said, said
            assert not (folder / "links").exists()
            tried += 1
    assert tried >= len(bundle.passes) - 1
    monkeypatch.setattr(OnnxRuntimeEngine, "run", straight)


@pytest.mark.parametrize("rows_that_fit", [40, pytest.param(9, marks=pytest.mark.faults)])
def test_a_block_for_which_there_is_no_memory_is_made_in_halves(
    case: Any, bundle: Bundle, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows_that_fit: int
) -> None:
    """An engine that has room for 40 faces at a time, or 9: the labels are those of one that has room for all."""
    wanted = fcdeploy.cluster(rows, engine=bundle.path)
    refused: list[str] = []
    committed: dict[str, list[int]] = {}
    compute = LocalBlocks.compute

    def limited(self: LocalBlocks, stage: Stage, *args: Any) -> None:
        def within(faces: np.ndarray, *resources: Any) -> Any:
            if len(faces) > max(rows_that_fit, stage.whole):
                refused.append(stage.name)
                raise MemoryError("no room")
            committed.setdefault(stage.name, []).append(len(faces))
            return stage.block(faces, *resources)

        compute(self, dataclasses.replace(stage, block=within), *args)

    monkeypatch.setattr(LocalBlocks, "compute", limited)
    assert np.array_equal(fcdeploy.cluster(rows, engine=bundle.path), wanted)
    assert refused
    assert all(sum(sizes) >= 1 and max(sizes) <= max(rows_that_fit, 50) for sizes in committed.values())
    assert len(committed["knn"]) >= N // rows_that_fit


def test_where_one_face_does_not_fit_there_is_one_sentence(
    case: Any, bundle: Bundle, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(self: Any, feeds: Any) -> Any:
        raise MemoryError("no room for a batch")

    monkeypatch.setattr(OnnxRuntimeEngine, "run", full)
    with pytest.raises((FcdeployError, MemoryError), match=r"no memory for|no room"):
        fcdeploy.cluster(rows, engine=bundle.path, run_dir=tmp_path / "run")
    assert not (tmp_path / "run/links").exists()


def test_what_runtimes_say_of_full_memory_is_told_from_other_errors() -> None:
    for text in (
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 4",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
    ):
        assert isinstance(run_error(RuntimeError(text), "g.onnx"), MemoryError)
    other = run_error(RuntimeError("Got invalid dimensions for input: x\nmore"), "g.onnx")
    assert isinstance(other, FcdeployError)
    assert str(other).endswith("(Got invalid dimensions for input: x).")


@pytest.mark.parametrize("case", [case for case in CASES if case.name == "gcn-d"], indirect=True, ids=str)
def test_lists_of_a_file_are_read_in_halves_too(
    bundle: Bundle, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A reader that has raised is begun again behind what was committed; one system is enough."""
    fcdeploy.cluster(rows, engine=bundle.path, run_dir=tmp_path / "run")
    np.savez(tmp_path / "lists.npz", **load_artifact(tmp_path / "run/knn"))
    wanted = fcdeploy.cluster(rows, engine=bundle.path, knn=tmp_path / "lists.npz")
    blocks, asked = ListsFile.blocks, []

    def failing(self: Any, size: int, used: Any = None) -> Any:
        for block in blocks(self, size, used):
            asked.append(1)
            if len(asked) in (1, 4):
                raise MemoryError("no room")
            yield block

    monkeypatch.setattr(ListsFile, "blocks", failing)
    assert np.array_equal(fcdeploy.cluster(rows, engine=bundle.path, knn=tmp_path / "lists.npz"), wanted)
    assert len(asked) >= 2
