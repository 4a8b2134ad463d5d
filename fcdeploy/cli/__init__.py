"""The ``fcdeploy`` command: one module per verb, imported only when that verb is called."""

import importlib
import signal
import sys
import warnings
from typing import TextIO

from fcdeploy.errors import FcdeployError
from fcdeploy.machine import check_platform

try:
    check_platform()
except FcdeployError as error:  # what is imported below may not load there
    sys.exit(f"Error: {error}")

import click

from fcdeploy import __version__
from fcdeploy.cli.grouped import HELP
from fcdeploy.cli.interrupts import ignore_signals, interruptible, received, unmasked
from fcdeploy.cli.streams import STANDARD_OUTPUT, give_up_stdout, mend_streams
from fcdeploy.cli.text import one_line
from fcdeploy.errors import FcdeployWarning, speaking_flags

CHAPTERS = {  # verbs and what they do, in the order and under the titles of the help
    "Cluster faces": {
        "faces": "Detect the faces in photos, and write them as aligned crops.",
        "embed": "Compute the embeddings of aligned face crops.",
        "cluster": "Cluster faces: a features file, face crops, or photos.",
        "estimate": "Estimate the files, memory and time of a run.",
    },
    "Work with the clusters": {
        "report": "Write an HTML page that shows the clusters of a run.",
        "review": "View and correct the clusters of a run in a web browser.",
        "export-clusters": "Export the clusters of a run as folders of images, as a table, or for another tool.",
        "evaluate": "Measure the quality of predicted clusters against true identities.",
        "pairs": "Select the pairs of faces that are most worth checking by a person.",
        "assign": "Assign new faces to the clusters of a finished run.",
        "update": "Add faces to a finished run, or remove some; clusters keep their numbers.",
    },
    "Make engines": {
        "export": "Export PyTorch checkpoints to an engine bundle of ONNX graphs.",
        "build": "Compile an ONNX bundle into TensorRT plans for one GPU.",
        "inspect": "Show the contents of a bundle and its measured accuracy.",
        "recipe": "Print a built-in recipe for export.",
        "bench": "Measure latency and throughput of bundles.",
        "triton": "Write a model repository for Triton Inference Server.",
    },
    "Fit to your own faces": {
        "compare": "Compare engines, and methods without a network, on labelled faces.",
        "tune": "Choose the thresholds of an engine on your own faces.",
        "train": "Train a network on your own labelled faces.",
    },
    "Installation": {
        "doctor": "Show what is installed, what works, and what is missing.",
    },
}
VERBS = {verb: line for chapter in CHAPTERS.values() for verb, line in chapter.items()}


RENAMED = {"plan": "estimate"}  # verbs of earlier versions, which work for one more


class LazyGroup(click.Group):
    """A group that knows its verbs by name and help line and imports a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in RENAMED:
            click.echo(f"Note: `fcdeploy {cmd_name}` is now `fcdeploy {RENAMED[cmd_name]}`.", err=True)
            cmd_name = RENAMED[cmd_name]
        if cmd_name not in VERBS:
            return None
        return importlib.import_module(f"fcdeploy.cli.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, VERBS))  # lines begin in one column in all chapters
        for title, verbs in CHAPTERS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{verb:<{widest}}", line) for verb, line in verbs.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = f"{error.message.rstrip('.')}; known commands: {', '.join(VERBS)}."
            raise click.UsageError(message, ctx) from error


@click.group(cls=LazyGroup, context_settings={**HELP, "max_content_width": 110})
@click.version_option(__version__, prog_name="fcdeploy")
def cli() -> None:
    """Deploy learned face clustering: checkpoints in, clusters out.

    \b
    Example:
      fcdeploy export --ckpt saves/checkpoint.pth -o pse.onnx
      fcdeploy cluster features.bin --engine pse.onnx -o pred_labels.meta
    """


def main() -> None:
    """Run the command line: every error is one sentence on stderr and its exit code."""
    mend_streams()
    warnings.showwarning = _show_warning
    try:
        with interruptible(), speaking_flags():
            _run()
    finally:
        if received():
            ignore_signals()  # nothing is left to do but to end


def _run() -> None:
    try:
        with unmasked():
            cli(standalone_mode=False)
            sys.stdout.flush()  # while what goes wrong can be told
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        interrupt = (
            error.__cause__ if isinstance(error, click.exceptions.Abort) else error
        )  # click's own wrapping
        advice = str(interrupt) if isinstance(interrupt, KeyboardInterrupt) else ""
        number = received() or signal.SIGINT
        word = "Interrupted" if number == signal.SIGINT else f"Stopped by {signal.Signals(number).name}"
        click.echo(f"{word}{'; ' if advice else ''}{one_line(advice)}.", err=True)
        sys.exit(128 + number)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FcdeployError as error:
        click.echo(f"Error: {one_line(str(error))}", err=True)
        sys.exit(error.exit_code)
    except ImportError as error:
        click.echo(f"Error: a package does not load ({one_line(str(error))}); install it again.", err=True)
        sys.exit(1)
    except BrokenPipeError:
        give_up_stdout()
        sys.exit(1)
    except OSError as error:
        if error.filename == STANDARD_OUTPUT:
            give_up_stdout()
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {one_line(f'{where}{error.strerror or error}')}.", err=True)
        sys.exit(1)
    except MemoryError:
        click.echo(
            "Error: out of memory; give a smaller --batch, or use a machine with more memory.", err=True
        )
        sys.exit(1)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, FcdeployWarning):
        click.echo(f"Note: {one_line(str(message))}", err=True)
