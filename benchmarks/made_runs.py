"""Run folders of made-up clusters, as a run leaves them, and drawn faces: to look at, and to measure with."""

import json
from pathlib import Path

import numpy as np

from fcdeploy.clustering.evidence import SIMILARITY
from fcdeploy.clustering.groups import offsets_from_sizes
from fcdeploy.data.ids import packed_ids
from fcdeploy.run.folder import SUMMARY, RunFolder
from fcdeploy.run.maps import map_arrays
from fcdeploy.run.store import Arrays
from fcdeploy.runtime.evidence import EVIDENCE, IDS

TWIN_SHARE = 0.8  # of the neighbors of a cluster that seems to be of the same person as another
SHUFFLED = 0.03  # share of neighbors that are of other clusters
SKIN = ((236, 188, 150), (198, 134, 92), (141, 85, 54), (255, 220, 190), (110, 66, 44))
HAIR = ((40, 30, 26), (120, 72, 30), (214, 170, 84), (150, 150, 154), (160, 52, 36))


def made_labels(n: int, seed: int = 0) -> np.ndarray:
    """Return labels (n,) int64 of many small clusters and few large ones, numbered by first appearance."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(np.ceil(rng.pareto(0.9, n) + 1e-9), max(2, n // 50)).astype(np.int64)
    sizes = sizes[: int(np.searchsorted(np.cumsum(sizes), n)) + 1]
    labels = np.repeat(np.arange(len(sizes)), sizes)[:n]
    labels = labels[rng.permutation(n)]
    first = np.unique(labels, return_index=True)[1]
    place = np.empty(len(first), np.int64)
    place[np.argsort(first, kind="stable")] = np.arange(len(first))
    return place[np.unique(labels, return_inverse=True)[1]]


def make_run(folder: Path, labels: np.ndarray, k: int = 20, seed: int = 0, name: str = "made.bin") -> Path:
    """Write a run folder of n faces with these labels (n,) int64, 0 to c - 1, with neighbor lists of k; returns it."""
    rng = np.random.default_rng(seed)
    n = len(labels)
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = offsets_from_sizes(sizes)[:-1]
    own = starts[labels][:, None] + rng.integers(0, 1 << 30, (n, k)) % sizes[labels][:, None]
    ids = order[own].astype(np.int32)
    strange = (rng.random((n, k)) < SHUFFLED) | (ids == np.arange(n)[:, None])
    ids[strange] = rng.integers(0, n, int(strange.sum()))
    twins = _twins(sizes)  # whose neighbors are in another cluster more often than not
    of_twin = np.flatnonzero(twins[labels] >= 0)
    other = twins[labels[of_twin]]
    across = starts[other][:, None] + rng.integers(0, 1 << 30, (len(of_twin), k)) % sizes[other][:, None]
    ids[of_twin] = np.where(rng.random((len(of_twin), k)) < TWIN_SHARE, order[across], ids[of_twin])
    sims = -np.sort(-rng.uniform(0.35, 0.95, (n, k)).astype(np.float32), axis=1)
    inside = np.flatnonzero(np.diff(labels[order]) == 0)
    links = np.sort(np.stack([order[inside], order[inside + 1]], axis=1), axis=1).astype(np.int32)
    strength = -np.sort(-rng.beta(6, 2, len(links)).astype(np.float32))
    firsts = order[starts]
    chained = np.flatnonzero(twins < 0)
    ends = (
        np.concatenate([np.flatnonzero(twins >= 0), chained[1:]]),
        np.concatenate([twins[twins >= 0], chained[:-1]]),
    )
    beyond = np.sort(np.stack([firsts[ends[0]], firsts[ends[1]]], axis=1), axis=1).astype(np.int32)
    beyond_strength = -np.sort(-rng.uniform(0.2, 0.7, len(beyond)).astype(np.float32))
    within = np.where(sizes[labels] > 1, rng.beta(8, 4, n), np.nan).astype(np.float32)
    with RunFolder(folder) as store:
        _keep(store, "knn", {"ids": ids, "sims": sims})
        about = {"strength": SIMILARITY, "lists": "knn", "dim": 128, "key": "made"}
        made: Arrays = {
            "labels": labels.astype(np.int64),
            "face": np.arange(n, dtype=np.int32),
            "links": links[rng.permutation(len(links))],
            "strength": strength,
            "beyond": beyond,
            "beyond_strength": beyond_strength,
            "within": within,
            "near": sims[:, 0].copy(),
            "dropped": np.zeros(n, np.uint8),
            "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        }
        _keep(store, EVIDENCE, made)
        store.claims.claim(SUMMARY)
    stages = {"knn": 61.2, "rerank": 12.4, "refine": 140.9, "links": 3.1}
    summary = {
        "stages": {stage: {"seconds": s, "faces_per_s": n / s} for stage, s in stages.items()},
        "computed": {**_computed(name, n)},
    }
    (folder / SUMMARY).write_text(json.dumps(summary))
    return folder


def add_ids(folder: Path, ids: np.ndarray) -> None:
    """Give the faces of a made run ids (n,), as if the run had been given them."""
    with RunFolder(folder) as store:
        found = {name: np.array(array) for name, array in map_arrays(folder / EVIDENCE).items()}
        about = {**json.loads(found["about"].tobytes()), "ids": "made with ids"}
        found["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        _keep(store, IDS, packed_ids(ids), "made with ids")
        _keep(store, EVIDENCE, found, "made with ids")


def _twins(sizes: np.ndarray) -> np.ndarray:
    """Return for some clusters, (c,) int64, a larger one that seems to be of the same person, -1 for the others."""
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 1]
    twins = np.full(len(sizes), -1, np.int64)
    twins[order[7::14]] = order[: len(order[7::14]) * 14 : 14]
    return twins


def _keep(store: RunFolder, name: str, arrays: Arrays, key: str = "made") -> None:
    shapes = {part: (array.shape, array.dtype) for part, array in arrays.items()}
    partial = store.begin(name, key, shapes)
    for part, array in arrays.items():
        partial.arrays[part][:] = array
    partial.finish()


def _computed(name: str, n: int) -> dict[str, object]:
    return {
        "system": "PSE-GCN",
        "engine": {"precision": "float32", "digest": "0" * 64},
        "device": {"provider": "CPUExecutionProvider"},
        "inference": {"used": "exact"},
        "features": {
            "name": name,
            "rows": n,
            "width": 128,
            "dtype": "float32",
            "read_as": "",
            "normalized": True,
        },
        "search": {"knn": {"method": "exact", "k": 80}},
        "settings": {"links.tau": 0.8},
        "options": {},
        "limits": {"threads": 2},
        "versions": {"fcdeploy": "0"},
    }


def draw_faces(folder: Path, people: np.ndarray, edge: int = 112, seed: int = 0) -> Path:
    """Draw a simple face for each of n people's numbers (n,), alike for one person; returns the list of their files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = [f"{at:06d}.png" for at in range(len(people))]
    for name, person in zip(names, people.tolist(), strict=True):
        draw_face(folder / name, person, edge, rng)
    listed = folder / "faces.txt"
    listed.write_text("".join(f"{name}\n" for name in names))
    return listed


