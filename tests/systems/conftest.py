"""The bundle of the golden PSE-GCN checkpoint, exported once."""

import pytest


@pytest.fixture(scope="session")
def pse_bundle(golden, tmp_path_factory):
    """The golden checkpoint's bundle and how exact its export says it is."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    path = tmp_path_factory.mktemp("bundle") / "pse-gcn.onnx"
    return export_checkpoint(golden / "dev/pse/checkpoint.pth", path)
