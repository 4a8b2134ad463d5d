"""Synthetic face embeddings with the shape of MS1M's test parts, at any number of faces and any width.

What is imitated: identities of about 68 faces with a long tail; look-alikes, a few to a dozen identities
round one direction; identities that are tight or loose; faces that vary along a few directions common to
all (pose, light, age) and otherwise at random; a few poor photographs far from their identity; rows whose
norm says nothing about who is on them; random order over the file.

Measured at d = 256, seed 1, with exact kNN at k = 80. A neighborhood: the distinct faces that PSE-GCN sees
round a face (hops [80, 10]); aimed at: a median of 102 and 297 at the 95th percentile.

                                                            20,000 faces   100,000 faces
    neighborhoods of the kNN lists, median / 95 %           113 / 256      117 / 324
    neighborhoods of the re-ranked lists, median / 95 %     106 / 201      109 / 226
    neighbors of the same identity, up to its size          0.930          0.921
    the nearest neighbor is of the same identity            0.995          0.992
    pairwise F, links to the nearest denser face            0.905          0.887
    pairwise F, connected components                        0.850          0.831

(both F at the best threshold).  At 20,000 x 128: 129 / 316 and 108 / 219, links 0.892; at 20,000 x 512:
111 / 228 and 107 / 195, links 0.912.  The re-ranked tail is shorter than aimed at: time a stage whose cost
grows with the largest neighborhoods on the kNN lists too.  Cosines of two faces of one identity at
20,000 x 256: 0.22, 0.48, 0.64, 0.76, 0.86 at the 5th, 25th, 50th, 75th and 95th percentile.
Writing 584,000 x 256 took 7 seconds on two cores and a peak of 133 MB, 41 MB of it the imports; from there
each further face took 15 bytes.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from fcdeploy.data.atomic import atomic_file
from fcdeploy.errors import FcdeployError, InputError

CHUNK = 4096  # faces that share a random stream; never the caller's block, so that blocks do not change faces
SIZE_SIGMA = 0.8  # of the logarithm of an identity's size
LARGEST = 9.0  # the largest identities have about this many times the mean size (MS1M: 602 of 68)
GROUP_SIZES = (2, 12)  # identities in a group of look-alikes
GROUP_COSINE = (0.3, 0.6)  # between the centres of two look-alikes
SPREAD = (0.7, 0.3)  # an identity's variation over its centre's length: median and sigma of its logarithm
POORNESS = 0.2  # sigma of the logarithm of one face's variation over its identity's
POOR = (0.1, 3.0)  # share of poor photographs and how many times farther they lie from their identity
DIRECTIONS = 24  # common directions of variation
COMMON = 0.4  # share of the variation that lies along them
NORMS = (8.0, 30.0)


@dataclass(frozen=True)
class Identities:
    """Who is on every face, and what each identity looks like.

    labels: (n,) int32, identity of each face in file order.  centres: (m, d) float16, of unit length.
    spreads: (m,) float32.  mixes: (m, r) float32, how far each identity goes along each of ``directions``.
    directions: (r, d) float32, of unit length.
    """

    labels: np.ndarray
    centres: np.ndarray
    spreads: np.ndarray
    mixes: np.ndarray
    directions: np.ndarray
    seed: int


def make_faces(faces: int, dim: int, seed: int, mean_size: float = 68.0) -> tuple[np.ndarray, np.ndarray]:
    """Return synthetic faces in memory: features (n, d) float32, not normalised, and labels (n,) int64.

    The same arguments give the same faces as ``generate``, bit for bit on one machine.
    """
    identities = draw_identities(faces, dim, seed, mean_size)
    features = np.empty((faces, dim), dtype=np.float32)
    for first in range(0, faces, CHUNK):
        features[first : first + CHUNK] = draw_chunk(identities, first)
    return features, identities.labels.astype(np.int64)


def generate(
    folder: Path | str, faces: int, dim: int, seed: int = 1, mean_size: float = 68.0, block: int = 65536
) -> tuple[Path, Path]:
    """Write synthetic faces to ``folder`` and return the paths of features.bin and labels.meta.

    features.bin: (n, d) little-endian float32, row-major, no header, not normalised.  labels.meta: line i
    is the identity of face i.  Each appears whole or not at all, the labels just before the features.
    ``block`` rows are written at once; it never changes the answer.  Memory: the labels and centres, about
    6 + 2 d / mean_size bytes a face, and one block.
    """
    if block < 1:
        raise InputError(f"block: expected 1 face or more, found {block}.")
    identities = draw_identities(faces, dim, seed, mean_size)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made a folder ({error.strerror}); choose another.") from error
    features_path, labels_path = folder / "features.bin", folder / "labels.meta"
    with atomic_file(features_path) as features_file, atomic_file(labels_path) as labels_file:
        first = 0
        for rows in blocks_of_faces(identities, block):
            labels = identities.labels[first : first + len(rows)]
            features_file.write(rows.astype("<f4", copy=False).data)
            labels_file.write(("\n".join(map(str, labels.tolist())) + "\n").encode())
            first += len(rows)
    return features_path, labels_path


def blocks_of_faces(identities: Identities, block: int) -> Iterator[np.ndarray]:
    """Give the features of all faces in file order, ``block`` rows at a time.

    Yields (at most block, d) float32, overwritten by the next.
    """
    n, d = len(identities.labels), identities.centres.shape[1]
    rows = np.empty((min(block, n), d), dtype=np.float32)
    filled = 0
    for first in range(0, n, CHUNK):
        chunk = draw_chunk(identities, first)
        while len(chunk):
            taken = min(len(chunk), len(rows) - filled)
            rows[filled : filled + taken] = chunk[:taken]
            chunk, filled = chunk[taken:], filled + taken
            if filled == len(rows):
                yield rows
                filled = 0
    if filled:
        yield rows[:filled]


def draw_identities(faces: int, dim: int, seed: int, mean_size: float) -> Identities:
    """Decide how many faces each identity has, where in the file they are and what it looks like."""
    if faces < 1:
        raise InputError(f"faces: expected 1 or more, found {faces}.")
    if dim < 1:
        raise InputError(f"dim: expected 1 or more, found {dim}.")
    if mean_size < 1:
        raise InputError(f"mean_size: expected 1 face an identity or more, found {mean_size}.")
    sizes = draw_sizes(_random(seed, 0), faces, mean_size)
    m = len(sizes)
    labels = np.repeat(np.arange(m, dtype=np.int32), sizes)
    _random(seed, 1).shuffle(labels)

    random = _random(seed, 2)
    directions = _unit(random.standard_normal((DIRECTIONS, dim), dtype=np.float32))
    # No direction matters to all alike: each identity has a few large weights and many small ones.
    mixes = _unit(random.lognormal(0.0, 1.0, (m, DIRECTIONS)).astype(np.float32))
    spreads = (SPREAD[0] * np.exp(SPREAD[1] * random.standard_normal(m))).astype(np.float32)
    return Identities(labels, draw_centres(seed, m, dim), spreads, mixes, directions, seed)


def draw_sizes(random: np.random.Generator, faces: int, mean_size: float) -> np.ndarray:
    """Return how many faces each identity has: (m,) int64, 1 or more each, ``faces`` in all."""
    m = max(1, min(faces, round(faces / mean_size)))
    wanted = np.minimum(random.lognormal(-(SIZE_SIGMA**2) / 2, SIZE_SIGMA, m), LARGEST)
    # One face to everybody; the rest in proportion, each rounded so that the sum comes out.
    ends = np.rint(np.cumsum(wanted) / wanted.sum() * (faces - m)).astype(np.int64)
    return 1 + np.diff(ends, prepend=0)


def draw_centres(seed: int, identities: int, dim: int) -> np.ndarray:
    """Return where each identity is: (m, d) float16 of unit length; consecutive identities look alike."""
    random = _random(seed, 3)
    centres = np.empty((identities, dim), dtype=np.float16)
    first = 0
    while first < identities:
        size = int(random.integers(GROUP_SIZES[0], GROUP_SIZES[1] + 1))
        cosine = random.uniform(*GROUP_COSINE)
        # sqrt(c) group + sqrt(1 - c) own: cosine c between two of them, where group and own are orthogonal.
        group = _unit(random.standard_normal((1, dim), dtype=np.float32))
        own = _unit(random.standard_normal((size, dim), dtype=np.float32))
        block = _unit(np.float32(cosine**0.5) * group + np.float32((1 - cosine) ** 0.5) * own)
        centres[first : first + size] = block[: identities - first]
        first += size
    return centres


def draw_chunk(identities: Identities, first: int) -> np.ndarray:
    """Return the chunk of faces that begins at ``first``, a multiple of CHUNK: (at most CHUNK, d) float32."""
    labels = identities.labels[first : first + CHUNK]
    n, d = len(labels), identities.centres.shape[1]
    random = _random(identities.seed, 4, first // CHUNK)
    norms = random.uniform(*NORMS, n).astype(np.float32)
    poorness = np.exp(POORNESS * random.standard_normal(n, dtype=np.float32))
    poorness[random.random(n, dtype=np.float32) < POOR[0]] *= np.float32(POOR[1])
    along = random.standard_normal((n, DIRECTIONS), dtype=np.float32) * identities.mixes[labels]
    spreads = identities.spreads[labels] * poorness
    rows = random.standard_normal((n, d), dtype=np.float32)
    rows *= (spreads * np.float32(((1 - COMMON) / d) ** 0.5))[:, None]
    rows += (along * (spreads * np.float32(COMMON**0.5))[:, None]) @ identities.directions  # (n, r) -> (n, d)
    rows += identities.centres[labels]
    rows *= (norms / np.linalg.norm(rows, axis=1))[:, None]
    return rows


def _random(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@click.command(context_settings={"show_default": True})
@click.option("--faces", type=click.IntRange(min=1), default=584_000, help="Faces to write.")
@click.option("--dim", type=click.IntRange(min=1), default=256, help="Width of a face's embedding.")
@click.option("--seed", type=click.IntRange(min=0), default=1, help="Other seeds give other faces.")
@click.option(
    "--mean-size", type=click.FloatRange(min=1), default=68.0, help="Faces an identity, on average."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write in.",
)
def main(faces: int, dim: int, seed: int, mean_size: float, output: Path) -> None:
    """Write synthetic faces: features.bin and labels.meta in the output folder.

    Example: python benchmarks/faces.py --faces 20000 --dim 256 -o faces/
    """
    try:
        for path in generate(output, faces, dim, seed, mean_size):
            click.echo(path)
    except FcdeployError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
