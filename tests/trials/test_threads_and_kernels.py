"""Kernels run without a place for their cache, on numba's workqueue layer, in several threads and after a fork.

Reported at numba/numba#4032 ("cannot cache function: no locator available"), LMCache/LMCache#4597,
librosa/librosa#1156, polakowo/vectorbt#476; lmcinnes/umap#665, LTLA/scarf#181, numba/numba#8563 and #10046 (workqueue,
and thread counts that stay changed); facebookresearch/faiss#5206 and numba/numba#3202 (fork).
"""

import os
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numba
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import fcdeploy
from fcdeploy.engine.batching import prefetch
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployError
from fcdeploy.graph import kernels
from fcdeploy.graph.threads import threads_limited

NO_PLACE = """
import sys, numba.core.caching as caching
for name in dir(caching):
    kind = getattr(caching, name)
    if isinstance(kind, type) and name.endswith("Locator") and hasattr(kind, "from_function"):
        if not (sys.argv[1] == "temporary" and name.lstrip("_") == "UserProvidedCacheLocator"):
            kind.from_function = classmethod(lambda cls, *a: None)
"""
USE = """
import numpy as np
from fcdeploy.graph.density import *
from fcdeploy.graph.kernels import place_of_kernels, njit, told_of_compiling
from fcdeploy.graph.hashing import new_table
compiled = []
with told_of_compiling(lambda: compiled.append(1)):
    assert len(new_table(4)) == 64
print(place_of_kernels(), "|", len(compiled))
"""


def python(code: str, *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )


def test_without_a_place_kernels_are_cached_in_a_private_folder(tmp_path: Path) -> None:
    said = [python(NO_PLACE + USE, "temporary", TMPDIR=str(tmp_path), NUMBA_CACHE_DIR="") for _ in range(2)]
    assert [run.stderr for run in said] == ["", ""]
    folder = tmp_path / f"fcdeploy-kernels-{os.getuid()}"
    assert all(f"cached in {folder}" in run.stdout for run in said)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [run.stdout.split("|")[1].strip() for run in said] == ["1", "0"]  # compiled once
    assert list(folder.rglob("*.nbi"))


def test_without_any_place_they_are_compiled_by_every_process(tmp_path: Path) -> None:
    done = python(NO_PLACE + USE, "none", TMPDIR=str(tmp_path), NUMBA_CACHE_DIR="")
    assert done.stderr == ""
    assert "compiled anew" in done.stdout
    assert "NUMBA_CACHE_DIR" in done.stdout


def test_the_users_own_place_is_used(tmp_path: Path) -> None:
    done = python(USE, NUMBA_CACHE_DIR=str(tmp_path / "mine"))
    assert f"cached in {tmp_path / 'mine'}" in done.stdout, done.stderr
    assert list((tmp_path / "mine").rglob("*.nbi"))


