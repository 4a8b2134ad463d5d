"""Pairs of a run's faces for a person to check."""

from pathlib import Path

import numpy as np

from fcdeploy.clustering.sampling import DrawnPairs, draw_pairs
from fcdeploy.data.columns import Column, check_table_path, write_columns
from fcdeploy.errors import InputError
from fcdeploy.runtime.evidence import read_placed, rows_of_faces
from fcdeploy.runtime.stored import names_of_rows

WRITTEN = (".csv", ".tsv")


def check_pairs_path(path: Path | str) -> Path:
    """Return ``path`` when pairs can be written there: a table that a person can edit. Raises InputError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise InputError(
            f"{path}: pairs are written as a table to edit; give a name that ends in .csv or .tsv."
        )
    return check_table_path(path)


def pairs(
    run_dir: Path | str, n: int = 200, *, output: Path | str | None = None, seed: int = 0
) -> DrawnPairs:
    """Select the pairs of faces of a finished run that are most worth checking by a person, and write them.

    - run_dir: the folder of a finished ``cluster``.
    - n: number of pairs; fewer if the run has fewer.
    - output: a table to write (.csv, .tsv), in random order: a, b, answer (empty, for "same" or "different"), strength,
      stratum, stratum_pairs.
    - seed: random seed.

    Faces are identified by the ids that came with the features; without ids, by row number from 0 or, after
    ``fcdeploy.update``, by the numbers that it assigned. Raises InputError for a folder without a finished run.
    """
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} = {value!r}: give a whole number, {least} or more.")
    if output is not None:
        check_pairs_path(output)
    placed = read_placed(run_dir)
    drawn = draw_pairs(placed.evidence, n, seed)
    if not len(drawn.ids):
        raise InputError(f"{run_dir}: holds no linked faces; there are no pairs to check.")
    mixed = np.random.default_rng(seed).permutation(
        len(drawn.ids)
    )  # who checks half of them has some of all strata
    rows = rows_of_faces(placed.face)
    names = names_of_rows(run_dir, placed)
    if names is not None:
        rows = names[rows]
    drawn = DrawnPairs(
        rows[drawn.ids[mixed]],
        drawn.strength[mixed],
        drawn.stratum[mixed],
        drawn.pairs[mixed],
        drawn.together[mixed],
    )
    if output is not None:
        columns: dict[str, Column] = {
            "a": drawn.ids[:, 0],
            "b": drawn.ids[:, 1],
            "answer": [""] * len(drawn.ids),
            "strength": drawn.strength,
            "stratum": drawn.stratum,
            "stratum_pairs": drawn.pairs,
        }
        write_columns(check_pairs_path(output), columns)
    return drawn
