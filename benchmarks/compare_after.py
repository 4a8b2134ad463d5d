"""Life after the first run, measured with identities: new faces, updates, flags, and thresholds from checked pairs.

    python benchmarks/compare_after.py --engine lce.onnx features.npy labels.meta

Every tenth face is new. Assigned and updated clusters are compared with those of clustering all faces at once; flags
and confidence with the identities; thresholds from `fcdeploy pairs` (answered by the identities) and from
`--unlabelled` with the best one on all labels. F is in points; faces in no cluster count as alone.
"""

import csv
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from report import RESULTS, write_report
from sklearn.metrics import roc_auc_score

import fcdeploy
from fcdeploy.clustering.flags import FLAGS
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.engine.bundle import read_bundle

SUSPECT = FLAGS["garbage"] | FLAGS["mega-cluster"] | FLAGS["chain"] | FLAGS["borderline"]
NO_FACES = 0.05  # share of rows that are added and are no faces, half of them copies of one face
THRESHOLDS = {
    "pse-gcn": ("links", "tau"),
    "nsr-fc": ("pairs", "min_probability"),
}  # systems that are compared here


def score(labels: np.ndarray, people: np.ndarray) -> tuple[float, float]:
    """Return pairwise and BCubed F in points; faces in no cluster are alone."""
    alone = labels < 0
    labels = np.where(alone, labels.max() + 1 + np.cumsum(alone), labels)
    found = evaluate(labels, people)
    return 100 * found.pairwise.f, 100 * found.bcubed.f


