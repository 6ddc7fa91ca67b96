"""A workspace serves foreign kernels or the package's own operations: who mixes them gets an error, on every rank."""

from collections.abc import Callable

import lamport_rs
import pytest
import torch
from foreign_cuda_kernel import ForeignSum
from foreign_norm_kernel import WIDTHS, ForeignNorm
from lamport_rs import LamportError, _core
from minimax_rows import Operation, workspace_for
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import Rank
from reductions import LayerNormedReduction, NormedReduction, QuantisedReduction, QuantisedSum, Reduction
from worlds import WORLD_SIZES

TOKENS = 256
ELEMENTS = 2048
MESSAGE = "serves either foreign kernels or the package's own"

OWN = {
    "all_reduce, one_shot": lambda me: Reduction.random(me, 3000, "one_shot"),
    "all_reduce, two_shot": lambda me: Reduction.random(me, 3000, "two_shot"),
    "all_reduce_rms_norm, one_shot": lambda me: NormedReduction.random(me, 5, 512, "one_shot"),
    "all_reduce_rms_norm, two_shot": lambda me: NormedReduction.random(me, 5, 512, "two_shot"),
    "all_reduce_layer_norm": lambda me: LayerNormedReduction.random(me, 5, 512, "one_shot"),
    "all_reduce_quant": lambda me: QuantisedSum.random(me, 5, 512, "one_shot"),
    "all_reduce_rms_norm_quant": lambda me: QuantisedReduction.random(me, 5, 512, "one_shot"),
    "moe_finalize_all_reduce": lambda me: FinalisedReduction.random(me, 5, 512),
    "moe_finalize_all_reduce_rms_norm": lambda me: FinalisedNorm.random(me, 5, 512),
    "minimax_allreduce_rms": lambda me: Operation.random(me, 33, (1536,)),
    "minimax_allreduce_rms, wide": lambda me: Operation.random(me, 3, (20_000,)),
    "minimax_allreduce_rms_qk": lambda me: Operation.random(me, 33, (3072, 512)),
}


def test_every_operation_is_tried():
    assert {name.split(",")[0] for name in OWN} == {name for name, *_ in _core.collectives()}


def sum_with_a_foreign_kernel(me: Rank, workspace, times: int, elements: int = ELEMENTS) -> None:
    """Its extents are in bytes. Every result is checked."""
    kernel = ForeignSum(workspace.workspace, me.rank, me.world_size)
    for round_ in range(times):
        values = torch.full((elements,), float(1 + me.rank + round_), device=me.device)
        output = torch.full_like(values, torch.nan)
        kernel(values, output, blocks=2)
        expected = sum(1 + rank + round_ for rank in range(me.world_size))
        assert bool((output == expected).all()), f"foreign sum {round_} is wrong: {output[:4].tolist()}"


def normalise_with_a_foreign_kernel(me: Rank, workspace, times: int) -> None:
    """Its extents are in elements."""
    kernel = ForeignNorm(workspace.workspace, me.rank, me.world_size, control_after_wait=False)
    for seed in range(times):
        operation = Operation.random(me, 7, WIDTHS, seed=seed)
        output = torch.full_like(operation.rows, torch.nan)
        kernel(operation.rows, torch.cat(operation.weights), output, dependent=False)
        operation.outs = list(output.split(WIDTHS, -1))
        operation.check(f"foreign norm {seed}")
    assert kernel.faults.tolist() == [0, 0]


FOREIGN: dict[str, Callable[[Rank, object, int], None]] = {
    "sum": sum_with_a_foreign_kernel,
    "norm": normalise_with_a_foreign_kernel,
}


def expect_refusal(workspace, step, way: str) -> None:
    """The operation raises, or runs and the next call or `synchronize()` raises; from then on all do."""
    with pytest.raises(LamportError, match=MESSAGE):  # noqa: PT012
        step(workspace)
        if way == "next call":
            torch.cuda.synchronize()
            step(workspace)
        else:
            workspace.synchronize()
    with pytest.raises(LamportError, match=MESSAGE):
        step(workspace)


def use_own_after_foreign(me: Rank, own: str, foreign: str, times: int, way: str) -> None:
    workspace = workspace_for(me, TOKENS, timeout=10)
    FOREIGN[foreign](me, workspace, times)
    expect_refusal(workspace, OWN[own](me), way)


@pytest.mark.parametrize("way", ["next call", "synchronize"])
@pytest.mark.parametrize(("foreign", "times"), [("sum", 1), ("sum", 2), ("sum", 3), ("norm", 1), ("norm", 3)])
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_own_operation_after_a_foreign_one_is_an_error(ranks_of, world_size, own, foreign, times, way):
    """Three foreign operations come back to the same slot: what is left is the extent."""
    ranks_of(world_size).run(use_own_after_foreign, own, foreign, times, way)


def use_own_foreign_own(me: Rank, own: str, foreign: str, times: int) -> None:
    workspace, step = workspace_for(me, TOKENS, timeout=10), OWN[own](me)
    for _ in range(4):
        step(workspace)
        step.check("before the foreign kernel")
    # Takes the slot and what is to be cleared from the table: right, if own operations keep it.
    FOREIGN[foreign](me, workspace, times)
    expect_refusal(workspace, step, "synchronize")


@pytest.mark.parametrize(("foreign", "times"), [("sum", 4), ("norm", 5)])
@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_foreign_operations_after_own_ones_are_right_and_own_ones_after_that_an_error(
    ranks_of, world_size, own, foreign, times
):
    ranks_of(world_size).run(use_own_foreign_own, own, foreign, times)


def use_a_graph_after_foreign(me: Rank, own: str) -> None:
    """A graph that was captured before anything foreign ran: its kernels look, not the calls that captured them."""
    workspace, step = workspace_for(me, TOKENS, timeout=10), OWN[own](me)
    step(workspace)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(workspace)
    graph.replay()
    step.check("a replay before the foreign kernel")
    sum_with_a_foreign_kernel(me, workspace, 1)
    graph.replay()
    with pytest.raises(LamportError, match=MESSAGE):
        workspace.synchronize()


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_replay_after_a_foreign_operation_is_an_error(ranks_of, world_size, own):
    ranks_of(world_size).run(use_a_graph_after_foreign, own)


def come_back_to_the_same_extent(me: Rank, foreign: int) -> None:
    """Own sum, foreign sums that leave the same slot and the same extent, own sums of other sizes."""
    workspace = workspace_for(me, TOKENS, timeout=10)
    mine = torch.full((ELEMENTS,), float(10 * (1 + me.rank)), device=me.device)
    assert bool(
        (lamport_rs.all_reduce(mine, workspace) == sum(10.0 * (1 + rank) for rank in range(me.world_size))).all()
    )
    sum_with_a_foreign_kernel(me, workspace, foreign)
    for elements in (ELEMENTS, ELEMENTS // 2, ELEMENTS // 2):
        expect_refusal(workspace, lambda to: lamport_rs.all_reduce(mine[:elements], to), "synchronize")  # noqa: B023


@pytest.mark.parametrize("foreign", [3, 6])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_foreign_sums_that_leave_the_extent_of_the_own_one_are_noticed(ranks_of, world_size, foreign):
    ranks_of(world_size).run(come_back_to_the_same_extent, foreign)
