"""Labels as people have them: names, floats, tables, lists of MXNet; what is unknown; what is no label."""

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcdeploy.data.keyed_labels import read_keyed_labels
from fcdeploy.data.label_values import UNKNOWN_TEXTS, labels_from_texts, labels_from_values
from fcdeploy.data.labels import read_labels, read_pair, renumber
from fcdeploy.errors import FcdeployWarning, InputError

NUMBERS = [7, 0, 7, -1, 12, 0]
SAME = renumber(NUMBERS).tolist()


def written(path, content, encoding="utf-8"):
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return path


def table(rows, delimiter=",", heading=None):
    lines = [*([heading] if heading else []), *rows]
    return "".join(delimiter.join(map(str, line)) + "\n" for line in lines)


@pytest.mark.parametrize(
    "array",
    [
        np.array(NUMBERS, np.int32)[:, None],
        np.array(NUMBERS, np.int64)[None],
        np.array(NUMBERS, ">i2")[:, None, None],
        np.array(NUMBERS, np.float64),
        np.array(NUMBERS, np.float16)[:, None],
        np.array([7, 0, 7, np.nan, 12, 0], np.float32),
    ],
    ids=lambda array: f"{array.dtype} {array.shape}",
)
def test_arrays_of_one_label_per_face_keep_their_numbers(array, tmp_path):
    np.save(tmp_path / "a.npy", array)
    (tmp_path / "a.npy").rename(tmp_path / "B.NPY")
    np.savez_compressed(tmp_path / "a.npz", whatever=array)
    for name in ("B.NPY", "a.npz"):
        found = read_labels(tmp_path / name, 6)
        assert found.dtype == np.int64
        assert found.tolist() == NUMBERS
    assert labels_from_values(array).tolist() == NUMBERS


@pytest.mark.parametrize("dtype", ["U8", "S8", object])
def test_names_in_an_array_are_identities(dtype, tmp_path):
    names = np.array(["ann", "bob", "ann", "", "cy", "bob"], dtype)
    assert renumber(labels_from_values(names)).tolist() == SAME
    if dtype is not object:
        np.save(tmp_path / "a.npy", names)
        assert renumber(read_labels(tmp_path / "a.npy")).tolist() == SAME


def test_an_archive_of_several_arrays_needs_to_be_told_which(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, features=np.zeros((6, 2)), person=np.array(NUMBERS))
    with pytest.raises(InputError, match=r"a\.npz: holds features, person; .*--label-column"):
        read_labels(path)
    assert read_labels(path, 6, "person").tolist() == NUMBERS
    np.savez(path, features=np.zeros((6, 2)), labels=np.array(NUMBERS))
    assert read_labels(path, 6).tolist() == NUMBERS
    with pytest.raises(InputError, match="holds features, labels"):
        read_labels(path, 6, "label")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"not a whole \.npz archive"):
        read_labels(path)


@pytest.mark.parametrize("name", ["a.meta", "a_labels.txt", "a.txt"])
@pytest.mark.parametrize(
    "lines",
    [
        ["person 7", "person 0", "person 7", "", "person 12", "person 0"],
        ["Ännchen", "Bob, B.", "Ännchen", "nan", "12", "Bob, B."],
        ["7.0", "0.0", "7.0", "-1.0", "12.0", "0.0"],
        [f"{value:.18e}" for value in NUMBERS],  # numpy.savetxt without fmt
        ["7", "0", "7", "", "12", "0"],
        ["7", "0", "7", "NaN", "12", "0"],
        ["0007", "0", "+7", "-1", "12", "00"],
    ],
    ids=lambda lines: lines[0],
)
def test_a_label_per_line_is_a_number_or_a_name(name, lines, tmp_path):
    for end in ("\n", "\r\n"):
        for begin in ("", "\ufeff"):
            path = written(tmp_path / name, begin + end.join(lines) + end)
            assert renumber(read_labels(path, 6)).tolist() == SAME
            assert renumber(read_labels(path)).tolist() == SAME


