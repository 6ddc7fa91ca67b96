"""Workspaces come and go, and leave neither device memory nor descriptors nor mappings behind."""

import gc
import os
import time

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from minimax_rows import Operation, workspace_for
from ranks import Rank
from worlds import WORLD_SIZES

WARM_UP = 20
REPETITIONS = 1000
SLACK_MIB, SLACK_DESCRIPTORS, SLACK_MAPPINGS = 4, 4, 16
"""A leak of one per workspace would be a thousand."""


def resources() -> tuple[float, int, int]:
    """Free device memory in MiB, descriptors, mappings."""
    gc.collect()
    torch.cuda.synchronize()
    dist.barrier()
    started = time.monotonic()
    while lamport_rs.release_memory(captured=True):
        assert time.monotonic() - started < 10, "a peer still has memory mapped"
    dist.barrier()
    with open("/proc/self/maps") as maps:
        mappings = sum(1 for _ in maps)
    return torch.cuda.mem_get_info()[0] / (1 << 20), len(os.listdir("/proc/self/fd")), mappings


def use_and_drop(me: Rank, operation: Operation, way: int) -> None:
    workspace = workspace_for(me, 64)
    operation(workspace)
    torch.cuda.synchronize()
    dist.barrier()
    if way % 3 == 0:
        workspace.cleanup()
    elif way % 3 == 1:
        table = workspace.workspace
        del workspace
        operation(table)
        torch.cuda.synchronize()
        dist.barrier()


def capture_and_drop(me: Rank, operation: Operation, _way: int) -> None:
    workspace = workspace_for(me, 64)
    operation(workspace)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        operation(workspace)
    del workspace
    graph.replay()
    torch.cuda.synchronize()
    dist.barrier()
    del graph
    lamport_rs.release_memory(captured=True)


def disagree(me: Rank, _operation: Operation, _way: int) -> None:
    with pytest.raises(LamportError, match="the ranks differ in comm_size"):
        me.workspace((1 + me.rank) << 20)


def ask_for_too_much(me: Rank, _operation: Operation, _way: int) -> None:
    with pytest.raises(LamportError, match="cuMemAlloc"):
        me.workspace(1 << (44 if me.rank == 0 else 20))


def repeat(me: Rank, function, repetitions: int) -> float:
    operation = Operation.random(me, 64, (256, 64))
    for way in range(WARM_UP):
        function(me, operation, way)
    before = resources()
    started = time.monotonic()
    for way in range(repetitions):
        function(me, operation, way)
    seconds = time.monotonic() - started
    after = resources()
    what = f"before and after: {before} and {after} (free MiB, descriptors, mappings)"
    assert before[0] - after[0] <= SLACK_MIB, f"device memory is leaked, {what}"
    assert after[1] - before[1] <= SLACK_DESCRIPTORS, f"descriptors are leaked, {what}"
    assert after[2] - before[2] <= SLACK_MAPPINGS, f"mappings are leaked, {what}"
    return 1000 * seconds / repetitions


@pytest.mark.parametrize(
    ("function", "repetitions"),
    [(use_and_drop, REPETITIONS), (capture_and_drop, 200), (disagree, 200), (ask_for_too_much, 200)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_nothing_is_leaked(ranks_of, world_size, function, repetitions, capsys):
    milliseconds = ranks_of(world_size).run(repeat, function, repetitions, timeout=150)
    with capsys.disabled():
        print(f"\n{function.__name__}, {world_size} ranks: {max(milliseconds):.1f} ms each")


def hold_many(me: Rank) -> float:
    """The measurement sees a leak: fifty workspaces take fifty blocks of memory."""
    before = resources()
    workspaces = [workspace_for(me, 64) for _ in range(50)]
    after = resources()
    workspaces.clear()
    return before[0] - after[0]


@pytest.mark.gpu(2)
def test_the_measurement_would_see_a_leak(ranks_of):
    assert min(ranks_of(2).run(hold_many)) >= 50 * 2
