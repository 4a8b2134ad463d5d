"""Which search is made by which name."""

import pytest

from fcdeploy.graph.knn import EXACT_LIMIT
from fcdeploy.graph.search import Exact, InCells, Ivf, search_named


@pytest.mark.parametrize(
    ("name", "n", "kind"),
    [
        ("auto", EXACT_LIMIT, Exact),
        ("auto", EXACT_LIMIT + 1, InCells),
        ("exact", 10**7, Exact),
        ("ivf", 2, Ivf),
        ("cells", 2, InCells),
    ],
)
def test_auto_compares_all_pairs_up_to_the_limit(name: str, n: int, kind: type) -> None:
    assert isinstance(search_named(name, n), kind)
