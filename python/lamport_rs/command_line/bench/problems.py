"""Operands with fresh random numbers, and what the result must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lamport_rs.command_line.bench.cases import EXPERTS_PER_TOKEN, KV_SIZE, Q_SIZE, Case
from lamport_rs.command_line.bench.member import Member, rank_sum, shared
from lamport_rs.operations.layer_norm import layer_normalise_sum
from lamport_rs.operations.quant_formats import QuantFormat, empty_quantised, put_quantised
from lamport_rs.single_rank import finalise

EPSILON = 1e-6
QUANT_FORMAT: QuantFormat = "fp8_token"
"""Of sums that are quantised: what needs no scale that is known beforehand."""
_ROUNDING = {torch.float32: 1.3e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
"""By how much a sum may differ, as a part of it, if partial sums are rounded to the dtype."""


@dataclass(frozen=True)
class Expected:
    """One output by the float32 reference, rounded to the dtype."""

    values: torch.Tensor
    exact: bool
    """Whether it is nothing but a sum: whoever sums in float32, in rank order, and rounds once returns these values."""


@dataclass(frozen=True)
class Problem:
    """A case with its operands on this rank: in a subclass, which may name them as the operation does."""

    case: Case
    world_size: int
    expected: tuple[Expected, ...]

    def check(self, outputs: Sequence[torch.Tensor], rounds_once: bool) -> None:
        """Raise AssertionError unless the outputs are right.

        An implementation that sums in float32, in rank order, and rounds once (`rounds_once`) must return a sum's very
        values, and norms that are close. Others may round each partial sum to the dtype: they are given as many
        roundings of partial sums of up to eight.
        """
        for found, expected in zip(outputs, self.expected, strict=True):
            self.check_output(found, expected, rounds_once)

    def check_output(self, found: torch.Tensor, expected: Expected, rounds_once: bool) -> None:
        """Raise AssertionError unless this output is right."""
        if not rounds_once:
            absolute = self.absolute_tolerance(found.dtype)
            torch.testing.assert_close(found, expected.values, rtol=_ROUNDING[found.dtype], atol=absolute)
        elif expected.exact:
            torch.testing.assert_close(found, expected.values, rtol=0, atol=0)
        else:
            torch.testing.assert_close(found, expected.values)

    def check_dequantised(self, rows: torch.Tensor, scales: torch.Tensor) -> None:
        """Raise AssertionError unless rows of FP8 stand for about what the first two outputs do.

        What differs before it is quantised may be rounded to the other of two neighbours, which are an eighth apart.
        """
        expected_rows, expected_scales = (each.values.float() for each in self.expected[:2])
        dtype = self.case.dtype
        relative, absolute = 1 / 8 + _ROUNDING[dtype], self.absolute_tolerance(dtype)
        found = rows.float() * scales.float()
        torch.testing.assert_close(found, expected_rows * expected_scales, rtol=relative, atol=absolute)

    def absolute_tolerance(self, dtype: torch.dtype) -> float:
        """Return by how much a sum may differ that was close to 0 in the end, but not on the way."""
        return 4 * self.world_size * torch.finfo(dtype).eps


@dataclass(frozen=True)
class AllReduce(Problem):
    """Sum `input` over the ranks."""

    input: torch.Tensor


@dataclass(frozen=True)
class AllReduceRmsNorm(Problem):
    """Sum `input` over the ranks, add `residual`, and normalise. Outputs: the normalised rows, and the sum."""

    input: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class AllReduceLayerNorm(AllReduceRmsNorm):
    """Likewise by mean and variance, and add `bias` in the end."""

    bias: torch.Tensor


@dataclass(frozen=True)
class AllReduceRmsNormQuant(AllReduceRmsNorm):
    """Likewise, and quantise the rows by `QUANT_FORMAT`. Outputs: these rows, their scales, and the sum."""

    def check(self, outputs: Sequence[torch.Tensor], rounds_once: bool) -> None:
        """Raise AssertionError unless the outputs are right: the sum as in the norm, and the rows nearly."""
        rows, scales, total = outputs
        self.check_dequantised(rows, scales)
        self.check_output(total, self.expected[2], rounds_once)


@dataclass(frozen=True)
class AllReduceQuant(Problem):
    """Sum `input` over the ranks, and quantise the rows by `QUANT_FORMAT`. Outputs: these rows, and their scales."""

    input: torch.Tensor

    def check(self, outputs: Sequence[torch.Tensor], rounds_once: bool) -> None:
        """Raise AssertionError unless the outputs are right.

        Of an implementation that rounds once they must be the very values. Of others the rows that they stand for are
        compared.
        """
        rows, scales = outputs
        if rounds_once:
            for found, expected in zip(outputs, self.expected, strict=True):
                torch.testing.assert_close(found.float(), expected.values.float(), rtol=0, atol=0)
        else:
            self.check_dequantised(rows, scales)


@dataclass(frozen=True)
class Experts:
    """The operands of a finalisation: each token has `EXPERTS_PER_TOKEN` rows of its own, in any order."""

    rows: torch.Tensor
    index: torch.Tensor
    weights: torch.Tensor
    shared: torch.Tensor

    def finalise_by_torch(self) -> torch.Tensor:
        """Return the tokens' rows by a gather and a batch of products, which sum in an order of their own."""
        gathered = self.rows.index_select(0, self.index.view(-1)).view(*self.index.shape, -1)
        return torch.baddbmm(self.shared.unsqueeze(1), self.weights.unsqueeze(1), gathered).squeeze(1)


