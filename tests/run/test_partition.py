"""The order in which rows are visited whose results are written as they come: slices of the file, each cell by cell."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fcdeploy
from fcdeploy.run import partition
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.partition import InSlices, Partition, visit_to_write


def cells_of(cell):
    arrays = {
        "centroids": np.zeros((int(cell.max()) + 1, 4), np.float32),
        "cell": cell,
        "nearest": np.zeros((len(cell), 1), np.int32),
    }
    return Partition(Artifact("cells", {}, (), True, lambda: "key", lambda _: arrays))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_slices_follow_each_other_and_hold_their_rows_cell_by_cell(cell, rows):
    cells = cells_of(np.array(cell, np.int32))
    order = InSlices(cells, rows).order
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(len(cell)))
    assert (np.diff(order // rows) >= 0).all()
    for part in np.unique(order // rows):
        assert (np.diff(cells.place[order[order // rows == part]]) > 0).all()


def test_small_arrays_are_visited_cell_by_cell(monkeypatch):
    cells = cells_of(np.arange(10, dtype=np.int32) % 3)
    shapes = {"a": ((10, 2), np.float32)}
    assert visit_to_write(cells, 10, shapes) is cells
    monkeypatch.setattr(partition, "SLICE_BYTES", 30)  # of 80
    sliced = visit_to_write(cells, 10, shapes)
    assert sliced.order.tolist() == [0, 3, 1, 2, 6, 4, 7, 5, 9, 8]
    assert sliced.digest != cells.digest


def test_results_do_not_depend_on_slices(pse_bundle, tmp_path, monkeypatch):
    random = np.random.default_rng(4)
    centres = random.standard_normal((40, 32), dtype=np.float32)
    faces = centres[random.integers(0, 40, 600)] + 0.3 * random.standard_normal((600, 32), dtype=np.float32)
    found = {}
    for name, size in (("whole", 1 << 30), ("sliced", 600 * 64 * 4 // 3)):
        monkeypatch.setattr(partition, "SLICE_BYTES", size)
        run = tmp_path / name
        labels = fcdeploy.cluster(
            faces, engine=pse_bundle.path, run_dir=run, inference="layerwise", knn="cells", memory=1 << 30
        )
        found[name] = labels, (run / "refined/refined.npy").read_bytes()
    assert np.array_equal(found["whole"][0], found["sliced"][0])
    assert found["whole"][1] == found["sliced"][1]
