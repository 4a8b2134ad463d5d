"""What this process may use of its machine: cores, memory and disks, as affinity, cgroups and mounts have it.

Containers, batch systems and `taskset` leave a process a part of the machine, while the machine's own figures (the
number of its processors, its memory) stay what they are. Everything here that reads files takes ``root``, under which
``/proc`` is looked for; what cannot be read or understood limits nothing.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fcdeploy.errors import FcdeployError

ROOT = Path("/")
GROUPS = "proc/self/cgroup"
MOUNTS = "proc/self/mountinfo"
MEMINFO = "proc/meminfo"
MEMORY_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
HIERARCHICAL = (
    "hierarchical_memory_limit"  # in memory.stat of cgroup v1: what groups above allow, seen or not
)
USUAL_MOUNTS = (
    ("cgroup2", "sys/fs/cgroup"),
    ("cpu", "sys/fs/cgroup/cpu"),
    ("memory", "sys/fs/cgroup/memory"),
)
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")  # file systems whose files are memory
LOCAL = (
    *("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "jfs", "overlay"),
    *IN_MEMORY,
)
ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Limit:
    """An amount that this process may use, the machine's whole, and what limits it ("" where nothing does)."""

    usable: int
    whole: int
    source: str


@dataclass(frozen=True)
class Mount:
    """kind: the file system's type; root: which of its folders is mounted, at ``place``; device: as in "8:1"."""

    kind: str
    root: str
    place: str
    device: str
    options: tuple[str, ...] = ()


def cores() -> int:
    """Return how many cores this process may use, at least 1."""
    return core_limit().usable


def threads_for(asked: int) -> int:
    """Return how many threads to use when ``asked`` are (0: as many as there are cores); never more than cores."""
    most = cores()
    return min(asked, most) if asked else most


def memory() -> int:
    """Return how many bytes of memory this process may use."""
    return memory_limit().usable


def core_limit(root: Path = ROOT) -> Limit:
    """Return how many cores this process may use: those of its affinity, and no more than its cgroups' CPU time.

    A quota is rounded to the nearest whole core, at least 1: of 1.5 cores, two threads use more than one does.
    """
    whole = os.cpu_count() or 1
    usable, source = whole, ""
    with contextlib.suppress(AttributeError, OSError):  # macOS has none
        usable = len(os.sched_getaffinity(0)) or whole
        source = "affinity" if usable < whole else ""
    quota = _quota(root)
    if quota is not None and (rounded := max(1, int(quota[0] + 0.5))) < usable:
        usable, source = rounded, f"CPU quota of {quota[0]:g} in {quota[1]}"
    return Limit(usable, max(whole, usable), source)


def memory_limit(root: Path = ROOT) -> Limit:
    """Return how many bytes this process may use: the machine's, or what the tightest of its cgroups allows."""
    return _memory_limit(root)


@functools.cache
def _memory_limit(root: Path) -> Limit:
    whole = _machine_memory(root)
    usable, source = whole, ""
    for folder in (*_folders(root, "memory"),):
        for name in MEMORY_FILES:
            found = _number(folder / name)
            if found and found < usable:
                usable, source = found, str(folder / name)
        above = _number(folder / "memory.stat", HIERARCHICAL)
        if above and above < usable:
            usable, source = above, f"{folder / 'memory.stat'} ({HIERARCHICAL})"
    return Limit(usable, whole, source)


def _machine_memory(root: Path) -> int:
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    total = _number(root / MEMINFO, "MemTotal:")  # of a container's own, where LXC gives it one
    if total:
        sizes.append(1024 * total)
    return min((size for size in sizes if size > 0), default=4 << 30)


@functools.cache
def _quota(root: Path) -> tuple[float, str] | None:
    """Return the least CPU time per time, in cores, of the groups of this process, and the file that says so."""
    found = []
    for folder in _folders(root, "cpu"):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) and int(words[0]):
            found.append((int(words[0]) / int(words[1]), str(folder / "cpu.max")))
        quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota and period:
            found.append((quota / period, str(folder / "cpu.cfs_quota_us")))
    return min(found, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, innermost first, of cgroup v2 and of v1.

    What ``/proc/self/cgroup`` names may not be there: a container sees its own group as the whole mount.
    """
    mounts = [mount for mount in read_mounts(root) if mount.kind in ("cgroup", "cgroup2")]
    if not mounts:
        mounts = [
            Mount("cgroup2" if name == "cgroup2" else "cgroup", "/", f"/{place}", "", (name,))
            for name, place in USUAL_MOUNTS
        ]
    for line in _text(root / GROUPS).splitlines() or ["0::/", f"1:{controller}:/"]:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        second = number == "0" and not controllers
        if not second and controller not in controllers.split(","):
            continue
        for mount in mounts:
            if (mount.kind == "cgroup2") != second or (not second and controller not in mount.options):
                continue
            top = root / mount.place.lstrip("/")
            inside = _inside(path, mount.root)
            folder = top
            below = [top]
            for part in inside:
                folder = folder / part
                below.append(folder)
            yield from reversed(below)


def _inside(path: str, mounted: str) -> list[str]:
    """Return the names from a mount's folder ``mounted`` down to ``path``; none where it lies elsewhere."""
    parts, above = ([part for part in name.split("/") if part] for name in (path, mounted))
    if ".." in parts or parts[: len(above)] != above:
        return []
    return parts[len(above) :]


def read_mounts(root: Path = ROOT) -> list[Mount]:
    """Return what is mounted, in the order of mounting; empty where the system does not say."""
    mounts = []
    for line in _text(root / MOUNTS).splitlines():
        before, _, after = line.partition(" - ")
        words, more = before.split(), after.split()
        if len(words) < 5 or not more:
            continue
        options = tuple(more[-1].split(",")) if len(more) > 2 else ()
        mounts.append(Mount(more[0], _unescaped(words[3]), _unescaped(words[4]), words[2], options))
    return mounts


def is_in_memory(folder: Path, root: Path = ROOT) -> bool:
    """Tell whether files in ``folder``, which exists, are kept in memory (tmpfs), as those of some ``/tmp`` are."""
    return _kind_of(folder, root) in IN_MEMORY


def is_local(folder: Path, root: Path = ROOT) -> bool:
    """Tell whether ``folder`` is on a file system that no other machine can have mounted, as far as is known."""
    return _kind_of(folder, root) in LOCAL


def _kind_of(folder: Path, root: Path) -> str:
    try:
        number = os.stat(folder).st_dev
    except OSError:
        return ""
    device = f"{os.major(number)}:{os.minor(number)}"
    kinds = [mount.kind for mount in read_mounts(root) if mount.device == device]
    return kinds[-1] if kinds else ""


def _unescaped(text: str) -> str:
    return ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)


def _number(file: Path, name: str = "") -> int | None:
    """Return the number that a file holds, or that behind ``name`` in one of its lines; None for anything else."""
    text = _text(file)
    if name:
        lines = [line.removeprefix(name).split() for line in text.splitlines() if line.startswith(name)]
        text = lines[0][0] if lines and lines[0] else ""
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def check_platform() -> None:
    """Raise FcdeployError on a system that fcdeploy does not run on."""
    if not sys.platform.startswith("linux"):
        name = {"win32": "Windows", "darwin": "macOS"}.get(sys.platform, sys.platform)
        remedy = "WSL 2" if name == "Windows" else "a Linux container or virtual machine"
        raise FcdeployError(f"fcdeploy runs on Linux, and this is {name}; use {remedy}.")
