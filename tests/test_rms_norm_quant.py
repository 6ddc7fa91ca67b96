"""all_reduce_rms_norm_quant on the host: bit for bit what the formats' definitions make of the normalised rows."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from lamport_rs.operations.quant_formats import empty_quantised, quantise
from quantised_rows import (
    EPS,
    FORMATS,
    check_quantised,
    empty_scales,
    leave_nan_after_a_fault,
    quantise_alone_and_in_a_batch,
    quantise_shapes,
    scale_for,
    scales_in_memory,
)
from ranks import Rank, ThreadRanks
from reference import random_tensor

SHAPES = [(1, 128), (5, 256), (2, 3, 384), (33, 1024), (128,), (0, 128), (3, 4096)]
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **by_name)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_are_quantised_as_the_format_is_defined(ranks_of, world_size, dtype, quant_format):
    results = ranks_of(world_size).run(quantise_shapes, quant_format, dtype, SHAPES)
    assert all(each == results[0] for each in results)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_what_a_fault_leaves_is_nan(quant_format):
    ThreadRanks(2).run(leave_nan_after_a_fault, quant_format)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of, quant_format):
    ranks_of(2).run(quantise_alone_and_in_a_batch, quant_format, 9, 384)


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **by_name)
def test_torch_quantises_rows_as_the_format_is_defined(dtype, quant_format):
    """What a group of one on a GPU does, here on the CPU."""
    given = FORMATS[quant_format].given
    scale = None if given is None else torch.tensor([given])
    for shape in SHAPES:
        rows = random_tensor(shape, dtype, 7)
        if rows.dim() == 2 and rows.shape[0] > 2:
            rows[1], rows[2, :100], rows[2, 130] = 0, 1e-7, torch.nan
            rows[0, :16] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6] * 2)
            rows[0, 16:24] *= 1000
        out, scales = empty_quantised(rows, quant_format, scale)
        quantise(rows, quant_format, out, scale, scales)
        found = scales if FORMATS[quant_format].group is not None else scale
        check_quantised(out, found, rows, quant_format, f"{quant_format} of {shape}", scale)


def compile_it(me: Rank, quant_format: str) -> None:
    workspace = me.workspace()
    rows = torch.randn(4, 256, generator=torch.Generator().manual_seed(me.rank)).bfloat16()
    weight, scale = torch.ones(256).bfloat16(), scale_for(me, quant_format)

    def step(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return lamport_rs.all_reduce_rms_norm_quant(
            rows, None, weight, workspace.workspace, quant_format, scale, EPS, with_norm=True
        )

    out, scales, _, normalised = torch.compile(step, backend="aot_eager")(rows)
    check_quantised(out, scale if scales is scale else scales, normalised, quant_format, "compiled", scale)


@pytest.mark.parametrize("quant_format", FORMATS)
def test_it_compiles(ranks_of, quant_format):
    ranks_of(2).run(compile_it, quant_format)


def quantise_what_lies_otherwise(me: Rank, quant_format: str) -> None:
    """Not contiguous, not aligned: what takes its place is copied, and column-major scales stay where they are."""
    workspace = me.workspace()
    rows, residual = (
        torch.randn(5, 256, generator=torch.Generator().manual_seed(seed)).half() for seed in (me.rank, 9)
    )
    arguments = (torch.ones(256).half(), workspace, quant_format, scale_for(me, quant_format), EPS)
    expected = lamport_rs.all_reduce_rms_norm_quant(rows, residual, *arguments, with_norm=True)
    sliced, transposed = torch.zeros(5, 300).half()[:, 7:263].copy_(rows), residual.T.contiguous().T
    definition = FORMATS[quant_format]
    places = {"out": torch.empty_like(expected[0].T.contiguous()).T, "norm_out": torch.empty(256, 5).half().T}
    if definition.layout == "row_major":
        places["scale_out"] = torch.empty_like(expected[1].T.contiguous()).T
    elif definition.group is not None:
        places["scale_out"] = empty_scales(quant_format, (5, 256), me.device)
    found = lamport_rs.all_reduce_rms_norm_quant(sliced, transposed, *arguments, **places)
    for name, place in places.items():
        assert any(each is place for each in found), f"{name} is not what was returned"
    for at in (0, 2, 3):
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


def misaligned(groups: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(128 * groups + 1, dtype=torch.uint8)[1:].view(128, groups).view(dtype)


def refuse(me: Rank) -> None:
    workspace = me.workspace()
    rows, scale = torch.ones(2, 192).half(), torch.ones(1)
    wide = torch.ones(2, 256).half()
    refused = [
        (rows, "fp4", None, {}, "quant_format"),
        (rows, "fp8_static", None, {}, "needs a scale"),
        (rows, "fp8_token", scale, {}, "takes none"),
        (rows, "fp8_group", None, {}, "multiple of 128"),
        (rows, "fp8_group_ue8m0", None, {}, "multiple of 128"),
        (wide, "fp8_group_ue8m0", None, {"scale_out": torch.empty(2, 1)}, "must be int32"),
        (
            torch.ones(2, 640).half(),
            "fp8_group_ue8m0",
            None,
            {"scale_out": torch.zeros(2, 2).int()},
            "must have strides \\[1, 4\\]",
        ),
        (rows.float(), "fp8_token", None, {}, "must be float16 or bfloat16"),
        (rows, "fp8_static", torch.ones(2), {}, "one element"),
        (rows, "fp8_static", scale.half(), {}, "scale is float16"),
        (rows, "fp8_token", None, {"out": torch.empty_like(rows)}, "out is float16"),
        (rows, "fp8_token", None, {"scale_out": torch.empty(2, 2)}, "scale_out has shape"),
        (rows, "fp8_static", scale, {"scale_out": torch.empty(1)}, "scale_out must be None"),
        (rows, "fp8_token", None, {"algorithm": "two_shot"}, "all_reduce_rms_norm_quant is one-shot only"),
        (wide, "fp8_group_column_major", None, {"scale_out": torch.empty(2, 2)}, "must have strides \\[1, 4\\]"),
        (wide, "mxfp8_swizzled", None, {"scale_out": misaligned(8, torch.uint8)}, "aligned to 4 bytes"),
        (wide, "nvfp4_swizzled", scale, {"scale_out": misaligned(16, torch.float8_e4m3fn)}, "aligned to 4 bytes"),
    ]
    for given, quant_format, its_scale, places, text in refused:
        factor = torch.ones(given.shape[-1]).to(given.dtype)
        with pytest.raises(LamportError, match=text):
            lamport_rs.all_reduce_rms_norm_quant(given, None, factor, workspace, quant_format, its_scale, EPS, **places)
    assert workspace.supports(rows, "all_reduce_rms_norm_quant", quant_format="fp8_token")
    assert not workspace.supports(rows, "all_reduce_rms_norm_quant", quant_format="fp8_group")


def test_what_no_format_takes_is_refused_and_says_why(ranks_of):
    ranks_of(2).run(refuse)
