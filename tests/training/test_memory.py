"""What a training frees is kept and used again, and given back."""

import resource
from pathlib import Path

import numpy as np
import pytest

from fcdeploy.training.memory import c_library, freed_memory_kept, give_back

pytestmark = pytest.mark.skipif(c_library() is None, reason="the C library is not glibc")
MANY = 12_000_000


def faults():
    """Pages that the system gave this thread while 48 MB were taken, filled and freed, again and again."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(8):
        np.ones(MANY, dtype=np.float32)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def held():
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_freed_memory_is_used_again_inside_the_block_only():
    outside = faults()
    with freed_memory_kept():
        faults()
        assert faults() < outside / 4
    assert faults() > outside / 2


def test_freed_memory_is_given_back_when_it_is_asked_for():
    with freed_memory_kept():
        before = held()
        filled = np.ones(MANY, dtype=np.float32)
        del filled
        kept = held()
        give_back()
        assert kept - before > 4 * MANY / 2
        assert held() - before < 4 * MANY / 10
