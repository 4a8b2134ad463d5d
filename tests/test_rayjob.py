"""The manifest for KubeRay is one: its fields are those of a RayJob, and its command is one of ours."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fcdeploy.cli import cli

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "docs" / "rayjob.yaml"
# Of ray.io/v1, as far as the manifest goes; an operator drops what it does not know without a word.
JOB = {
    *("entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec"),
    *("runtimeEnvYAML", "submissionMode", "activeDeadlineSeconds", "entrypointNumCpus", "suspend"),
}
CLUSTER = {"rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions"}
HEAD = {"rayStartParams", "template", "serviceType"}
WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "numOfHosts"}
CONTAINER = {"name", "image", "resources", "volumeMounts", "env", "command", "args", "imagePullPolicy"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def groups_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    spec = job["spec"]["rayClusterSpec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_its_fields_are_those_of_a_volume_and_a_job(documents: list[dict[str, Any]]) -> None:
    claim, job = documents
    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= JOB
    assert job["spec"]["rayClusterSpec"].keys() <= CLUSTER
    head, *workers = groups_of(job)
    assert head.keys() <= HEAD
    for group in workers:
        assert group.keys() <= WORKERS
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (head, *workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"].keys() == {"containers", "volumes"}
        for container in group["template"]["spec"]["containers"]:
            assert container.keys() <= CONTAINER
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_every_pod_mounts_what_the_command_reads_and_volumes_are_declared(
    documents: list[dict[str, Any]],
) -> None:
    claim, job = documents
    words = shlex.split(job["spec"]["entrypoint"])
    folders = {word.split("/")[1] for word in words if word.startswith("/")}
    head, *workers = groups_of(job)
    for group, wanted in ((head, {"faces"}), *((group, folders) for group in workers)):
        (container,) = group["template"]["spec"]["containers"]
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        mounts = {mount["mountPath"].strip("/"): mount["name"] for mount in container["volumeMounts"]}
        assert mounts.keys() >= wanted
        assert set(mounts.values()) == volumes.keys()
        assert volumes["faces"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_its_command_is_one_of_ours_and_its_versions_are_those_we_test_with(
    documents: list[dict[str, Any]],
) -> None:
    _, job = documents
    name, verb, *args = shlex.split(job["spec"]["entrypoint"])
    assert name == "fcdeploy"
    command = cli.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None
    parsed = command.make_context(verb, args).params
    assert (parsed["ray"], parsed["strict"]) == ("auto", True)
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}-" in (ROOT / "docs/how-to/many-machines.md").read_text()
