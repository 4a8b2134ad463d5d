"""Lists made elsewhere are compared with the features: right ones of every kind pass, others are told what they are.

Features are those of the goldens: 1,283 faces, real embeddings of 32 values.
"""

import numpy as np
import pytest

from fcdeploy.data.features import features_from_array
from fcdeploy.errors import InputError
from fcdeploy.graph.given_lists import check_lists_of
from fcdeploy.graph.lists import ListsFile

K = 20


@pytest.fixture(scope="module")
def rows(golden):
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)


@pytest.fixture(scope="module")
def exact(rows):
    """Ids and similarities of every face's nearest, itself first."""
    return nearest(rows, K)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def nearest(rows, k):
    sims = unit(rows) @ unit(rows).T
    np.fill_diagonal(sims, 2)
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return ids, np.minimum(np.take_along_axis(sims, ids, axis=1), 1)


def written(tmp_path, form, ids, values=None):
    path = tmp_path / ("lists.npy" if form == "ids" else "lists.npz")
    if form == "ids":
        np.save(path, ids)
    elif form == "sims":
        np.savez(path, ids=ids, sims=values)
    elif form == "stacked":
        np.savez(path, data=np.stack([ids, values], axis=1))
    else:
        np.savez(path, knns=ids, dists=values)
    return path


def check(path, rows, **options):
    check_lists_of(ListsFile(path), features_from_array(rows), **options)


def refusal(path, rows, **options):
    with pytest.raises(InputError) as refused:
        check(path, rows, **options)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_exact_lists_pass_in_every_form(exact, rows, tmp_path):
    ids, sims = exact
    for form, values in (("ids", None), ("sims", sims), ("stacked", 1 - sims), ("dists", 1 - sims)):
        check(written(tmp_path, form, ids, values), rows)
        check(written(tmp_path, form, ids, values), 7 * rows)
        check(written(tmp_path, form, ids, values), rows.astype(np.float16))
    check(written(tmp_path, "ids", ids[:, 1:]), rows)  # without the face itself
    check(written(tmp_path, "sims", ids, np.clip(sims, 0, 1)), rows)


@pytest.mark.parametrize("noise", ["float16", "8 bits", "quantised", "dropped", "reordered"])
def test_rounded_quantised_and_approximate_lists_pass(noise, exact, rows, tmp_path):
    ids, sims = exact
    rng = np.random.default_rng(1)
    if noise == "float16":
        path = written(tmp_path, "sims", ids, sims.astype(np.float16))
    elif noise == "8 bits":
        path = written(tmp_path, "sims", ids, np.round(sims * 127) / 127)
    elif noise == "quantised":  # sorted by what the quantiser thought
        found = sims + 0.04 * rng.standard_normal(sims.shape)
        order = np.argsort(-found, axis=1)
        path = written(tmp_path, "sims", *(np.take_along_axis(part, order, 1) for part in (ids, found)))
    elif noise == "dropped":  # a third of the nearest were not found
        longer, their = nearest(rows, 30)
        kept = np.sort(np.argsort(rng.random(longer.shape), axis=1)[:, :K], axis=1)
        path = written(
            tmp_path, "stacked", *(np.take_along_axis(part, kept, 1) for part in (longer, 1 - their))
        )
    else:
        order = np.argsort(np.arange(K) + 2 * rng.random(ids.shape), axis=1)
        path = written(tmp_path, "ids", np.take_along_axis(ids, order, 1))
    check(path, rows)


@pytest.mark.parametrize("form", ["ids", "sims", "stacked", "dists"])
@pytest.mark.parametrize("change", ["shuffled", "shifted", "other faces", "every tenth"])
def test_lists_of_other_faces_or_of_another_order_are_refused(change, form, rows, tmp_path):
    """Shifted: one face was removed in front; neighbors are of the next face, perhaps the same person."""
    other = {
        "shuffled": rows[np.random.default_rng(0).permutation(len(rows))],
        "shifted": np.roll(rows, 1, axis=0),
        "other faces": np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32),
    }.get(change, rows)
    ids, sims = nearest(other, K)
    if change == "every tenth":
        ids[::10], sims[::10] = (part[::10] for part in nearest(rows[::-1], K))
    found = refusal(written(tmp_path, form, ids, sims if form == "sims" else 1 - sims), rows)
    assert "row " in found
    assert "counted from 0" in found
    assert "other faces" in found or "not sorted" in found


