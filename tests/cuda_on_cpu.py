"""Our CUDA kernels on the CPU: their source compiled by g++, each thread of a block a coroutine.

Threads take turns at every barrier, shuffle and ballot. Blocks run one after the other. Fresh shared memory is full of
0xFF, and so is memory on the device. cuBLAS is NumPy, by addresses and strides as cuBLAS takes them. What is put on a
stream happens only when somebody waits for it: what nothing orders after what it needs sees garbage.
"""

import contextlib
import ctypes
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdeploy.graph.cuda import source_of

FOLDER = Path(__file__).parents[1] / "fcdeploy/graph"
SOURCE = FOLDER / "kernels.cu"
SOURCES = tuple(sorted(FOLDER.glob("*.cu")))
BEFORE = r"""
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>
#include <ucontext.h>
#define __global__
#define __device__
#define __shared__ static
#define __align__(bytes)
using std::min;
using std::max;
struct Three { int x; };
static Three threadIdx, blockIdx, blockDim, gridDim;
alignas(16) int shared[1 << 16];
static ucontext_t scheduler;
static std::vector<ucontext_t> threads;
struct Place { jmp_buf at; };
static Place back;
static std::vector<Place> places;
static std::vector<char> done, started;
static int arrived, generation;
static float passed[1024];
static bool votes[1024];
static void turn() {
    const int own = threadIdx.x;
    if (!_setjmp(places[own].at)) _longjmp(back.at, 1);
    threadIdx.x = own;
}
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
static unsigned __ballot_sync(unsigned, bool vote) {
    votes[threadIdx.x] = vote; turn();
    unsigned all = 0;
    for (int lane = 0; lane < 32; lane++) all |= (unsigned)votes[threadIdx.x / 32 * 32 + lane] << lane;
    turn();
    return all;
}
static int __popc(unsigned bits) { return __builtin_popcount(bits); }
static float __fmul_rn(float one, float other) { return one * other; }
static float __fadd_rn(float one, float other) { return one + other; }
static int atomicAdd(int* at, int value) { int old = *at; *at += value; return old; }
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
    _longjmp(back.at, 1);
}
static void launch(void (*kernel)(void**), int grid, int block, void** args) {
    static std::vector<std::vector<char>> stacks;
    static volatile int t;
    static volatile bool more;
    entry = kernel; arguments = args; gridDim.x = grid; blockDim.x = block;
    threads.resize(block); stacks.resize(std::max<size_t>(block, stacks.size())); places.resize(block);
    for (int of = 0; of < grid; of++) {
        blockIdx.x = of;
        memset(shared, 0xff, sizeof shared);
        done.assign(block, 0); started.assign(block, 0); arrived = 0;
        for (more = true; more;) {
            more = false;
            for (t = 0; t < block; t = t + 1) {
                if (done[t]) continue;
                more = true; threadIdx.x = t;
                if (_setjmp(back.at)) continue;
                if (started[t]) _longjmp(places[t].at, 1);
                started[t] = 1;
                stacks[t].resize(1 << 16);
                getcontext(&threads[t]);
                threads[t].uc_stack.ss_sp = stacks[t].data();
                threads[t].uc_stack.ss_size = stacks[t].size();
                makecontext(&threads[t], begin, 0);
                setcontext(&threads[t]);
            }
        }
    }
}
#define KERNEL(name) extern "C" void launch_##name(int grid, int block, void** args) { \
    launch([](void** a) { call(name, a, indices(name)); }, grid, block, args); }
template <typename... A> static auto indices(void (*)(A...)) { return std::index_sequence_for<A...>(); }
"""


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Compile the kernels for the CPU; skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the kernels with")
    # Each file for itself, but for the shared memory, of which there is one.
    source = "".join(f"namespace of_{file.stem} {{ {source_of(file.name)} }}\n" for file in SOURCES)
    source = re.sub(r"extern __shared__.*;", "", source)
    names = re.findall(r'extern "C" __global__ void (\w+)\(', source)
    kernels = "".join(f"KERNEL({name})\n" for name in names)
    spaces = "".join(f"using namespace of_{file.stem};\n" for file in SOURCES)
    (folder / "kernels.cpp").write_text(BEFORE + source + AFTER + spaces + kernels)
    library = folder / "kernels.so"
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-w",
        "-shared",
        "-fPIC",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE",
    ]
    subprocess.run([*command, "-o", str(library), str(folder / "kernels.cpp")], check=True)
    return ctypes.CDLL(str(library))


class Stream(contextlib.AbstractContextManager["Stream"]):
    """A stream that does what is put on it when somebody waits for it, and not before."""

    def __init__(self, cupy: "Cupy") -> None:
        self.cupy = cupy
        self.queue: list[Callable[[], None]] = []
        self.given = 0  # pieces of work
        cupy.streams.append(self)

    def put(self, work: Callable[[], None]) -> None:
        self.queue.append(work)
        self.given += 1

    def __enter__(self) -> "Stream":
        self.cupy.entered.stack = [*self.cupy.stack, self]
        return self

    def __exit__(self, *error: object) -> None:
        self.cupy.entered.stack = self.cupy.stack[:-1]

    def synchronize(self) -> None:
        with self.cupy.one_at_a_time:
            while self.queue:
                self.queue.pop(0)()
            if not any(stream.queue for stream in self.cupy.streams):
                self.cupy.kept.clear()


