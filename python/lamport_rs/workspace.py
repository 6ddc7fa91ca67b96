"""The workspace of one tensor-parallel group."""

from __future__ import annotations

import logging
import math
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.utils.dlpack import from_dlpack

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.arguments import as_integer, as_seconds, refused_on_all_ranks
from lamport_rs.backends import Backend, resolve_backend
from lamport_rs.calls import WorkspaceCalls, answers_of
from lamport_rs.lifecycle import CLEANED_UP
from lamport_rs.observation import logger, warn_of_unwatched_peers
from lamport_rs.rendezvous import AllGather, Group, all_gather_over, resolve_group
from lamport_rs.sizing import default_comm_size
from lamport_rs.timeouts import default_timeout, limit_of
from lamport_rs.tracing import never_compiled
from lamport_rs.turns import turn_of


class LamportWorkspace(WorkspaceCalls):
    """Memory through which the ranks of one group exchange small tensors, and the state of that exchange.

    Creating one is collective: all ranks of the group do it, and all get a workspace or all raise the same error. If
    several threads of a process create over one group, they do so one after the other, and the order must be the same
    on every rank. Over groups of their own they need not wait for each other.

    It serves one operation at a time, on all ranks in the same order, and operations of one thread: the one that made
    it, until `bind_to_thread` is called in another. It cannot be copied or pickled: a copy would be the same memory
    under another owner. Neither can it be used after a fork: the forked process must create its own, and on
    the host is refused.

    Args:
        rank: This rank, 0 to `world_size - 1`, as in `process_group`.
        world_size: Ranks in the group, 1 to 16. In a group of one sums are copies, and norms are norms.
        comm_size: Bytes per slot, a positive multiple of 16. Each rank allocates three slots. An operation takes
            `world_size` times its message of a slot, or runs as several; `compute_comm_size_for_minimax` and
            `compute_comm_size_for_all_reduce` tell with what `comm_size` it runs as one.
        process_group: What carries the rendezvous of the ranks: a torch process group of any backend, an
            `all_gather(bytes) -> list[bytes]` callable, or None for torch's default group. A single rank needs none.
        device: The device of the tensors to come. None: the current CUDA device if there is one, else the CPU.
        backend: `"host"`, `"cuda"`, or `"auto"` for the one that fits the device.
        timeout: Seconds an operation waits without hearing of a peer before it raises `LamportTimeoutError`, naming the
            missing ranks; 0 or infinite for no limit. None: the environment variable `LAMPORT_RS_TIMEOUT`, or 300. The
            ranks wait for each other as long when they create the workspace, and a second at least once they have sent
            their handles.
        two_shot_from: Bytes of a tensor from which `algorithm="auto"` sums it in two shots; the same on every rank.
            None: from where that was measured to be faster (the page on scaling has the rule).

    Raises:
        LamportError: On every rank, if the arguments of any rank are wrong, or differ where they must not, or its
            memory cannot be allocated or mapped.
    """

    @never_compiled
    def __init__(
        self,
        rank: int,
        world_size: int,
        comm_size: int,
        process_group: Group = None,
        *,
        device: torch.device | str | int | None = None,
        backend: Backend = "auto",
        timeout: float | None = None,
        two_shot_from: int | None = None,
    ) -> None:
        self._core: _core.Workspace | None = None
        self._table: torch.Tensor | None = None
        limit = limit_of(timeout)
        all_gather = all_gather_over(process_group, device, limit, world_size)
        with turn_of(resolve_group(process_group), rank, limit):
            self._create(rank, world_size, comm_size, all_gather, device, backend, timeout, two_shot_from)
        self._tell_log()

    def _create(
        self,
        rank: int,
        world_size: int,
        comm_size: int,
        all_gather: AllGather,
        device: torch.device | str | int | None,
        backend: Backend,
        timeout: float | None,
        two_shot_from: int | None,
    ) -> None:
        with refused_on_all_ranks(rank, world_size, all_gather):
            self._rank, self._world_size = as_integer("rank", rank), as_integer("world_size", world_size)
            self._comm_size = as_integer("comm_size", comm_size)
            seconds = default_timeout() if timeout is None else as_seconds("timeout", timeout)
            self._backend, self._device = resolve_backend(backend, device)
            least = None if two_shot_from is None else as_integer("two_shot_from", two_shot_from)
        cuda_index = self._device.index if self._backend == "cuda" else None
        self._timeout = seconds if seconds > 0 else math.inf
        settings = self._rank, self._world_size, self._comm_size, seconds, least
        self._core = _core.Workspace(*settings, cuda_index, all_gather)
        self._check_for(self._core)
        self._memory_bytes, self._answer = self._core.memory_bytes(), answers_of(self)
        self._table = from_dlpack(self._core.table())
        # What `torch._dynamo.mark_static_address` does, which imports the compiler: CUDA graphs of compiled code copy
        # other inputs to memory of their own, and the operators know a table on a GPU by its address.
        vars(self._table)["_dynamo_static_input_type"] = "unguarded"

    def _tell_log(self) -> None:
        core = self._usable_core()
        limit = f"{self._timeout:g} s" if self._timeout < math.inf else "none"
        logger.info(
            "workspace of rank %d of %d on %s: %.1f MiB, slots of %d bytes, timeout %s",
            *(self._rank, self._world_size, self._device, self._memory_bytes / 2**20, self._comm_size, limit),
        )
        if (reason := core.unwatched()) is not None:
            warn_of_unwatched_peers(reason)
        if logger.isEnabledFor(logging.DEBUG):
            parts = ", ".join(f"{name} {1e3 * taken:.2f}" for name, taken in core.phases())
            logger.debug("milliseconds of rank %d to make it: %s", self._rank, parts)

    @classmethod
    @never_compiled
    def for_group(
        cls,
        group: dist.ProcessGroup | None = None,
        *,
        max_bytes: int | None = None,
        device: torch.device | str | int | None = None,
        backend: Backend = "auto",
        timeout: float | None = None,
        two_shot_from: int | None = None,
    ) -> LamportWorkspace:
        """Create the workspace of this rank in a torch process group, which knows the rest.

        Args:
            group: A process group of any backend; None for torch's default group. Without one that is an error, also
                for a process that is alone: it makes `LamportWorkspace(0, 1, comm_size)`.
            max_bytes: Bytes of the largest tensor that is to run as one operation; larger ones run as several, as
                sums on a GPU do from 16 MiB on, for which more slots are of no use. The
                workspace takes some `3 * world_size * max_bytes` bytes. None: 8 MiB, or as much as the environment
                variable `LAMPORT_RS_MAX_MEMORY` lets a workspace take: so many bytes, or 64 MiB without it.
            device: As for `LamportWorkspace`.
            backend: As for `LamportWorkspace`.
            timeout: As for `LamportWorkspace`.
            two_shot_from: As for `LamportWorkspace`.

        Raises:
            LamportError: As for `LamportWorkspace`, and if there is no such group, or this rank is not in it.
        """
        resolved = resolve_group(group)
        if callable(resolved):
            raise LamportError("for_group takes a torch process group; pass an all_gather callable to LamportWorkspace")
        all_gather = all_gather_over(resolved, device, limit_of(timeout))
        if resolved is None:
            all_gather(b"")  # Says what is missing.
        rank, world_size = dist.get_rank(resolved), dist.get_world_size(resolved)
        with turn_of(resolved, rank, limit_of(timeout)), refused_on_all_ranks(rank, world_size, all_gather):
            if max_bytes is None:
                comm_size = default_comm_size(world_size)
            else:
                comm_size = cls.compute_comm_size_for_all_reduce(as_integer("max_bytes", max_bytes), world_size)
        return cls(
            rank,
            world_size,
            comm_size,
            resolved,
            device=device,
            backend=backend,
            timeout=timeout,
            two_shot_from=two_shot_from,
        )

    @property
    def workspace(self) -> torch.Tensor:
        """The pointer table, to pass to a kernel as `void**`: int64, shape `[3 * world_size + 2]`, on `device`.

        It shares the workspace's memory and keeps it alive, also after this object is gone. Entries `2N` to `3N - 1`
        (N is `world_size`) point to the ranks' slots, entry `3N` to `int32[3]` (arrival counter, unused, slot index, of
        which the remainder by 3 is the slot), entry `3N + 1` to `int64[2]` (extent to clear, `comm_size`, both in
        bytes); the others are 0. A workspace serves either foreign kernels or the package's own operations: those raise
        once others have used the table.

        This is version `lamport_rs.TABLE_ABI_VERSION` of the layout, 2. A kernel that was written for another one must
        not be run on it.
        """
        if self._table is None:
            raise LamportError(CLEANED_UP)
        return self._table

    @property
    def comm_size(self) -> int:
        """Bytes per slot."""
        return self._comm_size

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory that this rank takes on `device`, for its slots and the state of the exchange."""
        self._usable_core()
        return self._memory_bytes

    @property
    def rank(self) -> int:
        """This rank."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self._world_size

    @property
    def device(self) -> torch.device:
        """The device of the tensors that operations take."""
        return self._device

    @property
    def backend(self) -> str:
        """`"host"` or `"cuda"`."""
        return self._backend

    @staticmethod
    def compute_comm_size_for_minimax(max_tokens: int, world_size: int, fused_qk: bool = True) -> int:
        """Return the `comm_size` in bytes with which the MiniMax operations take up to `max_tokens` tokens at once.

        Args:
            max_tokens: Most rows of an operation, at least 1.
            world_size: Ranks in the group, 1 to 16.
            fused_qk: Whether for `minimax_allreduce_rms_qk`; False for `minimax_allreduce_rms`.

        Raises:
            LamportError: If an argument is out of range.

        The ranks exchange a float32 sum of squares per token and matrix. One matrix takes
        `world_size * max_tokens * 4` bytes per slot, fused Q+K `world_size * 2 * ceil(max_tokens / 4) * 16`; the
        result is rounded up to 2 MiB (formulas of vLLM's `lamport_workspace`).
        """
        return _core.minimax_comm_size(max_tokens, world_size, fused_qk)

    @staticmethod
    def compute_comm_size_for_all_reduce(max_bytes: int, world_size: int) -> int:
        """Return the smallest `comm_size` in bytes for `all_reduce` and `all_reduce_rms_norm` by any algorithm.

        Args:
            max_bytes: Bytes of the largest tensor, at least 1.
            world_size: Ranks in the group, 1 to 16.

        Raises:
            LamportError: If an argument is out of range.

        Tensors of up to `max_bytes` bytes, with rows of any width, then run as one operation each (sums on a GPU up to
        16 MiB, whatever the slots). For one-shot alone
        `world_size` times `max_bytes` do, with `max_bytes` rounded up to 16; for two-shot alone twice `max_bytes`, with
        some more where shards are not even. Two ranks need up to a third more than one-shot, for an odd number of rows
        in two shots.
        """
        return _core.all_reduce_comm_size(max_bytes, world_size)

    def __reduce__(self) -> NoReturn:
        # What copy.copy, copy.deepcopy and pickle ask for.
        raise LamportError(
            "a workspace cannot be copied or pickled: pass the object itself, or create another one on every rank"
        )

    def __repr__(self) -> str:
        state = "" if self._core is not None else ", cleaned up"
        return (
            f"LamportWorkspace(rank={self._rank}, world_size={self._world_size}, comm_size={self._comm_size}, "
            f'device="{self._device}", backend="{self._backend}"{state})'
        )


@never_compiled
def bind_to_thread(workspace: LamportWorkspace | torch.Tensor) -> None:
    """Bind a workspace to the calling thread: it may call operations from now on, and no other thread may.

    To be called on every rank between the same two operations. Threads that took turns without it would come in an
    order of their own on each rank, and sums would be of tensors that do not belong together. Torch's own threads, in
    which it runs backward passes on GPUs, need not be bound: whoever starts a pass answers for it. Two passes at a
    time, of two threads of a rank, must not sum over one workspace.

    Args:
        workspace: The workspace, or the table of one.

    Raises:
        LamportError: While an operation is running, or if there is no such workspace.
    """
    _core.bind_to_thread(workspace._usable_core() if isinstance(workspace, LamportWorkspace) else workspace)
