"""``fcdeploy cluster``."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from fcdeploy.cli.face_options import GATES, SEARCH, face_options, search_and_gates
from fcdeploy.cli.features import column_option, id_column_option, open_and_tell, path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.label_options import label_column_option, unknown_option
from fcdeploy.cli.outputs import check_default_output
from fcdeploy.cli.run_options import RUN_SECTIONS, run_options
from fcdeploy.cli.shared_options import (
    dim_option,
    engine_option,
    no_summary_option,
    pairs_option,
    summary_json_option,
)
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType, from_values
from fcdeploy.errors import counted
from fcdeploy.run.options import CLUSTERS, ENGINE, MACHINE, NEIGHBORS, WORKERS

if TYPE_CHECKING:
    import numpy as np

    from fcdeploy.data.filelist import Filelist
    from fcdeploy.engine.bundle import Bundle
    from fcdeploy.run.options import Options
    from fcdeploy.run.summary import Summary
    from fcdeploy.runtime.pipeline import Result
    from fcdeploy.runtime.review import Review
    from fcdeploy.runtime.tables import Tables


AUTO = Path("auto")  # of --same-photo: the photos that faces were found in
GROUPS = {
    "Input": ("dim", "column", "id_column", "embedder", "path_column", "on_bad"),
    "Photos": ("detector", *SEARCH, *GATES),
    ENGINE: ("engine", *RUN_SECTIONS[ENGINE]),
    NEIGHBORS: RUN_SECTIONS[NEIGHBORS],
    CLUSTERS: (*RUN_SECTIONS[CLUSTERS], "pairs", "same_photo", "drop_flagged"),
    "Output": ("output", "table", "clusters_table", "run_dir", "as_json", "quiet"),
    "Quality": ("truth", "label_column", "unknown"),
    MACHINE: RUN_SECTIONS[MACHINE],
    WORKERS: RUN_SECTIONS[WORKERS],
}


@click.command("cluster", cls=grouped(GROUPS))
@click.argument("features", type=PathType)
@engine_option
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("pred_labels.meta"),
    show_default=True,
    help="Labels to write: .meta (one label per line), .npy, .txt (one cluster per line), or a table of ids and labels "
    "(.csv, .tsv, .parquet).",
)
@run_options
@dim_option
@column_option
@id_column_option
@click.option(
    "--embedder", type=PathType, help="ONNX face embedder, for FEATURES that are face crops or photos."
)
@click.option(
    "--detector",
    type=PathType,
    help="ONNX face detector, for FEATURES that are photos (see `fcdeploy faces`); needs --embedder.",
)
@face_options
@path_column_option
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip", "zero"]),
    help="Rows with NaN, infinity or only zeros, and images that cannot be embedded: stop, skip them (label -1), or "
    "give each a cluster of its own (zero). All are listed in OUTPUT.bad.txt.  [default: stop; for photos, skip]",
)
@click.option(
    "--labels",
    "truth",
    type=PathType,
    help="True identities, to report the quality of the clusters. FEATURES itself if its folders are identities. Of "
    "photos: a label per photo, or a table with a column 'photo' or 'face'.",
)
@label_column_option
@unknown_option
@click.option(
    "--table",
    type=PathType,
    metavar="FILE",
    help="Also write a table of faces (.csv, .tsv, .parquet): id, cluster, confidence, margin, similarity, flags.",
)
@click.option(
    "--clusters-table",
    type=PathType,
    metavar="FILE",
    help="Also write a table of clusters, the largest first: size, weakest link, cohesion, nearest cluster, flags.",
)
@click.option(
    "--drop-flagged",
    multiple=True,
    metavar="FLAG",
    help="Split clusters with this flag (garbage, mega-cluster, chain, duplicate, copies, borderline) into single "
    "faces; may be repeated.",
)
@pairs_option
@click.option(
    "--same-photo",
    type=PathType,
    metavar="FILE|auto",
    help="Keep faces of the same photo apart: a file with the photo of face i in line i; with --detector, auto.",
)
@click.option(
    "--run-dir",
    type=PathType,
    help="Folder that keeps all results, for the other commands and to continue an interrupted run.",
)
@summary_json_option
@no_summary_option
def command(engine: Path, on_bad: str | None, **given: object) -> None:
    """Cluster faces: a features file, face crops, or photos.

    FEATURES is a features file, e.g. .npy (n, d), .bin (raw float32 rows), .npz, .pt, .safetensors or Parquet
    (docs/reference/files.md lists all forms); a folder, a list (.txt) or a quoted pattern of such files; or - for a
    pipe. Ids of faces are row numbers from 0.

    With --embedder it is a list of aligned face crops (a text file with one path per line, a folder or an archive, see
    `fcdeploy embed`), which are embedded first. Ids are line numbers from 0; for a folder or archive, the list is
    written beside the clusters.

    With --detector as well, it is a list of photos, in which faces are detected first. Ids are the path of the photo
    and the number of the face in it; clusters.faces.csv, beside the clusters, lists their boxes.

    \b
    Example:
      fcdeploy cluster features.bin --engine pse.onnx -o pred_labels.meta
      fcdeploy cluster faces.txt --engine pse.onnx --embedder embedder.onnx -o clusters.txt
      fcdeploy cluster people/ --engine pse.onnx --embedder embedder.onnx --labels people/ -o clusters.txt
      fcdeploy cluster photos/ --detector yunet.onnx --embedder embedder.onnx --engine pse.onnx -o clusters.csv
      fcdeploy cluster features.npy --engine pse.onnx --tau 0.8 --labels truth.meta --json
      fcdeploy cluster features.npy --engine pse.onnx --pairs pairs.csv --table faces.csv --clusters-table clusters.csv
    """
    from fcdeploy.data.labels import write_labels
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.tables import write_reviewed

    of_faces = {name: given.pop(name) for name in (*SEARCH, *GATES)}
    own = {one.name: given.pop(one.name) for one in fields(Asked) if one.name in given}
    on_bad = on_bad or ("stop" if own["detector"] is None else "skip")
    asked = from_values(Asked, {**own, "on_bad": on_bad})
    check_face_options(asked.detector)
    options = options_from_values(given)
    check_asked(asked, options)
    bundle = read_bundle(engine)
    if asked.detector is not None:
        cluster_photos_in(asked, of_faces, bundle, options)
        return
    ids: np.ndarray | None
    files: Filelist | None
    if asked.embedder is not None:
        result, ids, files = cluster_crops(asked, asked.embedder, bundle, options)
    else:
        result, ids, files = cluster_rows(asked, bundle, options)
    write_labels(asked.output, result.labels, ids)
    if result.reviewed is not None:
        write_reviewed(asked.tables, result.reviewed, asked.output, ids, files)
    if asked.as_json:
        click.echo(json.dumps(result.summary, indent=1))
    elif not asked.quiet:
        print_summary(result.summary, asked.output)


@dataclass(frozen=True)
class Asked:
    """The arguments of ``fcdeploy cluster`` besides the engine and the options of a run."""

    features: Path
    output: Path
    dim: int | None
    column: str | None
    id_column: str | None
    embedder: Path | None
    detector: Path | None
    path_column: str | None
    on_bad: str
    truth: Path | None
    label_column: str | None
    unknown: str
    table: Path | None
    clusters_table: Path | None
    drop_flagged: tuple[str, ...]
    pairs: Path | None
    same_photo: Path | None
    run_dir: Path | None
    quiet: bool
    as_json: bool

    @property
    def tables(self) -> "Tables":
        from fcdeploy.runtime.tables import Tables

        return Tables(self.table, self.clusters_table)

    def review(self, n: int, ids: "np.ndarray | None" = None) -> "Review":
        """What is wanted of the clusters of n rows beside labels; raises InputError for files that do not do."""
        from fcdeploy.runtime.review import review_of

        return review_of(
            n,
            ids,
            confidence=self.tables.wanted,
            drop_flagged=self.drop_flagged,
            pairs=self.pairs,
            same_photo=self.same_photo,
        )

    def review_of_faces(self, photo: "np.ndarray", ids: "np.ndarray") -> "Review":
        """``review`` of faces found in photos, (n,) int32 each; ``--same-photo auto`` means these."""
        if self.same_photo != AUTO:
            return self.review(len(photo), ids)
        return replace(replace(self, same_photo=None).review(len(photo), ids), photos=photo)

    @property
    def advice(self) -> str:
        """What to do about an interrupted run."""
        part = self.output.with_name(f"{self.output.name}.part")
        if self.detector and not self.run_dir:
            part = self.output.with_name(f"{self.output.name}.crops")
        if kept := self.run_dir or (part if self.embedder else None):
            return f"the same command continues from {kept}"
        return "nothing was kept; with --run-dir DIR the same command could continue"


def check_asked(asked: Asked, options: "Options") -> None:
    """Raise InputError for arguments that do not go together, and for an output that cannot be written."""
    from fcdeploy.data.bad_list import bad_list_of, check_bad_list
    from fcdeploy.data.forms.files import is_feature_list
    from fcdeploy.data.labels import check_labels_path, written_form
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.errors import InputError
    from fcdeploy.runtime.review import check_flags
    from fcdeploy.runtime.tables import check_refused_list, refused_list_of

    features, output, embedder, run_dir = asked.features, asked.output, asked.embedder, asked.run_dir
    check_labels_path(output)
    is_list = embedder is not None or (features.suffix.lower() == ".txt" and not is_feature_list(features))
    check_embedder(features, is_list, embedder, asked.dim, asked.column or asked.id_column)
    if asked.detector is not None and embedder is None:
        raise InputError(f"--detector {asked.detector}: needs an embedder, too; give --embedder MODEL.onnx.")
    if asked.same_photo == AUTO and asked.detector is None and not AUTO.exists():
        raise InputError(
            "--same-photo auto: needs photos and a --detector; without them, give a file with the photo of each face."
        )
    if asked.path_column is not None and embedder is None:
        raise InputError(
            "--path-column is for lists of images, which need --embedder; leave it out for features."
        )
    if asked.id_column is not None and written_form(output) != "table":
        raise InputError(
            f"{output}: cannot hold the ids of --id-column; name the output .csv, .tsv, .parquet or .feather."
        )
    inputs = (features, embedder, asked.truth, asked.pairs, asked.same_photo, *options.lists.values())
    check_not_an_input(output, inputs)
    asked.tables.check(output, inputs)
    check_flags(asked.drop_flagged)
    if asked.pairs is not None or asked.same_photo is not None:
        check_refused_list(refused_list_of(output))
    check_default_output("output", output)
    if run_dir is not None and output.suffix == ".npy" and output.parent.resolve() == run_dir.resolve():
        raise InputError(
            f"{output}: the .npy files in the run folder are results of its stages; put the labels elsewhere."
        )
    check_bad_list(bad_list_of(output), inputs)
    if asked.label_column is not None and asked.truth is None:
        raise InputError("--label-column is for --labels, which is not given; leave it out.")


def check_face_options(detector: Path | None) -> None:
    """Raise InputError for options of a search for faces where there is no detector."""
    from fcdeploy.errors import InputError

    source = click.get_current_context().get_parameter_source
    for name in (*SEARCH, *GATES):
        if detector is None and source(name) is ParameterSource.COMMANDLINE:
            raise InputError(
                f"--{name.replace('_', '-')} is for photos, which need --detector; leave it out for crops and features."
            )


def cluster_photos_in(
    asked: Asked, of_faces: dict[str, object], bundle: "Bundle", options: "Options"
) -> None:
    """Find, embed and cluster the faces in photos, and write their clusters."""
    from fcdeploy.data.imagelist import open_images
    from fcdeploy.data.labels import write_labels
    from fcdeploy.errors import InputError
    from fcdeploy.runtime.cluster_photos import cluster_photos, crops_removed
    from fcdeploy.runtime.faces import new_faces_job
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.runtime.photo_labels import read_photo_labels
    from fcdeploy.runtime.tables import write_reviewed

    assert asked.detector is not None
    if asked.on_bad == "zero":
        raise InputError("--on-bad zero is for features and crops; photos that cannot be read have no faces.")
    search, gates = search_and_gates(of_faces)
    job = new_faces_job(
        open_images(asked.features, asked.path_column),
        asked.detector,
        search=search,
        gates=gates,
        embedder=asked.embedder,
        threads=options.threads,
        device=options.device or "cpu",
        vram=options.vram,
    )
    known = None
    if asked.truth is not None:
        known = read_photo_labels(asked.truth, job.photos, asked.label_column)
    with crops_removed(asked.output, asked.run_dir), resumable(asked.advice), sigbus_guard():
        found = cluster_photos(
            job,
            bundle,
            options,
            output=asked.output,
            on_bad=asked.on_bad,
            run_dir=asked.run_dir,
            review=asked.review_of_faces,
            known=known,
            unknown=asked.unknown,
            quiet=asked.quiet or asked.as_json,
        )
        write_labels(asked.output, found.labels, found.ids)
        if found.reviewed is not None:
            write_reviewed(asked.tables, found.reviewed, asked.output, found.ids)
    if asked.as_json:
        click.echo(json.dumps(found.summary, indent=1))
    elif not asked.quiet:
        print_summary(found.summary, asked.output)


def read_truth(asked: Asked, n: int) -> "np.ndarray | None":
    """Return the true identities of n faces, (n,) int64, where they were given."""
    from fcdeploy.data.labels import check_known, read_labels

    if asked.truth is None:
        return None
    labels = read_labels(asked.truth, n, asked.label_column)
    check_known(labels, str(asked.truth), asked.unknown)
    return labels


def cluster_crops(
    asked: Asked, embedder: Path, bundle: "Bundle", options: "Options"
) -> "tuple[Result, None, Filelist]":
    """Embed a list or folder of face crops, and cluster them; returns the list, too."""
    from fcdeploy.data.imagelist import open_images
    from fcdeploy.runtime.cluster_images import cluster_images
    from fcdeploy.runtime.embed import new_job
    from fcdeploy.runtime.lost_pages import sigbus_guard

    job = new_job(
        open_images(asked.features, asked.path_column),
        embedder,
        threads=options.threads,
        device=options.device or "cpu",
        vram=options.vram,
    )
    same = asked.truth is not None and asked.truth.exists() and asked.truth.samefile(asked.features)
    truth = labels_of_list(job.files) if same else read_truth(asked, job.files.n)
    with resumable(asked.advice), sigbus_guard():
        result = cluster_images(
            job,
            bundle,
            asked.output,
            options,
            on_bad=asked.on_bad,
            truth=truth,
            unknown=asked.unknown,
            run_dir=asked.run_dir,
            wanted=asked.review(job.files.n),
            quiet=asked.quiet or asked.as_json,
        )
    return result, None, job.files


def cluster_rows(
    asked: Asked, bundle: "Bundle", options: "Options"
) -> "tuple[Result, np.ndarray | None, None]":
    """Cluster a features file; returns the ids of its rows, too, where it has such."""
    from fcdeploy.data.bad_list import bad_list_of
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.runtime.pipeline import run_clustering

    opened = open_and_tell(
        asked.features,
        asked.dim,
        width=bundle.feature_dim,
        column=asked.column,
        id_column=asked.id_column,
        output=asked.output,
        scratch=options.scratch,
        quiet=asked.quiet,
    )
    truth = read_truth(asked, opened.n)
    wanted = asked.review(opened.n, opened.ids)
    with resumable(asked.advice), sigbus_guard():
        result = run_clustering(
            opened,
            bundle,
            options,
            truth=truth,
            unknown=asked.unknown,
            on_bad=asked.on_bad,
            bad_list=bad_list_of(asked.output),
            run_dir=asked.run_dir,
            scratch_dir=asked.output.parent,
            wanted=wanted,
            quiet=asked.quiet or asked.as_json,
        )
    return result, opened.ids, None


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
        raise InputError(f"{files.name}: holds no labels; give a labels file.")
    return files.labels


def print_summary(summary: "Summary", output: Path) -> None:
    """Print what was found and how long each stage took."""
    from rich.table import Table

    from fcdeploy.runtime.computed import sentences
    from fcdeploy.runtime.tables import refused_list_of

    console = PlainConsole()
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("faces/s", justify="right")
    for name, stage in summary["stages"].items():
        table.add_row(name, f"{stage['seconds']:.2f}", f"{stage['faces_per_s']:,.0f}")
    table.add_row("total", f"{sum(stage['seconds'] for stage in summary['stages'].values()):.2f}", "")
    console.print(table)
    dropped = f", {counted(summary['uncovered'], 'face')} unassigned" if "uncovered" in summary else ""
    console.print(
        f"{counted(summary['faces'], 'face')} in {counted(summary['clusters'], 'cluster')}, {summary['singletons']:,} "
        f"of them singletons{dropped}; peak memory {summary['peak_bytes'] / 1e9:.2f} GB"
    )
    if photos := summary.get("photos"):
        console.print(
            f"{counted(photos['faces_found'], 'face')} found in {counted(photos['photos'], 'photo')}, "
            f"{photos['gated']:,} left out; {counted(photos['bad_photos'], 'photo')} could not be read"
        )
    if workers := summary.get("workers"):
        lost = f", {workers['workers_lost']:,} lost" if workers["workers_lost"] else ""
        console.print(
            f"{counted(workers['blocks'], 'block')} by {counted(workers['workers'], 'worker')}{lost}"
        )
    if summary.get("bad"):
        if "lines" in summary:
            console.print(f"{summary['bad']:,} of {counted(summary['lines'], 'line')} could not be embedded")
        else:
            console.print(f"{summary['bad']:,} of {counted(summary['rows'], 'row')} could not be used")
    for name, recall in summary.get("recall", {}).items():
        console.print(
            f"{name}: recall {recall['all']:.4f}, and {recall['above']:.4f} of neighbors at {recall['threshold']:.2f} "
            f"or above (measured on {counted(recall['sample'], 'face')})",
        )
    if "quality" in summary:
        pairwise, bcubed = summary["quality"]["pairwise"], summary["quality"]["bcubed"]
        console.print(
            f"pairwise F {pairwise['f']:.4f} (precision {pairwise['precision']:.4f}, recall {pairwise['recall']:.4f}), "
            f"BCubed F {bcubed['f']:.4f}, NMI {summary['quality']['nmi']:.4f}",
        )
        if left_out := summary["quality"].get("unknown"):
            console.print(f"{counted(left_out, 'face')} of unknown identity left out of these figures")
    if flagged := {name: count for name, count in summary.get("flags", {}).items() if count}:
        told = ", ".join(f"{name} {count:,}" for name, count in flagged.items())
        console.print(f"flagged clusters: {told}")
    for name, counts in summary.get("dropped", {}).items():
        console.print(
            f"{counted(counts['clusters'], 'cluster')} flagged {name} split into "
            f"{counted(counts['rows'], 'single face')}"
        )
    if known := summary.get("constraints"):
        console.print(
            f"constraints: {counted(known['same'], 'pair')} same, {known['different']:,} different, "
            f"{counted(known['refused'], 'link')} refused, listed in {refused_list_of(output)}"
        )
    for sentence in sentences(summary["computed"]):
        console.print(sentence)
    console.print(f"labels in {output}")
