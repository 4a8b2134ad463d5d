import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from fcdeploy.cli import cli
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.labels import write_labels
from fcdeploy.errors import InputError

TRUTH = np.array([0, 0, 0, 1, 1, 2, 3, 3])
PRED = np.array([5, 5, 6, 6, 6, 7, -1, -1])
FORMS = ["a.meta", "a_labels.txt", "a.npy", "clusters.txt"]


def invoke(*arguments):
    return CliRunner().invoke(cli, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def run(*arguments):
    command = [sys.executable, "-m", "fcdeploy", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def files(tmp_path):
    """Write prediction and truth in every form; give the path of a side in a form."""
    for side, labels in (("pred", PRED), ("truth", TRUTH)):
        (tmp_path / side).mkdir()
        for form in FORMS:
            write_labels(tmp_path / side / form, labels)
    return lambda side, form: tmp_path / side / form


@pytest.mark.parametrize("pred", FORMS)
@pytest.mark.parametrize("truth", FORMS)
def test_every_pair_of_forms_gives_the_same_measures(pred, truth, files):
    """Also a clusters.txt that leaves the last faces out: the number of faces comes from the other file."""
    found = invoke(files("pred", pred), files("truth", truth), "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout) == evaluate(PRED, TRUTH).as_dict()


def test_a_true_clusters_file_takes_the_number_of_faces_from_the_prediction(files):
    """The roles exchanged: now it is the truth that leaves the last two faces out."""
    found = invoke(files("truth", "a.npy"), files("pred", "clusters.txt"), "--json")
    assert json.loads(found.stdout) == evaluate(TRUTH, PRED).as_dict()
    found = invoke(files("truth", "clusters.txt"), files("pred", "clusters.txt"), "--json")
    assert json.loads(found.stdout) == evaluate(TRUTH, PRED).as_dict()


def test_the_table_shows_each_measure_in_its_row(files):
    """By hand: true pairs 01 02 12 34 67, predicted 01 23 24 34; P = 2/4, R = 2/5, F = 4/9."""
    found = invoke(files("pred", "a.meta"), files("truth", "a.meta"))
    assert found.exit_code == 0
    assert found.stderr == ""
    rows = [line.split() for line in found.stdout.splitlines()]
    bcubed = evaluate(PRED, TRUTH).bcubed
    assert rows == [
        ["precision", "recall", "F"],
        ["pairwise", "0.5000", "0.4000", "0.4444"],
        ["BCubed", f"{bcubed.precision:.4f}", f"{bcubed.recall:.4f}", f"{bcubed.f:.4f}"],
        ["NMI", f"{evaluate(PRED, TRUTH).nmi:.4f}"],
        ["ARI", f"{evaluate(PRED, TRUTH).ari:.4f}"],
        ["faces", "8"],
        ["clusters", "3"],
    ]


def test_json_is_all_that_stdout_holds_and_has_the_promised_keys(files):
    found = run(files("pred", "a.meta"), files("truth", "a.meta"), "--json")
    assert (found.returncode, found.stderr) == (0, "")
    measures = json.loads(found.stdout)
    assert list(measures) == ["pairwise", "bcubed", "nmi", "ari", "faces", "clusters"]
    assert list(measures["pairwise"]) == list(measures["bcubed"]) == ["precision", "recall", "f"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("0\n1\n", "2 labels for 8 faces; give the labels of these faces."),
        ("0\nzero\n", "line 2 holds 'zero', which is not an integer; write integers only, or names only."),
        ("", "is empty; expected one label per line."),
        (None, "there is no such file; check the name."),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_and_exit_code_2(content, sentence, files, tmp_path):
    pred = tmp_path / "other.meta"
    if content is not None:
        pred.write_text(content)
    found = run(pred, files("truth", "a.meta"))
    assert (found.returncode, found.stdout, found.stderr) == (2, "", f"Error: {pred}: {sentence}\n")


def test_an_unknown_suffix_is_refused_before_anything_is_read(files, tmp_path):
    with pytest.raises(InputError, match=r"the suffix \.yaml is not a form of labels"):
        invoke(files("pred", "a.meta"), tmp_path / "missing.yaml")


def test_the_help_has_an_example_that_runs(files, monkeypatch):
    found = invoke("--help")
    assert found.exit_code == 0
    (example,) = [line.split() for line in found.output.splitlines() if line.startswith("    fcdeploy")]
    folder = files("pred", "a.meta").parent
    monkeypatch.chdir(folder)
    write_labels(folder / example[2], PRED)
    write_labels(folder / example[3], TRUTH)
    assert invoke(*example[2:]).exit_code == 0


def test_the_help_imports_nothing_heavy():
    code = (
        "import sys, fcdeploy.cli.evaluate\n"
        "heavy = {'numpy', 'scipy', 'rich', 'numba', 'torch', 'faiss', 'onnx'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


def test_what_goes_to_a_file_is_cut_to_no_width(fcdeploy, bundle):
    """The hash of a graph stands on the line of its pass, however long that is."""
    lines = fcdeploy("inspect", bundle).out.splitlines()
    passes = [line for line in lines if line.startswith("pass ")]
    assert passes
    assert all(len(line.rpartition("SHA-256 ")[2]) == 64 for line in passes)
