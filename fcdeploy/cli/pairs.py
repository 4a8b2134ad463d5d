"""``fcdeploy pairs``."""

from pathlib import Path

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import quiet_option, seed_option
from fcdeploy.cli.types import PathType, Whole
from fcdeploy.errors import counted


@click.command("pairs", cls=grouped())
@click.argument("run_dir", type=PathType, metavar="DIR")
@click.option("-n", "--count", type=Whole(min=1), default=200, show_default=True, help="Number of pairs.")
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("pairs.csv"),
    show_default=True,
    help="Table to write (.csv, .tsv), with columns a, b, answer, and those that `fcdeploy tune --pairs` needs.",
)
@seed_option()
@quiet_option
def command(run_dir: Path, count: int, output: Path, seed: int, quiet: bool) -> None:
    """Select the pairs of faces that are most worth checking by a person.

    DIR is the --run-dir of a finished `fcdeploy cluster`. Write "same" or "different" into the column answer, or leave
    it empty where you cannot tell. Then `fcdeploy tune --pairs` chooses the engine's threshold by the answers, and
    `fcdeploy cluster --pairs` respects them. Faces are given by row number from 0 (line number, for a list of images);
    if the run has ids (--id-column), or was updated, by their ids.

    \b
    Example:
      fcdeploy cluster features.bin --engine pse.onnx --run-dir run -o labels.meta
      fcdeploy pairs run -n 300 -o pairs.csv
      fcdeploy tune --engine pse.onnx --features features.bin --pairs pairs.csv
    """
    from fcdeploy.cli.outputs import check_default_output
    from fcdeploy.runtime.pairs import check_pairs_path, pairs

    check_pairs_path(output)
    check_default_output("output", output)
    drawn = pairs(run_dir, count, output=output, seed=seed)
    if not quiet:
        inside = int(drawn.together.sum())
        click.echo(
            f"{counted(len(drawn.ids), 'pair')} in {output}: {inside:,} within a cluster, {len(drawn.ids) - inside:,} "
            "between clusters"
        )
