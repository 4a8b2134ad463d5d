"""``fcdeploy cluster``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fcdeploy.cli.features import column_option, id_column_option, open_and_tell, path_column_option
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.label_options import label_column_option, unknown_option
from fcdeploy.cli.outputs import check_default_output
from fcdeploy.cli.run_options import run_options
from fcdeploy.cli.text import new_console
from fcdeploy.cli.types import PathType

if TYPE_CHECKING:
    import numpy as np

    from fcdeploy.data.filelist import Filelist


@click.command("cluster")
@click.argument("features", type=PathType)
@click.option("--engine", required=True, type=PathType, help="Bundle folder, or a file in it.")
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("pred_labels.meta"),
    show_default=True,
    help="Where the labels go: .meta (a label per line), .npy, clusters.txt (a cluster per line), or a table of "
    "ids and labels (.csv, .tsv, .parquet).",
)
@run_options
@click.option(
    "--dim", type=click.IntRange(min=1), help="Width of a .bin file's rows.  [default: the engine's]"
)
@column_option
@id_column_option
@click.option("--embedder", type=PathType, help="ONNX face embedder, for a list or folder of face crops.")
@path_column_option
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip", "zero"]),
    default="stop",
    show_default=True,
    help="Rows with NaN, infinity or zeros only, and images that cannot be embedded: stop, leave them in no cluster "
    "(-1), or give each a cluster of its own. All are listed in OUTPUT.bad.txt.",
)
@click.option(
    "--labels",
    "truth",
    type=PathType,
    help="True identities, to report quality; never needed. FEATURES itself where its folders are people.",
)
@label_column_option
@unknown_option
@click.option("--run-dir", type=PathType, help="Keep every stage's result here, and continue from them.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
def command(
    features: Path,
    engine: Path,
    output: Path,
    dim: int | None,
    column: str | None,
    id_column: str | None,
    embedder: Path | None,
    path_column: str | None,
    on_bad: str,
    truth: Path | None,
    label_column: str | None,
    unknown: str,
    run_dir: Path | None,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Cluster a features file, or face crops, with an engine.

    FEATURES is a file of any form that docs/files.md lists, among them .npy (n, d), .bin (raw float32 rows), .npz, .pt,
    .safetensors and Parquet; a folder, a list (.txt) or a quoted pattern of such files, row after row; or - for a pipe.
    With --embedder it is a text file with the path of an aligned face crop per line, or a folder or archive of such
    (see `fcdeploy embed`). Ids in clusters.txt are rows of the features, or lines of that list, from 0; for a folder or
    archive it is written beside the clusters.

    \b
    Example:
      fcdeploy cluster features.bin --engine pse.onnx -o pred_labels.meta
      fcdeploy cluster faces.txt --engine pse.onnx --embedder embedder.onnx -o clusters.txt
      fcdeploy cluster people/ --engine pse.onnx --embedder embedder.onnx --labels people/ -o clusters.txt
      fcdeploy cluster features.npy --engine pse.onnx --tau 0.8 --labels truth.meta --json
    """
    from fcdeploy.data.bad_list import bad_list_of, check_bad_list
    from fcdeploy.data.forms.files import is_feature_list
    from fcdeploy.data.labels import check_known, check_labels_path, read_labels, write_labels, written_form
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.errors import InputError
    from fcdeploy.run.options import Options
    from fcdeploy.runtime.lost_pages import told_of_lost_pages
    from fcdeploy.runtime.pipeline import run_clustering

    options = Options(**chosen)
    check_labels_path(output)
    is_list = embedder is not None or (features.suffix.lower() == ".txt" and not is_feature_list(features))
    check_embedder(features, is_list, embedder, dim, column or id_column)
    if path_column is not None and embedder is None:
        raise InputError(
            "--path-column is for lists of images, which need --embedder; leave it out for features."
        )
    if id_column is not None and written_form(output) != "table":
        raise InputError(
            f"{output}: holds no ids, which --id-column asks for; name the output .csv, .tsv, .parquet or .feather."
        )
    check_not_an_input(output, (features, embedder, truth, *options.lists.values()))
    check_default_output("output", output)
    if run_dir is not None and output.suffix == ".npy" and output.parent.resolve() == run_dir.resolve():
        raise InputError(
            f"{output}: the .npy files in the run folder are results of its stages; put the labels elsewhere."
        )
    bad_list = bad_list_of(output)
    check_bad_list(bad_list, (features, embedder, truth, *options.lists.values()))
    if label_column is not None and truth is None:
        raise InputError("--label-column is for --labels, which is not given; leave it out.")

    def read_truth(n: int) -> Any:
        if truth is None:
            return None
        labels = read_labels(truth, n, label_column)
        check_known(labels, str(truth), unknown)
        return labels

    bundle = read_bundle(engine)
    kept = run_dir or (output.with_name(f"{output.name}.part") if embedder else None)
    advice = (
        f"the same command continues from {kept}"
        if kept
        else "nothing was kept; with --run-dir DIR the same command could continue"
    )
    if embedder is not None:
        from fcdeploy.data.imagelist import open_images
        from fcdeploy.runtime.cluster_images import cluster_images
        from fcdeploy.runtime.embed import new_job

        job = new_job(
            open_images(features, path_column),
            embedder,
            threads=options.threads,
            device=options.device or "cpu",
            vram=options.vram,
        )
        true_labels: np.ndarray | None = None
        if truth is not None:
            same = truth.exists() and truth.samefile(features)
            true_labels = labels_of_list(job.files) if same else read_truth(job.files.n)
        with resumable(advice), told_of_lost_pages():
            result = cluster_images(
                job,
                bundle,
                output,
                options,
                on_bad=on_bad,
                truth=true_labels,
                unknown=unknown,
                run_dir=run_dir,
                quiet=quiet or as_json,
            )
    else:
        opened = open_and_tell(
            features,
            dim,
            width=bundle.feature_dim,
            column=column,
            id_column=id_column,
            output=output,
            scratch=options.scratch,
            quiet=quiet,
        )
        true_labels = read_truth(opened.n)
        with resumable(advice), told_of_lost_pages():
            result = run_clustering(
                opened,
                bundle,
                options,
                truth=true_labels,
                unknown=unknown,
                on_bad=on_bad,
                bad_list=bad_list,
                run_dir=run_dir,
                scratch_dir=output.parent,
                quiet=quiet or as_json,
            )
    write_labels(output, result.labels, None if embedder is not None else opened.ids)
    if as_json:
        click.echo(json.dumps(result.summary, indent=1))
    elif not quiet:
        print_summary(result.summary, output)


