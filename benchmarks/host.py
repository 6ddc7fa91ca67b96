"""The host backend against gloo: all-reduce between two processes, and creating a workspace. Records the run."""

from __future__ import annotations

import argparse
import statistics
import time

import lamport_rs
import torch
import torch.distributed as dist
from lamport_rs.command_line.launch import launch
from lamport_rs.command_line.timing import Latency, measure
from record import Row, record

SIZES = (512, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 8 << 20)
ROUNDS = 5
CREATIONS = 20


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--no-record", action="store_true")
    arguments = parser.parse_args()
    launch(_run_rank, arguments.ranks, "host", not arguments.no_record)


def _run_rank(rank: int, world_size: int, device: torch.device, keep: bool) -> None:
    comm_size = lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(max(SIZES), world_size)
    rows = []
    with lamport_rs.LamportWorkspace(rank, world_size, comm_size, device=device) as workspace:
        for dtype in (torch.float32, torch.bfloat16):
            for size in SIZES:
                rows += _compare(workspace, device, dtype, size)
    rows.append(_measure_creation(rank, world_size, device))
    if rank == 0:
        _print(rows)
        if keep:
            print(record(rows, f"calls back to back, median of {ROUNDS} alternating rounds, slowest rank"))


def _compare(workspace: lamport_rs.LamportWorkspace, device: torch.device, dtype: torch.dtype, size: int) -> list[Row]:
    tensor = torch.randn(size // dtype.itemsize, device=device).to(dtype)
    out, other = torch.empty_like(tensor), torch.zeros_like(tensor)
    expected = tensor.clone()
    dist.all_reduce(expected)
    torch.testing.assert_close(lamport_rs.all_reduce(tensor, workspace, out=out), expected)
    repetitions = max(20, min(500, (16 << 20) // size))
    own, gloo = [], []
    # In turns, so that whatever else the machine does falls on both alike.
    for _ in range(ROUNDS):
        own.append(measure(lambda: lamport_rs.all_reduce(tensor, workspace, out=out), repetitions, device))
        gloo.append(measure(lambda: dist.all_reduce(other), repetitions, device))
    return [
        _row("all_reduce", impl, workspace.world_size, dtype, size, latencies)
        for impl, latencies in (("lamport_rs", own), ("gloo", gloo))
    ]


def _measure_creation(rank: int, world_size: int, device: torch.device) -> Row:
    comm_size = lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(16384, world_size)
    latencies = []
    for _ in range(CREATIONS):
        dist.barrier()
        start = time.perf_counter_ns()
        workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, device=device)
        elapsed = (time.perf_counter_ns() - start) / 1e3
        workspace.cleanup()
        latencies.append(Latency(elapsed, elapsed, elapsed))
    return _row("create_workspace", "lamport_rs", world_size, torch.uint8, comm_size, latencies)


def _row(op: str, impl: str, world_size: int, dtype: torch.dtype, size: int, latencies: list[Latency]) -> Row:
    return Row(
        op,
        impl,
        world_size,
        str(dtype).removeprefix("torch."),
        round(statistics.median(latency.median_us for latency in latencies), 2),
        round(min(latency.min_us for latency in latencies), 2),
        round(max(latency.max_us for latency in latencies), 2),
        bytes=size,
    )


def _print(rows: list[Row]) -> None:
    print(f"{'operation':18} {'dtype':9} {'bytes':>9} {'lamport_rs':>11} {'gloo':>9} {'ratio':>7}   (median, us)")
    other = {(row.op, row.dtype, row.bytes): row.median_us for row in rows if row.impl == "gloo"}
    for row in rows:
        if row.impl == "lamport_rs":
            gloo = other.get((row.op, row.dtype, row.bytes))
            comparison = "" if gloo is None else f" {gloo:9.1f} {gloo / row.median_us:7.1f}"
            print(f"{row.op:18} {row.dtype:9} {row.bytes:9} {row.median_us:11.1f}{comparison}")


if __name__ == "__main__":
    main()
