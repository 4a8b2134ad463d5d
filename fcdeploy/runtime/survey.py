"""What a run would compute, found by letting its flow describe its artifacts without computing any."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable

from fcdeploy.data.features import Features
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.engines import Engines
from fcdeploy.run.folder import places_of
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import NotComputedError, Run
from fcdeploy.run.store import MemoryStore, expected_bytes
from fcdeploy.systems import Recipe, System


def survey(
    system: System,
    features: Features,
    engines: Engines,
    settings: Recipe,
    options: Options,
    flow: Callable[[Run], object] | None = None,
    *,
    keeps: bool = False,
) -> list[Artifact]:
    """Return the artifacts of a run over ``features``, up to the first whose number or size follows from the data.

    flow: another one than the system's. keeps: whether the features are kept, see ``Run``. Nothing is computed or read;
    lists that are given count as if they were found.
    """
    options = dataclasses.replace(options, knn="auto" if options.knn_file else options.knn)
    run = Run(features, engines, settings, options, MemoryStore(), Progress(), survey=True, keeps=keeps)
    with contextlib.suppress(NotComputedError):
        (flow or system.cluster)(run)
    return run.planned


def list_length(
    system: System, features: Features, engines: Engines, settings: Recipe, options: Options
) -> int:
    """Return how long the neighbor lists of the features are that a run needs."""
    artifacts = survey(system, features, engines, settings, options, system.neighbors)
    (knn,) = (artifact for artifact in artifacts if artifact.name == "knn")
    return int(knn.shapes["ids"][0][1] or 0)


def places_of_run(system: System, artifacts: Iterable[Artifact]) -> list[str]:
    """Return all names that a run's artifacts take in its folder."""
    known = {artifact.name: artifact.scratch for artifact in artifacts}
    names = {**dict.fromkeys(system.later, False), **known}
    return [place for name, scratch in names.items() for place in places_of(name, scratch)]


def sum_of_artifacts(artifacts: Iterable[Artifact]) -> int:
    """Return the bytes of all artifacts whose sizes are known beforehand, scratch included."""
    return sum(expected_bytes(artifact.shapes, artifact.about) for artifact in artifacts)
