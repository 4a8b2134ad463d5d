"""The demo's engines beside methods without a network on the demo's faces, at all thresholds: what the pictures show.

No network was trained on people of the demo, and no setting of the engines was chosen on their faces; what is called
best here is chosen on them. Curves are written with every value that was tried.

    python benchmarks/compare_demo.py
    python benchmarks/compare_demo.py --compared compare.json   # what `fcdeploy compare -o` has written of the same
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from report import RESULTS, write_report

import fcdeploy
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.training.comparison import comparison_as_dict
from fcdeploy.training.tune import describe_values

DEMO = Path(__file__).parent / "demo"
RECIPES = DEMO.parent.parent / "export"
ENGINES = {"pse-gcn-demo": ("pse-gcn-128.pth",), "lce-pcenet-demo": ("lce-128.pth", "pce-128.pth")}


@click.command()
@click.option("--compared", type=click.Path(path_type=Path), help="Written by `fcdeploy compare -o`.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(compared: Path | None, folder: Path) -> None:
    """Compare, or take what was compared."""
    found = compare_engines() if compared is None else json.loads(compared.read_text())
    for row in found["rows"]:
        row["engine"] = None if row["engine"] is None else Path(row["engine"]).name
    rows = [
        {"method": row["name"], **figures(row["best"]), "seconds": row["seconds"]} for row in found["rows"]
    ]
    write_report("compare_demo", rows, {"compared": found}, folder)


def compare_engines() -> dict[str, Any]:
    """Export the demo's checkpoints and compare them; returns what ``fcdeploy compare --json`` prints."""
    with tempfile.TemporaryDirectory() as scratch:
        bundles = []
        for recipe, checkpoints in ENGINES.items():
            paths = [DEMO / name for name in checkpoints]
            bundle, _ = export_checkpoint(paths, Path(scratch) / recipe, str(RECIPES / f"{recipe}.toml"))
            bundles.append(bundle.path)
        found = fcdeploy.compare(DEMO / "features.bin", DEMO / "labels.meta", engines=bundles, progress=True)
        return comparison_as_dict(found)


def figures(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings and both F of a trial."""
    values = describe_values(trial["values"])
    return {"settings": values, "pairwise F": trial["pairwise"]["f"], "BCubed F": trial["bcubed"]["f"]}


if __name__ == "__main__":
    main()
