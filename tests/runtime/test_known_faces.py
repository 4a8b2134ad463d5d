"""What a person has said of faces, with a run or an update, still holds in later updates."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from system_cases import CASES

import fcdeploy
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.errors import InputError
from fcdeploy.runtime.evidence import read_placed
from fcdeploy.runtime.known import carried, with_answers, with_photos
from fcdeploy.runtime.review import Review


@pytest.fixture
def folder(stored_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored_run(CASES[0])[1], tmp_path / "run"))


@pytest.fixture
def pair(folder: Path) -> tuple[int, int]:
    """Two faces of the largest cluster."""
    labels = read_placed(folder).labels
    return tuple(np.flatnonzero(labels == np.bincount(labels[labels >= 0]).argmax())[[0, -1]].tolist())


def of_faces(found: Any) -> dict[int, int]:
    return dict(zip(found.faces.tolist(), found.labels.tolist(), strict=True))


def lines_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_an_update_holds_to_the_answers_of_the_run_and_of_earlier_updates(
    stored_run: Any, faces_in_parts: Any, pair: tuple[int, int], tmp_path: Path
) -> None:
    rows, new = faces_in_parts
    first, second = pair
    engine, run = stored_run(CASES[0])[0], tmp_path / "answered"
    pairs = [(first, second, "different")]
    fcdeploy.cluster(rows[~new], engine=engine, run_dir=run, pairs=pairs)
    label = of_faces(fcdeploy.update(run, add=rows[new][:20]))
    assert label[first] != label[second]
    label = of_faces(fcdeploy.update(run, remove=[0 if first else 1], add=rows[new][20:30]))
    assert label[first] != label[second]
    # Who says otherwise later is believed.
    label = of_faces(fcdeploy.update(run, add=rows[new][30:], pairs=[(second, first, "same")]))
    assert label[first] == label[second]


def test_answers_that_contradict_earlier_ones_are_refused(folder: Path, pair: tuple[int, int]) -> None:
    first, second = pair
    third = next(face for face in range(100) if face not in pair)
    gone = next(face for face in range(100, 200) if face not in pair)
    fcdeploy.update(folder, remove=[gone], pairs=[(first, second, "different"), (second, third, "same")])
    before = read_placed(folder).labels.copy()
    with pytest.raises(InputError, match="contradicts what was said"):
        fcdeploy.update(folder, remove=[gone + 1], pairs=[(first, third, "same")])
    assert np.array_equal(read_placed(folder).labels, before)


def test_two_added_faces_of_one_photo_stay_apart_and_the_links_are_listed(
    folder: Path, faces_in_parts: Any, pair: tuple[int, int], fcdeploy: Any, tmp_path: Path
) -> None:
    rows, new = faces_in_parts
    twins = rows[~new][list(pair)] + np.float32(0.01) * rows[new][:2]
    np.save(tmp_path / "twins.npy", twins.astype(np.float32))
    (tmp_path / "photos.txt").write_text("a.jpg\na.jpg\n")
    args = ("--add", tmp_path / "twins.npy", "-o", tmp_path / "out.csv", "--quiet")
    done = fcdeploy("update", shutil.copytree(folder, tmp_path / "without"), *args)
    assert done.code == 0, done.err
    together = [line["label"] for line in lines_of(tmp_path / "out.csv")[-2:]]
    assert together[0] == together[1]
    assert not (tmp_path / "out.refused.csv").exists()
    done = fcdeploy("update", folder, *args, "--same-photo", tmp_path / "photos.txt")
    assert done.code == 0, done.err
    apart = [line["label"] for line in lines_of(tmp_path / "out.csv")[-2:]]
    assert apart[0] != apart[1]
    refused = lines_of(tmp_path / "out.refused.csv")
    assert refused
    assert {line["because"] for line in refused} == {"photo"}
    (tmp_path / "ids.txt").write_text("0\n")
    done = fcdeploy("update", folder, "--remove", tmp_path / "ids.txt", "-o", tmp_path / "out.csv", "--quiet")
    assert done.code == 0, done.err
    later = [line["label"] for line in lines_of(tmp_path / "out.csv")[-2:]]
    assert later[0] != later[1]


def pairs_of(answers: list[tuple[int, int, bool]]) -> CheckedPairs:
    ids = np.array([answer[:2] for answer in answers], np.int32).reshape(-1, 2)
    same = np.array([answer[2] for answer in answers], bool)
    return CheckedPairs("x", ids, same, np.arange(1, len(ids) + 1), 0, {})


N = 8
some = st.lists(
    st.tuples(st.integers(0, N - 1), st.integers(0, N - 1), st.booleans()).filter(
        lambda one: one[0] != one[1]
    ),
    max_size=6,
    unique_by=lambda one: tuple(sorted(one[:2])),
)


@given(some, some)
def test_the_last_word_on_two_faces_counts_and_nothing_else_goes(
    early: list[tuple[int, int, bool]], late: list[tuple[int, int, bool]]
) -> None:
    both = with_answers(Review(pairs=pairs_of(early)), pairs_of(late)).pairs
    assert both is not None
    found = {
        tuple(sorted(pair)): same for pair, same in zip(both.ids.tolist(), both.same.tolist(), strict=True)
    }
    assert len(found) == len(both.ids)
    assert found == {tuple(sorted(one[:2])): one[2] for one in (*early, *late)}


@given(st.lists(st.integers(-1, 4), min_size=N, max_size=N), st.permutations(range(N)), st.integers(0, N))
def test_photos_go_with_their_faces_and_new_ones_are_others(
    photos: list[int], order: list[int], kept: int
) -> None:
    place = np.array([at if at < kept else -1 for at in order], np.int32)
    known = carried(Review(photos=np.array(photos, np.int32)), place, kept + 3)
    grown = with_photos(known, np.array([0, -1, 0], np.int32), kept, kept + 3).photos
    assert grown is not None
    assert all(grown[place[row]] == photos[row] for row in range(N) if place[row] >= 0)
    assert grown[kept] == grown[kept + 2] >= 0
    assert grown[kept + 1] == -1
    assert grown[kept] not in grown[:kept]
