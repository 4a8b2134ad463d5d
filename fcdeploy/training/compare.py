"""``fcdeploy.compare``: engines and methods without a network on somebody's own labelled sample."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.data.atomic import check_parent
from fcdeploy.data.features import Features
from fcdeploy.data.label_values import labels_from_values
from fcdeploy.data.labels import WrongNumberOfLabels, read_labels
from fcdeploy.data.side_files import check_not_an_input
from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.errors import InputError
from fcdeploy.run.options import check_values
from fcdeploy.runtime.api import PathLike, features_given, options_from
from fcdeploy.training.baselines import METHODS
from fcdeploy.training.comparison import (
    Comparison,
    K,
    compare_on,
    plot_comparison,
    write_comparison,
)
from fcdeploy.training.curves import check_plot
from fcdeploy.training.tune import check_number


def compare(
    features: object,
    labels: PathLike | ArrayLike,
    *,
    engines: PathLike | Sequence[PathLike] = (),
    methods: Sequence[str] = tuple(METHODS),
    objective: str = "pairwise",
    unknown: str = "ignore",
    k: int = K,
    on_bad: str = "stop",
    duplicates: str = "merge",
    threads: int = 0,
    memory: int = 0,
    scratch: PathLike | None = None,
    column: str | None = None,
    label_column: str | None = None,
    output: PathLike | None = None,
    plot: PathLike | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare engines, and methods without a network, on labelled faces: each at its own threshold and at its best.

    The best settings are chosen on the faces that they are measured on: expect lower quality on others.

    - features: (n, d), as for ``fcdeploy.cluster``.
    - labels: (n,) identities, integers or names, -1 where unknown; or the path of a file of labels.
    - engines: folders of engine bundles.
    - methods: any of "components", "denser" (links to denser faces), "dbscan" and "hdbscan" (these two need
      scikit-learn), computed on the lists of the ``k`` nearest neighbors.
    - objective: the F that is maximised, "pairwise" or "bcubed".
    - unknown, on_bad, duplicates, threads, memory, scratch: as in ``fcdeploy tune``.
    - output: JSON file for all figures; plot: file (.png, .svg) for precision against recall.

    Returns a ``Comparison`` with one record per method in ``rows``. Raises InputError (a ValueError) for input that
    cannot be used.
    """
    several = [engines] if isinstance(engines, (str, os.PathLike)) else engines
    bundles = [read_bundle(Path(engine)) for engine in several]
    options = options_from(
        {"duplicates": duplicates, "threads": threads, "memory": memory, "scratch": scratch}
    )
    check_values(options)
    inputs = [Path(given) for given in (features, labels) if isinstance(given, (str, os.PathLike))]
    check_written(output, plot, inputs)
    opened = features_given(features, common_width(bundles), column, options.scratch)
    named = str(labels) if isinstance(labels, (str, os.PathLike)) else "labels"
    truth = truth_of(labels, opened, label_column)
    found = compare_on(
        opened,
        truth,
        bundles,
        [methods] if isinstance(methods, str) else list(methods),
        objective=objective,
        unknown=unknown,
        k=k,
        options=options,
        on_bad=on_bad,
        scratch_dir=None if output is None else Path(output).parent,
        labels_name=named,
        quiet=not progress,
    )
    write_found(found, opened, output, plot)
    return found


def common_width(bundles: Sequence[Bundle]) -> int | None:
    """Return the width of features that all engines were exported for, None without any; raises InputError."""
    for bundle in bundles[1:]:
        if bundle.feature_dim != bundles[0].feature_dim:
            raise InputError(
                f"{bundle.path}: was exported for features of {bundle.feature_dim} values, {bundles[0].path} for "
                f"{bundles[0].feature_dim}; compare engines of one embedder."
            )
    return bundles[0].feature_dim if bundles else None


def truth_of(labels: PathLike | ArrayLike, features: Features, column: str | None = None) -> np.ndarray:
    """Return identities (n,) int64 of a file or an array; raises InputError when they are not as many as the faces."""
    if not isinstance(labels, (str, os.PathLike)):
        truth = labels_from_values(labels, "labels")
        check_number(len(truth), features, "labels")
        return truth
    try:
        return read_labels(labels, features.n, column)
    except WrongNumberOfLabels as error:
        check_number(error.found, features, str(labels))
        raise


def check_written(output: PathLike | None, plot: PathLike | None, inputs: Sequence[Path]) -> None:
    """Raise InputError when JSON or plot cannot be written where they are to go, or would replace an input."""
    if output is not None:
        check_not_an_input(check_parent(Path(output)), inputs)
    if plot is not None:
        check_not_an_input(check_plot(Path(plot)), inputs)
        if output is not None and Path(output).resolve() == Path(plot).resolve():
            raise InputError(f"{plot}: is named for the figures and for the plot; give two names.")


def write_found(
    found: Comparison, features: Features, output: PathLike | None, plot: PathLike | None
) -> None:
    """Write figures and plot, where they are wanted."""
    if output is not None:
        write_comparison(found, Path(output))
    if plot is not None:
        plot_comparison(found, features.name, Path(plot))
