"""Plain memory that every rank of a group can reach."""

from __future__ import annotations

from typing import NoReturn

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.arguments import as_integer, as_seconds, refused_on_all_ranks
from lamport_rs.backends import Backend, resolve_backend
from lamport_rs.rendezvous import Group, all_gather_over, resolve_group
from lamport_rs.timeouts import default_timeout, limit_of
from lamport_rs.tracing import never_compiled
from lamport_rs.turns import turn_of


class IpcBuffer:
    """One zero-filled buffer per rank, mapped by all ranks of the group. Creating one is collective.

    It cannot be copied or pickled.

    Args:
        rank: This rank, 0 to `world_size - 1`.
        world_size: Ranks in the group, 1 to 16.
        size: Bytes per buffer, the same on every rank.
        process_group: As for `LamportWorkspace`.
        device: As for `LamportWorkspace`.
        backend: As for `LamportWorkspace`.
        timeout: Seconds that the ranks wait for each other when they create it, and a second at least once they have
            sent their handles; 0 or infinite for no limit. None: as for `LamportWorkspace`.

    Raises:
        LamportError: On every rank, as for `LamportWorkspace`.
    """

    @never_compiled
    def __init__(
        self,
        rank: int,
        world_size: int,
        size: int,
        process_group: Group = None,
        *,
        device: torch.device | str | int | None = None,
        backend: Backend = "auto",
        timeout: float | None = None,
    ) -> None:
        self._core: _core.Buffer | None = None
        limit = limit_of(timeout)
        all_gather = all_gather_over(process_group, device, limit, world_size)
        with turn_of(resolve_group(process_group), rank, limit):
            with refused_on_all_ranks(rank, world_size, all_gather):
                self._rank, ranks = as_integer("rank", rank), as_integer("world_size", world_size)
                size = as_integer("size", size)
                seconds = default_timeout() if timeout is None else as_seconds("timeout", timeout)
                name, resolved = resolve_backend(backend, device)
            cuda_index = resolved.index if name == "cuda" else None
            self._core = _core.Buffer(self._rank, ranks, size, seconds, cuda_index, all_gather)

    @property
    def local_ptr(self) -> int:
        """Address of this rank's buffer. Raises what `peer_ptrs` does."""
        return self.peer_ptrs[self._rank]

    @property
    def peer_ptrs(self) -> list[int]:
        """Addresses of all ranks' buffers, in rank order, valid in this process; this rank's own is among them.

        Raises:
            LamportAbortedError: A rank has no buffer: it gave up at the very end of the construction, when others had
                theirs, or its process has ended. It says which rank, and why. A rank that has called `cleanup()` is no
                such case.
        """
        if self._core is None:
            raise LamportError("this buffer was cleaned up; create a new one on every rank")
        return self._core.pointers()

    def serialize(self) -> list[int]:
        """Return the addresses of all ranks' buffers as int64 values, one per rank. Raises what `peer_ptrs` does."""
        return self.peer_ptrs

    @never_compiled
    def cleanup(self) -> None:
        """Unmap all buffers: their addresses are no longer valid. Not collective, and safe to call twice.

        On GPUs it waits for the kernels on this rank's device, or for Ctrl-C. Peers may use this rank's buffer until
        they call it: its memory is freed once none has it mapped any more, or their processes have ended, by a later
        call that makes, cleans up or drops a buffer or a workspace.
        """
        self._core = None

    def __reduce__(self) -> NoReturn:
        # What copy.copy, copy.deepcopy and pickle ask for.
        raise LamportError("a buffer cannot be copied or pickled: pass the object itself, or its addresses")


def lamport_fill_neg_zero(device_ptr: int, size_bytes: int) -> None:
    """Fill device memory with the sentinel, the word of `-0.0`, and wait until that is done.

    Args:
        device_ptr: Address of memory of the current CUDA device, a multiple of 4.
        size_bytes: Bytes to fill, a multiple of 4; 0 fills nothing, wherever `device_ptr` points.

    Raises:
        LamportError: If the arguments are wrong, there is no CUDA, or the driver reports an error: with the call, the
            driver's name for the error and its text.
    """
    device_ptr, size_bytes = as_integer("device_ptr", device_ptr), as_integer("size_bytes", size_bytes)
    # To the driver address 0 is an illegal access, after which the process has no use of its GPU any more.
    if device_ptr <= 0 and size_bytes > 0:
        raise LamportError(f"device_ptr is {device_ptr}, but must be the address of {size_bytes} bytes on the device")
    _, device = resolve_backend("cuda", None)
    _core.fill_sentinel(device_ptr, size_bytes, device.index)
