"""Who is in photos is known by name, whatever the names and however often a photo is listed."""

from pathlib import Path

import numpy as np

from fcdeploy.data.filelist import filelist_from_lines
from fcdeploy.runtime.photo_labels import read_photo_labels


def test_a_photo_that_is_listed_twice_is_known_twice(tmp_path: Path) -> None:
    photos = filelist_from_lines(b"", [b"b.jpg", b"a.jpg", b"b.jpg", b"c.jpg"], "photos.txt")
    (tmp_path / "truth.csv").write_text("photo,label\nb.jpg,1\nc.jpg,0\n")
    known = read_photo_labels(tmp_path / "truth.csv", photos)
    assert known.of_photo is not None
    assert known.of_photo.tolist() == [1, -1, 1, 0]


def test_spaces_around_a_name_do_not_hide_a_photo(tmp_path: Path) -> None:
    photos = filelist_from_lines(b"", [b" summer/1.jpg", b"2.jpg "], "photos.txt")
    (tmp_path / "truth.csv").write_text('photo,label\n" summer/1.jpg",4\n"2.jpg ",7\n')
    known = read_photo_labels(tmp_path / "truth.csv", photos)
    assert known.of_photo is not None
    assert np.array_equal(known.of_photo, [4, 7])
    (tmp_path / "faces.csv").write_text('face,label\n" summer/1.jpg#0",4\n')
    assert read_photo_labels(tmp_path / "faces.csv", photos).of_face == {"summer/1.jpg#0": 4}
