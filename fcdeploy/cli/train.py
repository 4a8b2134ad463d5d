"""``fcdeploy train``."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.features import column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.label_options import label_column_option
from fcdeploy.cli.outputs import check_default_output
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import quiet_option, scratch_option, seed_option
from fcdeploy.cli.types import PathType, Real, Whole
from fcdeploy.errors import counted

if TYPE_CHECKING:
    import numpy as np

    from fcdeploy.data.features import Features
    from fcdeploy.training.train import Trained


GROUPS = {
    "Input and output": (
        *("features", "column", "dim", "labels", "label_column", "unknown", "on_bad", "target"),
        *("output", "run_dir", "scratch", "quiet"),
    ),
    "Training": ("minutes", "validation", "seed"),
    "One network of several": ("network", "checkpoints", "init", "keys", "knn", "reranked"),
    "Settings, chosen from the data unless given": (
        *(
            "recipe",
            "splits",
            "singletons",
            "steps",
            "epochs",
            "batch",
            "lr",
            "average",
            "patience",
            "settings",
        ),
    ),
    "Machine": ("device", "mixed", "threads"),
}


RENAMED = {
    "--albums": "--splits",
    "--strays": "--singletons",
}  # options of 0.1, which work for one more version


@click.command("train", cls=grouped(GROUPS, RENAMED))
@click.argument("system")
@click.option("--features", required=True, type=PathType, help="Features of the training faces.")
@column_option
@click.option(
    "--labels", required=True, type=PathType, help="Identities of the training faces, -1 where unknown."
)
@label_column_option
@click.option(
    "--unknown",
    type=click.Choice(["ignore", "singleton"]),
    default="ignore",
    show_default=True,
    help="Faces of unknown identity (-1, empty, NaN): leave them out (ignore), or count each as an identity of its own "
    "(singleton).",
)
@click.option(
    "--target",
    type=PathType,
    metavar="FEATURES",
    help="Unlabelled features like those you will cluster; the training faces are split to resemble them.",
)
@click.option(
    "--minutes",
    type=Real(0, min_open=True),
    help="Time limit of the training, in which several seeds are trained; the best on held-out people is kept.  "
    "[default: 30]",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("checkpoint.pth"),
    show_default=True,
    help="Checkpoint to write, in the authors' layout, with the recipe beside it (.toml). With several networks, each "
    "has its name appended, e.g. checkpoint-lce.pth.",
)
@click.option(
    "--network",
    metavar="NAME",
    help="Network to train, for a system with several, e.g. lce.  [default: all, one after the other]",
)
@click.option(
    "--recipe",
    metavar="FILE|NAME",
    help="Recipe: a TOML file or a built-in name.  [default: the .toml beside a --ckpt or --init, else chosen from the "
    "data]",
)
@click.option(
    "--ckpt",
    "checkpoints",
    multiple=True,
    type=PathType,
    help="Checkpoint of a network that runs before this one; may be repeated.",
)
@click.option(
    "--knn",
    type=PathType,
    metavar="FILE",
    help="File of neighbor lists of all faces (.npz, .npy), instead of a search.",
)
@click.option(
    "--reranked",
    type=PathType,
    help="File of re-ranked neighbor lists of all faces (.npz, .npy), instead of re-ranking.",
)
@click.option("--init", type=PathType, help="Checkpoint to start from instead of random weights.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Key of the weights in a checkpoint that holds several, e.g. ema; once for all checkpoints, or once for every "
    "--ckpt and then for --init.",
)
@click.option("--epochs", type=Whole(min=1), help="Number of epochs, instead of --steps.")
@click.option("--steps", type=Whole(min=1), help="Number of training steps.")
@click.option("--batch", type=Whole(min=2), help="Batch size: items per step.")
@click.option("--lr", type=Real(0, min_open=True), help="Learning rate.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Training setting of the network, e.g. nodes=128; may be repeated. docs/reference/training.md lists them.",
)
@click.option(
    "--validation",
    type=Real(0, 0.5),
    default=0.1,
    show_default=True,
    help="Share of identities held out for validation; 0 trains on all.",
)
@click.option(
    "--patience",
    type=Whole(min=0),
    help="Stop after this many validations without a better F; 0: never.",
)
@seed_option()
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    help="Device to train on; auto: a GPU if there is one.",
)
@click.option(
    "--mixed/--no-mixed",
    default=None,
    help="Mixed precision: matrix products in half precision.  [default: on for a GPU, else chosen by network]",
)
@run_option("threads")
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip", "zero"]),
    default="stop",
    show_default=True,
    help="Rows with NaN, infinity or only zeros: stop, or leave them out with their labels (skip or zero). They are "
    "listed in OUTPUT.bad.txt.",
)
@click.option(
    "--splits",
    type=Whole(min=1),
    help="Number of sets into which the training faces are split, unevenly; neighbors are searched within each set. "
    "People then have many faces in one set and few in another.",
)
@click.option(
    "--singletons",
    type=Real(0, 1),
    help="With --splits: share of faces that are put into a random set one by one, where many are the only face of "
    "their person.",
)
@click.option(
    "--average",
    type=Real(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Decay of a running mean of the weights, which is validated and saved instead of them, e.g. 0.98; 0: off.",
)
@click.option(
    "--dim",
    type=Whole(min=1),
    help="Number of columns of a .bin file.  [default: from its sidecar, or the number of labels]",
)
@click.option(
    "--run-dir",
    type=PathType,
    help="Folder that keeps the state of the training, to continue it with the same command.  [default: OUTPUT's name "
    "with .run]",
)
@scratch_option
@quiet_option
def command(
    system: str,
    features: Path,
    column: str | None,
    labels: Path,
    label_column: str | None,
    unknown: str,
    output: Path,
    network: str | None,
    recipe: str | None,
    checkpoints: tuple[Path, ...],
    knn: Path | None,
    reranked: Path | None,
    init: Path | None,
    keys: tuple[str, ...],
    settings: tuple[str, ...],
    on_bad: str,
    dim: int | None,
    run_dir: Path | None,
    scratch: Path | None,
    target: Path | None,
    minutes: float | None,
    quiet: bool,
    **chosen: object,
) -> None:
    """Train SYSTEM on your own labelled faces.

    Settings are chosen from the data and written to the recipe. Several seeds are trained, and the weights that cluster
    held-out people best are kept. With --recipe, --steps or --epochs, and neither --target nor --minutes, settings that
    you do not give are as published.

    \b
    Example:
      fcdeploy train pse-gcn --features f.bin --labels f.meta --target faces.bin -o saves/checkpoint.pth
      fcdeploy export --ckpt saves/checkpoint.pth -o pse.onnx
    """
    from fcdeploy.data.bad_list import bad_list_of, check_bad_list
    from fcdeploy.deploy.recipe import load_recipe
    from fcdeploy.packages import import_package
    from fcdeploy.systems import get_system

    import_package("torch", "PyTorch, which training needs,", "pip install 'fcdeploy[cpu,export,train]'")
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.training.asked import as_published, outputs_of, train_asked, training_of

    record = get_system(system)
    given = _given(chosen, settings)
    whole = not (network or as_published(recipe, given, target, minutes)) and bool(record.trainings())
    if not whole:
        training_of(record, network)
    opened, identities = _open_faces(features, dim, column, labels, label_column, output, scratch, quiet)
    more = (labels, init, knn, reranked, *checkpoints, Path(recipe) if recipe else None, target)
    outputs = outputs_of(record, network, output) if whole else {"": output}
    _check_outputs(outputs.values(), (*opened.files, *more))
    check_bad_list(bad_list_of(output), (features, labels, init, target, *checkpoints))
    wanted = None if target is None else open_and_tell(target, opened.dim, scratch=scratch, quiet=quiet)
    with _resumable(run_dir or output.with_suffix(".run")), sigbus_guard():
        trained = train_asked(
            record,
            opened,
            identities,
            output,
            target=wanted,
            minutes=minutes,
            given=given,
            network=network,
            recipe=load_recipe(recipe) if recipe else None,
            checkpoints=checkpoints,
            init=init,
            key=keys,
            run_dir=run_dir,
            unknown=unknown,
            knn=knn,
            reranked=reranked,
            labels_name=str(labels),
            on_bad=on_bad,
            quiet=quiet,
        )
    if not quiet:
        _print(record.name, trained)


def _resumable(kept: Path) -> AbstractContextManager[None]:
    return resumable(f"the same command continues from {kept}", kept)


def _open_faces(
    features: Path,
    dim: int | None,
    column: str | None,
    labels: Path,
    label_column: str | None,
    output: Path,
    scratch: Path | None,
    quiet: bool,
) -> tuple["Features", "np.ndarray"]:
    """Open features and read their labels; raises InputError when the width that follows is not that of faces."""
    from fcdeploy.data.labels import read_labels
    from fcdeploy.training.width import check_width

    width = _width_by_labels(features, dim, labels, label_column)
    opened = open_and_tell(
        features, dim, width=width, column=column, output=output, scratch=scratch, quiet=quiet
    )
    # Faces behind the last of a clusters.txt are in no cluster.
    identities = read_labels(labels, opened.n, label_column)
    if width is not None:
        check_width(opened, identities, str(labels))
    return opened, identities


def _given(chosen: Mapping[str, object], settings: Iterable[str]) -> dict[str, object]:
    """Return what the user has chosen, by name: options that were given, and training settings."""
    return {name: value for name, value in chosen.items() if value is not None} | {
        "settings": _pairs(settings)
    }


def _pairs(settings: Iterable[str]) -> dict[str, str]:
    """Take training settings apart: NAME=VALUE."""
    from fcdeploy.errors import InputError

    pairs = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: write it as NAME=VALUE.")
        pairs[name.strip()] = value.strip()
    return pairs


def _check_outputs(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise InputError when checkpoints or recipes would take the place of an input, or of another's file."""
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.deploy.recipe_beside import recipe_place

    inputs = tuple(inputs)
    for output in outputs:
        beside = recipe_place(output)
        for written in (output, beside):
            check_not_an_input(written, inputs)
        check_default_output("output", output, lambda path: _is_ours(recipe_place(path)))


