"""A sum of 64 MiB through slots that hold all of it, through slots of 16 MiB, and by NCCL:

    python tests/gpu/measure_chunks.py --ranks 2

Microseconds per operation of bfloat16 in CUDA graphs, back to back, in turns: the slowest rank's median and extremes.
Every result is checked against NCCL's, to the rounding of one sum.
"""

from __future__ import annotations

import argparse
from functools import partial

import lamport_rs
import torch
import torch.distributed as dist
from lamport_rs.command_line.bench.member import join
from lamport_rs.command_line.launch import choose_backend, launch
from lamport_rs.command_line.replay import Replay, measure_replays

MEBIBYTE = 1 << 20
OPERATIONS = 10
"""In a graph."""


def measure(rank: int, world_size: int, device: torch.device, mebibytes: int, slots: list[int], replays: int) -> None:
    with join(rank, world_size, device, 64, 1) as member:
        nccl = dist.new_group(backend="nccl")
        total = torch.empty(mebibytes * MEBIBYTE // 2, dtype=torch.bfloat16, device=device)
        rows = torch.randn(total.numel(), device=device).bfloat16()
        expected = rows.clone()
        dist.all_reduce(expected, group=nccl)
        calls, workspaces = {}, []
        for most in slots:
            size = lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(most * MEBIBYTE, world_size)
            made = lamport_rs.LamportWorkspace(rank, world_size, size, member.host_group, device=device)
            workspaces.append(made)
            call = partial(lamport_rs.all_reduce, rows, made, total)
            torch.testing.assert_close(call(), expected, rtol=world_size * 2**-8, atol=world_size * 2**-7)
            calls[f"slots for {most} MiB"] = call
        own = rows.clone()
        calls["NCCL, in place"] = lambda: dist.all_reduce(own, group=nccl)
        word = torch.zeros(16, device=device)
        align = partial(lamport_rs.all_reduce, word, member.workspace, out=word)
        graphs = [Replay(call, device, operations=OPERATIONS) for call in calls.values()]
        for graph in graphs:
            graph.settle(align)
        found = measure_replays(graphs, align, replays)
        for name, latency in zip(calls, found, strict=True) if rank == 0 else ():
            more = 100 * (latency.median_us / found[0].median_us - 1)
            print(f"{name:22} {latency.median_us:8.2f} us ({latency.min_us:.2f}-{latency.max_us:.2f})  {more:+6.1f} %")
        for workspace in workspaces:
            workspace.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mebibytes", type=int, default=64, help="of the tensor")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 16, 4], help="MiB that slots take at once")
    parser.add_argument("--replays", type=int, default=20)
    given = parser.parse_args()
    backend, _ = choose_backend("cuda")
    launch(measure, given.ranks, backend, given.mebibytes, given.slots, given.replays, time_limit=600)


if __name__ == "__main__":
    main()
