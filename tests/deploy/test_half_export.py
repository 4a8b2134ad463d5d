"""Half precision asked for wrongly, and refused where it moves too many faces."""

import sys

import numpy as np
import pytest

from fcdeploy.cli import main
from fcdeploy.deploy import onnx_from_checkpoint
from fcdeploy.engine.manifest import Agreement, AgreementRun
from fcdeploy.errors import InputError, ParityError

pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--agreement", "features.bin"], "--agreement is for --precision fp16"),
        (["--keep", "similarities"], "--keep is for --precision fp16"),
        (["--precision", "fp16", "--agreement", "missing.bin"], "missing.bin: no such file"),
        (["--precision", "fp16", "--agreement", "narrow.npy"], r"expected (n, 32) features, found (9, 16)"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    options, words, golden, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    np.save("narrow.npy", np.ones((9, 16), dtype=np.float32))
    recipe = tmp_path / "golden.toml"
    recipe.write_text('system = "sepfl"\nfeature_dim = 32\n\n[links]\nk = 20\n')
    checkpoint = golden / "dev/sepfl/checkpoint.pth"
    args = ["export", "--ckpt", checkpoint, "-o", "x.onnx", "--recipe", recipe, *options]
    monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.toml", "narrow.npy"]


@pytest.mark.parametrize("given", [{"precision": "int8"}, {"precision": "fp16", "keep": "all"}], ids=str)
def test_python_gets_the_same_sentence(given, golden):
    with pytest.raises(InputError, match="is neither"):
        onnx_from_checkpoint.export_checkpoint(golden / "dev/sepfl/checkpoint.pth", **given)


def test_a_bundle_that_moves_too_many_faces_is_not_written_unless_allowed(monkeypatch):
    run = AgreementRun("exact", {"tau": 0.8}, 0.5, (10, 12))
    measured = Agreement(100, "features.bin", (run,))
    monkeypatch.setattr(onnx_from_checkpoint, "measure_agreement", lambda *args: measured)
    monkeypatch.setattr(onnx_from_checkpoint, "read_bundle", lambda path: path)
    with pytest.raises(
        ParityError, match=r"at least 50.00% of 100 faces .* \(exact, tau = 0.8\), fewer than 90%"
    ):
        onnx_from_checkpoint._measured_agreement("full", "half", None, False, "x.pth")
    assert onnx_from_checkpoint._measured_agreement("full", "half", None, True, "x.pth") is measured
