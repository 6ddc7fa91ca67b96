"""all_reduce_quant on the host: bit for bit what the formats' definitions make of the sum."""

from types import SimpleNamespace

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from quantised_rows import (
    FORMATS,
    check_quantised,
    empty_quantised_rows,
    empty_scales,
    scale_for,
    scales_in_memory,
)
from quantised_sums import leave_nan_after_a_fault, quantise_alone_and_in_a_batch, quantise_shapes
from ranks import Rank, ThreadRanks
from reference import check_same_bits

SHAPES = [(1, 128), (5, 256), (2, 3, 384), (33, 1024), (128,), (0, 128), (5, 4096)]
"""The last are wider than HELD_COLUMNS."""
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **by_name)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sums_are_quantised_as_the_format_is_defined(ranks_of, world_size, dtype, quant_format):
    results = ranks_of(world_size).run(quantise_shapes, quant_format, dtype, SHAPES)
    assert all(each == results[0] for each in results)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_what_a_fault_leaves_is_nan(quant_format):
    ThreadRanks(2).run(leave_nan_after_a_fault, quant_format)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of, quant_format):
    ranks_of(2).run(quantise_alone_and_in_a_batch, quant_format, 9, 384)


def agree_with_the_sum(me: Rank, quant_format: str) -> None:
    """More than the slots hold: in pieces, and as the sum alone has it."""
    workspace = me.workspace(4096)
    rows = torch.randn(70, 640, generator=torch.Generator().manual_seed(me.rank)).bfloat16()
    scale = scale_for(me, quant_format)
    out, scales, summed = lamport_rs.all_reduce_quant(rows, workspace, quant_format, scale, with_sum=True)
    check_same_bits(summed, lamport_rs.all_reduce(rows, workspace), quant_format)
    check_quantised(out, scales, summed, quant_format, "of more than the slots hold", scale)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_rows_may_be_more_than_the_slots_hold(ranks_of, quant_format):
    ranks_of(2).run(agree_with_the_sum, quant_format)