def test_lines_left_blank_at_the_end_are_faces_where_these_are_that_many(tmp_path):
    path = written(tmp_path / "a.meta", "3\n\n3\n\n\n")
    assert read_labels(path).tolist() == [3, -1, 3]
    assert read_labels(path, 3).tolist() == [3, -1, 3]
    assert read_labels(path, 4).tolist() == [3, -1, 3, -1]
    assert read_labels(path, 5).tolist() == [3, -1, 3, -1, -1]
    with pytest.raises(InputError, match="5 labels for 6 faces"):
        read_labels(path, 6)
    with pytest.raises(InputError, match="3 labels for 2 faces"):
        read_labels(path, 2)
    assert read_labels(written(tmp_path / "b.meta", "\n\n"), 2).tolist() == [-1, -1]


def test_a_txt_is_clusters_unless_its_lines_can_only_be_labels(tmp_path):
    """Numbers that repeat, one per line, are no clusters: a face would be in two of them."""
    assert read_labels(written(tmp_path / "a.txt", "5\n3\n5\n")).tolist() == [5, 3, 5]
    assert read_labels(written(tmp_path / "a.txt", "5\n-1\n4\n")).tolist() == [5, -1, 4]
    assert read_labels(written(tmp_path / "a.txt", "0 2\n1\n")).tolist() == [0, 1, 0]
    assert read_labels(written(tmp_path / "a.txt", "2\n0\n1\n")).tolist() == [
        1,
        2,
        0,
    ]  # all different: either
    with pytest.raises(InputError, match="holds the face id 1 again"):
        read_labels(written(tmp_path / "a.txt", "0 1\n2 1\n"))
    with pytest.raises(InputError, match="line 2 holds 'x', which is not an integer"):
        read_labels(written(tmp_path / "a.txt", "0 1\nx 2\n"))


def test_a_heading_is_told_from_a_label_by_the_number_of_faces(tmp_path):
    numbers = written(tmp_path / "a.meta", "label\n3\n4\n3\n")
    with pytest.warns(FcdeployWarning, match=r"a\.meta: line 1, 'label', is read as a heading"):
        assert read_labels(numbers, 3).tolist() == [3, 4, 3]
    names = written(tmp_path / "b.meta", "who\nann\nbob\nann\n")
    with pytest.warns(FcdeployWarning, match="line 1, 'who'"):
        assert read_labels(names, 3).tolist() == [0, 1, 0]
    assert read_labels(names, 4).tolist() == [0, 1, 2, 1]
    with pytest.raises(InputError, match="line 1 holds 'label', which is not an integer"):
        read_labels(numbers, 4)


ROWS = [
    ("a,1.jpg", "ann", 7),
    ("b.jpg", "bob", 0),
    ("c.jpg", "ann", 7),
    ("d.jpg", "", ""),
    *[("e", "cy", 12)],
]
ROWS = [*ROWS, ("f.jpg", "bob", 0)]
QUOTED = [(f'"{path}"', f'"{name}"', label) for path, name, label in ROWS]


@pytest.mark.parametrize("n", [6, None])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_a_column_of_a_table_is_chosen_by_heading_or_number(delimiter, encoding, end, n, tmp_path):
    text = table(QUOTED, delimiter, ("file", "who", "label")).replace("\n", end)
    path = written(tmp_path / "a.csv", text, encoding)
    for column in (None, "label", "3", "who", "2"):
        assert renumber(read_labels(path, n, column)).tolist() == SAME
    assert read_labels(path, n, "label").tolist() == NUMBERS
    path = written(tmp_path / "b.csv", table(QUOTED, delimiter).replace("\n", end), encoding)
    assert read_labels(path, n, "3").tolist() == NUMBERS


@pytest.mark.parametrize("name", ["a.tsv", "a.meta", "a.txt", "a.list"])
def test_any_text_with_a_column_chosen_is_a_table(name, tmp_path):
    path = written(tmp_path / name, table([(path, label or -1) for path, _, label in ROWS], "\t"))
    if name == "a.list":
        with pytest.raises(InputError, match=r"suffix \.list"):
            read_labels(path, 6)
        return
    assert read_labels(path, 6, "2").tolist() == [7, -1, 7, -1, 12, -1]
    spaced = written(tmp_path / "b.txt", "x/1.jpg 7\nx/2.jpg 0\nx/3.jpg 7\n")
    assert read_labels(spaced, 3, "2").tolist() == [7, 0, 7]
    with pytest.raises(InputError, match=r"line 1 holds 'x/1.jpg 7', the name of an image.*--label-column"):
        read_labels(spaced, 3)


