"""lamport_rs itself, with the algorithm that it chooses and with each one."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

import lamport_rs
from lamport_rs.command_line.bench.arguments import COLLECTIVES, FINALISATIONS, STEPS
from lamport_rs.command_line.bench.decode_step import DecodeStep
from lamport_rs.command_line.bench.decoder import EPSILON as DECODER_EPSILON
from lamport_rs.command_line.bench.decoder import Communication, add_rms_norm
from lamport_rs.command_line.bench.implementations.base import Call, Implementation
from lamport_rs.command_line.bench.problems import (
    EPSILON,
    QUANT_FORMAT,
    AllReduce,
    AllReduceQuant,
    AllReduceRmsNorm,
    MinimaxRmsQk,
    MoeFinalize,
    Problem,
)


class Lamport(Implementation):
    """The library as it is called without asking for an algorithm."""

    name = "lamport_rs"
    backend = "any"
    operations = frozenset(COLLECTIVES + STEPS)
    rounds_once = True
    options: ClassVar[dict[str, Any]] = {}

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with outputs allocated once."""
        if isinstance(problem, AllReduce):
            return self._all_reduce(problem)
        if isinstance(problem, AllReduceRmsNorm):
            return self._rms_norm(problem)
        if isinstance(problem, AllReduceQuant):
            return self._quant(problem)
        if isinstance(problem, MoeFinalize):
            return self._finalise(problem)
        if isinstance(problem, DecodeStep):
            return Call(partial(problem.run, Communication(self._reduce_norm)))
        assert isinstance(problem, MinimaxRmsQk)
        return self._minimax(problem)

    def _all_reduce(self, problem: AllReduce) -> Call:
        tensor, workspace, options, out = problem.input, self.member.workspace, self.options, _like(problem.input)

        def run() -> tuple[torch.Tensor]:
            return (lamport_rs.all_reduce(tensor, workspace, out=out, **options),)

        return Call(run)

    def _rms_norm(self, problem: AllReduceRmsNorm) -> Call:
        operands = problem.input, problem.residual, problem.weight, self.member.workspace, EPSILON
        out, residual_out, options = _like(problem.input), _like(problem.input), self.options

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return lamport_rs.all_reduce_rms_norm(*operands, out=out, residual_out=residual_out, **options)

        return Call(run)

    def _quant(self, problem: AllReduceQuant) -> Call:
        operands = problem.input, self.member.workspace, QUANT_FORMAT
        (out, scale_out), options = (_like(expected.values) for expected in problem.expected), self.options

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return lamport_rs.all_reduce_quant(*operands, out=out, scale_out=scale_out, **options)[:2]

        return Call(run)

    def _finalise(self, problem: MoeFinalize) -> Call:
        experts, then, workspace = problem.experts, problem.then, self.member.workspace
        rows, index, weights, out = experts.rows, experts.index, experts.weights, _like(then.input)
        if isinstance(then, AllReduce):
            sum_operands = rows, index, weights, workspace, experts.shared
            return Call(lambda: (lamport_rs.moe_finalize_all_reduce(*sum_operands, out=out),))
        residual_out = _like(then.input)
        operands = rows, index, weights, then.residual, then.weight, workspace, experts.shared, EPSILON

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return lamport_rs.moe_finalize_all_reduce_rms_norm(*operands, out=out, residual_out=residual_out)

        return Call(run)

    def _minimax(self, problem: MinimaxRmsQk) -> Call:
        operands = problem.qkv, problem.q_weight, problem.k_weight, self.member.workspace
        sizes = problem.q_size, problem.kv_size, self.member.rank, self.member.world_size
        q_out, k_out = (_like(expected.values) for expected in problem.expected)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return lamport_rs.minimax_allreduce_rms_qk(*operands, *sizes, EPSILON, q_out=q_out, k_out=k_out)

        return Call(run)

    def _reduce_norm(
        self, partial_sum: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        operands = partial_sum, residual, weight, self.member.workspace, DECODER_EPSILON
        return lamport_rs.all_reduce_rms_norm(*operands, out=partial_sum, residual_out=residual)


class LamportUnfused(Lamport):
    """A step's sum, and then the norm that the others take; experts' rows finalised by torch, and then what is left."""

    name = "lamport_rs_unfused"
    operations = frozenset(FINALISATIONS + STEPS)
    rounds_once = False
    """Torch sums the rows of a token in another order."""

    def _finalise(self, problem: MoeFinalize) -> Call:
        then, workspace, finalise = problem.then, self.member.workspace, problem.experts.finalise_by_torch
        out = _like(then.input)
        if isinstance(then, AllReduce):
            return Call(lambda: (lamport_rs.all_reduce(finalise(), workspace, out=out),))
        residual_out, operands = _like(then.input), (then.residual, then.weight, workspace, EPSILON)

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            return lamport_rs.all_reduce_rms_norm(finalise(), *operands, out=out, residual_out=residual_out)

        return Call(run)

    def _reduce_norm(
        self, partial_sum: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm(
            lamport_rs.all_reduce(partial_sum, self.member.workspace, out=partial_sum), residual, weight
        )


class LamportOneShot(Lamport):
    """Every rank pushes its whole tensor to every other."""

    name = "lamport_rs_one_shot"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm", "all_reduce_quant"})
    options: ClassVar[dict[str, Any]] = {"algorithm": "one_shot"}


class LamportTwoShot(Lamport):
    """Every rank sums its part, and pushes the sum to every other."""

    name = "lamport_rs_two_shot"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm", "all_reduce_quant"})
    options: ClassVar[dict[str, Any]] = {"algorithm": "two_shot"}


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor for results, of NaNs: what is not written does not pass for right."""
    return torch.full_like(tensor, float("nan"), memory_format=torch.contiguous_format)
