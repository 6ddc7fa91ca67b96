"""One rank of a gloo group that checks the installed package: `check_rank.py RANK WORLD_SIZE STORE`.

The results are compared with float32 sums of all ranks' tensors, which every rank can make.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from lamport_rs import (
    LamportWorkspace,
    all_reduce,
    all_reduce_rms_norm,
    get_allreduce_workspace,
    minimax_allreduce_rms_qk,
)

PATIENCE = timedelta(seconds=240)
"""Compiling takes up to a minute on a slow machine, and not equally long on all ranks."""
ROWS, Q_SIZE, K_SIZE = 6, 64, 32
EPS = 1e-6

Function: TypeAlias = Callable[..., Any]


def main() -> None:
    """Run the collectives, plain and compiled, and leave the group."""
    rank, world_size, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size, timeout=PATIENCE)
    with workspace_of(rank, world_size) as workspace:
        check_operations(workspace, lambda function: function)
        say(rank, "all_reduce and all_reduce_rms_norm")
        for backend in compilers(rank):
            check_operations(workspace, partial(torch.compile, fullgraph=True, backend=backend))
            say(rank, f"the same, compiled by {backend}")
    with torch.inference_mode(), workspace_of(rank, world_size) as workspace:
        check_operations(workspace, lambda function: function)
    say(rank, "the same, all within inference_mode")
    check_minimax(rank, world_size)
    say(rank, "get_allreduce_workspace and minimax_allreduce_rms_qk")
    dist.destroy_process_group()


def say(rank: int, what: str) -> None:
    """Show how far a rank has come."""
    print(f"  rank {rank}: {what}", flush=True)


def compilers(rank: int) -> list[str]:
    """Return the backends of torch.compile to check: inductor needs a C++ compiler and Python's headers."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    header = Path(sysconfig.get_path("include"), "Python.h")
    if compiler and header.is_file():
        return ["aot_eager", "inductor"]
    say(rank, f"NOT CHECKED: inductor, which needs g++ (found: {compiler}) and {header}")
    return ["aot_eager"]


def workspace_of(rank: int, world_size: int) -> LamportWorkspace:
    """Return a workspace of all ranks."""
    # The time-out is also for a peer that still compiles.
    return LamportWorkspace(rank, world_size, 1 << 20, device="cpu", timeout=PATIENCE.total_seconds())


def tensor_of(rank: int, columns: int) -> torch.Tensor:
    """Return the tensor of a rank."""
    return torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(rank))


def check_operations(workspace: LamportWorkspace, wrap: Callable[[Function], Function]) -> None:
    """Compare a sum and a norm, each between other operations, with what one process computes."""
    tensors = [tensor_of(rank, Q_SIZE) for rank in range(workspace.world_size)]
    mine, weight = tensors[workspace.rank], torch.linspace(0.5, 1.5, Q_SIZE)

    def reduce(x: torch.Tensor) -> torch.Tensor:
        return all_reduce(x * 2, workspace) + 1

    def reduce_transposed(x: torch.Tensor) -> torch.Tensor:
        # A compiler that keeps the layout of what it fuses hands on a tensor that is not contiguous.
        return all_reduce((x.T * 2).contiguous(), workspace)

    def norm(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return all_reduce_rms_norm(x, residual, weight, workspace, EPS)

    total = torch.stack(tensors).sum(0)
    rows = total + tensors[0]
    normalised = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + EPS) * weight
    close(wrap(reduce)(mine), total * 2 + 1)
    close(wrap(reduce_transposed)(mine), total.T * 2)
    out, residual = wrap(norm)(mine, tensors[0])
    close(residual, rows)
    close(out, normalised)


def check_minimax(rank: int, world_size: int) -> None:
    """Compare both norms of packed rows with what one process computes."""
    table = get_allreduce_workspace(rank, world_size, max_tokens=ROWS, process_group=dist.group.WORLD, device="cpu")
    packed = [tensor_of(each, Q_SIZE + K_SIZE) for each in range(world_size)]
    weights = torch.linspace(0.5, 1.5, Q_SIZE), torch.linspace(1.5, 0.5, K_SIZE)
    outputs = minimax_allreduce_rms_qk(packed[rank], *weights, table, Q_SIZE, K_SIZE, rank, world_size, EPS)
    for part, weight, columns in zip(outputs, weights, (slice(0, Q_SIZE), slice(Q_SIZE, None)), strict=True):
        mean = torch.stack([each[:, columns].square().mean(-1, keepdim=True) for each in packed]).mean(0)
        close(part, packed[rank][:, columns] * torch.rsqrt(mean + EPS) * weight)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise if a result is not what was expected, but for rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    main()