def test_a_table_of_one_column_needs_no_choice(tmp_path):
    for heading in (None, ("identity",)):
        path = written(tmp_path / "a.csv", table([(value,) for value in NUMBERS], heading=heading))
        assert read_labels(path, 6).tolist() == NUMBERS
        assert read_labels(path).tolist() == NUMBERS


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        (table([(0, 1, 2)] * 3, heading=("id", "x", "z")), None, "has 3 columns (id, x, z);"),
        (table([(0, 1, 2)] * 3), None, "has 3 columns (without headings, the first row being '0', '1', '2')"),
        (table([(0, 1, 2)] * 3, heading=("id", "x", "z")), "y", "has no column 'y', but id, x, z; give one"),
        (table([(0, 1, 2)] * 3, heading=("id", "x", "z")), "4", "has no column '4', but id, x, z; give one"),
        (table([(0, 1, 2)] * 3, heading=("id", "x", "z")), "0", "a number from 1 to 3"),
        (table([(0, 1), (0, 1), (0, 1)], heading=("l", "l")), "l", "has several columns 'l'; give its number"),
        (table([(0, 1), (2,), (0, 1)], heading=("a", "b")), "b", "line 3 has 1 column, line 1 has 2"),
        ("a,b\n1,2\n\n1,2\n1,2\n", "b", "line 3 is blank"),
        (table([(0, 1), (0, "much"), (0, 1)], heading=("a", "b")), "b", "line 3 holds 'much', which is not an"),
        (table([(0, 1), (0, 2.5), (0, 1)], heading=("a", "b")), "b", "line 3 holds '2.5', which is not a whole"),
        (table([(0, 1)] * 2, heading=("a", "b")), "b", "2 labels for 3 faces"),
        ("", "b", "is empty; expected a table with one row per face"),
        (b"a,b\n1,\xe9\n", "b", "line 2 is not UTF-8 text; convert it"),
        (b"a,b\0\n1,2\n", "b", "holds bytes that are not text"),
    ],
)  # fmt: skip
def test_what_a_table_does_not_say_is_told_with_its_columns_or_line(text, column, says, tmp_path):
    path = written(tmp_path / "a.csv", text)
    with pytest.raises(InputError) as refused:
        read_labels(path, 3, column)
    assert str(refused.value).startswith(f"{path}: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_lines_of_quoted_cells_with_breaks_are_named_as_an_editor_counts_them(tmp_path):
    path = written(tmp_path / "a.csv", 'who,label\n"an\nn",1\nbob,2\ncy,x\n')
    with pytest.raises(InputError, match="line 5 holds 'x'"):
        read_labels(path, 3, "label")


def test_lists_of_mxnet_are_read_in_the_order_of_their_lines(tmp_path):
    """im2rec's index, label, path; a list that was shuffled keeps its index. InsightFace's flag, path, label."""
    order = [4, 0, 5, 1, 2, 3]
    text = table([(at, f"{NUMBERS[at]:.6f}", f"p/{at}.jpg") for at in order], "\t")
    path = written(tmp_path / "train.lst", text)
    assert read_labels(path, 6).tolist() == [NUMBERS[at] for at in order]
    path = written(tmp_path / "train.lst", table([(1, f"p/{at}.jpg", NUMBERS[at]) for at in range(6)], "\t"))
    assert read_labels(path, 6).tolist() == NUMBERS
    path = written(tmp_path / "x.lst", table([(at, 0.5, NUMBERS[at], "p.jpg") for at in range(6)], "\t"))
    with pytest.raises(InputError, match=r"has 4 columns.*--label-column"):
        read_labels(path, 6)
    assert read_labels(path, 6, "3").tolist() == NUMBERS
    with pytest.raises(InputError, match="an index and a path in every line, and no label"):
        read_labels(written(tmp_path / "y.lst", table([(at, "p.jpg") for at in range(6)], "\t")), 6)


@pytest.mark.parametrize("form", ["parquet", "feather"])
def test_columns_of_parquet_and_feather_are_read(form, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import feather, parquet

    who = ["ann", "bob", "ann", None, "cy", "bob"]
    numbers = [None if value == -1 else value for value in NUMBERS]
    whole = pa.table({"who": who, "label": numbers, "some": pa.array(who).dictionary_encode()})
    path = tmp_path / f"a.{form}"
    (parquet.write_table if form == "parquet" else feather.write_feather)(whole, path)
    assert read_labels(path, 6).tolist() == NUMBERS
    for column in ("who", "1", "some"):
        assert renumber(read_labels(path, 6, column)).tolist() == SAME
    with pytest.raises(InputError, match="has no column 'x', but who, label, some"):
        read_labels(path, 6, "x")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=f"cannot be read as {form}"):
        read_labels(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    from fcdeploy.errors import MissingDependencyError

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        read_labels(written(tmp_path / "a.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x04\x95", "is a pickle, which can run code"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "is HDF5"),
        (b"MATLAB 5.0", "is MATLAB's .mat"),
        (b"\x1f\x8b\x08", "is compressed with gzip"),
        (b"PK\x03\x04", "is a zip archive"),
        (b'{"a": 1}', "is JSON"),
    ],
)
def test_what_is_no_form_of_labels_is_named(content, says, tmp_path):
    with pytest.raises(InputError, match=re.escape(says)):
        read_labels(written(tmp_path / "labels.dat", content))


def test_an_array_is_told_by_its_content_where_the_name_says_nothing(tmp_path):
    np.save(tmp_path / "a.npy", np.array(NUMBERS))
    (tmp_path / "a.npy").rename(tmp_path / "truth")
    assert read_labels(tmp_path / "truth").tolist() == NUMBERS


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=30),
    spelling=st.sampled_from(sorted(UNKNOWN_TEXTS)),
    write=st.sampled_from(["{}", "{}.0", "{}e0", "0{}", "id {}"]),
)
@example(labels=[-1, -1], spelling="", write="{}")
def test_however_labels_are_written_the_partition_and_what_is_unknown_stay(labels, spelling, write):
    texts = [spelling if label == -1 else write.format(label) for label in labels]
    found = labels_from_texts(texts, "here")
    assert np.array_equal(renumber(found), renumber(labels))
    if not write.startswith("id"):
        assert found.tolist() == labels