def _is_ours(recipe: Path) -> bool:
    """Tell whether a recipe is there that was written by ``fcdeploy train``."""
    from fcdeploy.deploy.recipe import is_written_recipe

    return recipe.is_file() and is_written_recipe(recipe)


def _print(system: str, trained: Sequence["Trained"]) -> None:
    """Say what was written, how good it is, and how networks of several are exported."""
    for one in trained:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in one.measures.items())
        click.echo(
            f"{one.checkpoint}: {system} {one.network}, step {one.step:,} of {one.steps:,} "
            f"({one.ended})" + (f", validation {figures}" if figures else "")
        )
        click.echo(f"{one.recipe}: its recipe; curves and weights are in {one.run_dir}")
    if len(trained) > 1:
        given = " ".join(f"--ckpt {one.checkpoint}" for one in trained)
        click.echo(f"next: fcdeploy export {given} -o {trained[-1].checkpoint.with_name(system)}.onnx")


def _width_by_labels(features: Path, dim: int | None, labels: Path, label_column: str | None) -> int | None:
    """Return how wide rows are by the number of labels, where neither the file nor the user says it; else None."""
    from fcdeploy.data.features import needs_width
    from fcdeploy.data.forms.files import feature_files
    from fcdeploy.data.labels import form_to_read, read_labels
    from fcdeploy.errors import InputError

    if dim is not None or not needs_width(features):
        return None
    if form_to_read(labels, label_column) == "clusters":
        raise InputError(
            f"{labels}: a file of clusters does not say how many faces there are, so that the width of {features} is "
            "not known; give --dim."
        )
    return _width(feature_files(features), len(read_labels(labels, None, label_column)), labels)


def _width(files: list[Path], n: int, labels: Path) -> int:
    """Return how wide the rows of raw files are when they have ``n`` of them together."""
    from fcdeploy.errors import InputError

    size = sum(file.stat().st_size for file in files)
    if size == 0 or size % (4 * n):
        raise InputError(
            f"{files[0]}: {size:,} bytes are not {counted(n, 'row')} of float32 values, and {labels} has "
            f"{counted(n, 'label')}; "
            "give the labels of these faces, or --dim."
        )
    return size // (4 * n)
