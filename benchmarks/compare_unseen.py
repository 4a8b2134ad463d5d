"""How good are clusters of people on whom nothing was chosen?

The identities of a labelled set are dealt into two halves (--seed decides how). On one half `fcdeploy tune` chooses the
settings of each engine, and methods without a network get those that suit it best; then the other half is clustered
with them, alone, and measured. Nothing of the reporting half is looked at before. Intervals are those of sets of as
many people, drawn anew from the reporting half's.

    in-sample    F on the choosing half, at what was chosen there
    expected     what `tune` says of other people, from the choosing half alone
    reported     F on the reporting half
    largest      faces of the largest cluster there, over those of the largest person

    python benchmarks/compare_unseen.py features.bin truth.meta --dim 256 --engine PSE-GCN=pse.onnx --both
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from report import write_rows

from fcdeploy.clustering.by_identity import spread_of
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import Features, open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.run.options import Options
from fcdeploy.training.baselines import METHODS, nearest_neighbors
from fcdeploy.training.checked import interval
from fcdeploy.training.halves import Half, opened_half
from fcdeploy.training.sweep import MEAN, OBJECTIVES, Trial, best_trial, labels_with
from fcdeploy.training.tune import REPEATS, tune
from fcdeploy.training.tuned import describe_values, scored_by

DRAWS = 1000
MEASURES = dict(zip(OBJECTIVES, ("pairwise F", "BCubed F"), strict=True))


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--dim", type=int, help="Width of a .bin file's rows.")
@click.option("--engine", "engines", multiple=True, metavar="NAME=BUNDLE", help="An engine; may be repeated.")
@click.option("--method", "methods", multiple=True, type=click.Choice(list(METHODS)), help="[default: all]")
@click.option("--seed", default=0, show_default=True, help="Of the halves.")
@click.option(
    "--choosing-to",
    type=click.Path(path_type=Path),
    help="Write the choosing half there (.bin, and .meta beside it), as `fcdeploy train --target` takes it.",
)
@click.option("--both", is_flag=True, help="Also the other way round: choose on the reporting half.")
@click.option("--repeats", default=REPEATS, show_default=True, help="As of `fcdeploy tune`.")
@click.option("--k", default=80, show_default=True, help="Neighbors per face of methods without a network.")
@click.option("--inference", default="auto", show_default=True, help="As of `fcdeploy cluster`.")
@click.option("--threads", default=0, help="[default: all cores]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="JSON file of figures, machine, versions."
)
def main(
    features: Path,
    truth: Path,
    dim: int | None,
    engines: tuple[str, ...],
    methods: tuple[str, ...],
    seed: int,
    choosing_to: Path | None,
    both: bool,
    repeats: int,
    k: int,
    inference: str,
    threads: int,
    output: Path | None,
) -> None:
    """Print a Markdown table of in-sample, expected and reported F."""
    opened = open_features(features, dim)
    identity = read_labels(truth, opened.n)
    halves = dealt(identity, seed)
    options = Options(threads=threads, inference=inference)
    if choosing_to:
        opened.take(halves[0].faces).tofile(choosing_to)
        np.savetxt(choosing_to.with_suffix(".meta"), halves[0].identity, fmt="%d")
    rows: list[dict[str, Any]] = []
    for choosing, reporting in (halves, halves[::-1])[: 1 + both]:
        for name, path in (engine.split("=", 1) for engine in engines):
            rows.append(
                of_engine(name, read_bundle(Path(path)), opened, choosing, reporting, repeats, options)
            )
            click.echo(as_table(rows[-1:]), err=True)
        rows += of_methods(methods or tuple(METHODS), opened, choosing, reporting, k)
    click.echo(as_table(rows))
    if output:
        about = [
            {"faces": len(half.faces), "people": half.people, "largest": half.largest} for half in halves
        ]
        write_rows(
            output, "unseen", rows, {"seed": seed, "dim": opened.dim, "repeats": repeats, "halves": about}
        )


def dealt(identity: np.ndarray, seed: int) -> tuple[Half, Half]:
    """Deal people at random into a half to choose on and one to report on; identity: (n,) int64, all known."""
    people = np.unique(identity)
    first = np.isin(identity, np.random.default_rng(seed).permutation(people)[: len(people) // 2])
    halves = []
    for faces in (np.flatnonzero(first), np.flatnonzero(~first)):
        own = identity[faces]
        halves.append(Half(faces, own, 1.0, int(np.unique(own, return_counts=True)[1].max())))
    return halves[0], halves[1]


def of_engine(
    name: str,
    bundle: Bundle,
    faces: Features,
    choosing: Half,
    reporting: Half,
    repeats: int,
    options: Options,
) -> dict[str, Any]:
    """Tune an engine on one half, cluster the other with what was chosen, and measure."""
    started = time.perf_counter()
    tuned = tune(faces.select(choosing.faces), bundle, choosing.identity, repeats=repeats, options=options)
    seconds = time.perf_counter() - started
    with opened_half(reporting, faces, bundle, options, None, None) as run:
        labels = labels_with(run, tuned.best.values)
    expected = {
        measure: {"f": tuned.expected[one].f, "interval": tuned.expected[one].interval}
        for one, measure in MEASURES.items()
        if one in tuned.expected
    }
    return {
        "name": name,
        "chosen": describe_values(tuned.best.values),
        "tuned for": tuned.objective,
        "in-sample": {measure: tuned.best.measure(one).f for one, measure in MEASURES.items()},
        "expected": expected,
        **measured(labels, choosing, reporting),
        "seconds of tuning": round(seconds, 1),
    }


def of_methods(
    names: tuple[str, ...], faces: Features, choosing: Half, reporting: Half, k: int
) -> Iterator[dict[str, Any]]:
    """Choose settings of methods without a network on one half, for either F and their mean; measure on the other."""
    unit = [faces.take(half.faces) for half in (choosing, reporting)]
    lists = [
        nearest_neighbors(rows / np.linalg.norm(rows, axis=1, keepdims=True), k, 1 << 30) for rows in unit
    ]
    for name in names:
        method = METHODS[name]
        here = [
            Trial(values, evaluate(labels, choosing.identity))
            for values, labels, _ in method.trials(lists[0])
        ]
        best = {one: best_trial(here, method.settings, scored_by(one, 0.0)) for one in (MEAN, *OBJECTIVES)}
        chosen = {describe_values(trial.values): trial for trial in best.values()}
        labels_of = method.opened(lists[1])
        for text, trial in chosen.items():
            wanted = " and ".join(one for one, other in best.items() if other.values == trial.values)
            yield {
                "name": method.title,
                "chosen": text,
                "tuned for": wanted,
                "in-sample": {measure: trial.measure(one).f for one, measure in MEASURES.items()},
                "expected": {},
                **measured(labels_of(trial.values), choosing, reporting),
            }


def measured(labels: np.ndarray, choosing: Half, reporting: Half) -> dict[str, Any]:
    """Return what clusters of the reporting half are worth, with intervals, and how large the largest is."""
    found = evaluate(labels, reporting.identity)
    drawn = np.array(list(spread_of(labels, reporting.identity).drawn(DRAWS, 0)))
    return {
        "reported": {
            measure: {"f": f, "interval": interval(drawn[:, at])}
            for at, (measure, f) in enumerate(
                zip(MEASURES.values(), (found.pairwise.f, found.bcubed.f), strict=True)
            )
        },
        "largest cluster": found.largest,
        "largest person": reporting.largest,
        "faces": {"choosing": len(choosing.faces), "reporting": len(reporting.faces)},
    }


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table: pairwise / BCubed F."""
    lines = [
        "| method | chosen | in-sample | expected | reported | largest cluster / person |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [" / ".join(f"{f:.3f}" for f in row["in-sample"].values())]
        for kind in ("expected", "reported"):
            cells.append(" / ".join(with_interval(one) for one in row[kind].values()) or "-")
        sizes = f"{row['largest cluster']:,} / {row['largest person']:,}"
        lines.append(f"| {row['name']} | {row['chosen']} | {' | '.join(cells)} | {sizes} |")
    return "\n".join(lines)


def with_interval(found: dict[str, Any]) -> str:
    """Say a figure as in "0.812 (0.77-0.85)"."""
    low, high = found["interval"]
    return f"{found['f']:.3f} ({low:.2f}-{high:.2f})"


if __name__ == "__main__":
    main()