@pytest.mark.parametrize("words", [[], ["ann"], ["ann"] * 2])
def test_words_among_numbers_are_refused_unless_most_are_words(words):
    texts = ["3", "4", *words]
    if words:
        with pytest.raises(
            InputError, match=r"here: row 2, counted from 0, holds 'ann', which is not an integer"
        ):
            labels_from_texts(texts, "here")
    assert labels_from_texts([*texts, "bob", "cy", "bob"], "here").tolist()[:2] == [0, 1]


@pytest.mark.parametrize(("dtype", "most"), [(np.float16, 2**11), (np.float32, 2**24), (np.float64, 2**53)])
def test_floats_too_coarse_to_tell_identities_apart_are_refused(dtype, most):
    assert labels_from_values(np.array([3, most], dtype)).tolist() == [3, most]
    with pytest.raises(InputError, match=f"which is not a whole number up to 2 .. {most.bit_length() - 1};"):
        labels_from_values(np.array([3, most * 2], dtype))


def test_masked_entries_and_what_pandas_calls_missing_are_unknown():
    masked = np.ma.masked_array([3, 4, 3], [False, True, False])
    assert labels_from_values(masked).tolist() == [3, -1, 3]
    objects = np.array([3.0, None, float("nan"), 3, "3"], object)
    assert labels_from_values(objects).tolist() == [3, -1, -1, 3, 3]
    with pytest.raises(InputError, match=r"truth: expected one label per face.*found int64 \(3, 2\)"):
        labels_from_values(np.zeros((3, 2), int), "truth")