class Array:
    """A CuPy array whose memory is the host's; only whole ones and slices of rows."""

    def __init__(self, values: np.ndarray, cupy: "Cupy") -> None:
        self.values, self.cupy = values, cupy
        self.nbytes, self.shape, self.dtype = values.nbytes, values.shape, values.dtype
        self.data = self
        self.ptr = values.ctypes.data

    def __getitem__(self, rows: slice) -> "Array":
        return Array(self.values[rows], self.cupy)

    def copy_from_device_async(self, source: "Array", size: int, stream: Stream) -> None:
        stream.put(lambda: ctypes.memmove(self.ptr, source.ptr, size) and None)

    def set(self, values: np.ndarray) -> None:
        assert (values.shape, values.dtype) == (self.values.shape, self.values.dtype)
        assert values.flags.c_contiguous
        staged = values.copy()
        self.cupy.get_current_stream().put(lambda: np.copyto(self.values, staged))

    def get(self) -> np.ndarray:
        self.cupy.get_current_stream().synchronize()
        return self.values.copy()


class Cublas:
    """gemmEx of cuBLAS, on addresses of the host's memory: numbers lie column by column, as there."""

    CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT = 0, 1, 68, -1

    def __init__(self, cupy: "Cupy") -> None:
        self.cupy = cupy
        self.dtypes = {0: np.float32, 2: np.float16}  # CUDA_R_32F, CUDA_R_16F
        self.products: list[tuple[int, int, int]] = []

    def matrix(self, address: int, dtype: Any, columns: int, ld: int, rows: int) -> np.ndarray:
        """What (rows, columns) lies there; read up to its last number and no further."""
        size = (ld * (columns - 1) + rows) * np.dtype(dtype).itemsize
        numbers = np.frombuffer((ctypes.c_char * size).from_address(address), dtype)
        step = np.dtype(dtype).itemsize
        return np.lib.stride_tricks.as_strided(numbers, (rows, columns), (step, ld * step))

    def gemmEx(self, handle: int, *arguments: int) -> None:
        ta, tb, m, n, k, alpha, a, a_kind, lda, b, b_kind, ldb, beta, c, c_kind, ldc, compute, algo = (
            arguments
        )
        assert (handle, compute, algo, c_kind) == (99, 68, -1, 0)
        assert (ta, tb) == (self.CUBLAS_OP_T, self.CUBLAS_OP_N)
        assert min(m, n, k) > 0
        assert k <= min(lda, ldb)
        assert m <= ldc
        assert [ctypes.c_float.from_address(at).value for at in (alpha, beta)] == [1, 0]

        def work() -> None:
            ones = self.matrix(a, self.dtypes[a_kind], m, lda, k)
            others = self.matrix(b, self.dtypes[b_kind], n, ldb, k)
            with np.errstate(invalid="ignore"):
                product = ones.T.astype(np.float32) @ others.astype(np.float32)
            self.matrix(c, np.float32, n, ldc, m)[...] = product

        self.cupy.get_current_stream().put(work)
        self.products.append((m, n, k))


class OutOfMemoryError(Exception):
    """What CuPy raises when the device is full."""


class CUDARuntimeError(Exception):
    """What CuPy raises when CUDA fails."""


class Cupy:
    """What the kernels' callers use of CuPy. launches: name, grid and block of each."""

    CUDA_R_16F, CUDA_R_32F = 2, 0
    OutOfMemoryError, CUDARuntimeError = OutOfMemoryError, CUDARuntimeError
    __version__ = "14.0"

    def __init__(self, library: ctypes.CDLL, free: int = 1 << 30) -> None:
        self.launches: list[tuple[str, int, int]] = []
        self.library, self.free = library, free
        self.cuda = self.runtime = self.device = self.memory = self
        self.fails: Exception | None = None  # what the next allocation raises
        self.allocated = 0
        self.cublas = Cublas(self)
        self.one_at_a_time = threading.RLock()
        self.streams: list[Stream] = []
        self.entered = threading.local()
        self.kept: list[
            np.ndarray
        ] = []  # memory that was let go, while something that may use it is to be done
        self.null = Stream(self)

    def memGetInfo(self) -> tuple[int, int]:
        return self.free, 2 * self.free

    def runtimeGetVersion(self) -> int:
        return 13000

    driverGetVersion = runtimeGetVersion

    def get_cublas_handle(self) -> int:
        return 99

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        if self.fails is not None:
            raise self.fails
        values = np.empty(shape, dtype)
        values.view(np.uint8)[...] = 0xFF
        self.allocated += values.nbytes
        self.kept.append(values)
        return Array(values, self)

    def Stream(self, non_blocking: bool) -> Stream:
        assert non_blocking, "a stream that waits for the default stream hides mistakes"
        return Stream(self)

    @property
    def stack(self) -> list[Stream]:
        return getattr(self.entered, "stack", [])

    def get_current_stream(self) -> Stream:
        return self.stack[-1] if self.stack else self.null

    def RawModule(self, code: str) -> "Cupy":
        assert code in [source_of(source.name) for source in SOURCES]
        return self

    def get_function(self, name: str) -> Any:
        def launch(grid: Any, block: Any, arguments: Any, shared_mem: int = 0, stream: Any = None) -> None:
            assert 0 <= shared_mem <= 48 << 10
            assert grid[0] > 0
            assert block[0] % 32 == 0
            values = [np.uint64(a.ptr) if isinstance(a, Array) else a for a in arguments]
            held = [ctypes.create_string_buffer(value.tobytes()) for value in values]
            pointers = (ctypes.c_void_p * len(held))(*(ctypes.addressof(value) for value in held))
            function = getattr(self.library, f"launch_{name}")

            def work(of: Any = (arguments, held)) -> None:  # whose memory is needed until then
                function(grid[0], block[0], pointers)

            self.launches.append((name, grid[0], block[0]))
            (stream or self.get_current_stream()).put(work)

        return launch

    def get_default_memory_pool(self) -> "Cupy":
        return self

    def free_all_blocks(self) -> None:
        """Do nothing."""
