"""Rows of zeros, subnormals, infinities and NaN, normalised: what float32 makes of them, and nothing beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reductions import NormedReduction, comm_size_for, gathered
from reference import check_same_bits, rounded_sum_with


def special_rows(me: Rank, dtype: torch.dtype, width: int) -> torch.Tensor:
    """One kind per row; between them ordinary ones, which nothing may change."""
    rows = Operation.random(me, 24, (width,), dtype, seed=3).rows
    limits = torch.finfo(dtype)
    rows[1] = 0.0
    rows[3] = -0.0
    rows[5, 7] = torch.inf if me.rank == me.world_size - 1 else 1.0
    rows[7, 0] = torch.nan if me.rank == 0 else 1.0
    if me.rank == 0:
        rows[9, 1], rows[9, width - 1] = torch.inf, -torch.inf
        rows[11] = 0.0
    # In float32 and bfloat16 the squares vanish.
    rows[13] = rows[13].sign() * limits.tiny * limits.eps
    rows[15] = rows[15].sign() * limits.tiny
    # In float32 and bfloat16 the squares overflow.
    rows[17] = rows[17].sign() * limits.max
    rows[19] = 0.0
    rows[19, 3] = -limits.tiny * limits.eps if me.rank == 0 else 0.0
    rows[21] = torch.nan
    # The sums do not overflow, their squares do.
    rows[23] = rows[23].sign() * limits.max if me.rank == 0 else 0.0
    return rows


def float32_result(me: Rank, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """What torch computes in float32. A collective call."""
    own = rows.float().square().sum(-1).cpu()
    sums = [torch.empty_like(own) for _ in range(me.world_size)]
    dist.all_gather(sums, own)
    mean = sum(sums).to(me.device) / (me.world_size * rows.shape[-1])
    return (rows.float() * torch.rsqrt(mean + eps)[:, None] * weight.float()).to(rows.dtype)


def check_alike(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """NaN and infinities, with their signs, where they are expected; the rest nearly equal."""
    for row, (each, should) in enumerate(zip(found.double(), expected.double(), strict=True)):
        assert torch.equal(each.isnan(), should.isnan()), f"{what}, row {row}: NaN are not where they should be"
        finite = should.isfinite()
        assert torch.equal(each[should.isinf()], should[should.isinf()]), f"{what}, row {row}: infinities differ"
        assert bool(each[finite].isfinite().all()), f"{what}, row {row}: infinities that should not be"
        limits = torch.finfo(found.dtype)
        near = torch.allclose(each[finite], should[finite], rtol=limits.eps + 1e-5, atol=limits.tiny * limits.eps)
        assert near, f"{what}, row {row}: values differ"


def normalise_special_rows(me: Rank, dtype, weight_dtype, widths: tuple[int, ...]) -> None:
    workspace = workspace_for(me, 1024)
    rows = torch.cat([special_rows(me, dtype, width) for width in widths], dim=-1)
    for eps in (0.0, 1e-6):
        for repeats in (1, 6, 24):  # Several kernel variants, and more than one block of special rows.
            operation = Operation.random(me, 24 * repeats, widths, dtype, weight_dtype)
            operation.rows, operation.eps = rows.repeat(repeats, 1), eps
            operation.weights = [weight.abs() + 0.5 for weight in operation.weights]
            operation.poison()
            operation(workspace)
            parts = operation.rows.split(list(widths), -1)
            for part, weight, out in zip(parts, operation.weights, operation.outs, strict=True):
                expected = float32_result(me, part, weight, eps)
                check_alike(out, expected, f"{operation.describe()}, eps {eps}")
    # The slots are as if nothing had been.
    operation = Operation.random(me, 600, widths, dtype, weight_dtype)
    operation(workspace)
    operation.check("after special values")


def normalise_special_sums(me: Rank, dtype, weight_dtype, hidden: int, algorithms: Sequence[str]) -> None:
    """The special rows are summed over the ranks; a residual is added to the ordinary ones."""
    workspace = me.workspace(comm_size_for(me, 6 * 24 * hidden * dtype.itemsize))
    own = special_rows(me, dtype, hidden)
    everybodys = gathered(me, own)
    for algorithm in algorithms:
        for eps in (0.0, 1e-6):
            for repeats in (1, 6):
                operation = NormedReduction.random(me, 24 * repeats, hidden, algorithm, dtype, weight_dtype, 4)
                operation.rows, operation.eps = own.repeat(repeats, 1), eps
                operation.weight = operation.weight.abs() + 0.5
                operation.residual[1::2] = 0.0
                operation.poison()
                operation(workspace)
                what = f"{operation.describe()}, eps {eps}"
                rows = rounded_sum_with(operation.residual, [each.repeat(repeats, 1) for each in everybodys])
                check_same_bits(operation.residual_out, rows, f"residual_out, {what}")
                scale = torch.rsqrt(rows.float().square().mean(-1, keepdim=True) + eps)
                expected = (rows.float() * scale * operation.weight.float()).to(dtype)
                check_alike(operation.out, expected, f"out, {what}")
        operation = NormedReduction.random(me, 100, hidden, algorithm, dtype, weight_dtype)
        operation(workspace)
        operation.check("after special values")
