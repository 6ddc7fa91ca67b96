"""Any batch, same bits: what else is in a batch changes nothing about a row. On the host."""

import pytest
from batches import COUNTS, cut_minimax_rows, cut_normed_rows, cut_summed_rows, cuts
from minimax_rows import WEIGHTS
from reference import DTYPES

WIDTHS = [(8,), (24,), (136,), (4096,), (8, 24), (1024, 128), (128, 4104)]
by_name = {"ids": lambda value: str(value).replace("torch.", "").replace(", ", "-")}


def rows_of(width: int) -> int:
    """As many as a test has time for."""
    return max(count for count in COUNTS if count * width <= 300_000)


@pytest.mark.parametrize("widths", WIDTHS, **by_name)
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", [2, 3])
def test_spread_rows_are_normalised_alike_in_any_batch(ranks_of, world_size, dtype, weight_dtype, widths):
    ranks_of(world_size).run(cut_minimax_rows, dtype, weight_dtype, widths, rows_of(sum(widths)))


@pytest.mark.parametrize("hidden", [8, 24, 1032, 4096])
@pytest.mark.parametrize(("dtype", "weight_dtype"), WEIGHTS, **by_name)
@pytest.mark.parametrize("world_size", [2, 3])
def test_summed_rows_are_normalised_alike_in_any_batch(ranks_of, world_size, dtype, weight_dtype, hidden):
    ranks_of(world_size).run(cut_normed_rows, dtype, weight_dtype, hidden, rows_of(hidden), ["one_shot"])


@pytest.mark.parametrize("width", [1, 7, 128, 4096])
@pytest.mark.parametrize("dtype", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", [2, 3])
def test_rows_are_summed_alike_in_any_batch(ranks_of, world_size, dtype, width):
    ranks_of(world_size).run(cut_summed_rows, dtype, width, rows_of(width))


def test_the_batches_are_of_every_size_and_from_every_place():
    batches = list(cuts(2049))
    assert {batch.stop - batch.start for batch in batches} == set(COUNTS)
    assert {batch.start for batch in batches if batch.stop - batch.start == 1} == {0, 682, 1024, 2048}
    assert {batch.stop - batch.start for batch in cuts(33, 3)} == {3, 7, 8, 33}
