"""Rows of zeros, subnormals, infinities and NaN: what float32 arithmetic makes of them, and nothing beside them."""

import pytest
from minimax_rows import WEIGHTS
from reductions import ALGORITHMS
from special_rows import normalise_special_rows, normalise_special_sums
from worlds import GROUP_SIZES, WORLD_SIZES

WIDTHS = [(64,), (64, 64), (20_000,)]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, ids=str)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_special_values_give_what_float32_gives(ranks_of, world_size, dtype, weight_dtype, widths):
    ranks_of(world_size).run(normalise_special_rows, dtype, weight_dtype, widths)


@pytest.mark.parametrize("hidden", [64, 20_000])
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, ids=str)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_special_values_in_sums_give_what_float32_gives(ranks_of, world_size, dtype, weight_dtype, hidden):
    ranks_of(world_size).run(normalise_special_sums, dtype, weight_dtype, hidden, ALGORITHMS)
