"""Where the goldens and the larger data are found, and the bundles of the golden checkpoints, each exported once."""

import dataclasses
import fcntl
import hashlib
import json
import lzma
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import Command, calling
from hypothesis import settings
from operators import parse_each_once
from system_cases import CASES

import fcdeploy  # noqa: F401 - before anything imports ONNX Runtime, whose telemetry it turns off

HERE = Path(__file__).parent
# Tests run in as many processes as there are cores: threads that wait should leave the core to the other process.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if threading.current_thread() is threading.main_thread():
    # A shell's background job ignores Ctrl-C, and so would every process that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise, of nohup
SHARED = HERE.parent.parent / "shared"
# Whether the tests pass depends on the code alone; `make test-properties` draws examples not seen before.
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False)
settings.load_profile("same")


@pytest.fixture(name="fcdeploy")
def call_fcdeploy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call ``fcdeploy ARGS`` in this process: its exit code, stdout and stderr."""
    return calling(monkeypatch, capsys)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The goldens that are part of the repository."""
    return HERE / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of whole golden sets and larger data; tests that need it are skipped in a bare clone."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the whole golden sets are not beside this clone")
    return SHARED


@pytest.fixture(scope="session")
def checkpoint(golden, tmp_path_factory):
    """Give the path of a golden checkpoint, unpacked where it is packed."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path_of(name: str) -> Path:
        path = golden / "dev" / name
        if path.suffix != ".xz":
            return path
        unpacked = folder / path.stem
        if not unpacked.exists():
            unpacked.write_bytes(lzma.decompress(path.read_bytes()))
        return unpacked

    return path_of


@pytest.fixture(scope="session", autouse=True)
def operators_parsed_once():
    parse_each_once()


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """Give a case as a bundle, exported by the command with its recipe and the options of an export.

    case: name, checkpoints and recipe of a system, and dim where features are not 32-d. Beside the bundle lie
    golden.toml and export.txt, what the command printed.
    """
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from fcdeploy.cli import cli
    from fcdeploy.engine.bundle import read_bundle

    # Tests may run in several processes, which share what one of them has exported.
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    bundles = {}

    def write(case, options, folder):
        recipe = folder / "golden.toml"
        recipe.write_text(
            f'system = "{case.name}"\nfeature_dim = {getattr(case, "dim", 32)}\n\n{case.recipe}'
        )
        args = [word for name in case.checkpoints for word in ("--ckpt", str(checkpoint(name)))]
        args += [word for name, value in options.items() for word in (f"--{name}", value)]
        args += ["-o", str(folder / "bundle.onnx"), "--recipe", str(recipe)]
        done = CliRunner().invoke(cli, ["export", *args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        (folder / "export.txt").write_text(done.output)

    def export(case, **options):
        key = (case.name, case.checkpoints, case.recipe, getattr(case, "dim", 32), *sorted(options.items()))
        if key not in bundles:
            folder = root / f"{case.name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
            with open(f"{folder}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / "export.txt").exists():
                    folder.mkdir(exist_ok=True)
                    write(case, options, folder)
            bundles[key] = read_bundle(folder / "bundle.onnx")
        return bundles[key]

    return export


@pytest.fixture(scope="session")
def pse_bundle(exported):
    """The bundle of PSE-GCN's golden checkpoint with the settings of the goldens; not to be written to."""
    return exported(CASES[0])


@pytest.fixture(scope="session")
def cut_bundle():
    """Write the part of a bundle that some of its networks would have been exported to alone."""
    from fcdeploy.engine.bundle import Bundle
    from fcdeploy.systems import get_system

    def cut(bundle: Bundle, networks: tuple[str, ...], folder: Path, **recipe) -> Bundle:
        weights = {name: widths for name, widths in bundle.weights.items() if name in networks}
        passes = get_system(bundle.system).passes(weights)
        manifest = json.loads(json.dumps(bundle.manifest))
        for kind, kept in (("networks", weights), ("passes", passes)):
            manifest[kind] = {name: fields for name, fields in manifest[kind].items() if name in kept}
        for table, values in recipe.items():
            manifest["recipe"][table] |= values
        folder.mkdir()
        for fields in manifest["passes"].values():
            shutil.copyfile(bundle.path / fields["file"], folder / fields["file"])
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return dataclasses.replace(bundle, path=folder, manifest=manifest)

    return cut