def draw_face(path: Path, person: int, edge: int, rng: np.random.Generator) -> None:
    """Draw a face of a person, a little different each time."""
    from PIL import Image, ImageDraw

    own = np.random.default_rng(1000 + person)
    size = edge * 2
    skin, hair = SKIN[own.integers(len(SKIN))], HAIR[own.integers(len(HAIR))]
    back = tuple((own.integers(90, 230, 3) + rng.integers(-14, 14, 3)).clip(0, 255).tolist())
    wide, eye, mouth, fringe = own.uniform((0.5, 0.04, -0.03, 0.2), (0.66, 0.07, 0.08, 0.4)).tolist()
    glasses, beard = own.random() < 0.3, own.random() < 0.25
    dx, dy = rng.uniform(-0.03, 0.03, 2).tolist()
    image = Image.new("RGB", (size, size), back)
    draw = ImageDraw.Draw(image)

    def box(x: float, y: float, w: float, h: float) -> list[float]:
        x, y = x + dx, y + dy
        return [(x - w / 2) * size, (y - h / 2) * size, (x + w / 2) * size, (y + h / 2) * size]

    def darker(colour: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(part * 0.72) for part in colour)

    draw.ellipse(box(0.5, 0.46, wide + 0.14, 0.86), fill=hair)
    draw.ellipse(box(0.5, 1.12, 0.95, 0.6), fill=darker(back))
    draw.ellipse(box(0.5, 0.55, wide, 0.74), fill=skin)
    draw.chord(box(0.5, 0.4, wide + 0.06, fringe + 0.34), 180, 360, fill=hair)
    if beard:
        draw.chord(box(0.5, 0.68, wide * 0.86, 0.46), 10, 170, fill=hair)
    for x in (0.5 - wide * 0.24, 0.5 + wide * 0.24):
        draw.ellipse(box(x, 0.52, eye * 1.9, eye * 1.4), fill=(255, 255, 255))
        draw.ellipse(box(x, 0.52, eye, eye), fill=(30, 30, 40))
        if glasses:
            draw.ellipse(box(x, 0.52, wide * 0.4, 0.17), outline=(20, 20, 20), width=4)
    draw.line([*box(0.5, 0.6, 0.03, 0.1)], fill=darker(skin), width=5)
    draw.arc(box(0.5, 0.72 + mouth / 2, wide * 0.42, 0.1 + abs(mouth)), 10, 170, fill=(150, 40, 50), width=6)
    image.resize((edge, edge), Image.Resampling.LANCZOS).save(path)