def main_of(labels: np.ndarray, among: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return, for each of ``labels`` (m,), the commonest of ``others`` (n,) that stand where ``among`` (n,) has it.

    -1 where it stands nowhere.
    """
    found = np.full(len(labels), -1, np.int64)
    for label in np.unique(labels):
        there = others[(among == label) & (others >= 0)]
        if len(there):
            found[labels == label] = np.bincount(there).argmax()
    return found


def largest_of(people: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the commonest label of each of the ``chosen`` people."""
    return main_of(chosen, people, labels)


class Faces:
    """The faces, their people, which are new, and runs over them in a folder."""

    def __init__(
        self, engine: Path, features: np.ndarray, people: np.ndarray, every: int, place: Path
    ) -> None:
        self.engine, self.features, self.people, self.place = engine, features, people, place
        self.new = np.arange(len(features)) % every == every - 1
        self.order = np.concatenate([np.flatnonzero(~self.new), np.flatnonzero(self.new)])
        self.system = read_bundle(engine).system

    def clustered(self, rows: np.ndarray, name: str, **settings: float) -> tuple[np.ndarray, float]:
        """Return the labels of a run in the folder ``name``, and its seconds; settings: keys of the recipe."""
        begun = time.perf_counter()
        run = self.place / name
        labels = fcdeploy.cluster(rows, engine=self.engine, run_dir=run, inference="exact", settings=settings)
        return labels, time.perf_counter() - begun

    def command(self, *words: object) -> None:
        line = [sys.executable, "-m", "fcdeploy", *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise click.ClickException(f"{' '.join(line)}: {done.stderr}")


def assigned_and_updated(faces: Faces) -> Iterator[dict[str, Any]]:
    """Yield what assigning and updating give beside clustering all at once."""
    x, new, people = faces.features, faces.new, faces.people
    whole, seconds = faces.clustered(x, "all")
    old, _ = faces.clustered(x[~new], "old")
    yield {"what": "all at once", **f_of(whole, people), "seconds": seconds}
    yield {"what": "old faces alone", **f_of(old, people[~new])}
    found = fcdeploy.assign(x[new], run_dir=faces.place / "old").labels
    together = np.concatenate([old, found])
    expected = main_of(whole[new], whole[~new], old)
    yield {
        "what": "assigned",
        **f_of(together, people[faces.order]),
        "as_expected_percent": 100 * float((found == expected).mean()),
    }
    grown = np.unique(people[new])
    unchanged = np.setdiff1d(people[~new], grown)
    before = largest_of(people[~new], old, unchanged)
    for times in (1, 10):
        run = faces.place / f"updated-{times}"
        shutil.copytree(faces.place / "old", run)
        begun = time.perf_counter()
        for part in np.array_split(np.flatnonzero(new), times):
            labels = fcdeploy.update(run, add=x[part], engine=faces.engine).labels
        after = largest_of(people[~new], labels[: len(old)], unchanged)
        yield {
            "what": f"updated, {times} times",
            **f_of(labels, people[faces.order]),
            "seconds": time.perf_counter() - begun,
            "ids_kept_percent": 100 * float((before == after).mean()),
        }


def flagged(faces: Faces, seed: int) -> Iterator[dict[str, Any]]:
    """Yield how flags and confidence tell wrong faces, and which rows that are no faces are flagged."""
    measured = fcdeploy.confidence(faces.place / "all").faces
    labels, _ = faces.clustered(faces.features, "all")
    wrong = main_of(labels, labels, faces.people) != faces.people
    suspect = (measured.flags & SUSPECT) > 0
    known = ~np.isnan(measured.confidence)
    yield {
        "what": "flags",
        "wrong_percent": 100 * float(wrong.mean()),
        "flagged": int(suspect.sum()),
        "times_as_often_wrong": float(wrong[suspect].mean() / wrong[~suspect].mean()),
        "auc": float(roc_auc_score(~wrong[known], measured.confidence[known])),
    }
    random, count = np.random.default_rng(seed), int(NO_FACES * len(faces.features) / 2)
    norm = np.linalg.norm(faces.features, axis=1).mean()
    noise = random.standard_normal((count, faces.features.shape[1]), dtype=np.float32)
    noise *= norm / np.linalg.norm(noise, axis=1, keepdims=True)
    copies = np.repeat(faces.features[random.integers(len(faces.features))][None], count, axis=0)
    faces.clustered(np.concatenate([faces.features, noise, copies]), "more")
    flags = fcdeploy.confidence(faces.place / "more").faces.flags
    at = len(faces.features)
    for what, rows in (("random directions", slice(at, at + count)), ("copies", slice(at + count, None))):
        yield {"what": what, "flagged_percent": 100 * float((flags[rows] > 0).mean())}


def thresholds(faces: Faces, count: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Yield what is lost to the best threshold on all labels, in points of pairwise F."""
    place, group = faces.place, THRESHOLDS[faces.system]
    np.save(place / "x.npy", faces.features)
    np.savetxt(place / "y.meta", faces.people, fmt="%d")
    common = ("--engine", faces.engine, "--features", place / "x.npy", "--inference", "exact")
    kept = ("--run-dir", place / "all", "--quiet", "-o", place / "t.toml")  # networks are asked once for all

    def tuned(*how: object) -> float:
        faces.command("tune", *common, *how, *kept)
        return float(tomllib.loads((place / "t.toml").read_text())[group[0]][group[1]])

    def f_at(value: float) -> float:
        return score(faces.clustered(faces.features, "all", **{".".join(group): value})[0], faces.people)[0]

    best = f_at(tuned("--labels", place / "y.meta", "--repeats", 0, "--objective", "pairwise"))
    yield {"what": "best threshold", "pairwise_f": best}
    lost = []
    for seed in range(seeds):
        faces.clustered(faces.features, "all")
        faces.command("pairs", place / "all", "-n", count, "--seed", seed, "-o", place / "p.csv", "--quiet")
        answer(place / "p.csv", faces.people)
        lost.append(best - f_at(tuned("--pairs", place / "p.csv")))
    yield {"what": f"{count} pairs", "lost": lost, "most_lost": max(lost)}
    yield {"what": "unlabelled", "most_lost": best - f_at(tuned("--unlabelled"))}


def answer(table: Path, people: np.ndarray) -> None:
    """Fill in the answers of a table of pairs by the identities."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["answer"] = "same" if people[int(row["a"])] == people[int(row["b"])] else "different"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def f_of(labels: np.ndarray, people: np.ndarray) -> dict[str, float]:
    return dict(zip(("pairwise_f", "bcubed_f"), score(labels, people), strict=True))


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("labels", type=click.Path(path_type=Path))
@click.option("--engine", required=True, type=click.Path(path_type=Path))
@click.option("--every", default=10, show_default=True, help="Every so many faces one is new.")
@click.option("--pairs", default=300, show_default=True, help="Pairs that a person checks.")
@click.option("--seeds", default=5, show_default=True, help="Draws of pairs.")
@click.option("--only-thresholds", is_flag=True, help="Measure thresholds only, as on faces of the training.")
@click.option("--name", default="after", show_default=True, help="Of the report.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    features: Path,
    labels: Path,
    engine: Path,
    every: int,
    pairs: int,
    seeds: int,
    only_thresholds: bool,
    name: str,
    folder: Path,
) -> None:
    """Measure what comes after the first run."""
    warnings.simplefilter("ignore")
    opened = open_features(features, read_bundle(engine).feature_dim)
    rows = np.array(opened.rows(0, opened.n))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as place:
        faces = Faces(engine.absolute(), rows, read_labels(labels), every, Path(place))
        parts = [] if only_thresholds else [assigned_and_updated(faces), flagged(faces, seed=0)]
        if faces.system in THRESHOLDS:
            parts.append(thresholds(faces, pairs, seeds))
        found = []
        for one in itertools.chain(*parts):
            found.append(one)
            print(json.dumps(one), flush=True)  # all of it takes a quarter of an hour
    write_report(name, found, {"faces": len(rows), "every": every, "pairs": pairs}, folder=folder)


if __name__ == "__main__":
    main()
