"""A workspace serves foreign kernels or the package's own operations: who mixes them gets an error, on every rank."""

import lamport_rs
import pytest
import torch
from foreign_kernel import Table, lamport_all_reduce
from lamport_rs import LamportError, _core
from minimax_rows import Operation
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import Rank, errors_of
from reductions import LayerNormedReduction, NormedReduction, QuantisedReduction, QuantisedSum, Reduction

COMM_SIZE = 1 << 20
MESSAGE = "serves either foreign kernels or the package's own"

OWN = {
    "all_reduce, one_shot": lambda me: Reduction.random(me, 3000, "one_shot"),
    "all_reduce, two_shot": lambda me: Reduction.random(me, 3000, "two_shot"),
    "all_reduce_rms_norm": lambda me: NormedReduction.random(me, 5, 512, "one_shot"),
    "all_reduce_layer_norm": lambda me: LayerNormedReduction.random(me, 5, 512, "one_shot"),
    "all_reduce_quant": lambda me: QuantisedSum.random(me, 5, 512, "one_shot"),
    "all_reduce_rms_norm_quant": lambda me: QuantisedReduction.random(me, 5, 512, "one_shot"),
    "moe_finalize_all_reduce": lambda me: FinalisedReduction.random(me, 5, 512),
    "moe_finalize_all_reduce_rms_norm": lambda me: FinalisedNorm.random(me, 5, 512),
    "minimax_allreduce_rms": lambda me: Operation.random(me, 33, (96,)),
    "minimax_allreduce_rms_qk": lambda me: Operation.random(me, 33, (96, 32)),
}


def test_every_operation_is_tried():
    assert {name.split(",")[0] for name in OWN} == {name for name, *_ in _core.collectives()}


def sum_with_a_foreign_kernel(me: Rank, table: Table, times: int, elements: int) -> None:
    """Every result is checked."""
    for round_ in range(times):
        total = lamport_all_reduce(table, me.rank, torch.full((elements,), float(me.rank + round_)).numpy())
        assert (total == sum(rank + round_ for rank in range(me.world_size))).all(), f"foreign sum {round_} is wrong"


def use_own_foreign_own(me: Rank, own: str, before: int, foreign: int) -> None:
    workspace = me.workspace(COMM_SIZE, timeout=10)
    table, step = Table(workspace.workspace, me.world_size), OWN[own](me)
    for _ in range(before):
        step(workspace)
        step.check("before the foreign kernel")
    sum_with_a_foreign_kernel(me, table, foreign, 100)
    with pytest.raises(LamportError, match=MESSAGE):
        step(workspace)
    step(workspace)


@pytest.mark.parametrize(("before", "foreign"), [(0, 1), (0, 3), (1, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("own", OWN)
def test_an_own_operation_after_a_foreign_one_is_an_error_on_every_rank(ranks_of, own, before, foreign):
    errors = errors_of(ranks_of(2).try_run(use_own_foreign_own, own, before, foreign))
    assert all(isinstance(error, LamportError) and MESSAGE in str(error) for error in errors), errors


def come_back_to_the_same_extent(me: Rank, foreign: int) -> None:
    """Own sum, foreign sums that leave the same slot and the same extent, own sums of other sizes."""
    workspace = me.workspace(COMM_SIZE, timeout=10)
    table = Table(workspace.workspace, me.world_size)
    total = lamport_rs.all_reduce(torch.full((160,), float(me.rank)), workspace)
    assert (total == float(sum(range(me.world_size)))).all()
    sum_with_a_foreign_kernel(me, table, foreign, 160)
    for elements in (160, 80, 80):
        with pytest.raises(LamportError, match=MESSAGE):
            lamport_rs.all_reduce(torch.ones(elements), workspace)


@pytest.mark.parametrize("foreign", [3, 6])
@pytest.mark.parametrize("world_size", [2, 3])
def test_foreign_sums_that_leave_the_extent_of_the_own_one_are_noticed(ranks_of, world_size, foreign):
    outcomes = ranks_of(world_size).run(come_back_to_the_same_extent, foreign)
    assert outcomes == [None] * world_size
