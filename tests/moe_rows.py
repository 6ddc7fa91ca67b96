"""Rows of experts: what each rank's are, and what finalisation makes of them; for the tests of both backends."""

from __future__ import annotations

from dataclasses import dataclass

import lamport_rs
import pytest
import torch
from minimax_rows import WEIGHTS
from ranks import Rank
from reference import (
    check_rounding,
    check_same_bits,
    digest,
    random_tensor,
    rms_norm_of_rows,
    rounded_sum,
    rounded_sum_with,
)

EPS = 1e-5
DTYPES = [pair for pair in WEIGHTS if pair[0] != torch.float32]
"""Of the rows, and of the experts' weights."""


@dataclass
class Experts:
    """A rank's operands, by the operations' names for them, but for the norm's."""

    expert_rows: torch.Tensor
    row_index: torch.Tensor
    expert_weights: torch.Tensor
    shared_rows: torch.Tensor | None

    @classmethod
    def of_rank(
        cls, rank: int, shape: tuple[int, ...], k: int, dtypes: tuple[torch.dtype, torch.dtype], seed: int
    ) -> Experts:
        """Rank `rank`'s, for tokens' rows of `shape`: any rank can make them. Ranks differ in all that they may.

        Rank 2 has no rows. Where nothing is added, the weight is NaN.
        """
        dtype, weight_dtype = dtypes
        generator = torch.Generator().manual_seed(100 * seed + rank)
        k, count = k + rank % 2, 0 if rank == 2 else 5 + rank
        index = torch.randint(-1, max(count, 1), (*shape[:-1], k), generator=generator, dtype=torch.int32)
        index = index if count else index.fill_(-1)
        weights = random_tensor(index.shape, weight_dtype, seed, rank, 1)
        return cls(
            random_tensor((count, shape[-1]), dtype, seed, rank, 2),
            index,
            weights.masked_fill_(index == -1, torch.nan),
            None if rank == 1 else random_tensor(shape, dtype, seed, rank, 3),
        )

    def to(self, device: torch.device) -> Experts:
        """The same on a device."""
        shared = self.shared_rows
        places = (each.to(device) for each in (self.expert_rows, self.row_index, self.expert_weights))
        return Experts(*places, None if shared is None else shared.to(device))

    def part(self, tokens: slice) -> Experts:
        """Those of some tokens, of two dimensions."""
        shared = None if self.shared_rows is None else self.shared_rows[tokens].clone()
        return Experts(self.expert_rows, self.row_index[tokens].clone(), self.expert_weights[tokens].clone(), shared)

    def first(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The first three arguments."""
        return self.expert_rows, self.row_index, self.expert_weights

    def exact(self) -> torch.Tensor:
        """The finalised rows in float64."""
        return self._sum(torch.float64)

    def finalised(self) -> torch.Tensor:
        """What an operation of its own would have left, which accumulates in float32."""
        return self._sum(torch.float32).to(self.expert_rows.dtype)

    def _sum(self, dtype: torch.dtype) -> torch.Tensor:
        (count, hidden), (*tokens, k) = self.expert_rows.shape, self.row_index.shape
        total = torch.zeros((*tokens, hidden), dtype=dtype)
        rows, weights = self.expert_rows.to(dtype), self.expert_weights.to(dtype).view(-1, k)
        for row, indices, its_weights in zip(total.view(-1, hidden), self.row_index.view(-1, k), weights, strict=True):
            for index, weight in zip(indices.tolist(), its_weights, strict=True):
                if 0 <= index < count:
                    row += weight * rows[index]
                elif index != -1:
                    row.fill_(torch.nan)
        return total if self.shared_rows is None else total + self.shared_rows.to(dtype)


def room(me: Rank, most_bytes: int = 1 << 18) -> int:
    """A `comm_size` for rows of so many bytes."""
    return lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(most_bytes, me.world_size)


def finalise_shapes(me: Rank, dtypes: tuple[torch.dtype, torch.dtype], shapes: list[tuple[int, ...]]) -> list[str]:
    """Both operations, called in every way; what all ranks must have in common."""
    workspace = me.workspace(room(me))
    table, digests = workspace.workspace, []
    for seed, shape in enumerate(shapes):
        of_ranks = [Experts.of_rank(rank, shape, 1 + 3 * (seed % 4), dtypes, seed) for rank in range(me.world_size)]
        rows, own = [each.finalised().to(me.device) for each in of_ranks], of_ranks[me.rank].to(me.device)
        residual = random_tensor(shape, dtypes[0], seed, 100).to(me.device)
        weight = random_tensor(shape[-1:], dtypes[seed % 2], seed, 101).to(me.device)
        what, shared, operators = f"{shape} {dtypes}", own.shared_rows, torch.ops.lamport_rs

        total = rounded_sum(rows)
        out = torch.full_like(total, torch.nan)
        found = lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, shared, out=out)
        assert found is out, "out is not what was returned"
        allocated = lamport_rs.moe_finalize_all_reduce(*own.first(), table, shared)
        for each in (found, allocated, operators.moe_finalize_all_reduce(*own.first(), table, shared)):
            check_same_bits(each, total, f"the sum of {what}")

        summed = rounded_sum_with(residual, rows)
        arguments = (weight, workspace, shared, EPS, 0.5)
        norm = lamport_rs.moe_finalize_all_reduce_rms_norm(*own.first(), residual, *arguments)
        check_same_bits(norm[1], summed, f"residual_out of {what}")
        check_rounding(norm[0], rms_norm_of_rows(summed, weight, EPS, 0.5), f"out of {what}")
        operator = operators.moe_finalize_all_reduce_rms_norm(*own.first(), residual, weight, table, shared, EPS, 0.5)
        places = {"out": torch.full_like(total, torch.nan), "residual_out": residual.clone()}
        in_place = lamport_rs.moe_finalize_all_reduce_rms_norm(
            *own.first(), places["residual_out"], *arguments, **places
        )
        for index, (name, place) in enumerate(places.items()):
            assert in_place[index] is place, f"{name} is not what was returned"
            check_same_bits(operator[index], norm[index], f"{name} of the operator, {what}")
            check_same_bits(place, norm[index], f"{name} in place, {what}")
        alone = lamport_rs.moe_finalize_all_reduce_rms_norm(*own.first(), None, weight, workspace, shared)
        check_same_bits(alone[1], total, f"residual_out without a residual, {what}")
        digests.append(digest(total, *norm))
    return digests


def finalise_alone_and_in_a_batch(me: Rank, tokens: int, hidden: int, k: int) -> None:
    """A row's bits do not depend on the other rows."""
    workspace = me.workspace(room(me))
    dtypes = torch.bfloat16, torch.float32
    own = Experts.of_rank(me.rank, (tokens, hidden), k, dtypes, 7).to(me.device)
    residual, weight = (random_tensor(shape, dtypes[0], 8).to(me.device) for shape in ((tokens, hidden), (hidden,)))
    total = lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, own.shared_rows)
    out, residual_out = lamport_rs.moe_finalize_all_reduce_rms_norm(
        *own.first(), residual, weight, workspace, own.shared_rows
    )
    for count in (1, 2, 5, 33):
        for first in range(0, min(tokens, 4 * count), count):
            few = slice(first, first + count)
            some, what = own.part(few), f"rows {few} of {tokens}"
            part = lamport_rs.moe_finalize_all_reduce(*some.first(), workspace, some.shared_rows)
            check_same_bits(part, total[few], f"the sum, {what}")
            norm = lamport_rs.moe_finalize_all_reduce_rms_norm(
                *some.first(), residual[few], weight, workspace, some.shared_rows
            )
            check_same_bits(norm[0], out[few], f"out, {what}")
            check_same_bits(norm[1], residual_out[few], f"residual_out, {what}")


