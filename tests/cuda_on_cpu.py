"""Our CUDA kernels on the CPU: their source compiled by g++, each thread of a block a coroutine.

Threads take turns at every barrier and shuffle. Blocks run one after the other. Fresh shared memory is full of 0xFF.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SOURCE = Path(__file__).parents[1] / "fcdeploy/graph/kernels.cu"
BEFORE = r"""
#include <cstdio>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>
#include <ucontext.h>
#define __global__
#define __device__
#define __shared__ static
struct Three { int x; };
static Three threadIdx, blockIdx, blockDim, gridDim;
int shared[1 << 16];
static ucontext_t scheduler;
static std::vector<ucontext_t> threads;
static std::vector<char> done;
static int arrived, generation;
static float passed[1024];
static void turn() { int own = threadIdx.x; swapcontext(&threads[own], &scheduler); threadIdx.x = own; }
static void __syncthreads() {
    int mine = generation;
    if (++arrived == blockDim.x) { arrived = 0; generation++; }
    while (mine == generation) turn();
}
static float __shfl_xor_sync(unsigned, float value, int apart) {
    passed[threadIdx.x] = value; turn();
    float got = passed[threadIdx.x ^ apart]; turn();
    return got;
}
static float __int_as_float(int bits) { float f; memcpy(&f, &bits, 4); return f; }
static int __float_as_int(float f) { int bits; memcpy(&bits, &f, 4); return bits; }
static int atomicCAS(int* at, int was, int is) { int old = *at; if (old == was) *at = is; return old; }
static int atomicMin(int* at, int value) { int old = *at; if (value < old) *at = value; return old; }
static int atomicMax(int* at, int value) { int old = *at; if (value > old) *at = value; return old; }
"""
AFTER = r"""
template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) { kernel(*(A*)args[I]...); }
static void (*entry)(void**);
static void** arguments;
static void begin() {
    int own = threadIdx.x;
    entry(arguments);
    done[own] = 1;
    swapcontext(&threads[own], &scheduler);
}
static void launch(void (*kernel)(void**), int grid, int block, void** args) {
    static std::vector<std::vector<char>> stacks;
    entry = kernel; arguments = args; gridDim.x = grid; blockDim.x = block;
    threads.resize(block); stacks.resize(block);
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++) {
        memset(shared, 0xff, sizeof shared);
        done.assign(block, 0); arrived = 0;
        for (int t = 0; t < block; t++) {
            stacks[t].resize(1 << 16);
            getcontext(&threads[t]);
            threads[t].uc_stack.ss_sp = stacks[t].data();
            threads[t].uc_stack.ss_size = stacks[t].size();
            makecontext(&threads[t], begin, 0);
        }
        for (bool more = true; more;) {
            more = false;
            for (int t = 0; t < block; t++)
                if (!done[t]) { more = true; threadIdx.x = t; swapcontext(&scheduler, &threads[t]); }
        }
    }
}
#define KERNEL(name) extern "C" void launch_##name(int grid, int block, void** args) { \
    launch([](void** a) { call(name, a, indices(name)); }, grid, block, args); }
template <typename... A> static auto indices(void (*)(A...)) { return std::index_sequence_for<A...>(); }
KERNEL(gather_rows)
KERNEL(sum_connected_float32) KERNEL(sum_connected_float16)
KERNEL(sum_similar_float32) KERNEL(sum_similar_float16)
"""


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Compile ``kernels.cu`` for the CPU; skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels with")
    source = SOURCE.read_text().replace("extern __shared__", "extern")
    (folder / "kernels.cpp").write_text(BEFORE + source + AFTER)
    library = folder / "kernels.so"
    command = [compiler, "-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, str(folder / "kernels.cpp")], check=True)
    return ctypes.CDLL(str(library))


class Array:
    """A CuPy array whose memory is the host's; only whole ones and slices of rows."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.nbytes = values.nbytes

    def __getitem__(self, rows: slice) -> "Array":
        return Array(self.values[rows])

    def set(self, values: np.ndarray) -> None:
        assert (values.shape, values.dtype) == (self.values.shape, self.values.dtype)
        assert values.flags.c_contiguous
        self.values[...] = values

    def get(self) -> np.ndarray:
        return self.values.copy()


class Cupy:
    """What the kernels' callers use of CuPy. launches: name, grid and block of each."""

    def __init__(self, library: ctypes.CDLL, free: int = 1 << 30) -> None:
        self.launches: list[tuple[str, int, int]] = []
        self.library, self.free = library, free
        self.cuda = self.runtime = self
        self.allocated = 0

    def memGetInfo(self) -> tuple[int, int]:
        return self.free, 2 * self.free

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        values = np.empty(shape, dtype)
        values.view(np.uint8)[...] = 0xFF
        self.allocated += values.nbytes
        return Array(values)

    def get_current_stream(self) -> "Cupy":
        return self

    def synchronize(self) -> None:
        """Do nothing: everything is done at once."""

    def RawModule(self, code: str) -> "Cupy":
        assert code == SOURCE.read_text()
        return self

    def get_function(self, name: str) -> Any:
        def launch(grid: Any, block: Any, arguments: Any, shared_mem: int = 0, stream: Any = None) -> None:
            assert 8 <= shared_mem <= 48 << 10
            self.launches.append((name, grid[0], block[0]))
            values = [np.uint64(a.values.ctypes.data) if isinstance(a, Array) else a for a in arguments]
            held = [ctypes.create_string_buffer(value.tobytes()) for value in values]
            pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
            getattr(self.library, f"launch_{name}")(grid[0], block[0], pointers)

        return launch

    def get_default_memory_pool(self) -> "Cupy":
        return self

    def free_all_blocks(self) -> None:
        """Do nothing."""
