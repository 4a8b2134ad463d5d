"""Run folders of every system over part of the golden faces, and what is left for new ones."""

from pathlib import Path
from typing import Any

import numpy as np
from system_cases import Case

EVERY = 10


FACES = 400


def golden_faces(golden: Path) -> tuple[np.ndarray, np.ndarray]:
    """Some golden faces (n, 32), of whole identities in no order, and which of them are new."""
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    people = np.loadtxt(golden / "dev/data/labels.meta", dtype=int)
    chosen = np.flatnonzero(people <= np.sort(people)[FACES])
    rows = rows[np.random.default_rng(0).permutation(chosen)]
    return rows, np.arange(len(rows)) % EVERY == EVERY - 1


def bundle_of(case: Case, exported: Any, cut_bundle: Any, folder: Path) -> Path:
    whole = exported(case)
    return cut_bundle(whole, case.networks, folder / "cut.onnx").path if case.networks else whole.path


def files_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that tells whether somebody wrote into a folder, but for its lock."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock")
    return {
        str(file.relative_to(folder)): (file.stat().st_ino, file.stat().st_mtime_ns, file.read_bytes())
        for file in files
    }


def same_pairs(found: np.ndarray, wanted: np.ndarray) -> float:
    """F of the pairs that two partitions put together; -1 is alone."""
    alone = [np.where(labels < 0, 10**6 + np.arange(len(labels)), labels) for labels in (found, wanted)]
    together = [labels[:, None] == labels[None] for labels in alone]
    both = (together[0] & together[1]).sum() - len(found)
    return 2 * both / max(1, together[0].sum() + together[1].sum() - 2 * len(found))
