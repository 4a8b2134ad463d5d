"""Products of rows on a GPU, by cuBLAS: exact integers of codes in float16, inner products of float32 in float32.

Codes are integers of at most 8 bits and their sums stay below 2^24 (see ``codes``): float16 holds the ones and float32,
in which they are added up, the others, so that the scores are those of the CPU.
"""

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fcdeploy.packages import import_package

EIGHT = 8  # numbers of float16, 16 bytes: rows of tensor cores begin at multiples of these
FOUR = 4  # numbers of float32


def import_cublas() -> ModuleType:
    """Import cuBLAS as CuPy has it; raises MissingDependencyError, see ``import_package``."""
    # By this way CuPy looks for the library itself, wherever it is installed.
    cublas: ModuleType = import_package(
        "cupy.cublas", "CuPy, which running on a GPU needs,", "pip install 'fcdeploy[gpu]'"
    ).cublas
    return cublas


def padded(length: int, to: int) -> int:
    """Return the next multiple of ``to``."""
    return -(-length // to) * to


@dataclass
class Multiplied:
    """How many scores this process has computed on the device, and the multiplications and additions of all."""

    scores: int = 0
    operations: int = 0


multiplied = Multiplied()


class DeviceProducts:
    """Multiplies rows in device memory, on the current stream of the calling thread."""

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy, self._cublas = cupy, import_cublas()
        self._factors = np.array([1, 0], dtype=np.float32)  # product, and what lies in ``out``
        self._one = self._factors.ctypes.data
        self._zero = self._one + self._factors.itemsize
        runtime = cupy.cuda.runtime
        self._kinds = {2: int(runtime.CUDA_R_16F), 4: int(runtime.CUDA_R_32F)}
        self._out = self._kinds[4]

    def multiply(
        self, ones: int, m: int, others: int, s: int, stride: int, itemsize: int, out: int, out_stride: int
    ) -> None:
        """Write the products of rows (m, stride) and (s, stride) to ``out`` (m, out_stride) float32; all addresses.

        itemsize: 2 for rows of float16, 4 for rows of float32.
        """
        multiplied.scores += m * s
        multiplied.operations += 2 * m * s * stride
        cublas, kind = self._cublas, self._kinds[itemsize]
        # cuBLAS counts columns first: out^T = others ones^T.
        cublas.gemmEx(
            self._cupy.cuda.device.get_cublas_handle(),
            *(cublas.CUBLAS_OP_T, cublas.CUBLAS_OP_N, s, m, stride, self._one),
            *(others, kind, stride, ones, kind, stride, self._zero),
            *(out, self._out, out_stride, cublas.CUBLAS_COMPUTE_32F, cublas.CUBLAS_GEMM_DEFAULT),
        )
