"""Rows of zeros, subnormals, infinities and NaN on the host; `tests/gpu/test_cuda_special_values.py` has the GPUs'."""

import pytest
from minimax_rows import WEIGHTS
from special_rows import normalise_special_rows, normalise_special_sums


@pytest.mark.parametrize("widths", [(64,), (64, 64)], ids=str)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, ids=str)
def test_special_values_give_what_float32_gives(ranks_of, dtype, weight_dtype, widths):
    ranks_of(2).run(normalise_special_rows, dtype, weight_dtype, widths)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, ids=str)
def test_special_values_in_sums_give_what_float32_gives(ranks_of, world_size, dtype, weight_dtype):
    ranks_of(world_size).run(normalise_special_sums, dtype, weight_dtype, 64, ["one_shot"])
