"""lamport_rs itself, with the algorithm that it chooses and with each one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

import lamport_rs
from lamport_rs import _core
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

_OF_BOTH_ALGORITHMS = frozenset({"all_reduce", "all_reduce_rms_norm", "all_reduce_rms_norm_quant", "all_reduce_quant"})


class Lamport(Implementation):
    """The library as it is called without asking for an algorithm."""

    name = "lamport_rs"
    backend = "any"
    operations = frozenset(COLLECTIVES + STEPS)
    rounds_once = True
    options: ClassVar[dict[str, Any]] = {}

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with outputs allocated once."""
        prepare: dict[type[Problem], Callable[[Any], Call]] = {
            AllReduce: self._all_reduce,
            AllReduceRmsNorm: self._rms_norm,
            AllReduceQuant: self._quant,
            MoeFinalize: self._finalise,
            MinimaxRmsQk: self._minimax,
            DecodeStep: lambda step: Call(partial(step.run, Communication(self._reduce_norm))),
        }
        return prepare.get(type(problem), self._by_name)(problem)

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

    def _by_name(self, problem: Problem) -> Call:
        """Return the call of the case's operation, whose operands are the problem's fields of their names."""
        name, member, expected = problem.case.op, self.member, problem.expected
        parameters, outputs = next(each[1:] for each in _core.collectives() if each[0] == name)
        group = {"workspace": member.workspace, "rank": member.rank, "nranks": member.world_size}
        known = {"eps": EPSILON, "quant_format": QUANT_FORMAT, **group, **self.options, **vars(problem)}
        given = {parameter: known[parameter] for _, parameter, _ in parameters if parameter in known}
        # What is expected is of the first outputs; those behind are left out.
        places = {output: _like(each.values) for output, each in zip(outputs, expected, strict=False)}
        operation = partial(getattr(lamport_rs, name), **given, **places)

        def run() -> tuple[torch.Tensor, ...]:
            found = operation()
            return (found,) if isinstance(found, torch.Tensor) else found[: len(expected)]

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
    operations = _OF_BOTH_ALGORITHMS
    options: ClassVar[dict[str, Any]] = {"algorithm": "one_shot"}


class LamportTwoShot(Lamport):
    """Every rank sums its part, and pushes the sum to every other."""

    name = "lamport_rs_two_shot"
    backend = "cuda"
    operations = _OF_BOTH_ALGORITHMS
    options: ClassVar[dict[str, Any]] = {"algorithm": "two_shot"}


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor for results, of NaNs: what is not written does not pass for right."""
    return torch.full_like(tensor, float("nan"), memory_format=torch.contiguous_format)
