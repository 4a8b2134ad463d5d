"""How close the embeddings of faces that are found in photos come to those of the aligned crops that they were.

    python benchmarks/bench_alignment.py faces.txt --embedder embedder.onnx

Each crop of the list is pasted into a photo at one of ten sizes (of the face in it, 62 to 320 pixels), turned by up to
25 degrees, and there found and aligned again. So that the causes can be told apart, the crop is also cut out of the
photo where it is known to be (what scaling and turning cost), and found and aligned as it lies, in its own size (what
the detector's points cost).
"""

import sys
from pathlib import Path

import click
import numpy as np
from PIL import Image
from report import RESULTS, write_report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from photo_albums import CROP, FACE, Pasted, background, matched, paste  # noqa: E402

from fcdeploy.data.alignment import inverse, similarity, warped  # noqa: E402
from fcdeploy.engine.detector import Detector  # noqa: E402
from fcdeploy.engine.detector_heads import Candidates  # noqa: E402
from fcdeploy.engine.detector_settings import detector_settings_beside  # noqa: E402
from fcdeploy.engine.embedder import Embedder, settings_beside  # noqa: E402
from fcdeploy.runtime.find_faces import Search, aligned_points, find_faces  # noqa: E402

NAME = "photo_alignment"
SCALES = np.geomspace(62, 320, 10) / FACE  # sides of pasted crops
TURN = 25.0
ROOM = 160  # sides of the photo in which a crop lies as it is
NEEDED = 0.9


@click.command()
@click.argument("crops", type=click.Path(path_type=Path))
@click.option("--detector", type=click.Path(path_type=Path), default=HERE / "photos/yunet.onnx")
@click.option("--embedder", type=click.Path(path_type=Path), default=HERE / "photos/embedder.onnx")
@click.option("--seed", default=4, show_default=True)
@click.option("--name", default=NAME, show_default=True, help="Of the report.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(crops: Path, detector: Path, embedder: Path, seed: int, name: str, folder: Path) -> None:
    """Measure alignment."""
    lines = [line for line in crops.read_text().split("\n") if line]
    images = [Image.open(crops.parent / line).convert("RGB") for line in lines]
    with (
        Detector(detector, detector_settings_beside(detector)) as finder,
        Embedder(embedder, settings_beside(embedder), batch=1, threads=1) as model,
    ):
        found = cosines_of(images, finder, model, seed)
    rows = [{"embedding": what, **figures(values)} for what, values in found.items()]
    arguments = {
        "turn": TURN,
        "seed": seed,
        "needed": NEEDED,
        "detector": detector.name,
        "embedder": embedder.name,
    }
    write_report(name, rows, arguments, folder)


def figures(values: np.ndarray) -> dict[str, float]:
    """Say what a column of cosines is like; NaN, of what was not found, counts as 0."""
    known = np.nan_to_num(values)
    return {
        "crops": len(values),
        "found": int(np.count_nonzero(~np.isnan(values))),
        "median": float(np.median(known)),
        "share": float(np.mean(known >= NEEDED)),
        "least": float(known.min()),
    }


def cosines_of(
    images: list[Image.Image], finder: Detector, model: Embedder, seed: int
) -> dict[str, np.ndarray]:
    """Return cosines (n,) of what each crop becomes, NaN where it is not found, by what is compared."""
    rng = np.random.default_rng(seed)
    named = (
        "found in the photo, to the crop",
        "cut out where it is, to the crop",
        "found as it lies, to the crop",
    )
    found = {
        what: np.full(len(images), np.nan) for what in (*named, "found in the photo, to found as it lies")
    }

    def embedded(image: Image.Image, matrix: np.ndarray) -> np.ndarray:
        pixels = np.asarray(warped(image, matrix, (CROP, CROP)))
        row = model.embed([model.prepare(pixels[..., ::-1] if model.channels == "bgr" else pixels)])[0]
        return row / np.linalg.norm(row)

    for number, side in enumerate(SCALES):
        for crop in range(number, len(images), len(SCALES)):
            image = images[crop]
            size = (max(320, round(2.2 * side)),) * 2
            photo = background(rng, size)
            place = Pasted(crop, size[0] / 2, size[1] / 2, side, float(rng.uniform(-TURN, TURN)))
            paste(photo, image, place)
            own = embedded(image, np.eye(2, 3))
            there = points_near(photo, place, finder)
            lying = Image.new("RGB", (ROOM, ROOM))
            lying.paste(image, ((ROOM - CROP) // 2,) * 2)
            here = points_near(lying, Pasted(crop, ROOM / 2, ROOM / 2, CROP, 0.0), finder)
            of_photo = None if there is None else embedded(photo, similarity(there))
            as_it_lies = None if here is None else embedded(lying, similarity(here))
            pairs = (
                (of_photo, own),
                (embedded(photo, inverse(to_photo(place))), own),
                (as_it_lies, own),
                (of_photo, as_it_lies),
            )
            for values, (one, other) in zip(found.values(), pairs, strict=True):
                if one is not None and other is not None:
                    values[crop] = one @ other
    return found


def points_near(photo: Image.Image, place: Pasted, finder: Detector) -> np.ndarray | None:
    """Return the points (5, 2) of the face that is found where a crop was pasted, None where there is none."""
    faces = find_faces(photo, finder, Search())
    at = matched([place], (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2)[0]
    if at is None:
        return None
    one = Candidates(*(part[at : at + 1] for part in (faces.boxes, faces.points, faces.scores)))
    return aligned_points(photo, one, finder, Search())[0]


def to_photo(place: Pasted) -> np.ndarray:
    """Return the transform (2, 3) from a crop to the photo that it was pasted into."""
    scale, turn = round(place.side) / CROP, np.deg2rad(place.turn)
    linear = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.full(2, (CROP - 1) / 2)
    return np.column_stack([linear, np.array([place.x, place.y]) - 0.5 - linear @ middle])


if __name__ == "__main__":
    main()
