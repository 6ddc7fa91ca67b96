"""Device memory that can be given up and taken again at the same addresses, as a server's sleep mode does it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from driver import call

_ALIGNMENT = 256
_SEGMENT = 2 << 20
"""What the driver maps at least, on the GPUs that tests run on."""
_DEVICE, _PINNED, _READ_AND_WRITE = 1, 1, 3
"""Of CUmemLocationType, CUmemAllocationType and CUmemAccess_flags."""


class _Properties(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location", ctypes.c_int),
        ("metadata", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location_type", ctypes.c_int), ("location", ctypes.c_int), ("flags", ctypes.c_int))


class SleepingMemory:
    """Memory for tensors, awake at first. While it sleeps nothing may read or write it."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Reserve addresses for as much as `tensors`, of one device, have."""
        self._device = tensors[0].device
        padded = sum(-(-each.nbytes // _ALIGNMENT) * _ALIGNMENT for each in tensors)
        self._size = -(-padded // _SEGMENT) * _SEGMENT
        address = ctypes.c_uint64()
        call("cuMemAddressReserve", ctypes.byref(address), self._size, _SEGMENT, 0, 0)
        self._address = address.value
        self.wake()

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """All of it, as bytes."""
        return {"shape": (self._size,), "typestr": "|u1", "data": (self._address, False), "version": 3}

    def like(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors in it with the shapes and values of `tensors`."""
        memory, begin, found = torch.as_tensor(self, device=self._device), 0, []
        for each in tensors:
            found.append(memory[begin : begin + each.nbytes].view(each.dtype).view(each.shape).copy_(each))
            begin += -(-each.nbytes // _ALIGNMENT) * _ALIGNMENT
        return found

    def wake(self) -> None:
        """Map memory, of unknown content."""
        properties = _Properties(_PINNED, 0, _DEVICE, self._device.index, None, 0)
        handle = ctypes.c_uint64()
        call("cuMemCreate", ctypes.byref(handle), self._size, ctypes.byref(properties), 0)
        call("cuMemMap", self._address, self._size, 0, handle.value, 0)
        # The mapping holds it from here.
        call("cuMemRelease", handle.value)
        access = _Access(_DEVICE, self._device.index, _READ_AND_WRITE)
        call("cuMemSetAccess", self._address, self._size, ctypes.byref(access), 1)

    def sleep(self) -> None:
        """Give the memory up, but not its addresses."""
        torch.cuda.synchronize(self._device)
        call("cuMemUnmap", self._address, self._size)

    def release(self) -> None:
        """Give up memory and addresses. No tensor in it may be used any more."""
        self.sleep()
        call("cuMemAddressFree", self._address, self._size)