@dataclass(frozen=True)
class MoeFinalize(Problem):
    """Finalise the rows of `experts`, and then do what is to be done. Outputs: those of the latter."""

    experts: Experts
    then: AllReduce | AllReduceRmsNorm
    """Of the rows by the reference."""


@dataclass(frozen=True)
class MinimaxRms(Problem):
    """Normalise this rank's columns by the whole rows. Outputs: the normalised columns."""

    input: torch.Tensor
    norm_weight: torch.Tensor


@dataclass(frozen=True)
class MinimaxRmsQk(Problem):
    """Normalise this rank's columns of Q and of K by the whole rows. Outputs: Q, K."""

    qkv: torch.Tensor
    q_weight: torch.Tensor
    k_weight: torch.Tensor

    @property
    def q_size(self) -> int:
        """This rank's columns of Q."""
        return len(self.q_weight)

    @property
    def kv_size(self) -> int:
        """This rank's columns of K."""
        return len(self.k_weight)


def pose(case: Case, member: Member) -> Problem:
    """Return the case's problem. Collective."""
    create = {
        "all_reduce": _all_reduce,
        "all_reduce_rms_norm": _rms_norm,
        "all_reduce_rms_norm_quant": _rms_norm_quant,
        "all_reduce_layer_norm": _layer_norm,
        "all_reduce_quant": _quant,
        "moe_finalize_all_reduce": _finalise,
        "moe_finalize_all_reduce_rms_norm": _finalise,
        "minimax_allreduce_rms": _minimax,
        "minimax_allreduce_rms_qk": _minimax_qk,
    }
    return create[case.op](case, member.device, member.world_size)


