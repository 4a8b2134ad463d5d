import csv

import numpy as np
import pytest

from fcdeploy.data.checked_pairs import read_pairs, read_photos
from fcdeploy.data.columns import write_columns
from fcdeploy.errors import InputError


@pytest.mark.parametrize(
    ("text", "ids", "same", "lines"),
    [
        ("0,1,same\n2,3,different\n", [[0, 1], [2, 3]], [True, False], [1, 2]),
        ("a,b,answer\n0,1,same\n", [[0, 1]], [True], [2]),
        ("similarity,b,a,Answer\n0.5,1,0,Same\n0.25,2,0,\n0.1,3,1,?\n", [[0, 1]], [True], [2]),
        ("0\t1\tmust\n1\t2\tcannot\n", [[0, 1], [1, 2]], [True, False], [1, 2]),
    ],
)
def test_pairs_in_the_forms_that_people_write(tmp_path, text, ids, same, lines):
    (tmp_path / "pairs.csv").write_text(text)
    pairs = read_pairs(tmp_path / "pairs.csv", 4)
    assert (pairs.ids.tolist(), pairs.same.tolist(), pairs.lines.tolist()) == (ids, same, lines)


def test_further_columns_of_numbers_are_kept_for_answered_pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b,weight,answer\n0,1,2.5,same\n1,2,7,\n2,3,,different\n")
    pairs = read_pairs(tmp_path / "pairs.csv", 4)
    assert pairs.numbers["weight"][0] == 2.5
    assert np.isnan(pairs.numbers["weight"][1])
    assert pairs.unanswered == 1


def test_faces_go_by_their_ids_where_they_have_such(tmp_path):
    (tmp_path / "pairs.csv").write_text("x7,y,same\n")
    assert read_pairs(tmp_path / "pairs.csv", 3, np.array(["y", "z", "x7"])).ids.tolist() == [[2, 0]]
    with pytest.raises(InputError, match="line 1 names 'x7', which is the id of no face"):
        read_pairs(tmp_path / "pairs.csv", 3, np.array(["y", "z", "w"]))
    with pytest.raises(InputError, match="'y' is the id of rows 0 and 2"):
        read_pairs(tmp_path / "pairs.csv", 3, np.array(["y", "z", "y"]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,1,same\n0,4,same\n", "line 2 names face 4; there are 4"),
        ("0,1,same\n2,2,same\n", "line 2 pairs 2 with itself"),
        ("0,1,same\n2,3,maybe\n", "line 2 says 'maybe'"),
        ("0,1,same\n-1,3,same\n", "line 2 names '-1'"),
        ("a,b,verdict\n0,1,same\n", "no heading 'answer'"),
        ("0,1\n", "line 1 has 2 columns"),
    ],
)
def test_what_does_not_do_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_pairs(tmp_path / "pairs.csv", 4)


def test_photos_are_numbered_by_name_and_unknown_where_a_line_is_empty(tmp_path):
    (tmp_path / "photos.txt").write_text("a.jpg\nb.jpg\n\na.jpg\n")
    assert read_photos(tmp_path / "photos.txt", 4).tolist() == [0, 1, -1, 0]
    assert read_photos(tmp_path / "photos.txt", 4).dtype == np.int32
    with pytest.raises(InputError, match="4 lines for 3 faces"):
        read_photos(tmp_path / "photos.txt", 3)
    with pytest.raises(InputError, match="4 lines for 6 faces"):
        read_photos(tmp_path / "photos.txt", 6)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_photos_have_any_name_that_a_file_has(tmp_path, end):
    names = ["a\x85b", "a\u2028b", "a\x0cb", "a\x85b"]
    lines = [*(name.encode() for name in names), b"\xff.jpg", b"\xfe.jpg", b"\xff.jpg", b""]
    (tmp_path / "photos.txt").write_bytes(end.join([*lines, b""]))
    assert read_photos(tmp_path / "photos.txt", 8).tolist() == [0, 1, 2, 0, 3, 4, 3, -1]


def test_the_name_of_a_photo_may_hold_a_carriage_return(tmp_path):
    (tmp_path / "photos.txt").write_bytes(b"a\rb.jpg\na.jpg\na\rb.jpg\n")
    assert read_photos(tmp_path / "photos.txt", 3).tolist() == [0, 1, 0]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_of_a_table_may_hold_whatever_ends_a_line(tmp_path, suffix):
    names = ["a\rb", "a\nb", "a\r\nb", "a\u2028b", 'a"b', "a,b\tc"]
    path = tmp_path / f"t{suffix}"
    write_columns(path, {"id": names, "x": np.arange(6)})
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t" if suffix == ".tsv" else ","))
    assert rows == [["id", "x"], *([name, str(at)] for at, name in enumerate(names))]


def test_a_table_holds_its_columns_with_empty_cells_for_nan(tmp_path):
    columns = {"id": np.array([3, 4]), "x": np.float32([0.1, np.nan]), "flags": ["", 'a;"b"']}
    write_columns(tmp_path / "t.csv", columns)
    assert (tmp_path / "t.csv").read_text() == 'id,x,flags\n3,0.1,\n4,,"a;""b"""\n'
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_columns(tmp_path / "t.parquet", columns)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.column("x").to_pylist() == [np.float32(0.1), None]
    assert table.column("flags").to_pylist() == ["", 'a;"b"']
    assert (tmp_path / "t.csv").read_text().count("\n") == 3
