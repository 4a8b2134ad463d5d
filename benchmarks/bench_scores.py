"""How many scores of codes a search in cells computes per face, and in how many cells: its work, whatever computes it.

    python benchmarks/bench_scores.py --faces 100000 --faces 584000

Counted for a block of generated faces in the middle of the order of cells; the cut is that of the recall asked for.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from faces import make_faces
from report import write_report

from fcdeploy.graph.best_scores import BestScores, Lists
from fcdeploy.graph.cell_search import RECALL, CellSearch
from fcdeploy.graph.cells import cell_count
from fcdeploy.graph.partition import make_cells

BLOCK = 4096


@click.command()
@click.option("--faces", "sizes", multiple=True, type=int, default=(100_000, 584_000), show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--k", default=80, show_default=True)
@click.option("--recall", default=RECALL, show_default=True)
def main(sizes: tuple[int, ...], dim: int, k: int, recall: float) -> None:
    """Count scores and cells per face."""
    rows = [row for faces in sizes for row in counted(faces, dim, k, recall)]
    write_report("scores", rows, {"dim": dim, "k": k, "recall": recall, "block": BLOCK})


def counted(faces: int, dim: int, k: int, recall: float) -> Iterator[dict[str, Any]]:
    """Yield what a search among ``faces`` generated faces compares."""
    vectors, _ = make_faces(faces, dim, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cells = make_cells(vectors, cell_count(faces))
    search = CellSearch(vectors, cells)
    search.cut = search.reach_for(k, recall).cut
    scores, pairs = [], []
    visit = BestScores.visit

    def counting(self: BestScores, lists: Lists, first: np.ndarray, rows: np.ndarray) -> None:
        scores.append(int((np.diff(first) * np.diff(lists.first)).sum()))
        pairs.append(len(rows))
        visit(self, lists, first, rows)

    start = max(0, (faces - BLOCK) // 2)
    block = cells.order()[start : start + BLOCK]
    with patch.object(BestScores, "visit", counting):
        search.search(block, k)
    yield {
        "faces": faces,
        "cells": cells.count,
        "cut": search.cut,
        "scores_per_face": sum(scores) / len(block),
        "cells_per_face": sum(pairs) / len(block),
    }


if __name__ == "__main__":
    main()
