"""Bundles of the golden checkpoints, each exported once."""

import pytest
from build_ranges import GROUPS, RANGES


@pytest.fixture(scope="session")
def exported(golden, tmp_path_factory):
    """Give a case of ``test_every_system`` as a bundle, exported with its recipe and the options of an export."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
    from fcdeploy.deploy.recipe import load_recipe

    bundles = {}

    def export(case, **options):
        key = (case.name, *sorted(options.items()))
        if key not in bundles:
            folder = tmp_path_factory.mktemp(case.name)
            recipe = folder / "golden.toml"
            recipe.write_text(f'system = "{case.name}"\nfeature_dim = 32\n\n{case.recipe}')
            checkpoint = golden / f"dev/{case.checkpoint}/checkpoint.pth"
            bundles[key] = export_checkpoint(
                checkpoint, folder / "bundle.onnx", load_recipe(recipe), **options
            )[0]
        return bundles[key]

    return export


@pytest.fixture(scope="session")
def pse_bundle(golden, tmp_path_factory):
    """The golden checkpoint's bundle and how exact its export says it is."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    path = tmp_path_factory.mktemp("bundle") / "pse-gcn.onnx"
    return export_checkpoint(golden / "dev/pse/checkpoint.pth", path)


@pytest.fixture(scope="session")
def build_profile(tmp_path_factory):
    """A build profile for compute capability 8.6 with RANGES, and GROUPS of neighborhoods by size."""
    lines = ["[target]", 'flavour = "tensorrt-rtx"', 'compute_capability = "8.6"', "[axes]"]
    lines += [f"{axis} = {list(three)}" for axis, three in RANGES.items()]
    for group in GROUPS:
        lines += ["[[groups]]", *(f"{axis} = {list(three)}" for axis, three in group.items())]
    path = tmp_path_factory.mktemp("profile") / "small.toml"
    path.write_text("\n".join(lines))
    return path
