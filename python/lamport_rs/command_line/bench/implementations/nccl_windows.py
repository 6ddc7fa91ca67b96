"""NCCL's symmetric kernels: the process group's all-reduce, of memory that is registered as a window."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench.arguments import STEPS
from lamport_rs.command_line.bench.cases import Case, largest_message
from lamport_rs.command_line.bench.decode_step import DecodeStep
from lamport_rs.command_line.bench.decoder import Communication
from lamport_rs.command_line.bench.implementations.base import Call, Implementation
from lamport_rs.command_line.bench.implementations.by_torch import all_reduce_of, fill_shared, reduce_then_norm
from lamport_rs.command_line.bench.member import Member, UnavailableError
from lamport_rs.command_line.bench.nccl import Window
from lamport_rs.command_line.bench.problems import AllReduce, Problem

_PAGE = 2 << 20
"""Of the memory that NCCL allocates."""


class NcclWindows(Implementation):
    """In place, in a window that holds the input from the start: no copy is timed.

    NCCL takes its symmetric kernels for such memory, where it expects them to be faster.
    """

    name = "nccl_windows"
    backend = "cuda"
    operations = frozenset({"all_reduce", *STEPS})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        size = -(-largest_message(cases) // _PAGE) * _PAGE
        communicator = _communicator(member.device)
        self._pool = torch.cuda.MemPool(communicator.mem_allocator)
        with torch.cuda.use_mem_pool(self._pool):
            self._memory = torch.zeros(size, dtype=torch.uint8, device=member.device)
        torch.cuda.synchronize(member.device)
        self._window = Window(communicator._comm_ptr(), self._memory.data_ptr(), size)

    def prepare(self, problem: Problem) -> Call:
        """Return the call on the window."""
        if isinstance(problem, DecodeStep):
            place = self._memory.view(problem.case.dtype)
            return Call(partial(problem.run, Communication(reduce_then_norm, place)))
        assert isinstance(problem, AllReduce)
        return all_reduce_of(fill_shared(self._memory, problem, self.member))

    def close(self) -> None:
        """Give up the window and its memory, which no operation may still be using."""
        self.member.synchronize()
        dist.barrier(self.member.host_group)
        self._window.close()
        del self._memory, self._pool


def _communicator(device: torch.device) -> Any:
    """The process group's NCCL, with its communicator made."""
    dist.all_reduce(torch.zeros(1, device=device))
    group = dist.group.WORLD
    assert group is not None
    nccl = group._get_backend(device)
    for name in ("_comm_ptr", "mem_allocator"):
        if not hasattr(nccl, name):
            raise UnavailableError(f"torch {torch.__version__} does not give NCCL's {name} to programs; 2.11 does")
    return nccl
