"""Tensors of torch's other allocators: a workspace takes its own memory, and reads and writes tensors of any."""

import os
from dataclasses import replace

import lamport_rs
import pytest
import torch
from minimax_rows import Operation
from ranks import Rank, one_gpu_per_rank
from reductions import (
    ALGORITHMS,
    NormedReduction,
    QuantisedReduction,
    QuantisedSum,
    Reduction,
    comm_size_for,
    run_checked,
)
from sleeping_memory import SleepingMemory
from soak_programs import outputs_of, with_outputs
from worlds import WORLD_SIZES

MOST_BYTES = 1 << 20


def with_expandable_segments(rank: int) -> torch.device:
    """As `PYTORCH_CUDA_ALLOC_CONF` has it, before the process's first allocation."""
    os.environ["PYTORCH_CUDA_ALLOC_CONF"] = os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    return one_gpu_per_rank(rank)


def use_every_operation(me: Rank) -> bool:
    """Whether torch's memory is in segments that can grow."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    operations = [
        *(Reduction.random(me, 100_000, algorithm) for algorithm in ALGORITHMS),
        *(NormedReduction.random(me, 33, 2048, algorithm) for algorithm in ALGORITHMS),
        *(QuantisedReduction.random(me, 33, 2048, algorithm, "fp8_group") for algorithm in ALGORITHMS),
        *(QuantisedSum.random(me, 33, 2048, algorithm) for algorithm in ALGORITHMS),
        Operation.random(me, 64, (3072, 512)),
        Operation.random(me, 64, (1536,)),
    ]
    for operation in operations:
        for _ in range(4):
            run_checked(operation, workspace, "eager")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for operation in operations:
            operation(workspace)
    for operation in operations:
        operation.poison()
    graph.replay()
    for operation in operations:
        operation.check("a replay")
    table = lamport_rs.get_allreduce_workspace(me.rank, me.world_size, max_tokens=64)
    run_checked(operations[-1], table, "the cached table")
    buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, device=me.device)
    assert len(buffer.peer_ptrs) == me.world_size
    lamport_rs.clear_workspace_cache()
    return any(segment["is_expandable"] for segment in torch.cuda.memory_snapshot())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_tensors_may_lie_in_expandable_segments(new_gpu_ranks, world_size):
    assert new_gpu_ranks(world_size, with_expandable_segments).run(use_every_operation) == [True] * world_size


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_the_usual_allocator_has_none_of_them(new_gpu_ranks, world_size):
    """So the test above does test another one."""
    assert new_gpu_ranks(world_size).run(use_every_operation) == [False] * world_size


def sleep_and_wake(me: Rank) -> None:
    """Operands lie in memory that is given up and taken again under a captured graph; the workspace stays."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    plain = [
        *(Reduction.random(me, 100_000, algorithm) for algorithm in ALGORITHMS),
        *(NormedReduction.random(me, 33, 2048, algorithm) for algorithm in ALGORITHMS),
        QuantisedReduction.random(me, 33, 2048, "two_shot"),
        Operation.random(me, 64, (1536,)),
    ]
    tensors = [tensor for each in plain for tensor in (each.rows, *outputs_of(each))]
    memory = SleepingMemory(tensors)
    places = iter(memory.like(tensors))
    operations = []
    for each in plain:
        moved = replace(each, rows=next(places))
        operations.append(with_outputs(moved, [next(places) for _ in outputs_of(each)]))
    for operation in operations:
        run_checked(operation, workspace, "before any sleep")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for operation in operations:
            operation(workspace)
    for night in range(3):
        memory.sleep()
        # Others may get the memory meanwhile.
        torch.full((MOST_BYTES,), night, device=me.device)
        memory.wake()
        for operation, original in zip(operations, plain, strict=True):
            operation.rows.copy_(original.rows * (night + 2))
            operation.poison()
        graph.replay()
        for operation in operations:
            operation.check(f"replay {night}")
            run_checked(operation, workspace, f"day {night}")
    memory.release()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_operands_may_be_given_up_and_come_back_between_replays(new_gpu_ranks, world_size):
    new_gpu_ranks(world_size).run(sleep_and_wake)
