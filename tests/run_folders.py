"""Artifacts in run folders, as users read them."""

import json
from pathlib import Path

import numpy as np


def load_artifact(folder: Path | str) -> dict[str, np.ndarray]:
    """Return the arrays of an artifact's folder, by name."""
    return {file.stem: np.load(file) for file in sorted(Path(folder).glob("*.npy"))}


def bytes_of(folder: Path | str) -> bytes:
    """Return what the arrays of an artifact's folder are made of, byte for byte, with their names."""
    files = sorted(Path(folder).glob("*.npy"))
    return b"".join(file.name.encode() + b"\0" + file.read_bytes() for file in files)


def made(folder: Path | str) -> dict[str, tuple[int, int]]:
    """Return when, and as which file, each array of an artifact was made."""
    stats = {file.name: file.stat() for file in sorted(Path(folder).glob("*.npy"))}
    return {name: (found.st_ino, found.st_mtime_ns) for name, found in stats.items()}


def finished_in(run: Path | str) -> set[str]:
    """Return the names of the artifacts that a run folder records as finished, keeps and holds."""
    record = Path(run) / "run.json"
    recorded = json.loads(record.read_text())["artifacts"] if record.exists() else {}
    return {name for name, entry in recorded.items() if not entry["boot"] and (Path(run) / name).is_dir()}
