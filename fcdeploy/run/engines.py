"""The networks that a run is handed: passes to open, and what tells one set of weights from another."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from fcdeploy.engine.tensors import Engine, PassSpec


class Engines(Protocol):
    """Passes of networks: those of a bundle (``fcdeploy.engine.bundle``), or of networks in training.

    path: how messages name it; system: its name; weights: the networks that there are, each with the widths of its
    weights.
    """

    @property
    def path(self) -> Path: ...

    @property
    def system(self) -> str: ...

    @property
    def weights(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def passes(self) -> Mapping[str, PassSpec]: ...

    @property
    def runtime(self) -> Mapping[str, str]:
        """The versions of the libraries that evaluate the passes, by name."""

    def digest(self, passes: Collection[str] | None = None) -> str:
        """Return a hash of everything in the networks that decides what these passes (all) compute."""

    def device(self, asked: str | None = None) -> str:
        """Return where passes run, "cpu" or "cuda", when ``asked`` to run there (None: where they can)."""

    def provider(self, asked: str | None = None) -> str:
        """Return the name of what evaluates them there."""

    def open(
        self, name: str, *, threads: int = 0, device: str | None = None, vram: int = 0, share: int = 1
    ) -> AbstractContextManager[Engine]:
        """Open one pass; vram: bytes of device memory, 0 for all; share: how many engines there are for it."""
