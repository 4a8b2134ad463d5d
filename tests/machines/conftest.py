"""A cluster of two machines, as far as Ray is concerned: a node each on this one, with a CPU each."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray_runs import clustered, kept_in
from system_cases import CASES, Case

HERE = Path(__file__).parent
OBJECTS = 78 << 20  # bytes, the least that Ray takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """See above; its ``address`` is what --ray takes."""
    pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with pytest.MonkeyPatch.context() as patch:
        # The code that is tested, and workers that die.
        paths = [str(HERE.parents[1]), str(HERE), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECTS}
        made = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=OBJECTS)
        yield made
        made.shutdown()


@pytest.fixture(scope="session")
def bundle_of(
    exported: Any, cut_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], Any]:
    """Give the bundle of a case."""

    def bundle(case: Case) -> Any:
        whole = exported(case)
        if not case.networks:
            return whole
        return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx")

    return bundle


@pytest.fixture(scope="session")
def faces(golden: Path) -> Path:
    """The features of the goldens, 1,283 faces."""
    return golden / "dev/data/features.bin"


@pytest.fixture(scope="session")
def many_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 generated faces of 1,000 people, 32-d."""
    rng = np.random.default_rng(5)
    people = rng.standard_normal((1000, 32))[rng.integers(0, 1000, 20_000)]
    path = tmp_path_factory.mktemp("faces") / "features.bin"
    (people + 0.45 * rng.standard_normal(people.shape)).astype("<f4").tofile(path)
    return path


@pytest.fixture(scope="session")
def pse(bundle_of: Callable[[Case], Any]) -> Any:
    return bundle_of(CASES[0])


@pytest.fixture(scope="session")
def alone(
    faces: Path, pse: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[np.ndarray, dict[str, bytes]]:
    """Labels and artifacts of PSE-GCN on the goldens, computed in this process."""
    place = tmp_path_factory.mktemp("alone") / "run"
    return clustered(faces, pse, place), kept_in(place)
