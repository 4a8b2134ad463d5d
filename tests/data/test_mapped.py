"""Maps of files whose pages are let go of keep what they hold."""

import numpy as np
import pytest

from fcdeploy.data.mapped import release_pages


@pytest.mark.parametrize("mode", ["r+", "c", "w+"])
def test_what_was_written_to_a_map_stays(tmp_path, mode):
    file = tmp_path / "rows.bin"
    np.zeros(4096, np.float32).tofile(file)
    rows = np.memmap(file, np.float32, mode=mode, shape=(64, 64))
    rows[3] = 7
    release_pages(rows, rows[2:5], rows.reshape(-1))
    assert (rows[3] == 7).all()
    on_disk = np.fromfile(file, np.float32).reshape(64, 64)
    assert (on_disk[3] == (0 if mode == "c" else 7)).all()


def test_arrays_in_memory_stay_as_they_are():
    rows = np.ones((4, 4))
    release_pages(rows, rows[:2])
    assert rows.sum() == 16
