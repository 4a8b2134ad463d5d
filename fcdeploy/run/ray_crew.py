"""Workers on a Ray cluster: where they are started, and how the driver hears of them and of their end."""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.packages import import_package
from fcdeploy.run import messages
from fcdeploy.run.messages import Ask, Reply
from fcdeploy.run.options import Options
from fcdeploy.run.ray_worker import RayWorker, probe
from fcdeploy.run.shared_blocks import Asked, Lost

INSTALL = "pip install 'fcdeploy[ray]'"
TICK = 0.5  # seconds between two looks at blocks that take too long
LOOK = 2.0  # seconds between two looks for new machines
MOST_FAILURES = 3  # of workers on one machine, with no block between them, behind which it is left alone
FAREWELL = 10.0  # seconds in which workers clear up
OBJECTS = 80 << 20  # bytes of a local cluster's object store, which nothing is put into
REASON_CHARACTERS = 200
PROBE_SECONDS = 300.0
REACH_SECONDS = 10.0
CHANGED = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_CLIENT_MODE",
    "PYTHONBREAKPOINT",
)  # in the environment, by Ray


def import_ray() -> ModuleType:
    """Import Ray; raises MissingDependencyError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return import_package("ray", "Ray", INSTALL)


def local_workers(address: str) -> int | None:
    """Return how many workers "local:N" asks for; None where an address is another one."""
    kind, _, count = address.partition(":")
    if kind != "local":
        return None
    if not (count or "2").isascii() or not (count or "2").isdecimal() or int(count or "2") < 1:
        raise InputError(f"--ray {address}: give the number of workers on this machine, as in local:2.")
    return int(count or "2")


def check_address(address: str) -> None:
    """Raise InputError for an address that no cluster of this machine's can have."""
    if local_workers(address) is None and address != "auto" and ("://" in address or ":" not in address):
        raise InputError(
            f"--ray {address}: give auto, HOST:PORT of a cluster that this machine is part of, or local:N."
        )


