"""What a person sees while a run works: one bar a stage on a terminal, one line a stage elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol


class Bar(Protocol):
    """Something that counts faces up to a total."""

    def advance(self, faces: int) -> None: ...

    def tell(self, told: str) -> None:
        """Show something beside the count."""


class Silent:
    """Shows nothing."""

    def __init__(self) -> None:
        self.told = ""

    def advance(self, faces: int) -> None:
        """Do nothing."""

    def tell(self, told: str) -> None:
        """Keep it for the line at the end."""
        self.told = told


@dataclass
class Progress:
    """Shows bars on stderr, unless ``quiet``; measures every stage either way.

    seconds: stage -> wall-clock seconds spent in it, in the order of first use.
    """

    quiet: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    _compiles: bool = False

    def compiling(self) -> None:
        """Say that kernels are being compiled, which makes a first run wait where nothing else shows; once."""
        if not self.quiet and not self._compiles and sys.stderr is not None:
            print("compiling kernels (cached for later runs)", file=sys.stderr)
        self._compiles = True

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block as part of stage ``name``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @contextlib.contextmanager
    def bar(self, text: str, total: int, done: int = 0, unit: str = "faces") -> Iterator[Bar]:
        """Show a bar over ``total`` faces (or ``unit``), ``done`` of them behind us, while the block works."""
        if self.quiet or sys.stderr is None:  # closed when the process began
            yield Silent()
        elif sys.stderr.isatty():
            with _terminal_bar(text, total, done) as bar:
                yield bar
        else:
            started = time.perf_counter()
            silent = Silent()
            yield silent
            seconds = time.perf_counter() - started
            by = f" ({silent.told})" if silent.told else ""
            print(f"{text}: {total - done:,} {unit} in {seconds:.1f} s{by}", file=sys.stderr)


@contextlib.contextmanager
def _terminal_bar(text: str, total: int, done: int) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(text, total=total, completed=done, told="")

        class Shown:
            def advance(self, faces: int) -> None:
                shown.advance(task, faces)

            def tell(self, told: str) -> None:
                shown.update(task, told=told)

        yield Shown()