def normalise(rows: torch.Tensor, mean_square: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the rows over their root mean square, times the weight, in float32."""
    return rows.float() * torch.rsqrt(mean_square + EPSILON) * weight


def _all_reduce(case: Case, device: torch.device, world_size: int) -> Problem:
    assert case.bytes is not None
    return _sum_of(torch.randn(case.bytes // case.dtype.itemsize, device=device).to(case.dtype), case, world_size)


def _sum_of(tensor: torch.Tensor, case: Case, world_size: int) -> AllReduce:
    return AllReduce(case, world_size, (Expected(rank_sum(tensor).to(case.dtype), exact=True),), tensor)


def _rows(case: Case, device: torch.device) -> torch.Tensor:
    assert case.tokens is not None
    assert isinstance(case.hidden, int)
    return torch.randn(case.tokens, case.hidden, device=device).to(case.dtype)


def _rms_norm(case: Case, device: torch.device, world_size: int) -> AllReduceRmsNorm:
    return _norm_of(_rows(case, device), case, world_size)


def _residual_and_weight(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return shared(torch.randn_like(tensor)), shared(1 + 0.1 * torch.randn_like(tensor[0]))


def _norm_of(tensor: torch.Tensor, case: Case, world_size: int) -> AllReduceRmsNorm:
    residual, weight = _residual_and_weight(tensor)
    total = rank_sum(tensor) + residual.float()
    normalised = normalise(total, total.square().mean(-1, keepdim=True), weight)
    expected = Expected(normalised.to(case.dtype), exact=False), Expected(total.to(case.dtype), exact=True)
    return AllReduceRmsNorm(case, world_size, expected, tensor, residual, weight)


def _layer_norm(case: Case, device: torch.device, world_size: int) -> AllReduceLayerNorm:
    tensor = _rows(case, device)
    residual, weight = _residual_and_weight(tensor)
    bias = shared(torch.randn_like(weight))
    out, total = torch.empty_like(tensor), torch.empty_like(tensor)
    layer_normalise_sum(rank_sum(tensor), residual, weight, bias, EPSILON, out, total)
    expected = Expected(out, exact=False), Expected(total, exact=True)
    return AllReduceLayerNorm(case, world_size, expected, tensor, residual, weight, bias)


def _rms_norm_quant(case: Case, device: torch.device, world_size: int) -> AllReduceRmsNormQuant:
    norm = _rms_norm(case, device, world_size)
    normalised, total = norm.expected
    expected = (*_quantised(normalised.values, exact=False), total)
    return AllReduceRmsNormQuant(case, world_size, expected, norm.input, norm.residual, norm.weight)


def _quant(case: Case, device: torch.device, world_size: int) -> AllReduceQuant:
    tensor = _rows(case, device)
    return AllReduceQuant(case, world_size, _quantised(rank_sum(tensor).to(case.dtype), exact=True), tensor)


def _quantised(values: torch.Tensor, exact: bool) -> tuple[Expected, Expected]:
    rows, scales = empty_quantised(values, QUANT_FORMAT, None)
    put_quantised(values, QUANT_FORMAT, rows, None, scales)
    return Expected(rows, exact), Expected(scales, exact)


def _finalise(case: Case, device: torch.device, world_size: int) -> MoeFinalize:
    assert case.tokens is not None
    assert isinstance(case.hidden, int)
    entries = case.tokens * EXPERTS_PER_TOKEN
    experts = Experts(
        torch.randn(entries, case.hidden, device=device).to(case.dtype),
        torch.randperm(entries, device=device, dtype=torch.int32).view(case.tokens, EXPERTS_PER_TOKEN),
        torch.rand(case.tokens, EXPERTS_PER_TOKEN, device=device).to(case.dtype),
        torch.randn(case.tokens, case.hidden, device=device).to(case.dtype),
    )
    rows = torch.empty_like(experts.shared)
    finalise(experts.rows, experts.index, experts.weights, experts.shared, rows)
    then = (_sum_of if case.op == "moe_finalize_all_reduce" else _norm_of)(rows, case, world_size)
    return MoeFinalize(case, world_size, then.expected, experts, then)


def _minimax(case: Case, device: torch.device, world_size: int) -> MinimaxRms:
    columns = torch.randn(case.tokens or 0, Q_SIZE // world_size // 8 * 8, device=device).to(case.dtype)
    weight = torch.randn_like(columns[0])
    return MinimaxRms(case, world_size, (_norm_of_columns(columns, weight, world_size),), columns, weight)


def _minimax_qk(case: Case, device: torch.device, world_size: int) -> MinimaxRmsQk:
    q_size, kv_size = (size // world_size // 8 * 8 for size in (Q_SIZE, KV_SIZE))
    qkv = torch.randn(case.tokens or 0, q_size + 2 * kv_size, device=device).to(case.dtype)
    weights = [torch.randn(size, device=device).to(case.dtype) for size in (q_size, kv_size)]
    parts = zip(qkv.split([q_size, kv_size, kv_size], dim=-1), weights, strict=False)
    expected = [_norm_of_columns(part, weight, world_size) for part, weight in parts]
    return MinimaxRmsQk(case, world_size, tuple(expected), qkv, *weights)


def _norm_of_columns(columns: torch.Tensor, weight: torch.Tensor, world_size: int) -> Expected:
    mean_square = rank_sum(columns.float().square().sum(-1, keepdim=True)) / (len(weight) * world_size)
    return Expected(normalise(columns, mean_square, weight).to(columns.dtype), exact=False)
