"""The benchmark's peers without a GPU: memory, multiprocessors and C++ classes are made up, and so are the kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lamport_rs.command_line.bench import peers
from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.implementations import sglang
from lamport_rs.command_line.bench.member import Member, join
from lamport_rs.command_line.bench.problems import EPSILON, pose
from ranks import Rank
from torch.distributed import _symmetric_memory

HOPPER, BLACKWELL = (9, 0), (10, 0)
KIB, MIB = 1 << 10, 1 << 20
MULTIPROCESSORS = 5


def made_up_memory(multicast: int = 0) -> tuple[Any, Any]:
    """Symmetric memory on the host: the own part is real, those of others are nobody's."""

    def rendezvous(memory: torch.Tensor, _group: str) -> SimpleNamespace:
        own = dist.get_rank()
        others = [memory if rank == own else torch.zeros_like(memory) for rank in range(dist.get_world_size())]
        return SimpleNamespace(multicast_ptr=multicast, get_buffer=lambda rank, _shape, _dtype: others[rank])

    return lambda size, **options: torch.full((size,), 7, **options), rendezvous


def sum_into(out: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.float()
    dist.all_reduce(total)
    return out.copy_(total.view(out.shape))


def norm_into(out: torch.Tensor, residual_out: torch.Tensor, operands: dict[str, Any], weight: torch.Tensor) -> None:
    total = operands["input"].float()
    dist.all_reduce(total)
    residual_out.copy_(total.add_(operands["residual"].float()))
    out.copy_(torch.nn.functional.rms_norm(total, weight.shape, weight.float(), EPSILON))


class MadeUpObject:
    """What SGLang's C++ classes are made with."""

    def __ffi_init__(self, *arguments: Any) -> None:
        self.arguments = arguments


@contextmanager
def peers_on_the_host(me: Rank, library: Any) -> Iterator[Member]:
    """A member whose peers are made up: a multiprocessor count, a capability, memory, and a library."""
    ffi = SimpleNamespace(Object=MadeUpObject, register_object=lambda _name: lambda made: made)
    empty, rendezvous = made_up_memory()
    with pytest.MonkeyPatch.context() as patch, join(me.rank, me.world_size, me.device, 1 << 20, 1) as member:
        patch.setattr(peers, "library", lambda _name, _world_size: library)
        patch.setattr(peers, "tvm_ffi", lambda: ffi)
        patch.setattr(sglang, "_capability", lambda _member: HOPPER)
        patch.setattr(sglang, "_multiprocessors", lambda _member: MULTIPROCESSORS)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(_symmetric_memory, "empty", empty)
        patch.setattr(_symmetric_memory, "rendezvous", rendezvous)
        sglang._classes.cache_clear()
        yield member
        sglang._classes.cache_clear()


def solve(implementation: Any, cases: list[Case], member: Member) -> None:
    """Every case, twice: what a call leaves behind must not matter. And close it, which gives its memory up."""
    made = implementation(member, cases)
    for case in cases:
        problem = pose(case, member)
        call = made.prepare(problem)
        problem.check(call.run(), rounds_once=False)
        if call.in_place is None:
            problem.check(call.run(), rounds_once=False)
    made.close()
    assert set(vars(made)) == {"member", "cases"}