def test_the_row_and_its_values_are_those_of_the_file_and_of_the_features(rows, tmp_path):
    ids, sims = nearest(np.roll(rows, 5, axis=0), K)
    found = refusal(written(tmp_path, "sims", ids, sims), rows)
    words = found.split()
    row = int(words[words.index("row") + 1].rstrip(","))
    neighbor = int(words[words.index("neighbor") + 1].rstrip(","))
    at = ids[row].tolist().index(neighbor)
    assert f"has the value {sims[row, at]:.4g}" in found
    assert f"is {unit(rows)[row] @ unit(rows)[neighbor]:.4g} by" in found


@pytest.mark.parametrize("form", ["sims", "stacked", "dists"])
@pytest.mark.parametrize(
    ("values", "says"),
    [
        (lambda sims, rows, ids: sims, "cosine similarities"),
        (lambda sims, rows, ids: 1 - sims, "distances 1 - cosine"),
        (lambda sims, rows, ids: 2 - 2 * sims, "squared Euclidean distances of unit rows"),
        (lambda sims, rows, ids: np.sqrt(2 - 2 * sims), "Euclidean distances of unit rows"),
        (lambda sims, rows, ids: np.arccos(sims), "angles"),
        (lambda sims, rows, ids: 100 * sims, "similarities in percent"),
        (
            lambda sims, rows, ids: np.einsum("nd,nkd->nk", 3 * rows, 3 * rows[ids]),
            "inner products of rows that are not of unit length",
        ),
        (
            lambda sims, rows, ids: np.linalg.norm(3 * rows[:, None] - 3 * rows[ids], axis=2),
            "Euclidean distances of rows that are not of unit length",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_of_another_kind_are_named_and_the_conversion_is_right(
    values, says, form, exact, rows, tmp_path
):
    ids, sims = exact
    given = values(sims.astype(np.float64), rows, ids)
    path = written(tmp_path, form, ids, given)
    rows = 3 * rows
    if says == ("cosine similarities" if form == "sims" else "distances 1 - cosine"):
        check(path, rows)
        return
    found = refusal(path, rows)
    expected = "cosine similarities" if form == "sims" else "distances 1 - cosine"
    assert f"holds {says} where {expected} are expected" in found
    if "Store " in found and " in the place" in found:
        formula = found.partition("Store ")[2].partition(" in the place")[0]
        check(written(tmp_path, form, ids, eval(formula, {"np": np, "v": given})), rows)


def test_values_that_no_cosine_has_are_refused_though_they_have_its_order(exact, rows, tmp_path):
    """Scores of a scale of their own are not similarities by another embedding."""
    ids, sims = exact
    path = written(tmp_path, "sims", ids, 3 * sims)
    assert "holds values of " in (told := refusal(path, rows))
    assert "where cosine similarities, -1 to 1, are expected" in told


def test_lists_that_are_not_sorted_are_refused_where_their_order_is_used(exact, rows, tmp_path):
    ids, sims = exact
    order = np.argsort(np.random.default_rng(0).random(ids.shape), axis=1)
    ids, sims = (np.take_along_axis(part, order, 1) for part in (ids, sims))
    for form, values in (("ids", None), ("sims", sims), ("stacked", 1 - sims), ("dists", 1 - sims)):
        found = refusal(written(tmp_path, form, ids, values), rows)
        assert "not sorted" in found
        check(written(tmp_path, form, ids, values), rows, sorted_later=True)
    assert "not sorted" in refusal(written(tmp_path, "ids", np.sort(exact[0], axis=1)), rows)
    assert "not sorted" in refusal(written(tmp_path, "sims", exact[0][:, ::-1], exact[1][:, ::-1]), rows)


def test_re_ranked_lists_hold_another_measure_and_another_order(golden, exact, rows, tmp_path):
    ranked = np.load(golden / "dev/pse/reranking.npz")
    check(written(tmp_path, "ids", ranked["knn"]), rows, reranked=True)
    check(written(tmp_path, "sims", ranked["knn"], ranked["sim"]), rows, reranked=True)
    check(written(tmp_path, "ids", exact[0]), rows, reranked=True)
    found = refusal(written(tmp_path, "ids", ranked["knn"][::-1]), rows, reranked=True)
    assert "no nearer than random faces" in found
    assert "not sorted" in refusal(written(tmp_path, "ids", ranked["knn"][:, ::-1]), rows, reranked=True)


def test_rows_that_are_used_as_they_are_may_have_inner_products(rows, tmp_path):
    ids, _ = nearest(rows, K)
    long = 1.2 * unit(rows)
    inner = np.einsum("nd,nkd->nk", long, long[ids])
    path = written(tmp_path, "sims", ids, inner)
    check(path, long, unit=False)
    assert "inner products" in refusal(path, long)


def test_what_cannot_be_told_is_let_through(tmp_path):
    """All faces alike, hardly more faces than neighbors, lists of the face alone, rows that are broken."""
    rng = np.random.default_rng(0)
    same = np.tile(rng.standard_normal(8).astype(np.float32), (300, 1))
    check(written(tmp_path, "ids", np.stack([np.roll(np.arange(300), -i)[:10] for i in range(300)])), same)
    few = rng.standard_normal((12, 8)).astype(np.float32)
    check(written(tmp_path, "ids", nearest(few, 12)[0]), few)
    check(written(tmp_path, "ids", np.arange(300)[:, None]), rng.standard_normal((300, 8)))
    broken = rng.standard_normal((300, 8)).astype(np.float32)
    path = written(tmp_path, "sims", *nearest(broken, 10))
    broken[::7] = np.nan
    broken[3] = 0
    check(path, broken)


def test_the_sample_is_the_same_each_time_and_reads_in_halves_without_memory(
    exact, rows, tmp_path, monkeypatch
):
    path = written(tmp_path, "sims", *exact)
    blocks, asked = ListsFile.blocks, []

    def failing(self, size, used):
        asked.append(size)
        if size > 300:
            raise MemoryError
        return blocks(self, size, used)

    monkeypatch.setattr(ListsFile, "blocks", failing)
    check(path, rows)
    assert len(asked) > 3
    assert asked[-1] <= 300


def test_an_array_in_a_file_of_any_name_is_read(exact, rows, tmp_path):
    path = written(tmp_path, "ids", exact[0]).rename(tmp_path / "LISTS.NPY")
    assert ListsFile(path).n == len(rows)
    check(path, rows)


@pytest.mark.parametrize("form", ["ids", "sims", "stacked"])
@pytest.mark.parametrize("by", [1, -1, 3])
@pytest.mark.parametrize("made", ["goldens", "tight"])
def test_lists_of_faces_sorted_by_person_are_refused_when_they_are_some_rows_off(
    made, by, form, golden, rows, tmp_path
):
    """Neighbors are then of the same person nearly always; what is off is their similarity and their order."""
    labels = np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)
    if made == "tight":
        rng = np.random.default_rng(0)
        labels = np.sort(rng.integers(0, 60, 1200))
        rows = rng.standard_normal((60, 64))[labels] + 0.5 * rng.standard_normal((1200, 64))
    rows = rows[np.argsort(labels, kind="stable")]
    ids, sims = nearest(np.roll(rows, by, axis=0), K)
    found = refusal(written(tmp_path, form, ids, sims if form == "sims" else 1 - sims), rows)
    if form == "ids":
        assert f"would fit {abs(by)} row" in found or "no nearer than random" in found
    else:
        assert f"would fit {abs(by)} row" in found
        assert ("further on" in found) == (by < 0)
    check(
        written(tmp_path, form, *nearest(rows, K))
        if form == "sims"
        else written(tmp_path, "ids", nearest(rows, K)[0]),
        rows,
    )


def test_lists_by_another_embedding_of_the_same_faces_pass(golden, exact, rows, tmp_path):
    """Refined features on the lists of the original ones, as NSR-FC's re-scoring is published; not of other faces."""
    refined = np.load(golden / "dev/pse/cluster_feature.npz")["feature"]
    ids, sims = exact
    check(written(tmp_path, "stacked", ids, 1 - sims), refined)
    assert "other faces" in refusal(written(tmp_path, "stacked", ids, 1 - sims), refined[::-1])
    assert "holds cosine similarities where" in refusal(written(tmp_path, "stacked", ids, sims), rows)