def test_a_pair_of_files_may_be_of_any_two_forms(tmp_path):
    np.save(tmp_path / "a.npy", np.array(NUMBERS)[:, None])
    csv = written(tmp_path / "a.csv", table(QUOTED, heading=("file", "who", "label")))
    clusters = written(tmp_path / "clusters.txt", "0 2\n1 5\n4\n")
    names = written(tmp_path / "names.txt", "p 7\np 0\np 7\n\np 12\np 0\n")
    for pred in (tmp_path / "a.npy", csv, clusters, names):
        for truth in (tmp_path / "a.npy", csv, clusters, names):
            one, other = read_pair(pred, truth, "who" if csv in (pred, truth) else None)
            assert renumber(one).tolist() == renumber(other).tolist() == SAME
    with pytest.raises(InputError, match="2 labels for 6 faces"):
        read_pair(written(tmp_path / "b.meta", "1\n2\n"), csv)


def keyed_table(path, names, labels, heading="id"):
    """Write a table of any of the kinds that hold columns."""
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({heading: names, "label": labels}), path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        rows = zip(names, labels, strict=True)
        path.write_text(f"{heading}{mark}label\n" + "".join(f"{a}{mark}{b}\n" for a, b in rows))
    return path


KINDS = ["t.csv", "t.tsv", "t.parquet"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("heading", ["id", "Face"])
def test_a_table_of_row_numbers_is_read_by_them(name, heading, tmp_path):
    """By hand: sorted by cluster, as a spreadsheet does on a click, row 0's label 7 comes last."""
    path = keyed_table(tmp_path / name, [3, 1, 2, 0], [5, 5, 7, 7], heading)
    with pytest.warns(FcdeployWarning, match=f"by its column '{heading}'"):
        found = read_labels(path, 4)
    assert found.tolist() == [7, 5, 7, 5]


@pytest.mark.parametrize(
    "names",
    [[0, 1, 2, 3], [1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 1, 2], ["a", "b", "c", "d"], [0, 1, 2, 9]],
    ids=["in order", "from 1", "from 1, turned", "twice", "names", "others"],
)
def test_what_are_no_row_numbers_from_0_leaves_the_rows_in_their_order(names, tmp_path):
    path = keyed_table(tmp_path / "t.csv", names, [5, 6, 7, 8])
    assert read_labels(path, 4).tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("name", KINDS)
def test_two_tables_are_compared_by_the_names_of_their_faces(name, tmp_path):
    pred = keyed_table(tmp_path / f"pred-{name}", ["a", "b", "c", "d"], [0, 0, 1, 2])
    truth = keyed_table(tmp_path / f"true-{name}", ["d", "a", "c", "b"], [9, 4, 5, 4])
    with pytest.warns(FcdeployWarning, match="true-t"):
        found = read_pair(pred, truth)
    assert [labels.tolist() for labels in found] == [[0, 0, 1, 2], [4, 4, 5, 9]]


def test_a_heading_of_keys_is_one_though_all_cells_are_text(tmp_path):
    path = written(tmp_path / "t.csv", "face,who\na,Ann\nb,Bo\n")
    found = read_keyed_labels(path, "2", ("face",))
    assert (found.keys, found.labels.tolist()) == (("a", "b"), [0, 1])


def test_two_tables_of_other_faces_are_refused(tmp_path):
    pred = keyed_table(tmp_path / "pred.csv", ["a", "b", "c"], [0, 0, 1])
    truth = keyed_table(tmp_path / "true.csv", ["a", "b", "x"], [4, 4, 5])
    with pytest.raises(InputError, match=r"true\.csv: its column 'id' lacks 'c', which .*pred\.csv has"):
        read_pair(pred, truth)


def test_tables_that_number_the_same_faces_otherwise_go_row_by_row(tmp_path):
    """Ours count from 0, others' from 1: no face is called the same in both."""
    pred = keyed_table(tmp_path / "pred.csv", [0, 1, 2], [0, 0, 1])
    truth = keyed_table(tmp_path / "true.csv", [1, 2, 3], [4, 4, 5])
    assert [labels.tolist() for labels in read_pair(pred, truth)] == [[0, 0, 1], [4, 4, 5]]
