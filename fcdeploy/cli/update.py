"""``fcdeploy update``."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from fcdeploy.cli.features import column_option, id_column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import (
    moved_engine_option,
    no_summary_option,
    pairs_option,
    summary_json_option,
)
from fcdeploy.cli.types import PathType
from fcdeploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fcdeploy.clustering.decided import Decide
    from fcdeploy.clustering.identity import Change

DECISIONS = ("clear", "apply", "ask", "never")
GROUPS = {
    "Changes": ("add", "column", "id_column", "remove", "pairs", "same_photo", "merges", "splits", "on_bad"),
    "Engine": ("engine",),
    "Output": ("output", "as_json", "quiet"),
    "Machine": ("threads", "memory", "device"),
}


@click.command("update", cls=grouped(GROUPS))
@click.argument("run_dir", type=PathType)
@click.option(
    "--add", type=PathType, help="Features of the faces to add, in any form that `fcdeploy cluster` takes."
)
@click.option("--remove", type=PathType, help="Text file with the ids of the faces to remove, one per line.")
@pairs_option
@click.option(
    "--same-photo",
    type=PathType,
    metavar="FILE",
    help="Keep added faces of the same photo apart: a text file with the photo of each face to add, one per line.",
)
@click.option(
    "--merges",
    type=click.Choice(DECISIONS),
    default="clear",
    show_default=True,
    help="Old clusters that become connected: merge those with strong links between them (clear) or all (apply), ask "
    "for each merge, or never merge.",
)
@click.option(
    "--splits",
    type=click.Choice(DECISIONS),
    default="clear",
    show_default=True,
    help="Old clusters that fall apart: split those that removed faces held together (clear) or all (apply), ask for "
    "each split, or never split.",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("updated.csv"),
    show_default=True,
    help="Table of all faces to write (.csv, .tsv, .parquet), with columns id and label.",
)
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    show_default=True,
    help="Rows to add with NaN, infinity or only zeros: stop, or skip them (label -1).",
)
@moved_engine_option
@column_option
@id_column_option
@run_option("threads")
@run_option("memory")
@run_option("device")
@summary_json_option
@no_summary_option
def command(
    run_dir: Path,
    add: Path | None,
    remove: Path | None,
    pairs: Path | None,
    same_photo: Path | None,
    merges: str,
    splits: str,
    output: Path,
    on_bad: str,
    engine: Path | None,
    column: str | None,
    id_column: str | None,
    as_json: bool,
    quiet: bool,
    **limits: object,
) -> None:
    """Add faces to a finished run, or remove some; clusters keep their numbers.

    The result is close to clustering all remaining faces together, but reuses what was computed for old faces. The id
    of a face comes from --id-column, if the first run used it; otherwise it is the row number in the first run, and
    added faces get the next free numbers. RUN_DIR/changes.csv lists the merges and splits of the last update,
    RUN_DIR/history.csv the faces whose cluster changed in any update. RUN_DIR is replaced as a whole at the end; if the
    command is stopped, it stays as it was.

    \b
    Example:
      fcdeploy update run --add new.bin -o updated.csv
      fcdeploy update run --add new.bin --remove ids.txt --merges ask -o updated.csv
    """
    import json

    from fcdeploy.cli.outputs import check_default_output
    from fcdeploy.data.columns import check_table_path, write_columns
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.evidence import read_ids_of_rows
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.runtime.stored import read_state
    from fcdeploy.runtime.tables import check_refused_list, refused_list_of, write_refused
    from fcdeploy.runtime.update import read_ids, update_run

    check_table_path(output)
    check_default_output("output", output)
    check_not_an_input(output, (add, remove, pairs, same_photo))
    check_refused_list(refused_list_of(output))
    state, opened = read_state(run_dir), None
    if add is not None:
        opened = open_and_tell(
            add, None, width=state.dim, column=column, id_column=id_column, output=output, quiet=quiet
        )
    gone = None
    if remove is not None:
        gone = read_ids(remove, as_text=read_ids_of_rows(run_dir) is not None)
    with sigbus_guard():
        found = update_run(
            run_dir,
            opened,
            gone,
            pairs=pairs,
            same_photo=same_photo,
            merges=decider(merges, "--merges"),
            splits=decider(splits, "--splits"),
            engine=engine,
            limits=options_from_values(limits),
            on_bad=on_bad,
            write=lambda names, labels: write_columns(output, {"id": names, "label": labels}),
            quiet=quiet or as_json,
        )
    if found.refused_links is not None:
        write_refused(refused_list_of(output), found.refused_links, found.names)
    if as_json:
        click.echo(json.dumps(found.summary, indent=1))
    elif not quiet:
        said = cast("Mapping[str, int]", found.summary)  # of the keys below
        click.echo(
            f"{output}: {counted(said['faces'], 'face')} in {counted(said['clusters'], 'cluster')}; {said['added']:,} "
            f"added, {said['removed']:,} removed; {counted(said['merges'], 'merge')}, "
            f"{counted(said['splits'], 'split')}, {said['refused']:,} not made ({run_dir / 'changes.csv'})"
        )


def decider(choice: str, flag: str) -> "Decide | None":
    """Return who decides on changes of a kind, None for clear ones only.

    Raises InputError when a person has to and there is none.
    """
    import sys

    from fcdeploy.errors import InputError

    if choice == "ask" and not sys.stdin.isatty():
        raise InputError(f"{flag} ask: needs a terminal to ask on; give clear, apply or never.")
    if choice == "clear":
        return None

    def ask(change: "Change") -> bool:
        what = f"be merged into {change.new}" if change.kind == "merge" else "be split off"
        of = f"{counted(change.faces, 'face')} of cluster {change.old}"
        return click.confirm(f"{of} would {what}; do so?", err=True)

    return ask if choice == "ask" else lambda change: choice == "apply"
