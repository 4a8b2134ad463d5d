"""``fcdeploy assign``."""

from dataclasses import replace
from pathlib import Path

import click

from fcdeploy.cli.features import column_option, id_column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import moved_engine_option, no_summary_option
from fcdeploy.cli.types import PathType
from fcdeploy.errors import counted

GROUPS = {
    "Input": ("run_dir", "engine", "column", "id_column"),
    "Output": ("output", "unmatched", "quiet"),
    "Machine": ("threads", "memory", "device"),
    "Many machines": ("ray", "ray_cpus", "ray_gpus", "strict", "scratch"),
}

RAY = (
    "Assign on a Ray cluster: the one that runs here (auto), the one at an address, or N workers on this machine. "
    "FEATURES, the run folder and OUTPUT must be in folders that all machines see."
)


@click.command("assign", cls=grouped(GROUPS))
@click.argument("features", type=PathType)
@click.option(
    "--run-dir", required=True, type=PathType, help="Folder of a finished `fcdeploy cluster --run-dir`."
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("assigned.csv"),
    show_default=True,
    help="Table to write (.csv, .tsv, .parquet), with columns id, cluster, similarity, margin.",
)
@click.option(
    "--unmatched",
    type=click.Choice(["-1", "singleton"]),
    default="-1",
    show_default=True,
    help="Unassigned faces: label -1, or a new cluster of their own (singleton).",
)
@moved_engine_option
@column_option
@id_column_option
@run_option("threads")
@run_option("memory")
@run_option("device")
@run_option("ray", help=RAY)
@run_option("ray_cpus")
@run_option("ray_gpus")
@run_option("strict")
@run_option("scratch", help="Folder on each worker's own disk for temporary files.")
@no_summary_option
def command(
    features: Path,
    run_dir: Path,
    output: Path,
    unmatched: str,
    engine: Path | None,
    column: str | None,
    id_column: str | None,
    threads: int,
    memory: int,
    ray: str | None,
    ray_cpus: float | None,
    ray_gpus: float,
    strict: bool,
    scratch: Path | None,
    device: str | None,
    quiet: bool,
) -> None:
    """Assign new faces to the clusters of a finished run.

    Each new face is linked to the stored faces by the system's own rule, and gets the label of its cluster in that run.
    The run folder is never changed. As with hdbscan's approximate_predict, clusters are not necessarily those that
    clustering all faces together would give; `fcdeploy update` adds faces to the run itself.

    \b
    Example:
      fcdeploy cluster features.bin --engine pse.onnx --run-dir run -o pred_labels.meta
      fcdeploy assign new.bin --run-dir run -o assigned.csv
    """
    import numpy as np

    from fcdeploy.cli.outputs import check_default_output
    from fcdeploy.data.columns import check_table_path, write_columns
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.run.options import Options
    from fcdeploy.runtime.assigning import assign_features
    from fcdeploy.runtime.embed import part_of
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.runtime.stored import read_state

    check_table_path(output)
    check_default_output("output", output)
    check_not_an_input(output, (features,))
    state = read_state(run_dir)
    opened = open_and_tell(
        features, None, width=state.dim, column=column, id_column=id_column, output=output, quiet=quiet
    )
    options = Options(
        ray=ray,
        ray_cpus=ray_cpus,
        ray_gpus=ray_gpus,
        strict=strict,
        scratch=scratch,
        threads=threads,
        memory=memory,
    )
    part = part_of(output)
    with resumable(f"the same command continues from {part}" if ray else ""), sigbus_guard():
        found = assign_features(
            opened,
            run_dir,
            engine=engine,
            unmatched=unmatched,
            options=replace(options, device=device),
            part=part,
            quiet=quiet,
        )
    ids = np.arange(opened.n) if opened.ids is None else opened.ids
    columns = {"id": ids, "cluster": found.labels, "similarity": found.similarity, "margin": found.margin}
    write_columns(output, columns)
    if not quiet:
        others = "each in a new one" if unmatched == "singleton" else "in none (-1)"
        click.echo(
            f"{output}: {found.matched:,} of {counted(opened.n, 'face')} in stored clusters, the others {others}"
        )