def check_embedder(
    features: Path, is_list: bool, embedder: Path | None, dim: int | None, column: str | None
) -> None:
    """Raise InputError unless an embedder is given for a list of images, and for nothing else."""
    from fcdeploy.data.forms.files import SUFFIXES
    from fcdeploy.errors import InputError

    if is_list and embedder is None:
        raise InputError(
            f"{features}: is a list of images by its name; give --embedder MODEL.onnx, or name features .bin or .npy."
        )
    if embedder is not None and features.suffix.lower() in SUFFIXES and not features.is_dir():
        raise InputError(
            f"{features}: --embedder is for a list of images, or a folder of them; leave it out for features."
        )
    for name, given in (("--dim", dim), ("--column", column)):
        if is_list and given is not None:
            raise InputError(f"{name} does not apply to a list of images; leave it out.")


def labels_of_list(files: "Filelist") -> "np.ndarray":
    """Return the people that a list itself says; raises InputError when it says none."""
    from fcdeploy.errors import InputError

    if files.labels is None:
        raise InputError(f"{files.name}: says nothing of people; give the file of their labels.")
    return files.labels


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Print what was found and how long each stage took."""
    from rich.table import Table

    from fcdeploy.runtime.computed import sentences

    console = new_console()
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("faces/s", justify="right")
    for name, stage in summary["stages"].items():
        table.add_row(name, f"{stage['seconds']:.2f}", f"{stage['faces_per_s']:,.0f}")
    table.add_row("total", f"{sum(stage['seconds'] for stage in summary['stages'].values()):.2f}", "")
    console.print(table)
    dropped = f", {summary['uncovered']:,} faces in none" if "uncovered" in summary else ""
    console.print(
        f"{summary['faces']:,} faces in {summary['clusters']:,} clusters, {summary['singletons']:,} of them of one "
        f"face{dropped}; peak memory {summary['peak_bytes'] / 1e9:.2f} GB"
    )
    if summary.get("bad"):
        if "lines" in summary:
            console.print(f"{summary['bad']:,} of {summary['lines']:,} lines could not be embedded")
        else:
            console.print(f"{summary['bad']:,} of {summary['rows']:,} rows could not be used")
    for name, recall in summary.get("recall", {}).items():
        console.print(
            f"{name}: recall {recall['all']:.4f}, and {recall['above']:.4f} of neighbors at {recall['threshold']:.2f} "
            f"or above (IVF, measured on {recall['sample']} faces)",
        )
    if "quality" in summary:
        pairwise, bcubed = summary["quality"]["pairwise"], summary["quality"]["bcubed"]
        console.print(
            f"pairwise F {pairwise['f']:.4f} (precision {pairwise['precision']:.4f}, recall {pairwise['recall']:.4f}), "
            f"BCubed F {bcubed['f']:.4f}, NMI {summary['quality']['nmi']:.4f}",
        )
        if left_out := summary["quality"].get("unknown"):
            console.print(f"{left_out:,} faces of unknown identity left out of these")
    for sentence in sentences(summary["computed"]):
        console.print(sentence)
    console.print(f"labels in {output}")
