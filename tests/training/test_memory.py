"""What a training frees is kept and used again, and given back.

Each test has a process of its own: where the tests before have left a large hole in the heap, what is freed and taken
again lies in it, and the system has no part in it.
"""

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fcdeploy.training.memory import c_library, freed_memory_kept, give_back

pytestmark = pytest.mark.skipif(c_library() is None, reason="the C library is not glibc")
MANY = 12_000_000


def in_new_process(function):
    """Return what ``function`` returns in a process that has just begun."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()


def faults():
    """Pages that the system gave this thread while 48 MB were taken, filled and freed, again and again."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(8):
        np.ones(MANY, dtype=np.float32)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def held():
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def faults_around_and_in_the_block():
    before = faults()
    with freed_memory_kept():
        faults()
        inside = faults()
    return before, inside, faults()


def test_freed_memory_is_used_again_inside_the_block_only():
    before, inside, after = in_new_process(faults_around_and_in_the_block)
    assert before > 0
    assert inside < before / 4
    assert after > 4 * inside
    assert after > 0


def bytes_kept_until_and_after_giving_back():
    with freed_memory_kept():
        before = held()
        filled = np.ones(MANY, dtype=np.float32)
        del filled
        kept = held()
        give_back()
        return kept - before, held() - before


def test_freed_memory_is_given_back_when_it_is_asked_for():
    kept, left = in_new_process(bytes_kept_until_and_after_giving_back)
    assert kept > 4 * MANY / 2
    assert left < 4 * MANY / 10
