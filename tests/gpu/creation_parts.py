"""Where the time goes when a workspace is created that is not the process's first:

    python tests/gpu/creation_parts.py --ranks 2 4

For each group size a table: the median of each part on each rank, in milliseconds, and of the whole. Parts that wait
for peers (the round over gloo, the agreement, and the verification) are longest on the ranks that come first: there
the least of the ranks is what the part itself takes. Below it a round over gloo alone. Without GPUs, or with
`--backend host`, the ranks are on the host.

Once beside another workspace, as in a program that has several or uses NCCL, and once alone: a driver takes
milliseconds to map the first memory of a peer's device, and does it again after the last mapping was closed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import lamport_rs
import torch
import torch.distributed as dist
from lamport_rs.command_line.launch import choose_backend, launch
from lamport_rs.rendezvous import all_gather_over

WARM_UP = 5
MESSAGE_BYTES = 512
IN_ALL = "in all"


def measure(rank: int, world_size: int, device: torch.device, comm_size: int, repetitions: int, is_alone: bool) -> None:
    group = dist.new_group(backend="gloo")
    other = None if is_alone else lamport_rs.LamportWorkspace(rank, world_size, comm_size, group, device=device)
    all_gather = all_gather_over(group)
    taken: dict[str, list[float]] = {}
    for repetition in range(WARM_UP + repetitions):
        dist.barrier(group)
        started = time.perf_counter()
        workspace = lamport_rs.LamportWorkspace(rank, world_size, comm_size, group, device=device)
        seconds = time.perf_counter() - started
        # Before the parts are asked for: peers may be waiting.
        dist.barrier(group)
        parts = workspace._core.phases()
        rest = seconds - sum(part for _, part in parts)
        workspace.cleanup()
        if repetition >= WARM_UP:
            for name, part in [*parts, ("in Python", rest), (IN_ALL, seconds)]:
                taken.setdefault(name, []).append(1e3 * part)
    rounds = []
    for _ in range(10 * repetitions):
        started = time.perf_counter()
        all_gather(bytes(MESSAGE_BYTES))
        rounds.append(1e3 * (time.perf_counter() - started))
    mine = [statistics.median(each) for each in [*taken.values(), rounds]]
    figures = torch.zeros(world_size, len(mine), dtype=torch.float64)
    figures[rank] = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(figures, group=group)
    if rank == 0:
        beside = "alone" if is_alone else "beside another"
        print(
            f"{world_size} ranks on {device.type}, slots of {comm_size} bytes, {beside}: medians of {repetitions}, ms:"
        )
        for name, of_ranks in zip([*taken, "a round over gloo alone"], figures.T.tolist(), strict=True):
            print(f"  {name:24}" + "".join(f"{each:8.3f}" for each in of_ranks) + f"   least {min(of_ranks):.3f}")
    dist.barrier(group)
    if other is not None:
        other.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2], help="group sizes (default: 2)")
    parser.add_argument("--backend", choices=["auto", "host", "cuda"], default="auto")
    parser.add_argument("--comm-size", type=int, default=2 << 20, help="bytes per slot (default: 2 MiB)")
    parser.add_argument("--repetitions", type=int, default=50)
    arguments = parser.parse_args()
    backend, _ = choose_backend(arguments.backend)
    for world_size in arguments.ranks:
        for is_alone in (False, True):
            launch(measure, world_size, backend, arguments.comm_size, arguments.repetitions, is_alone, time_limit=120)


if __name__ == "__main__":
    main()
