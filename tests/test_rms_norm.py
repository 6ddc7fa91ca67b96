"""all_reduce_rms_norm: the exact sum with the residual, and its norm within the rounding of the dtype."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    digest,
    random_tensor,
    rms_norm_of_rows,
    rounded_sum_with,
)

EPS = 1e-5
SHAPES = [(1, 8), (1, 1536), (5, 64), (3, 7, 40), (64, 1024), (16,), (0, 8), (2, 3, 4, 24), (3, 18432)]


def operands(shape, dtype, weight_dtype, world_size, seed):
    inputs = [random_tensor(shape, dtype, seed, rank) for rank in range(world_size)]
    residual = random_tensor(shape, dtype, seed, 100)
    weight = random_tensor(shape[-1:], weight_dtype, seed, 101)
    return inputs, residual, weight


def check_norm(found, inputs, residual, weight, what, weight_bias: float = 0.0) -> None:
    """The sum is exact, and rounded once; the norm is that of the rounded rows."""
    out, residual_out = found
    rows = rounded_sum_with(residual, inputs)
    check_same_bits(residual_out, rows, f"residual_out of {what}")
    check_rounding(out, rms_norm_of_rows(rows, weight, EPS, weight_bias), f"out of {what}")


def normalise_shapes(me: Rank, dtype: torch.dtype, weight_dtype: torch.dtype) -> list[str]:
    workspace = me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(1 << 18, me.world_size))
    digests = []
    for seed, shape in enumerate(SHAPES):
        inputs, residual, weight = operands(shape, dtype, weight_dtype, me.world_size, seed)
        own, what = inputs[me.rank], f"{dtype} {shape}, weight {weight_dtype}"
        found = torch.full_like(own, torch.nan), torch.full_like(own, torch.nan)
        returned = lamport_rs.all_reduce_rms_norm(
            own, residual, weight, workspace, EPS, out=found[0], residual_out=found[1]
        )
        assert returned[0] is found[0], "out is not what was returned"
        assert returned[1] is found[1], "residual_out is not what was returned"
        check_norm(found, inputs, residual, weight, what)
        allocated = lamport_rs.all_reduce_rms_norm(own, residual, weight, workspace, EPS)
        operator = torch.ops.lamport_rs.all_reduce_rms_norm(own, residual, weight, workspace.workspace, EPS)
        lamport_rs.all_reduce_rms_norm(own, residual, weight, workspace, EPS, out=own, residual_out=residual)
        for other in (allocated, operator, (own, residual)):
            check_same_bits(other[0], found[0], f"out of {what}, called otherwise")
            check_same_bits(other[1], found[1], f"residual_out of {what}, called otherwise")
        digests.append(digest(*found))
    return digests


@pytest.mark.parametrize(
    ("dtype", "weight_dtype"),
    [*((dtype, dtype) for dtype in DTYPES), *((dtype, torch.float32) for dtype in DTYPES[1:])],
)
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_sum_is_exact_and_norm_is_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype):
    digests = ranks_of(world_size).run(normalise_shapes, dtype, weight_dtype)
    assert all(each == digests[0] for each in digests)


def add_a_bias_to_the_weights(me: Rank, dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    workspace = me.workspace()
    for seed, weight_bias in enumerate((0.0, 1.0, -0.75)):
        inputs, residual, weight = operands((5, 200), dtype, weight_dtype, me.world_size, seed)
        arguments = (inputs[me.rank], residual, weight, workspace, EPS, weight_bias)
        found = lamport_rs.all_reduce_rms_norm(*arguments)
        check_norm(found, inputs, residual, weight, f"weight_bias {weight_bias}", weight_bias)
        for algorithm in ("auto", "one_shot"):
            named = lamport_rs.all_reduce_rms_norm(*arguments, algorithm=algorithm)
            table = (*arguments[:3], workspace.workspace, EPS, weight_bias, algorithm)
            for other in (named, torch.ops.lamport_rs.all_reduce_rms_norm(*table)):
                check_same_bits(other[0], found[0], f"out, {algorithm}")
                check_same_bits(other[1], found[1], f"residual_out, {algorithm}")


@pytest.mark.parametrize("weight_dtype", [torch.float16, torch.float32], ids=str)
def test_weight_bias_is_added_to_each_weight(ranks_of, weight_dtype):
    ranks_of(2).run(add_a_bias_to_the_weights, torch.float16, weight_dtype)


def alias_outputs(me: Rank) -> None:
    """Either output in the place of either input."""
    workspace = me.workspace()
    for input_name, residual_name in (("out", "residual_out"), ("residual_out", "out"), ("out", None), (None, "out")):
        inputs, residual, weight = operands((9, 72), torch.bfloat16, torch.bfloat16, me.world_size, 3)
        own = inputs[me.rank].clone()
        places = {input_name: own, residual_name: residual.clone()}
        residual_argument = places[residual_name]
        places.pop(None, None)
        found = lamport_rs.all_reduce_rms_norm(own, residual_argument, weight, workspace, EPS, **places)
        check_norm(found, inputs, residual, weight, f"{input_name} over input, {residual_name} over residual")


def test_outputs_may_take_the_place_of_inputs(ranks_of):
    ranks_of(3).run(alias_outputs)


def normalise_zeros(me: Rank) -> None:
    workspace = me.workspace()
    zeros, weight = torch.zeros(4, 16), torch.ones(16)
    out, residual_out = lamport_rs.all_reduce_rms_norm(zeros, zeros.clone(), weight, workspace, EPS)
    assert not out.any(), "the norm of zeros is not zero"
    assert not residual_out.any(), "the sum of zeros is not zero"
    default = lamport_rs.all_reduce_rms_norm(torch.full((1, 8), 1e-3), torch.zeros(1, 8), torch.ones(8), workspace)
    total = torch.full((1, 8), 1e-3) * me.world_size
    check_rounding(default[0], rms_norm_of_rows(total, torch.ones(8), 1e-6), "default eps")


def test_rows_of_zeros_stay_zeros_and_eps_has_the_usual_default(ranks_of):
    ranks_of(2).run(normalise_zeros)
