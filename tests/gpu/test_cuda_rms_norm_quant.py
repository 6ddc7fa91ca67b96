"""all_reduce_rms_norm_quant on GPUs: bit for bit what the formats' definitions make of the normalised rows."""

import pytest
import torch
from quantised_rows import FORMATS, leave_nan_after_a_fault, quantise_shapes
from worlds import GROUP_SIZES

SHAPES = [(1, 128), (5, 1024), (2, 3, 384), (33, 4096), (128,), (0, 128), (9, 16384), (300, 8192)]
"""Rows that a block holds in registers, and rows that it does not."""
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_rows_are_quantised_as_the_format_is_defined(ranks_of, world_size, dtype, quant_format):
    results = ranks_of(world_size).run(quantise_shapes, quant_format, dtype, SHAPES)
    assert all(each == results[0] for each in results)


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.gpu(2)
def test_what_a_fault_leaves_is_nan(ranks_of, quant_format):
    ranks_of(2).run(leave_nan_after_a_fault, quant_format)
