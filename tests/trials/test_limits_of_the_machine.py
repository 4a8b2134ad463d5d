"""Cores and memory are those that a process may use, not those of its machine.

Reported at python/cpython#80235 (cpu_count in containers), ollama/ollama#17916, giampaolo/psutil#2100 and
Comfy-Org/ComfyUI PR #15927, among many.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcdeploy import machine
from fcdeploy.machine import core_limit, is_in_memory, memory_limit, read_mounts
from fcdeploy.run.options import Options

GB = 1 << 30
V2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 30 0:27 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 30 0:28 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write the files of a made-up machine of 64 cores and 256 GB; give its root."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    monkeypatch.setattr(
        os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256 * GB // 4096}[name]
    )

    def made(group: str, mounts: str, files: dict[str, str]) -> Path:
        named = {"proc/self/cgroup": group, "proc/self/mountinfo": mounts, **files}
        for name, text in named.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("max_", "wanted"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("140000 100000\n", 1),
        ("10000 100000\n", 1),
        ("75000 50000\n", 2),
        ("max 100000\n", 64),
        ("9900000 100000\n", 64),
        *(
            (text, 64)
            for text in ("", "max", "-1 100000", "200000", "200000 0", "0 100000", "two cores", "\x00 \xff")
        ),
    ],
)
def test_a_cpu_quota_of_cgroup_v2_is_a_number_of_cores(write, max_: str, wanted: int) -> None:
    limit = core_limit(write("0::/\n", V2, {"sys/fs/cgroup/cpu.max": max_}))
    assert (limit.usable, limit.whole) == (wanted, 64)
    assert ("cpu.max" in limit.source) == (wanted < 64)


@pytest.mark.parametrize(
    ("files", "wanted", "source"),
    [
        ({"memory.max": "2147483648"}, 2 * GB, "memory.max"),
        ({"memory.max": "max", "memory.high": "1073741824"}, GB, "memory.high"),
        ({"memory.max": "2147483648", "memory.high": "1073741824"}, GB, "memory.high"),
        ({"memory.max": "max"}, 256 * GB, ""),
        ({"memory.max": str(2**63)}, 256 * GB, ""),
        *(({"memory.max": text}, 256 * GB, "") for text in ("", "-1", "2G", "0", "2 147", "9" * 30)),
    ],
)
def test_memory_of_cgroup_v2(write, files: dict[str, str], wanted: int, source: str) -> None:
    limit = memory_limit(write("0::/\n", V2, {f"sys/fs/cgroup/{name}": text for name, text in files.items()}))
    assert (limit.usable, limit.whole, Path(limit.source).name) == (wanted, 256 * GB, source)


def test_the_tightest_of_nested_groups_counts(write) -> None:
    """A pod's limit stands above its container's, and that of a slice above a service's."""
    place = "sys/fs/cgroup/kubepods/pod7"
    root = write(
        "0::/kubepods/pod7/box\n",
        V2,
        {
            f"{place}/box/memory.max": str(8 * GB),
            f"{place}/memory.max": str(4 * GB),
            "sys/fs/cgroup/kubepods/memory.max": "max",
            f"{place}/box/cpu.max": "max 100000",
            f"{place}/cpu.max": "300000 100000",
            "sys/fs/cgroup/kubepods/cpu.max": "800000 100000",
            "sys/fs/cgroup/other/memory.max": str(GB),
        },
    )
    assert (memory_limit(root).usable, memory_limit(root).source) == (
        4 * GB,
        str(root / place / "memory.max"),
    )
    assert core_limit(root).usable == 3


