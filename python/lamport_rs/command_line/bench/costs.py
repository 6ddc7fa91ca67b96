"""What lamport_rs costs around the kernels: creating a workspace, and the host's time per call."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs.command_line.bench.cases import Q_SIZE, Case
from lamport_rs.command_line.bench.member import Member
from lamport_rs.command_line.bench.problems import EPSILON
from lamport_rs.command_line.bench.record import Row
from lamport_rs.command_line.timing import measure_calls, slowest_rank

_CREATIONS = 100
_BYTES = 8 << 10
_TOKENS = 8


def create_workspace(member: Member) -> Row:
    """Measure from a barrier to the workspace, verification included, with slots of 2 MiB or more. Collective."""
    rank, world_size, device = member.rank, member.world_size, member.device
    comm_size = lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(16384, world_size)
    times = []
    for _ in range(2 + _CREATIONS):
        dist.barrier(member.host_group)
        start = time.perf_counter_ns()
        workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, member.host_group, device=device)
        times.append((time.perf_counter_ns() - start) / 1e3)
        dist.barrier(member.host_group)
        workspace.cleanup()
    case = Case("create_workspace", torch.uint8, bytes=comm_size)
    return Row.of(case, "lamport_rs", world_size, slowest_rank(times[2:], device))


@torch.inference_mode()
def host_time_calls(member: Member) -> list[tuple[Case, str, Callable[[], object]]]:
    """Return the calls whose time on the host is taken: the case, the implementation, the call. Collective.

    The default group's is a call of NCCL's.
    """
    workspace, rank, world_size = member.workspace, member.rank, member.world_size
    rows = torch.randn(_TOKENS, Q_SIZE // world_size // 8 * 8, device=member.device).bfloat16()
    weight, rows_out = rows[0].clone(), torch.empty_like(rows)
    vector = torch.zeros(_BYTES // 2, device=member.device).bfloat16()
    vector_out = torch.empty_like(vector)
    arguments = rows, weight, workspace, rank, world_size, EPSILON
    norm = Case("minimax_allreduce_rms, host time", torch.bfloat16, tokens=_TOKENS, hidden=Q_SIZE)
    # What a launch, and an output, cost on this machine without a collective.
    yardstick = Case("one kernel, and one allocation, host time", torch.bfloat16, bytes=_BYTES)
    total = Case("all_reduce, host time", torch.bfloat16, bytes=_BYTES)
    group = dist.new_group(backend="lamport")
    return [
        (total, "lamport_rs", lambda: lamport_rs.all_reduce(vector, workspace)),
        (total, "lamport_rs, out=", lambda: lamport_rs.all_reduce(vector, workspace, out=vector_out)),
        (total, "lamport_rs, torch.distributed", lambda: dist.all_reduce(vector, group=group)),
        (total, "nccl", lambda: dist.all_reduce(vector)),
        (norm, "lamport_rs", lambda: lamport_rs.minimax_allreduce_rms(*arguments)),
        (norm, "lamport_rs, out=", lambda: lamport_rs.minimax_allreduce_rms(*arguments, out=rows_out)),
        (yardstick, "torch.add, out=", lambda: torch.add(vector, vector, out=vector_out)),
        (yardstick, "torch.empty_like", lambda: torch.empty_like(vector)),
    ]


@torch.inference_mode()
def measure_host_time(member: Member, case: Case, name: str, call: Callable[[], object]) -> Row:
    """Measure one of `host_time_calls`. Collective."""
    return Row.of(case, name, member.world_size, measure_calls(call, member.device))
