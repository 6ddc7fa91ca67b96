"""The MiniMax operation on GPUs, against the eager path of torch: an all-reduce of the variances by NCCL, and the norm.

`torchrun` is not needed: this starts a process per GPU. Both are measured out of CUDA graphs of 100 operations, back to
back: a delay kernel lets all ranks' work be enqueued before any of it starts, one operation then aligns the ranks on
the GPU, and events around the graph time it. Medians are over replays, of the slowest rank.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from typing import Any

import lamport_rs
import torch
import torch.distributed as dist
from lamport_rs.command_line.launch import launch
from lamport_rs.command_line.timing import GRAPH_OPERATIONS, Latency, measure_graph, slowest_rank
from record import Row, record

Q_SIZE, KV_SIZE = 6144, 1024
EPSILON = 1e-6
REPLAYS = 30


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count())
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 128, 512, 2048])
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    launch(_run_rank, arguments.gpus, "cuda", arguments.tokens, not arguments.no_record)


def _run_rank(rank: int, world_size: int, device: torch.device, token_counts: list[int], keep: bool) -> None:
    comm_size = lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(max(token_counts), world_size)
    rows = []
    with lamport_rs.LamportWorkspace(rank, world_size, comm_size, device=device) as workspace:
        for tokens in token_counts:
            rows += _measure_tokens(workspace, tokens)
        rows += _measure_host_time(workspace)
    rows += _measure_creation(rank, world_size, comm_size, device)
    if rank == 0:
        for row in rows:
            size = f"{row.tokens} tokens" if row.tokens else ""
            print(f"{row.op:34} {row.impl:18} {size:12} {row.median_us:9.2f} [{row.min_us:.2f}, {row.max_us:.2f}]")
        if keep:
            graphs = f"CUDA graphs of {GRAPH_OPERATIONS} operations, {REPLAYS} replays"
            method = f"{graphs}, slowest rank; host times by the clock"
            print(record(rows, method, gpus=world_size))


def _measure_tokens(workspace: lamport_rs.LamportWorkspace, tokens: int) -> list[Row]:
    rank, world_size, device = workspace.rank, workspace.world_size, workspace.device
    q_size, kv_size = Q_SIZE // world_size, KV_SIZE // world_size
    qkv = torch.randn(tokens, q_size + 2 * kv_size, device=device).bfloat16()
    q_weight, k_weight = (torch.randn(size, device=device).bfloat16() for size in (q_size, kv_size))
    q_out, k_out = qkv.new_empty(tokens, q_size), qkv.new_empty(tokens, kv_size)

    def own() -> None:
        lamport_rs.minimax_allreduce_rms_qk(
            qkv, q_weight, k_weight, workspace, q_size, kv_size, rank, world_size, EPSILON, q_out=q_out, k_out=k_out
        )

    def eager() -> tuple[torch.Tensor, torch.Tensor]:
        q, k = (part.float() for part in (qkv[:, :q_size], qkv[:, q_size : q_size + kv_size]))
        variance = torch.cat([q.pow(2).mean(-1, keepdim=True), k.pow(2).mean(-1, keepdim=True)], dim=-1)
        dist.all_reduce(variance)
        q_variance, k_variance = (variance / world_size).chunk(2, dim=-1)
        return (
            (q * torch.rsqrt(q_variance + EPSILON) * q_weight).bfloat16(),
            (k * torch.rsqrt(k_variance + EPSILON) * k_weight).bfloat16(),
        )

    own()
    for output, expected in zip((q_out, k_out), eager(), strict=True):
        torch.testing.assert_close(output, expected)
    row = Row("minimax_allreduce_rms_qk", "", world_size, "bfloat16", 0, 0, 0, None, tokens, f"{Q_SIZE}+{KV_SIZE}")
    return [
        replace(row, impl="lamport_rs", **_figures(measure_graph(own, own, device, REPLAYS))),
        replace(row, impl="torch_eager_nccl", **_figures(measure_graph(eager, own, device, REPLAYS))),
    ]


def _figures(latency: Latency) -> dict[str, Any]:
    return {name: round(value, 3) for name, value in asdict(latency).items()}


def _measure_host_time(workspace: lamport_rs.LamportWorkspace) -> list[Row]:
    rank, world_size, device = workspace.rank, workspace.world_size, workspace.device
    width = Q_SIZE // world_size
    tensor, weight = (torch.randn(*shape, device=device).bfloat16() for shape in ((8, width), (width,)))
    out = torch.empty_like(tensor)

    def with_out() -> None:
        lamport_rs.minimax_allreduce_rms(tensor, weight, workspace, rank, world_size, EPSILON, out=out)

    def allocating() -> None:
        lamport_rs.minimax_allreduce_rms(tensor, weight, workspace, rank, world_size, EPSILON)

    rows = []
    for impl, operation in (("lamport_rs", allocating), ("lamport_rs, out=", with_out)):
        times = []
        for _ in range(20):
            torch.cuda.synchronize()
            start = time.perf_counter_ns()
            for _ in range(GRAPH_OPERATIONS):
                operation()
            times.append((time.perf_counter_ns() - start) / 1e3 / GRAPH_OPERATIONS)
        rows.append(
            Row(
                "minimax_allreduce_rms, host time",
                impl,
                world_size,
                "bfloat16",
                **_figures(slowest_rank(times[2:], device)),
                tokens=8,
            )
        )
    return rows


def _measure_creation(rank: int, world_size: int, comm_size: int, device: torch.device) -> list[Row]:
    group = dist.new_group(backend="gloo")
    times = []
    for _ in range(20):
        dist.barrier(group)
        start = time.perf_counter_ns()
        workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, group, device=device)
        times.append((time.perf_counter_ns() - start) / 1e3)
        dist.barrier(group)
        workspace.cleanup()
    return [
        Row(
            "create_workspace",
            "lamport_rs",
            world_size,
            "uint8",
            **_figures(slowest_rank(times[2:], device)),
            bytes=comm_size,
        )
    ]


if __name__ == "__main__":
    main()
