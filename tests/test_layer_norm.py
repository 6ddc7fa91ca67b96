"""all_reduce_layer_norm on the host: the exact sum with the residual, and its layer norm within a rounding."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from lamport_rs.operations.layer_norm import layer_normalise_sum
from layer_norm_rows import (
    DTYPES,
    EPS,
    leave_nan_after_a_fault,
    normalise_alone_and_in_a_batch,
    normalise_more_than_the_slots_hold,
    normalise_shapes,
    operands,
)
from ranks import Rank, ThreadRanks
from reference import check_layer_norm, check_same_bits, rounded_sum_with

SHAPES = [(1, 8), (5, 64), (3, 7, 40), (33, 1024), (16,), (0, 8), (3, 18432)]
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, **by_name)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sum_is_exact_and_norm_is_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype):
    digests = ranks_of(world_size).run(normalise_shapes, dtype, weight_dtype, SHAPES)
    assert all(each == digests[0] for each in digests)


def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of):
    ranks_of(2).run(normalise_alone_and_in_a_batch, 40, 384)


def test_rows_may_be_more_than_the_slots_hold(ranks_of):
    ranks_of(2).run(normalise_more_than_the_slots_hold)


def test_what_a_fault_leaves_is_nan():
    ThreadRanks(2).run(leave_nan_after_a_fault)


@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, **by_name)
def test_torch_normalises_the_sum_of_one_rank(dtype, weight_dtype):
    """What a group of one on a GPU does, here on the CPU."""
    me = ThreadRanks(1).member(0)
    for shape in SHAPES:
        (rows,), residual, weight, bias = operands(me, shape, dtype, weight_dtype, 1)
        for added, biases in ((residual, bias), (None, None)):
            out, summed = torch.empty_like(rows), torch.empty_like(rows)
            layer_normalise_sum(rows, added, weight, biases, EPS, out, summed)
            check_layer_norm(out, summed, weight, biases, EPS, f"{shape}")
            if added is not None:
                check_same_bits(summed, rounded_sum_with(residual, [rows]), f"{shape}")


def compile_it(me: Rank) -> None:
    workspace = me.workspace()
    weight, bias = torch.rand(256).bfloat16(), torch.rand(256).bfloat16()

    def step(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out, summed = lamport_rs.all_reduce_layer_norm(rows + 1, rows, weight, workspace.workspace, bias)
        return out * 2, summed

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(me.rank)).bfloat16()
    for found, expected in zip(compiled(rows), step(rows), strict=True):
        check_same_bits(found, expected, "compiled")


def test_it_compiles(ranks_of):
    ranks_of(2).run(compile_it)


def normalise_what_lies_otherwise(me: Rank) -> None:
    workspace = me.workspace()
    (own, *others), residual, weight, bias = operands(me, (5, 256), torch.float16, torch.float32, 4)
    rows = [own, *others][me.rank]
    expected = lamport_rs.all_reduce_layer_norm(rows, residual, weight, workspace, bias)
    sliced, spread = torch.zeros(5, 300).half()[:, 7:263].copy_(rows), torch.zeros(512)[::2].copy_(bias)
    places = {name: torch.empty(256, 5).half().T for name in ("out", "residual_out")}
    found = lamport_rs.all_reduce_layer_norm(sliced, residual.T.contiguous().T, weight, workspace, spread, **places)
    for at, name in enumerate(places):
        assert found[at] is places[name]
        check_same_bits(found[at], expected[at], name)


def test_operands_may_lie_otherwise(ranks_of):
    ranks_of(2).run(normalise_what_lies_otherwise)


def refuse(me: Rank) -> None:
    workspace = me.workspace()
    rows, weight = torch.ones(2, 64).half(), torch.ones(64)
    memory = torch.ones(2 * 64).half()
    refused = [
        (rows.float(), weight, {}, "input is float32, but must be float16 or bfloat16"),
        (rows, weight, {"bias": weight.half()}, "bias is float16"),
        (rows, weight.half(), {"bias": weight}, "bias is float32"),
        (rows, weight, {"bias": weight[:8]}, "bias has shape"),
        (rows, weight.bfloat16(), {}, "weight is bfloat16"),
        (rows[:, :60], weight[:60], {}, "multiple of 8"),
        (rows, weight, {"eps": -1.0}, "eps is -1"),
        (rows, weight, {"algorithm": "two_shot"}, "all_reduce_layer_norm is one-shot only"),
        (rows, weight.half(), {"bias": memory[:64], "out": memory.view(2, 64)}, "out overlaps bias"),
        (rows, weight.half(), {"bias": memory[64:], "residual_out": memory.view(2, 64)}, "residual_out overlaps bias"),
        (rows, weight, {"bias": weight.to("meta")}, "bias"),
    ]
    for given, its_weight, options, text in refused:
        with pytest.raises(LamportError, match=text):
            lamport_rs.all_reduce_layer_norm(given, None, its_weight, workspace, **options)
    assert workspace.supports(rows, "all_reduce_layer_norm", weight_dtype=torch.float32)
    assert not workspace.supports(rows.float(), "all_reduce_layer_norm")
    assert not workspace.supports(rows, "all_reduce_layer_norm", algorithm="two_shot")
    workspace.prepare(rows, "all_reduce_layer_norm")


def test_what_it_does_not_take_is_refused_and_says_why(ranks_of):
    ranks_of(2).run(refuse)
