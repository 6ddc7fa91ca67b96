"""Batches cut out of a larger one: a row's result must have the same bits in each, and alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reductions import ALGORITHMS, NormedReduction, Reduction, comm_size_for

COUNTS = [1, 2, 3, 7, 8, 33, 128, 500, 1024, 2049]
"""Rows of a batch."""


def cuts(rows: int, fewest: int = 1) -> Iterator[slice]:
    """Batches of few rows and many, from the beginning, from within and from the end of `rows` rows."""
    for count in COUNTS:
        if fewest <= count <= rows:
            left = rows - count
            for start in sorted({0, left // 3, left // 2, left}):
                yield slice(start, start + count)


def describe(cut: slice, rows: int) -> str:
    return f"rows {cut.start} to {cut.stop} of {rows}"


def cut_minimax_rows(me: Rank, dtype, weight_dtype, widths: tuple[int, ...], rows: int) -> None:
    """A matrix has the same result without the other, too."""
    workspace = workspace_for(me, rows)
    whole = Operation.random(me, rows, widths, dtype, weight_dtype, seed=5)
    whole.poison()
    expected = whole(workspace)
    whole.check("the whole")
    for cut in cuts(rows):
        outs = [torch.empty_like(out[cut]) for out in expected]
        batch = replace(whole, rows=whole.rows[cut], outs=outs)
        batch.poison()
        batch(workspace)
        batch.check_against([out[cut] for out in expected], describe(cut, rows))
    for part, weight, width, out in zip(whole.rows.split(widths, -1), whole.weights, widths, expected, strict=True):
        single = Operation(me, part, [weight], (width,), [torch.empty_like(out)])
        single.poison()
        single(workspace)
        single.check_against([out], "on its own")


def cut_normed_rows(me: Rank, dtype, weight_dtype, hidden: int, rows: int, algorithms: list[str]) -> None:
    workspace = me.workspace(comm_size_for(me, rows * hidden * dtype.itemsize))
    whole = NormedReduction.random(me, rows, hidden, "one_shot", dtype, weight_dtype, seed=6)
    whole.poison()
    expected = whole(workspace)
    whole.check("the whole")
    for algorithm in algorithms:
        # Two-shot deals out whole rows, and wants one for each rank.
        for cut in cuts(rows, me.world_size if algorithm == "two_shot" else 1):
            out, residual_out = (torch.empty_like(each[cut]) for each in expected)
            batch = replace(
                whole,
                rows=whole.rows[cut],
                residual=whole.residual[cut],
                out=out,
                residual_out=residual_out,
                algorithm=algorithm,
            )
            batch.poison()
            batch(workspace)
            batch.check_against([each[cut] for each in expected], describe(cut, rows))


def cut_summed_rows(me: Rank, dtype, width: int, rows: int) -> None:
    """A sum knows no rows, so these may be of any width."""
    workspace = me.workspace(comm_size_for(me, rows * width * dtype.itemsize))
    whole = Reduction.random(me, rows * width, "one_shot", dtype, seed=7)
    # Zeros of both signs on every rank, beside each other and beside others: of odd rows some share a word in one batch
    # that do not in another.
    whole.rows[::5], whole.rows[1::5] = -0.0, 0.0
    whole.poison()
    (expected,) = whole(workspace)
    whole.check("the whole")
    for algorithm in ALGORITHMS:
        for cut in cuts(rows):
            elements = slice(cut.start * width, cut.stop * width)
            # A copy, because tensors begin at multiples of 16 bytes.
            own = whole.rows[elements].clone()
            batch = replace(whole, rows=own, out=torch.empty_like(own), algorithm=algorithm)
            batch.poison()
            batch(workspace)
            batch.check_against([expected[elements]], describe(cut, rows))
