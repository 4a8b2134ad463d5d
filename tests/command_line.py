"""The command line, called in this process."""

import sys
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest


class Outcome(NamedTuple):
    """How a command ended: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one sentence on stderr, behind notes."""
        lines = [line for line in self.err.splitlines() if not line.startswith("Note: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("Error: "), self.err
        return lines[0]


Command = Callable[..., Outcome]


def calling(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return what calls ``fcdeploy ARGS``; an exception that is no exit passes through to the test."""
    from fcdeploy.cli import main

    def call(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
        capsys.readouterr()
        code: object = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # notes, which the tests' own settings would raise
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return call
