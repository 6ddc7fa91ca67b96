"""The few calls of the CUDA driver that tests make themselves: the package's memory is read behind its back."""

from __future__ import annotations

import ctypes
from functools import cache

import torch


@cache
def library() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def call(name: str, *arguments) -> None:
    """Call a function of the driver; addresses and sizes are 64 bits wide."""
    widened = [ctypes.c_uint64(each) if isinstance(each, int) else each for each in arguments]
    result = getattr(library(), name)(*widened)
    assert result == 0, f"{name} returned {result}"


def read_words(address: int, count: int) -> torch.Tensor:
    """`count` int32 words at a device address that is valid in this process, once the device has nothing to do."""
    torch.cuda.synchronize()  # Also makes the device's context this thread's.
    words = torch.empty(count, dtype=torch.int32)
    call("cuMemcpyDtoH_v2", ctypes.c_void_p(words.data_ptr()), address, words.nbytes)
    return words


def write_words(address: int, words: list[int]) -> None:
    """Store int32 words at a device address."""
    torch.cuda.synchronize()
    source = torch.tensor(words, dtype=torch.int32)
    call("cuMemcpyHtoD_v2", address, ctypes.c_void_p(source.data_ptr()), source.nbytes)
    torch.cuda.synchronize()


def devices_with_a_context() -> list[int]:
    """The devices, by number, on which this process has a primary context: each takes hundreds of megabytes."""
    found = []
    for index in range(torch.cuda.device_count()):
        device, flags, active = ctypes.c_int(), ctypes.c_uint(), ctypes.c_int()
        call("cuDeviceGet", ctypes.byref(device), index)
        call("cuDevicePrimaryCtxGetState", device, ctypes.byref(flags), ctypes.byref(active))
        if active.value:
            found.append(index)
    return found