def compile_it(me: Rank, quant_format: str) -> None:
    workspace = me.workspace()
    scale = scale_for(me, quant_format)

    def step(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return lamport_rs.all_reduce_quant(rows, workspace.workspace, quant_format, scale, with_sum=True)

    compiled = torch.compile(step, backend="aot_eager")
    for hidden in (256, 4096):
        rows = torch.randn(4, hidden, generator=torch.Generator().manual_seed(me.rank)).bfloat16()
        out, scales, summed = compiled(rows)
        check_same_bits(summed, step(rows)[2], "compiled")
        check_quantised(out, scales, summed, quant_format, "compiled", scale)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_it_compiles(ranks_of, quant_format):
    ranks_of(2).run(compile_it, quant_format)


def quantise_what_lies_otherwise(me: Rank, quant_format: str) -> None:
    """Not contiguous, not aligned: what takes its place is copied, and column-major scales stay where they are."""
    workspace = me.workspace()
    rows = torch.randn(5, 256, generator=torch.Generator().manual_seed(me.rank)).half()
    arguments = (workspace, quant_format, scale_for(me, quant_format))
    expected = lamport_rs.all_reduce_quant(rows, *arguments, with_sum=True)
    sliced = torch.zeros(5, 300).half()[:, 7:263].copy_(rows)
    definition = FORMATS[quant_format]
    codes = empty_quantised_rows(quant_format, (5, 256), me.device)
    places = {"out": codes.T.contiguous().T, "sum_out": torch.empty(256, 5).half().T}
    if definition.layout == "row_major":
        places["scale_out"] = torch.empty_like(expected[1].T.contiguous()).T
    elif definition.group is not None:
        places["scale_out"] = empty_scales(quant_format, (5, 256), me.device)
    found = lamport_rs.all_reduce_quant(sliced, *arguments, **places)
    for name, place in places.items():
        assert any(each is place for each in found), f"{name} is not what was returned"
    for at in (0, 2):
        assert torch.equal(found[at].float(), expected[at].float())
    if definition.group is not None:
        its, own = (
            scales_in_memory(each.contiguous() if definition.layout == "row_major" else each, quant_format, (5, 256))
            for each in (found[1], expected[1])
        )
        assert torch.equal(its, own)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_operands_may_lie_otherwise(ranks_of, quant_format):
    ranks_of(2).run(quantise_what_lies_otherwise, quant_format)


def refuse(me: Rank) -> None:
    workspace = me.workspace()
    rows, scale, memory = torch.ones(2, 192).half(), torch.ones(1), torch.ones(4, 192).half()
    codes = memory.view(-1).view(torch.float8_e4m3fn)
    refused = [
        (rows, "fp4", None, {}, "quant_format"),
        (rows, "fp8_static", None, {}, "needs a scale"),
        (rows, "fp8_token", scale, {}, "takes none"),
        (rows, "fp8_group", None, {}, "multiple of 128"),
        (rows, "fp8_group_ue8m0", None, {}, "multiple of 128"),
        (rows, "mxfp8_swizzled", None, {}, "multiple of 128"),
        (rows[:, :8], "nvfp4", scale, {}, "multiple of 16"),
        (rows, "nvfp4", None, {}, "needs a scale"),
        (rows, "mxfp8", None, {"scale_out": torch.empty(2, 6)}, "must be uint8"),
        (rows.float(), "fp8_token", None, {}, "must be float16 or bfloat16"),
        (rows, "fp8_static", torch.ones(2), {}, "one element"),
        (rows, "fp8_static", scale.half(), {}, "scale is float16"),
        (rows, "fp8_token", None, {"out": torch.empty_like(rows)}, "out is float16"),
        (rows, "fp8_token", None, {"scale_out": torch.empty(2, 2)}, "scale_out has shape"),
        (rows, "fp8_static", scale, {"scale_out": torch.empty(1)}, "scale_out must be None"),
        (rows, "fp8_token", None, {"sum_out": torch.empty(2, 8).half()}, "sum_out has shape"),
        (rows, "fp8_token", None, {"sum_out": rows.float()}, "sum_out is float32"),
        (memory[:2], "fp8_token", None, {"sum_out": memory[1:3]}, "sum_out overlaps input in part"),
        (memory[:2], "fp8_token", None, {"out": codes[:384].view(2, 192)}, "out overlaps input"),
        (rows, "fp8_token", None, {"algorithm": "two_shot"}, "all_reduce_quant is one-shot only"),
        (rows.view(torch.int8)[0, 0], "fp8_token", None, {}, "input is torch.int8"),
        (rows[0, 0], "fp8_token", None, {}, "last dimension"),
    ]
    for given, quant_format, its_scale, options, text in refused:
        with pytest.raises(LamportError, match=text):
            lamport_rs.all_reduce_quant(given, workspace, quant_format, its_scale, **options)
    status = workspace.status()
    for quant_format in FORMATS:
        assert workspace.supports(torch.ones(2, 256).half(), "all_reduce_quant", quant_format=quant_format)
    assert workspace.supports(rows, "all_reduce_quant", quant_format="fp8_token")
    assert not workspace.supports(rows, "all_reduce_quant", quant_format="fp8_group")
    assert not workspace.supports(rows.float(), "all_reduce_quant", quant_format="fp8_token")
    workspace.prepare(rows, "all_reduce_quant", quant_format="fp8_token")
    with pytest.raises(LamportError, match="needs a format"):
        workspace.prepare(rows, "all_reduce_quant")
    lamport_rs.all_reduce_quant(rows, workspace, "fp8_token")
    operations = SimpleNamespace(before=status.operations, after=workspace.status().operations)
    assert "all_reduce_quant" not in operations.before
    assert operations.after["all_reduce_quant"] == 1


def test_what_no_format_takes_is_refused_and_says_why(ranks_of):
    ranks_of(2).run(refuse)
