"""The NCCL library that this process runs with: its version, and windows, which torch has no check for."""

from __future__ import annotations

import ctypes

import torch.distributed as dist

from lamport_rs.command_line.bench.member import UnavailableError

NEWEST = "2.32.3"
"""The newest release that there was when this was written."""
_SONAME = "libnccl.so.2"
_SYMMETRIC = 1
"""`NCCL_WIN_COLL_SYMMETRIC` of nccl.h: every rank registers at the same offset."""
_SUCCESS = 0


def nccl_version() -> str | None:
    """Return the version as `"2.28.9"`: of the library in use, which need not be the one that torch was built with.

    None where torch was built without NCCL.
    """
    if not dist.is_nccl_available():
        return None
    version = ctypes.c_int()
    _library().ncclGetVersion(ctypes.byref(version))
    return format_version(version.value)


def format_version(code: int) -> str:
    """Return `"2.28.9"` for 22809, as nccl.h makes the number since 2.9."""
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}"


class Window:
    """Memory that NCCL's symmetric kernels may be used on. Made and closed collectively."""

    def __init__(self, communicator: int, address: int, size: int) -> None:
        """Register `size` bytes of `ncclMemAlloc`'s at `address`; raise `UnavailableError` where NCCL cannot."""
        self._library, self._communicator = _library(), ctypes.c_void_p(communicator)
        self._handle = ctypes.c_void_p()
        if not hasattr(self._library, "ncclCommWindowRegister"):
            raise UnavailableError(f"NCCL {nccl_version()} has no windows; 2.27 is the first that has")
        found = self._library.ncclCommWindowRegister(
            self._communicator,
            ctypes.c_void_p(address),
            ctypes.c_size_t(size),
            ctypes.byref(self._handle),
            ctypes.c_int(_SYMMETRIC),
        )
        if found != _SUCCESS:
            raise UnavailableError(f"NCCL {nccl_version()} registered no window: {self._reason(found)}")
        # It is no error where symmetric kernels cannot run: the others would be measured under their name.
        if not self._handle:
            raise UnavailableError(f"NCCL {nccl_version()} made no window: its symmetric kernels do not run here")

    def close(self) -> None:
        """Give the window up."""
        self._library.ncclCommWindowDeregister(self._communicator, self._handle)

    def _reason(self, code: int) -> str:
        self._library.ncclGetErrorString.restype = ctypes.c_char_p
        return bytes(self._library.ncclGetErrorString(code)).decode()


def _library() -> ctypes.CDLL:
    """The one that torch's calls reach: what LD_PRELOAD names, if anything, or what torch has loaded."""
    preloaded = ctypes.CDLL(None)
    return preloaded if hasattr(preloaded, "ncclGetVersion") else ctypes.CDLL(_SONAME)
