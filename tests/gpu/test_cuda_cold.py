"""The first operation of a fresh process, on a machine where nothing is cached.

Hopper and Blackwell load machine code. What the driver compiles elsewhere is little.
"""

import os
import time

import pytest
import torch
import torch.distributed as dist
from minimax_rows import Operation, workspace_for
from ranks import SHARING, Rank
from worlds import WORLD_SIZES, without_a_compilation_cache


def with_machine_code(rank: int) -> torch.device:
    """As programs are."""
    os.environ.pop("LAMPORT_RS_PTX", None)
    return without_a_compilation_cache(rank)


def with_ptx(rank: int) -> torch.device:
    """As where there is no machine code for the device."""
    os.environ["LAMPORT_RS_PTX"] = "1"
    return without_a_compilation_cache(rank)


PLACEMENTS = [
    pytest.param(with_machine_code, 0.02, id="machine code"),
    pytest.param(with_ptx, 0.2, id="PTX"),
]
"""Each with the most seconds of the first operation; the aims are 5 and 100 ms."""


def operate_cold(me: Rank, tokens: int, widths: tuple[int, ...]) -> dict[str, float]:
    started = time.monotonic()
    torch.zeros(1, device=me.device)
    torch.cuda.synchronize()
    seconds = {"context": time.monotonic() - started}
    operation = Operation.random(me, tokens, widths)  # Also what of torch is not loaded yet.
    torch.cuda.synchronize()
    dist.barrier()
    started = time.monotonic()
    workspace = workspace_for(me, tokens)
    seconds["workspace"] = time.monotonic() - started
    dist.barrier()
    for name in ("first", "second"):
        started = time.monotonic()
        operation(workspace)
        torch.cuda.synchronize()
        seconds[name] = time.monotonic() - started
        operation.check(name)
    return seconds


@pytest.mark.parametrize(("tokens", "widths"), [(1, (1536, 256)), (1000, (3072, 512)), (4, (20_000,))], ids=str)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("place", "limit"), PLACEMENTS)
def test_the_first_operation_of_a_process_is_soon_done(new_gpu_ranks, place, limit, world_size, tokens, widths, capsys):
    found = new_gpu_ranks(world_size, place).run(operate_cold, tokens, widths)
    slowest = {name: max(each[name] for each in found) for name in found[0]}
    with capsys.disabled():
        figures = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in slowest.items())
        print(f"\ncold, {place.__name__}, {world_size} ranks, {tokens} tokens of {widths}: {figures}")
    assert slowest["first"] < limit * (5 if SHARING else 1)  # Ranks that share a GPU take turns.