def finalise_numbers_that_are_none(me: Rank) -> None:
    """A number of no row makes the token's row NaN on all ranks, and no other."""
    workspace = me.workspace(room(me))
    for hidden in (64, 16448):
        for number in (4, 5, -2, 2**31 - 1, -(2**31)):
            rows = torch.ones(4, hidden, dtype=torch.float16, device=me.device)
            index = torch.tensor([[0, 1], [2, number if me.rank == 0 else -1], [-1, 3]], dtype=torch.int32)
            weights = torch.ones(3, 2, device=me.device)
            found = lamport_rs.moe_finalize_all_reduce(rows, index.to(me.device), weights, workspace)
            one = torch.ones(hidden, dtype=torch.float16, device=me.device)
            expected = torch.stack([2 * one, torch.nan * one, one]) * me.world_size
            check_same_bits(found, expected, f"{number} of {hidden} columns")
            norm = lamport_rs.moe_finalize_all_reduce_rms_norm(rows, index.to(me.device), weights, None, one, workspace)
            check_same_bits(norm[1], expected, f"norm, {number} of {hidden} columns")
            assert norm[0].isnan().all(dim=-1).tolist() == [False, True, False]


def leave_nan_after_a_fault(me: Rank) -> None:
    """Rank 1 does not come: what is left is NaN."""
    workspace = me.workspace(1 << 20, kept=True, timeout=1.0)
    if me.rank == 1:
        return
    own = Experts.of_rank(0, (4, 256), 2, (torch.bfloat16, torch.float32), 0).to(me.device)
    places = {name: torch.zeros(4, 256, dtype=torch.bfloat16, device=me.device) for name in ("out", "residual_out")}
    alone = torch.zeros_like(places["out"])

    def call() -> None:
        weight = torch.ones(256, device=me.device)
        lamport_rs.moe_finalize_all_reduce_rms_norm(*own.first(), None, weight, workspace, own.shared_rows, **places)
        workspace.synchronize()

    with pytest.raises(lamport_rs.LamportTimeoutError) as raised:
        call()
    assert raised.value.missing_ranks == (1,)
    if me.device.type == "cpu":
        with pytest.raises(lamport_rs.LamportError, match="reset"):
            lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, own.shared_rows, out=alone)
        assert bool(alone.isnan().all()), "out of the sum is not NaN"
    for name, place in places.items():
        assert bool(place.isnan().all()), f"{name} is not NaN"
