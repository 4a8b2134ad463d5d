"""What a person sees of a training: a bar with the loss on a terminal, and a line a check."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fcdeploy.systems.training_types import Value

if TYPE_CHECKING:
    from rich.progress import Progress

# Seconds until a training without a bar says how long it will take; again after twice as many.
FIRST_WORD = 20.0


class Report:
    """Talks on stderr, unless ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet or sys.stderr is None  # closed when the process began
        self._bar: Progress | None = None
        self._loss = 0.0
        self._compiles = False

    def compiling(self) -> None:
        """Say that kernels are being compiled, once."""
        if not self._compiles:
            self.say("compiling kernels (cached for later runs)")
        self._compiles = True

    def say(self, text: str) -> None:
        """Print a line, above the bar when there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr)

    @contextlib.contextmanager
    def steps(self, total: int, done: int) -> Iterator[None]:
        """Show how many steps of ``total`` are done while the block works."""
        self._started, self._first, self._step, self._total = time.monotonic(), done, done, total
        self._next_word = FIRST_WORD
        if self._quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as self._bar:
            self._task = self._bar.add_task("training", total=total, completed=done)
            try:
                yield
            finally:
                self._bar = None

    def advance(self, loss: float) -> None:
        """Count one step, and show its loss, smoothed; without a bar, a line now and then."""
        self._loss = loss if not self._loss else 0.95 * self._loss + 0.05 * loss
        self._step += 1
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"training, loss {self._loss:.4f}")
        elif (passed := time.monotonic() - self._started) > self._next_word:
            self._next_word = 2 * passed
            self.say(
                f"step {self._step:,} of {self._total:,}, loss {self._loss:.4f}, about {self._left()} left"
            )

    def _left(self) -> str:
        """Say how long the remaining steps will take if they take as long as those before."""
        each = (time.monotonic() - self._started) / max(1, self._step - self._first)
        left = each * (self._total - self._step)
        if left < 120:
            return f"{left:.0f} s"
        return f"{left / 60:.0f} min" if left < 7200 else f"{left / 3600:.0f} h"

    def checked(
        self,
        step: int,
        total: int,
        loss: float,
        measures: Mapping[str, float],
        values: Mapping[str, Value],
        better: bool,
    ) -> None:
        """Say what was found on the validation faces."""
        parts = [f"step {step:,} of {total:,}", f"loss {loss:.4f}"]
        parts += [f"{name} {value:.4f}" for name, value in measures.items()]
        parts += [f"{name} {value:g}" for name, value in values.items() if isinstance(value, (int, float))]
        parts += ["best so far"] if better and measures else []
        parts += [f"about {self._left()} left"] if step < total else []
        self.say(", ".join(parts))
