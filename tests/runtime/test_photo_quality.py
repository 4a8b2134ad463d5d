"""How well faces are found and aligned: crops pasted into photos, held against what they were made of."""

import sys
from pathlib import Path

import numpy as np
import pytest
from photo_albums import FACE, Pasted, matched, write_album
from PIL import Image

import fcdeploy
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.images import import_pillow
from fcdeploy.engine.detector import Detector
from fcdeploy.engine.detector_settings import DetectorSettings
from fcdeploy.engine.embedder import Embedder, EmbedderSettings
from fcdeploy.runtime.photos_api import Faces

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bench_alignment

# Notes of copies, and of the recipe beside the weights.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")]

PHOTOS = Path(__file__).parent.parent.parent / "benchmarks/photos"
TURN = 25.0


@pytest.fixture(scope="module")
def crops(shared: Path) -> tuple[list[Image.Image], np.ndarray, Path]:
    """Face crops of 36 people, their identities, and the embedder."""
    import_pillow()
    folder = shared / "data/images"
    files = (folder / "filelist.txt").read_text().split()
    people = np.loadtxt(folder / "labels.meta", dtype=np.int64)
    images = [Image.open(folder / file).convert("RGB") for file in files]
    return images, people, shared / "models/face-embedder.onnx"


def found_in(found: Faces, places: list[list[Pasted]], names: list[str]) -> list[tuple[int, int]]:
    """Each pasted crop that was found, and the face it was found as."""
    pairs = []
    for name, pasted in zip(names, places, strict=True):
        rows = np.flatnonzero(found.photos == name)
        centres = found.boxes[rows, :2] + found.boxes[rows, 2:] / 2
        pairs += [
            (place.crop, int(rows[at]))
            for place, at in zip(pasted, matched(pasted, centres), strict=True)
            if at is not None
        ]
    return pairs


def test_pasted_crops_are_found_and_aligned_as_they_were(crops, shared: Path) -> None:
    """At ten sizes and turned by up to 25 degrees, which itself costs nothing.

    Points of a detector are not those that the crops were aligned by. On profiles and behind hands they are far from
    them, in the crop as it lies as well; what is found in a photo comes as close as what is found there.
    """
    images, _, embedder = crops
    detector = shared / "models/face-detector-yunet.onnx"
    with (
        Detector(detector, DetectorSettings()) as finder,
        Embedder(embedder, EmbedderSettings(), batch=1, threads=1) as model,
    ):
        found = bench_alignment.cosines_of(images, finder, model, seed=7)
    in_photo, cut_out, as_it_lies, between = (bench_alignment.figures(values) for values in found.values())
    print(in_photo, cut_out, as_it_lies, between, sep="\n")
    assert in_photo["found"] >= 0.99 * len(images)
    assert cut_out["least"] >= 0.95
    assert in_photo["median"] >= 0.95
    assert in_photo["share"] >= 0.9
    assert in_photo["share"] >= as_it_lies["share"] - 0.04
    assert between["median"] >= 0.95
    assert between["share"] >= 0.95


def test_an_album_is_clustered_nearly_as_well_as_the_crops_it_was_made_of(
    crops, shared: Path, tmp_path: Path
) -> None:
    """300 photos of 1 to 8 faces each; and no cluster holds two faces of one photo where that is asked for."""
    pytest.importorskip("torch")
    from click.testing import CliRunner

    from fcdeploy.cli import cli

    images, people, _ = crops
    engine = tmp_path / "pse.onnx"
    done = CliRunner().invoke(cli, ["export", "--ckpt", str(PHOTOS / "pse-gcn-64.pth"), "-o", str(engine)])
    assert done.exit_code == 0, done.output
    album = tmp_path / "album"
    pasted = write_album(album, images, people, photos=300, sides=(62 / FACE, 300), turn=TURN, seed=11)
    names = [f"{at:04}.jpg" for at in range(300)]
    detector, embedder = shared / "models/face-detector-yunet.onnx", PHOTOS / "embedder.onnx"
    found = fcdeploy.faces(album, detector=detector, embedder=embedder)
    pairs = found_in(found, pasted, names)
    total = sum(map(len, pasted))
    assert len(pairs) >= 0.99 * total
    shown, rows = (np.array(part) for part in zip(*pairs, strict=True))
    truth = np.full(len(found), -1)
    truth[rows] = people[shown]
    originals = fcdeploy.embed(shared / "data/images/filelist.txt", model=embedder)
    of_crops = evaluate(fcdeploy.cluster(originals[shown], engine=engine), people[shown]).pairwise.f
    once = evaluate(fcdeploy.cluster(originals, engine=engine), people).pairwise.f
    labels = fcdeploy.cluster(found.features, engine=engine)
    of_album = evaluate(labels, truth).pairwise.f
    apart = fcdeploy.cluster(found.features, engine=engine, same_photo=found.photos.tolist())
    of_apart = evaluate(apart, truth).pairwise.f
    print(
        f"pairwise F: album {of_album:.3f}, with --same-photo {of_apart:.3f}; the crops pasted {of_crops:.3f}, each "
        f"once {once:.3f}; {len(pairs)} of {total} faces found, {len(found) - len(pairs)} others"
    )
    assert of_album >= 0.9 * max(of_crops, once)
    assert of_apart >= 0.9 * max(of_crops, once)
    both = np.stack([np.unique(found.photos, return_inverse=True)[1], apart], axis=1)
    assert len(np.unique(both, axis=0)) == len(both)
