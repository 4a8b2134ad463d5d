"""Do two bundles give the same clusters? The share of faces whose cluster is the same set of faces in both."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import share_in_same_cluster
from fcdeploy.data.features import Features, features_from_array
from fcdeploy.data.generated import generated_faces
from fcdeploy.data.scratch import temporary_folder
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.manifest import Agreement, AgreementRun
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering
from fcdeploy.runtime.prepare import ways_of
from fcdeploy.systems import Recipe, System, get_system
from fcdeploy.systems.settings import settings_as_dict

FACES = 1000
DEFAULTS = Options()
THRESHOLDS: dict[str, tuple[float, ...]] = {  # option -> values tried beside the recipe's own
    "tau": (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.87, 0.9),
    "min_probability": (0.6, 0.75, 0.9),
}


def faces_for_agreement(recipe: Recipe, dim: int) -> Features:
    """Make up faces to compare clusters on: 1,000, or more where a recipe's k needs them."""
    n = max(FACES, 4 * max(_values_of("k", settings_as_dict(recipe)), default=1))
    return dataclasses.replace(features_from_array(generated_faces(n, dim), dim), name="generated faces")


def measure_agreement(
    first: Bundle, second: Bundle, features: Features, options: Options = DEFAULTS
) -> Agreement:
    """Cluster faces with two bundles of one system, in every way its settings allow, and compare.

    Runs: each way of inference, at the recipe's own settings and at THRESHOLDS of the options that the system has. A
    run of ``second`` that gives no finite numbers agrees on no face. Raises InputError for features that do not fit.
    """
    system = get_system(first.system)
    runs: list[AgreementRun] = []
    with (
        temporary_folder(first.path.parent) as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", FcdeployWarning)

        def labels_of(bundle: Bundle, inference: str, varied: dict[str, float]) -> np.ndarray:
            chosen = dataclasses.replace(options, inference=inference, **varied)  # type: ignore[arg-type]
            # Neighbors are those of the other bundle; what one bundle made is there at the next threshold.
            return run_clustering(features, bundle, chosen, run_dir=folder).labels

        for inference in ways_of(system, first.passes):
            tried = list(_thresholds(system, first, options))
            expected = [labels_of(first, inference, varied) for varied in tried]
            for varied, labels in zip(tried, expected, strict=True):
                share, clusters = 0.0, None
                try:
                    found = labels_of(second, inference, varied)
                except InputError:
                    raise
                except FcdeployError:
                    pass
                else:
                    share, clusters = share_in_same_cluster(labels, found), int(found.max(initial=-1)) + 1
                both = (int(labels.max(initial=-1)) + 1, clusters)
                runs.append(AgreementRun(inference, varied, share, both))
    return Agreement(features.n, Path(features.name).name, tuple(runs))


def _thresholds(system: System, bundle: Bundle, options: Options) -> Iterator[dict[str, float]]:
    yield {}
    for option, values in THRESHOLDS.items():
        for value in values:
            varied = dataclasses.replace(options, **{option: value})  # type: ignore[arg-type]
            if option in system.options and system.refusal(bundle.weights, varied) is None:
                yield {option: value}


def _values_of(key: str, table: Mapping[str, object]) -> Iterator[int]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _values_of(key, value)
        elif name == key and isinstance(value, int):
            yield value
