"""The first operation of a fresh process, on a machine where nothing is cached: what the driver compiles is little."""

import time

import pytest
import torch
import torch.distributed as dist
from minimax_rows import Operation, workspace_for
from ranks import Rank
from worlds import WORLD_SIZES, without_a_compilation_cache

LIMIT = 0.2
"""Seconds; the aim is half of it."""


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
def test_the_first_operation_of_a_process_is_soon_done(new_gpu_ranks, world_size, tokens, widths, capsys):
    found = new_gpu_ranks(world_size, without_a_compilation_cache).run(operate_cold, tokens, widths)
    slowest = {name: max(each[name] for each in found) for name in found[0]}
    with capsys.disabled():
        figures = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in slowest.items())
        print(f"\ncold, {world_size} ranks, {tokens} tokens of {widths}: {figures}")
    assert slowest["first"] < LIMIT