@contextlib.contextmanager
def connected(options: Options) -> Iterator[ModuleType]:
    """Connect to the cluster that ``options.ray`` names; yields Ray.

    A connection that the caller of fcdeploy has made is used as it is. Raises InputError when there is no such cluster.
    """
    address = options.ray or "auto"
    check_address(address)
    ray = import_ray()
    _print_nothing(ray)
    if ray.is_initialized():
        yield ray
        return
    handler, environment = signal.getsignal(signal.SIGTERM), dict(os.environ)
    folder = None
    try:
        quietly = {"log_to_driver": False, "logging_level": logging.CRITICAL, "include_dashboard": False}
        workers = local_workers(address)
        if workers is not None:
            if "RAY_AUTH_MODE" not in environment:
                # A token for this cluster alone, or Ray writes one into the user's home, which all later ones ask for.
                os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
                _read_environment(ray)
            # Short: names of sockets have a limit. Ray's logs go with it.
            folder = tempfile.mkdtemp(prefix="fcd-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
            cpus = options.ray_cpus or max(1, options.cores // workers)
            gpus = {"num_gpus": options.ray_gpus * workers} if options.ray_gpus else {}
            ray.init(
                "local",
                num_cpus=cpus * workers,
                object_store_memory=OBJECTS,
                _temp_dir=folder,
                **gpus,
                **quietly,
            )
        else:
            del quietly["include_dashboard"]
            _check_reached(address)
            ray.init(address, **quietly)
    except (OSError, RuntimeError, ValueError) as error:
        _clear(ray, folder, environment)
        raise InputError(
            f"--ray {address}: no cluster can be reached ({_first_line(str(error))}); start one with "
            "`ray start --head`, and `ray start --address HOST:PORT` on other machines, this one included, or "
            "give local:2."
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray takes it for its own
    try:
        yield ray
    finally:
        _clear(ray, folder, environment)


def _check_reached(address: str) -> None:
    """Raise OSError where nothing answers at HOST:PORT, for which Ray itself waits for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        if not port.isdecimal():
            raise ValueError(f"{port} is not a port")
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


def _clear(ray: ModuleType, folder: str | None, environment: dict[str, str]) -> None:
    """Disconnect, and leave nothing behind; environment: of this process before.

    By the token of a local cluster no other one is entered.
    """
    with contextlib.suppress(Exception):
        ray.shutdown()
    for name in CHANGED:
        if name in environment:
            os.environ[name] = environment[name]
        else:
            os.environ.pop(name, None)
    _read_environment(ray)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _read_environment(ray: ModuleType) -> None:
    """Let Ray look at the environment again, which it does once per process."""
    with contextlib.suppress(Exception):  # of versions that know no tokens
        ray._raylet.Config.initialize("")
        ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def _print_nothing(ray: ModuleType) -> None:
    """Let Ray not print to stdout what its daemons report: results go there, and lost workers are told anyway."""
    with contextlib.suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None


def probe_machines(ray: ModuleType, target: str, argument: str) -> Iterator[tuple[str, str, str]]:
    """Yield what ``target`` says on each machine of a cluster: its name, the answer, or why there is none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            remote = ray.remote(probe).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
            asked[remote.remote(target, argument)] = node["NodeManagerHostname"]
    for ref, host in asked.items():
        try:
            yield host, str(ray.get(ref, timeout=PROBE_SECONDS)), ""
        except ray.exceptions.RayTaskError as error:
            yield host, "", _first_line(str(error.cause))
        except ray.exceptions.RayError as error:
            yield host, "", _reason_of(error)


class Exchange(Protocol):
    """``RayWorker.exchange``, called on the worker's machine; returns what ``ray.get`` takes."""

    def remote(self, reply: tuple[str, int, int, str] | None) -> object: ...


class Actor(Protocol):
    """A ``RayWorker`` that runs on some machine."""

    @property
    def exchange(self) -> Exchange: ...


@dataclass
class Member:
    """One worker: its actor, the machine it is on, and whether it has said a word."""

    actor: Actor
    node: str
    here: bool = False


class RayCrew:
    """See ``Crew``; target and description: of what workers run, see ``RayWorker``."""

    def __init__(self, ray: ModuleType, options: Options, target: str, description: str) -> None:
        self._ray, self._options = ray, options
        self._target, self._description = target, description
        self._members: dict[str, Member] = {}
        self._asked: dict[object, str] = {}  # what is on its way -> worker
        self._failures: dict[str, int] = {}  # machine -> workers lost on it with no block between
        self._names: dict[str, str] = {}
        self._started, self._looked = 0, -LOOK
        self._reason = ""
        self._look()

    @property
    def count(self) -> int:
        return sum(member.here for member in self._members.values())

    @property
    def expected(self) -> int:
        return len(self._members)

    @property
    def needs(self) -> str:
        cpus, gpus = self._options.ray_cpus, self._options.ray_gpus
        told = "all of its CPUs, at least one," if cpus is None else f"{cpus:g} CPUs"
        return f"{told}{f' and {gpus:g} GPUs' if gpus else ''} free"

    def describe(self, worker: str) -> str:
        return self._names.get(worker, f"worker {worker}")

    def poll(self, wait: bool = True) -> list[Asked | Lost]:
        if time.monotonic() - self._looked > LOOK:
            self._look()
        if not self._asked:
            if self._reason:
                raise FcdeployError(f"no worker is left: {self._reason}.")
            time.sleep(TICK if wait else 0)
            return []
        ready, waiting = self._ray.wait(list(self._asked), num_returns=1, timeout=TICK if wait else 0)
        if ready and waiting:
            ready += self._ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]
        return [event for ref in ready if (event := self._event(ref)) is not None]

    def answer(self, worker: str, reply: Reply) -> None:
        if worker in self._members:
            self._send(worker, (reply.kind, reply.start, reply.stop, reply.text))

    def dismiss(self, worker: str, reason: str) -> None:
        member = self._members.pop(worker, None)
        if member is not None:
            self._failures[member.node] = MOST_FAILURES
            self._reason = reason
            self._end(worker, member)

    def close(self) -> None:
        until = time.monotonic() + FAREWELL
        leaving = {ref: worker for ref, worker in self._asked.items() if self._members[worker].here}
        with contextlib.suppress(Exception):  # whatever it is, there is nothing more to be done
            while leaving and (left := until - time.monotonic()) > 0:
                ready, _ = self._ray.wait(list(leaving), num_returns=1, timeout=left)
                for ref in ready:
                    worker = leaving.pop(ref)
                    if Ask(*self._ray.get(ref)).kind != messages.ENDED:  # it was at a last block
                        again = self._members[worker].actor.exchange.remote((messages.STOP, 0, 0, ""))
                        leaving[again] = worker
        for worker, member in self._members.items():
            self._end(worker, member)
        self._members.clear()

    def _event(self, ref: object) -> Asked | Lost | None:
        worker = self._asked.pop(ref)
        member = self._members.get(worker)
        if member is None:  # dismissed
            return None
        try:
            ask = Ask(*self._ray.get(ref))
        except self._ray.exceptions.RayError as error:
            return self._lost(worker, member, _reason_of(error))
        if ask.kind == messages.ENDED:
            return self._lost(worker, member, ask.text or "it ended")
        member.here = True
        if ask.kind == messages.DONE:
            self._failures[member.node] = 0
        return Asked(worker, ask)

    def _lost(self, worker: str, member: Member, reason: str) -> Lost:
        self._failures[member.node] = self._failures.get(member.node, 0) + 1
        if self._failures[member.node] >= MOST_FAILURES:
            self._reason = f"{self.describe(worker)} fails every time ({reason})"
        lost = Lost(worker, reason)
        self._end(worker, member)
        del self._members[worker]
        self._looked = -LOOK  # another one can begin in its place
        return lost

    def _end(self, worker: str, member: Member) -> None:
        for ref in [ref for ref, other in self._asked.items() if other == worker]:
            del self._asked[ref]
        with contextlib.suppress(Exception):
            self._ray.kill(member.actor)

    def _look(self) -> None:
        """Start workers on every machine that has room for them."""
        self._looked = time.monotonic()
        for node in self._ray.nodes():
            identity = node["NodeID"]
            if not node["Alive"] or self._failures.get(identity, 0) >= MOST_FAILURES:
                continue
            room, cpus = self._room(node["Resources"])
            have = sum(member.node == identity for member in self._members.values())
            for _ in range(room - have):
                self._start(identity, node["NodeManagerHostname"], cpus, room)

    def _room(self, resources: dict[str, float]) -> tuple[int, float]:
        """Return how many workers a machine has room for, and the CPUs of each."""
        cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
        asked, per_gpu = self._options.ray_cpus, self._options.ray_gpus
        by_gpu = int(gpus / per_gpu + 1e-6) if per_gpu else None
        workers = local_workers(self._options.ray or "")
        if asked is None and workers is not None:
            asked = cpus / workers
        if asked is not None:
            by_cpu = int(cpus / asked + 1e-6)
            return (by_cpu if by_gpu is None else min(by_cpu, by_gpu)), asked
        if cpus < 1 or by_gpu == 0:
            return 0, 0.0
        count = 1 if by_gpu is None else min(by_gpu, int(cpus))
        return count, float(int(cpus / count))

    def _start(self, node: str, host: str, cpus: float, workers: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._started += 1
        name = f"{self._started}-{os.getpid()}-{os.urandom(4).hex()}"
        actor = (
            self._ray.remote(RayWorker)
            .options(
                num_cpus=cpus,
                num_gpus=self._options.ray_gpus,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(self._target, self._description, name, max(1, int(cpus)), workers)
        )
        self._members[name] = Member(actor, node)
        self._names[name] = f"worker {self._started} on {host}"
        self._send(name, None)

    def _send(self, worker: str, reply: tuple[str, int, int, str] | None) -> None:
        self._asked[self._members[worker].actor.exchange.remote(reply)] = worker


def _reason_of(error: Exception) -> str:
    """Say in a few words why an actor is gone."""
    text = str(error)
    if "OOM" in text and "exit type: NODE_OUT_OF_MEMORY" in text:
        return "its machine was out of memory"
    if "node has died" in text or "node was terminated" in text:
        return "its machine is gone"
    if "worker process has died" in text or "Connection reset" in text:
        return "its process ended"
    lines = [line.strip() for line in text.splitlines() if line.startswith("The actor")]
    return _first_line(lines[-1] if lines else text)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:REASON_CHARACTERS].rstrip(".")
