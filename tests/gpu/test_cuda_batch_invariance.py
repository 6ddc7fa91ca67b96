"""Any batch, same bits: what else is in a batch changes nothing about a row. By every kernel variant, which the number
of rows decides."""

import pytest
from batches import COUNTS, cut_minimax_rows, cut_normed_rows, cut_summed_rows
from minimax_rows import WEIGHTS
from reductions import ALGORITHMS
from reference import DTYPES
from worlds import GROUP_SIZES, WORLD_SIZES

MOST_ELEMENTS = 90_000_000
"""Of a matrix: its float64 reference takes 8 bytes for each, several times."""
# A vector; an odd number of them; rows in registers, with one vector a thread and with two; rows that are read twice,
# with one vector a lane and with several.
WIDTHS = [8, 24, 128, 1024, 1536, 3072, 4096, 7168, 8200, 16_384, 20_000, 40_008]
PAIRS = [(8, 8), (24, 8), (768, 128), (1536, 256), (3072, 512), (4096, 1024), (6144, 1024), (8200, 520), (264, 20_000)]
by_name = {"ids": lambda value: str(value).replace("torch.", "").replace(", ", "-")}


def rows_of(width: int) -> int:
    return max(count for count in COUNTS if count * width <= MOST_ELEMENTS)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_spread_rows_are_normalised_alike_in_any_batch(ranks_of, world_size, dtype, weight_dtype, width):
    ranks_of(world_size).run(cut_minimax_rows, dtype, weight_dtype, (width,), rows_of(width))


@pytest.mark.parametrize("widths", PAIRS, **by_name)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_queries_and_keys_are_normalised_alike_in_any_batch(ranks_of, world_size, dtype, weight_dtype, widths):
    ranks_of(world_size).run(cut_minimax_rows, dtype, weight_dtype, widths, rows_of(sum(widths)))


@pytest.mark.parametrize("hidden", [8, 24, 1024, 4096, 8192, 8200, 16_392])
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_summed_rows_are_normalised_alike_in_any_batch(ranks_of, world_size, dtype, weight_dtype, hidden):
    ranks_of(world_size).run(cut_normed_rows, dtype, weight_dtype, hidden, rows_of(hidden), ALGORITHMS)


@pytest.mark.parametrize("width", [1, 7, 128, 4096])
@pytest.mark.parametrize("dtype", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_rows_are_summed_alike_in_any_batch(ranks_of, world_size, dtype, width):
    ranks_of(world_size).run(cut_summed_rows, dtype, width, rows_of(width))