@pytest.mark.parametrize("mounted", ["/", "/docker/abc", "/../.."])
@pytest.mark.parametrize("group", ["/docker/abc", "/", "/../../x"])
def test_a_container_that_sees_its_own_group_as_the_whole_mount(write, mounted: str, group: str) -> None:
    """Whatever /proc says the group is called, its files are at the top of the mount (docker run, with v1)."""
    v1 = "sys/fs/cgroup"
    root = write(
        f"5:memory:{group}\n4:cpu,cpuacct:{group}\n0::{group}\n",
        V1.format(root=mounted),
        {
            f"{v1}/memory/memory.limit_in_bytes": str(2 * GB),
            f"{v1}/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            f"{v1}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert memory_limit(root).usable == 2 * GB
    assert core_limit(root).usable == 4


def test_limits_of_cgroup_v1_that_are_none(write) -> None:
    v1 = "sys/fs/cgroup"
    root = write(
        "5:memory:/a\n4:cpu,cpuacct:/a\n",
        V1.format(root="/"),
        {
            f"{v1}/memory/memory.limit_in_bytes": "9223372036854771712\n",
            f"{v1}/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
            f"{v1}/cpu,cpuacct/a/cpu.cfs_quota_us": "-1\n",
            f"{v1}/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
    )
    assert (memory_limit(root), core_limit(root)) == (
        machine.Limit(256 * GB, 256 * GB, ""),
        machine.Limit(64, 64, ""),
    )


def test_of_cgroup_v1_what_groups_above_the_container_allow_counts(write) -> None:
    stat = f"cache 1\nrss 2\nhierarchical_memory_limit {3 * GB}\nhierarchical_memsw_limit {5 * GB}\n"
    place = "sys/fs/cgroup/memory"
    root = write(
        "5:memory:/docker/abc\n",
        V1.format(root="/docker/abc"),
        {f"{place}/memory.limit_in_bytes": "9223372036854771712", f"{place}/memory.stat": stat},
    )
    assert memory_limit(root).usable == 3 * GB


def test_machines_without_these_files_limit_nothing(tmp_path: Path) -> None:
    memory_limit_of_none = memory_limit(tmp_path)
    assert memory_limit_of_none.usable == memory_limit_of_none.whole > 0
    assert core_limit(tmp_path).usable == len(os.sched_getaffinity(0))


def test_where_the_mounts_cannot_be_read_groups_are_where_they_usually_are(write) -> None:
    root = write("0::/box\n", "", {"sys/fs/cgroup/box/memory.max": str(GB)})
    assert memory_limit(root).usable == GB
    root = write("3:memory:/box\n", "", {"sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(GB // 2)})
    memory_cache = machine._memory_limit.__wrapped__(root)
    assert memory_cache.usable == GB // 2


def test_a_container_of_lxc_has_the_memory_of_its_own_meminfo(write) -> None:
    assert (
        memory_limit(write("", "", {"proc/meminfo": "MemTotal:        1048576 kB\nMemFree: 7 kB\n"})).usable
        == GB
    )


def test_the_affinity_is_how_many_cores_there_are(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert core_limit(write("0::/\n", V2, {})) == machine.Limit(2, 64, "affinity")
    assert core_limit(write("0::/\n", V2, {"sys/fs/cgroup/cpu.max": "300000 100000"})).source == "affinity"


def test_options_follow_what_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_limit", lambda: machine.Limit(3, 64, "affinity"))
    monkeypatch.setattr(machine, "memory_limit", lambda: machine.Limit(2 * GB, 64 * GB, "memory.max"))
    assert (Options().cores, Options(threads=2).cores, Options(threads=50).cores) == (3, 2, 3)
    assert (Options().budget, Options(memory=GB // 4).budget) == (GB, GB // 4)


def test_doctor_says_how_many_cores_and_how_much_memory(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    command = (
        f"import os, sys; os.sched_setaffinity(0, {{{core}}}); sys.argv = ['fcdeploy', 'doctor', '--json']; "
        "from fcdeploy.cli import doctor, main; doctor.examine_apart = lambda checks: {c: {} for c in checks}; main()"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    findings = json.loads(done.stdout)
    assert findings["cores"]["usable"] == 1
    assert findings["cores"]["text"].startswith("1 core")
    assert 0 < findings["memory"]["usable"] <= findings["memory"]["machine"]


def test_files_in_memory_are_told_by_the_mount(tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    for kind, wanted in (("tmpfs", True), ("ramfs", True), ("ext4", False), ("overlay", False)):
        root = tmp_path / kind
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text(
            f"22 1 {device} / {tmp_path} rw shared:1 - {kind} none rw\n"
        )
        assert is_in_memory(tmp_path, root) is wanted
    assert not is_in_memory(tmp_path / "none", tmp_path)
    if Path("/dev/shm").is_dir():
        assert is_in_memory(Path("/dev/shm"))


@pytest.fixture
def group_of_2_gb() -> Iterator[Path]:
    """A memory cgroup below that of this process, where the machine lets us make one."""
    v1 = [mount for mount in read_mounts() if mount.kind == "cgroup" and "memory" in mount.options]
    folders = list(machine._folders(Path("/"), "memory"))
    name = "memory.limit_in_bytes" if v1 else "memory.max"
    group = (
        next((folder for folder in folders if (folder / name).exists()), Path("/none"))
        / f"test-{os.getpid()}"
    )
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here ({error})")
    try:
        try:
            (group / name).write_text(str(2 * GB))
        except OSError as error:
            pytest.skip(f"no cgroup here can be limited ({error})")
        yield group
    finally:
        group.rmdir()


def test_the_limit_of_a_real_group_is_read(group_of_2_gb: Path) -> None:
    code = "from fcdeploy.machine import memory_limit; print(memory_limit().usable)"
    done = run_in(group_of_2_gb, sys.executable, "-c", code)
    assert (done.returncode, done.stdout) == (0, f"{2 * GB}\n")


def run_in(group: Path, *command: object) -> subprocess.CompletedProcess[str]:
    entered = ["bash", "-c", f'echo $$ > "{group}/cgroup.procs" && exec "$@"', "bash", *map(str, command)]
    return subprocess.run(entered, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_stays_inside_a_cgroup_of_2_gb(group_of_2_gb: Path, tmp_path: Path) -> None:
    """200,000 x 512 float32, with a budget that follows from the limit; the kernel kills whoever takes more.

    Half an hour on two cores that others use, too.
    """
    torch = pytest.importorskip("torch")
    from fcdeploy.data.generated import generated_faces
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
    from fcdeploy.systems import get_system
    from fcdeploy.systems.pse_gcn.network import PseGcn

    torch.manual_seed(1)
    torch.save(PseGcn(512).state_dict(), tmp_path / "checkpoint.pth")
    recipe = get_system("pse-gcn").recipe.for_weights({"refine": {"dim": 512}})
    bundle, _ = export_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "pse.onnx", recipe)
    with open(tmp_path / "features.bin", "wb") as file:
        for seed in range(20):
            file.write(generated_faces(10_000, 512, seed).tobytes())
    run = ("cluster", tmp_path / "features.bin", "--engine", bundle.path, "-o", tmp_path / "o.meta")
    done = run_in(
        group_of_2_gb, sys.executable, "-m", "fcdeploy", *run, "--k", "20", "--hops", "20,5", "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["faces"] == 200_000
    assert summary["computed"]["limits"]["memory"] == GB
    # peak_bytes also counts pages of files that are charged to whoever read them first.
    for name in ("memory.oom_control", "memory.events"):
        if (group_of_2_gb / name).exists():
            assert "oom_kill 0" in (group_of_2_gb / name).read_text().splitlines()
