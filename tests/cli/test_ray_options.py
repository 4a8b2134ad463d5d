"""What is wrong with --ray is said before anything is connected to."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import fcdeploy
from fcdeploy.errors import InputError, MissingDependencyError
from fcdeploy.run import fingerprint


def test_without_a_run_folder_it_is_one_sentence(fcdeploy, bundle, few, tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", few)
    outcome = fcdeploy(
        "cluster", tmp_path / "f.npy", "--engine", bundle, "--ray", "auto", "-o", tmp_path / "x.meta"
    )
    assert outcome.code == 2
    assert "--ray auto: workers need a shared folder; give --run-dir DIR" in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"f.npy"}


@pytest.mark.parametrize("address", ["local:0", "local:many", "head", "ray://head:10001", "local:-1"])
def test_an_address_that_is_none_is_one_sentence(bundle, few, tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"ray = {address}: give"):
        fcdeploy.cluster(few, engine=bundle, run_dir=tmp_path / "run", ray=address)
    assert not (tmp_path / "run").exists()


def test_without_ray_it_says_how_to_install_it(bundle, few, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fcdeploy\[ray\]'"):
        fcdeploy.cluster(few, engine=bundle, run_dir=tmp_path / "run", ray="local:2")


@pytest.mark.parametrize(("name", "value"), [("ray_cpus", 0), ("ray_cpus", -1), ("ray_gpus", -0.5)])
def test_cpus_and_gpus_are_shares_that_can_be(bundle, few, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} = .*should be"):
        fcdeploy.cluster(few, engine=bundle, run_dir=tmp_path / "run", ray="local:2", **{name: value})


def test_estimate_tells_what_workers_take(fcdeploy, bundle, golden: Path) -> None:
    """With many workers there is left what is not shared out, and what they write is taken in."""
    line = ("estimate", golden / "dev/data/features.bin", "--engine", bundle)
    found = json.loads(fcdeploy(*line, "--workers", 2, "--json").out)
    total, shared = found["seconds"]["total"], sum(found["shared_seconds"].values())
    assert found["workers"] == 2
    assert 0 < shared < total
    assert found["elapsed_seconds"] >= total - shared / 2 - 1e-9
    assert found["scratch_bytes_per_machine"] == sum(one["bytes"] for one in found["files"].values())
    assert "with 1,000 workers: about" in fcdeploy(*line, "--workers", 1000).out


def test_differences_are_named_and_what_is_the_same_is_not(tmp_path: Path) -> None:
    own = {"numpy": "2.1", "numba": "0.61", "instructions": "avx2 fma amx_int8", "provider": "CPU"}
    assert fingerprint.differences(own, dict(own)) == []
    other = {"numpy": "2.0", "instructions": "avx2 avx512f", "provider": "CPU", "extra": "1"}
    assert fingerprint.differences(own, other) == [
        "numpy 2.0 instead of 2.1",
        "numba missing instead of 0.61",
        "a processor without fma amx_int8 and with avx512f",
        "extra 1 instead of none",
    ]


def test_instructions_are_those_that_decide_how_sums_are_rounded(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor : 0\nflags : fpu avx2 fma sse4_2 amx_int8 hypervisor\n\nprocessor : 1\nflags : fpu\n"
    )
    assert fingerprint.instructions(info) == ["sse4_2", "fma", "avx2", "amx_int8"]
    info.write_text("processor : 0\nFeatures : fp asimd sve crc32\n")
    assert fingerprint.instructions(info) == ["asimd", "sve"]
    assert fingerprint.instructions(tmp_path / "none") == []
