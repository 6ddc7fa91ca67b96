"""Operations in a green context of the caller: on a stream of it, and where it is the current context."""

import pytest
import torch
import torch.cuda.green_contexts as green_contexts
from ranks import Rank
from reductions import NormedReduction, Reduction, comm_size_for
from worlds import WORLD_SIZES

SLEEP = 2_000_000
"""Cycles of a GPU: some 1 ms, in which operations that nothing orders would overtake."""
SIZES = (256, 65_536, 1 << 20)
MOST_BYTES = 4 << 20


def sum_in_order(me: Rank, workspace, size: int, algorithm: str) -> None:
    """A sum reads what the current stream wrote before it, and what comes after reads the sum."""
    reduction = Reduction.random(me, size, algorithm, torch.float32, seed=size)
    late = reduction.rows.clone()
    reduction.rows.fill_(float("nan"))
    torch.cuda._sleep(SLEEP)
    reduction.rows.copy_(late)
    reduction(workspace)
    kept = reduction.out.clone()
    torch.cuda.current_stream().synchronize()
    reduction.check(f"{size} elements, {algorithm}")
    reduction.check_against([kept], "the copy behind it")


def operate(me: Rank, multiprocessors: int, is_current: bool) -> None:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=10)
    context = green_contexts.GreenContext.create(multiprocessors, torch.cuda.current_device())
    if is_current:
        context.set_context()
    try:
        stream = torch.cuda.current_stream() if is_current else context.Stream()
        with torch.cuda.stream(stream):
            for size in SIZES:
                for algorithm in ("one_shot", "two_shot"):
                    sum_in_order(me, workspace, size, algorithm)
            for tokens in (2, 128):
                norm = NormedReduction.random(me, tokens, 1024, "one_shot", torch.bfloat16, seed=tokens)
                norm(workspace)
                torch.cuda.current_stream().synchronize()
                norm.check(f"{tokens} tokens")
    finally:
        if is_current:
            context.pop_context()
    workspace.synchronize()


@pytest.mark.skipif(not green_contexts.SUPPORTED, reason="this torch has no green contexts")
@pytest.mark.parametrize("is_current", [False, True], ids=["its stream", "current"])
@pytest.mark.parametrize("multiprocessors", [8, 32])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_operations_come_in_order_in_a_green_context(ranks_of, world_size, multiprocessors, is_current):
    ranks_of(world_size).run(operate, multiprocessors, is_current)