@pytest.mark.parametrize("stands", ["others may write", "a link", "a file"])
def test_a_folder_that_others_could_have_made_is_not_used(
    stands: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a kernel cache is run."""
    place = tmp_path / f"fcdeploy-kernels-{os.getuid()}"
    if stands == "a file":
        place.touch()
    elif stands == "a link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "theirs")
    else:
        place.mkdir()
        place.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(kernels.atexit, "register", lambda *args: None)
    folder = Path(kernels.private_folder.__wrapped__())
    assert folder != place
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_cache_that_fails_costs_nothing_but_time() -> None:
    class Failing:
        cache_path = "/none"

        def load_overload(self, *arguments: Any) -> Any:
            raise EOFError("Ran out of input")

        def save_overload(self, *arguments: Any) -> None:
            raise OSError(28, "No space left on device")

    @kernels.njit(cache=False)
    def doubled(number: int) -> int:
        return 2 * number

    doubled._cache = kernels._Cache(Failing())
    told: list[int] = []
    with kernels.told_of_compiling(lambda: told.append(1)):
        assert doubled(21) == 42
        assert doubled(22) == 44
    assert told == [1]


def test_parallel_kernels_run_one_at_a_time_where_the_layer_is_not_safe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, most = [0], [0]

    def busy(seconds: float) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(seconds)
        running[0] -= 1

    for safe, wanted in ((False, 1), (True, 2)):
        monkeypatch.setattr(kernels, "threads_may_meet", lambda safe=safe: safe)
        most[0] = 0
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(kernels._in_turn(busy), [0.2, 0.2]))
        assert most[0] == wanted


def test_no_kernel_is_compiled_behind_the_back_of_our_own_decorator() -> None:
    package = Path(fcdeploy.__file__).parent
    for file in package.rglob("*.py"):
        if file != package / "graph/kernels.py":
            lines = [line for line in file.read_text().splitlines() if "import" in line and "numba" in line]
            assert not any(name in line for line in lines for name in ("njit", "cfunc", "vectorize")), file


def test_workqueue_runs_in_two_threads_at_once(pse_bundle: Bundle, golden: Path) -> None:
    code = """
import sys, numba, numpy as np, fcdeploy
from concurrent.futures import ThreadPoolExecutor
x = np.fromfile(sys.argv[2], '<f4').reshape(-1, 32)[:300]
run = lambda threads: fcdeploy.cluster(x, engine=sys.argv[1], k=20, threads=threads).tobytes()
assert len(set(ThreadPoolExecutor(2).map(run, [2, 1, 2]))) == 1
assert numba.threading_layer() == 'workqueue'
"""
    done = python(code, pse_bundle.path, golden / "dev/data/features.bin", NUMBA_THREADING_LAYER="workqueue")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_layer_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> str:
        raise ValueError("No threading layer could be loaded.\nHINT:\nIntel TBB is required")

    monkeypatch.setattr(kernels.numba, "threading_layer", fails)
    with pytest.raises(FcdeployError, match="NUMBA_THREADING_LAYER=workqueue"):
        kernels.threads_may_meet.__wrapped__()


def settings() -> tuple[int, int]:
    return numba.get_num_threads(), faiss.omp_get_max_threads()


@pytest.fixture
def two_threads():
    before = settings()
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    faiss.omp_set_num_threads(2)
    yield settings()
    numba.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def test_the_callers_settings_come_back_also_after_an_error(two_threads: tuple[int, int]) -> None:
    with threads_limited(1):
        assert settings() == (1, 1)
    assert settings() == two_threads
    with pytest.raises(RuntimeError), threads_limited(1):
        raise RuntimeError
    assert settings() == two_threads


def test_two_runs_in_threads_have_their_own_settings(two_threads: tuple[int, int]) -> None:
    meet = threading.Barrier(2)

    def run(threads: int) -> list[tuple[int, int]]:
        seen = [settings()]
        with threads_limited(threads):
            meet.wait()
            seen.append(settings())
            meet.wait()
        return [*seen, settings()]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(run, [1, two_threads[0]])
    assert one[1] == (1, 1)
    assert other[1] == two_threads
    for seen in (one, other):
        assert seen[0] == seen[2]
    assert settings() == two_threads


def pools() -> dict[str, int]:
    return {pool["filepath"]: pool["num_threads"] for pool in threadpool_info()}


def test_pools_of_blas_and_openmp_are_limited_and_come_back(two_threads: tuple[int, int]) -> None:
    """NumPy's BLAS and every OpenMP that is loaded, whichever library brought it."""
    with threadpool_limits(2):
        before = pools()
        assert {pool["user_api"] for pool in threadpool_info()} >= {"blas", "openmp"}
        assert set(before.values()) == {2}
        with threads_limited(1):
            assert set(pools().values()) == {1}
        assert pools() == before
        with pytest.raises(RuntimeError), threads_limited(1):
            raise RuntimeError
        assert pools() == before


def blas() -> int:
    """How many threads NumPy's BLAS has."""
    return next(p["num_threads"] for p in threadpool_info() if "numpy" in p["filepath"])


def test_blas_gets_no_more_threads_than_the_caller_gave_it() -> None:
    with threadpool_limits(1, user_api="blas"), threads_limited(2):
        assert blas() == 1


BLAS = """
import numpy
from concurrent.futures import ThreadPoolExecutor
from threadpoolctl import threadpool_info
from fcdeploy.graph.threads import threads_limited

def blas():
    print(next(pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]))

first, second = threads_limited(1), threads_limited(2)
with ThreadPoolExecutor(1) as other:
    with ThreadPoolExecutor(1) as one:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        blas()
        one.submit(first.__exit__, None, None, None).result()
    blas()
    other.submit(second.__exit__, None, None, None).result()
blas()
"""


def test_blas_comes_back_when_runs_in_threads_end_in_the_order_they_began() -> None:
    """It has one number for the process: the second run must not take the first one's for the caller's."""
    done = python(BLAS, OPENBLAS_NUM_THREADS="2")
    assert (done.stdout.split(), done.stderr) == (["1", "2", "2"], "")


def test_the_thread_that_works_ahead_uses_as_many_threads(two_threads: tuple[int, int]) -> None:
    with threads_limited(1):
        inside = list(prefetch((settings(), threading.current_thread()) for _ in range(2)))
        alone = list(prefetch((threading.current_thread() for _ in range(2)), threads=1))
    assert [seen for seen, _ in inside] == [(1, 1)] * 2
    assert inside[0][1] is not threading.current_thread()
    assert alone == [threading.current_thread()] * 2  # one thread is one


FORK = """
import os, sys, warnings, numpy as np, faiss, fcdeploy
from fcdeploy.errors import FcdeployError
x = np.fromfile(sys.argv[3], '<f4').reshape(-1, 32)[:200]
if sys.argv[1] == 'run':
    fcdeploy.cluster(x, engine=sys.argv[2], k=10)
elif sys.argv[1] == 'faiss':
    faiss.omp_set_num_threads(2)
    faiss.knn(x, x, 5)
child = os.fork()
if not child:
    warnings.simplefilter('ignore')
    try:
        assert fcdeploy.cluster(x, engine=sys.argv[2], k=10).shape == (200,)
    except FcdeployError as error:
        print(error, flush=True)
        os._exit(3)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize(("before", "code"), [("run", 3), ("faiss", 0), ("nothing", 0)])
def test_a_forked_process_runs_or_names_spawn(
    pse_bundle: Bundle, golden: Path, before: str, code: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, before, str(pse_bundle.path), str(golden / "dev/data/features.bin")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, "spawn" in done.stdout) == (code, code == 3), done.stderr


def test_the_first_run_says_that_it_compiles_and_only_that_one(
    pse_bundle: Bundle, golden: Path, tmp_path: Path
) -> None:
    code = """
import sys
from fcdeploy.graph import kernels
from fcdeploy.run.progress import Progress
@kernels.njit(cache=False)
def f(a):
    return a + 1
for quiet in (True, False):
    progress = Progress(quiet)
    with kernels.told_of_compiling(progress.compiling):
        f(1 if quiet else 1.5), f(2 if quiet else 2.5), f(b"x"[0] if quiet else 1j)
"""
    done = python(code)
    assert done.stderr == "compiling kernels (cached for later runs)\n"


SEARCH = """
from concurrent.futures import ThreadPoolExecutor
from threadpoolctl import threadpool_info
from fcdeploy.graph.products import workers
from fcdeploy.graph.threads import threads_limited

def blas():
    print(next(pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]))

run = threads_limited(1)
with ThreadPoolExecutor(1) as other:
    other.submit(run.__enter__).result()
    with workers():
        other.submit(run.__exit__, None, None, None).result()
        blas()
    blas()
"""


def test_a_search_that_outlives_a_run_in_another_thread_keeps_blas_to_one_thread_and_gives_it_back() -> None:
    done = python(SEARCH, OPENBLAS_NUM_THREADS="2")
    assert (done.stdout.split(), done.stderr) == (["1", "2"], "")
