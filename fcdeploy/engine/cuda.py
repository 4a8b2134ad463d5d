"""The machine's GPU, as its driver describes it; nothing but the driver's own library is needed to ask."""

import ctypes
from dataclasses import dataclass

from fcdeploy.errors import InputError

DRIVER = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """name: as in "NVIDIA GeForce RTX 3090"; capability: its compute capability, as in "8.6"; memory: bytes."""

    name: str
    capability: str
    memory: int


def find_gpu(who: str, advice: str) -> Gpu:
    """Describe the first GPU that CUDA shows.

    Without one, raises InputError, which says ``who`` needs it and gives ``advice``.
    """
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    numbers = (ctypes.c_int(), ctypes.c_int())
    try:
        cuda = ctypes.CDLL(DRIVER)
        calls = (
            lambda: cuda.cuInit(0),
            lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
            lambda: cuda.cuDeviceGetName(name, len(name), device),
            lambda: cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
            lambda: cuda.cuDeviceGetAttribute(ctypes.byref(numbers[0]), MAJOR, device),
            lambda: cuda.cuDeviceGetAttribute(ctypes.byref(numbers[1]), MINOR, device),
        )
        problem = next((f"driver error {code}" for call in calls if (code := call())), "")
    except OSError:
        problem = f"there is no {DRIVER}"
    if problem:
        raise InputError(
            f"{who} needs an NVIDIA GPU, and CUDA finds none on this machine ({problem}); {advice}."
        )
    return Gpu(name.value.decode(), f"{numbers[0].value}.{numbers[1].value}", int(memory.value))
