"""What torch has: the process group's all-reduce, the eager path around it, and symmetric memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench.arguments import FINALISATIONS, STEPS
from lamport_rs.command_line.bench.cases import Case, largest_message
from lamport_rs.command_line.bench.decode_step import DecodeStep
from lamport_rs.command_line.bench.decoder import Communication, add_rms_norm
from lamport_rs.command_line.bench.implementations.base import Call, Implementation, Outputs
from lamport_rs.command_line.bench.member import Member
from lamport_rs.command_line.bench.problems import (
    EPSILON,
    QUANT_FORMAT,
    AllReduce,
    AllReduceLayerNorm,
    AllReduceQuant,
    AllReduceRmsNorm,
    AllReduceRmsNormQuant,
    MinimaxRms,
    MinimaxRmsQk,
    MoeFinalize,
    Problem,
    normalise,
)
from lamport_rs.operations.quant_formats import put_quantised


class Nccl(Implementation):
    """The process group's all-reduce, in place."""

    name = "nccl"
    backend = "cuda"
    operations = frozenset({"all_reduce", *STEPS})

    def prepare(self, problem: Problem) -> Call:
        """Return the call on a copy of the input, or the step with it and the norm."""
        if isinstance(problem, DecodeStep):
            return Call(partial(problem.run, Communication(reduce_then_norm)))
        assert isinstance(problem, AllReduce)
        return all_reduce_of(problem.input.clone())


class Gloo(Nccl):
    """The same between processes on the host."""

    name = "gloo"
    backend = "host"


class EagerNccl(Implementation):
    """Torch's operators around the process group's all-reduce: norms, quantised sums, and sums of experts' rows."""

    name = "torch_eager_nccl"
    backend = "cuda"
    operations = frozenset(
        {
            "all_reduce_rms_norm",
            "all_reduce_rms_norm_quant",
            "all_reduce_layer_norm",
            "all_reduce_quant",
            *FINALISATIONS,
            "minimax_allreduce_rms",
            "minimax_allreduce_rms_qk",
        }
    )

    def prepare(self, problem: Problem) -> Call:
        """Return the call, which allocates what it computes on the way."""
        prepare: dict[type[Problem], Callable[[Any], Call]] = {
            AllReduceRmsNorm: self._rms_norm,
            AllReduceRmsNormQuant: self._rms_norm_quant,
            AllReduceLayerNorm: self._layer_norm,
            AllReduceQuant: self._quant,
            MoeFinalize: lambda problem: Call(lambda: self._finalise(problem)),
            MinimaxRms: lambda problem: Call(lambda: self._minimax(problem)),
            MinimaxRmsQk: lambda problem: Call(lambda: self._minimax_qk(problem)),
        }
        return prepare[type(problem)](problem)

    def _rms_norm(self, problem: AllReduceRmsNorm) -> Call:
        return _sum_then(problem.input, lambda rows: _add_and_normalise(rows, problem.residual, problem.weight))

    def _rms_norm_quant(self, problem: AllReduceRmsNormQuant) -> Call:
        rows, scales = _like_expected(problem)

        def then(summed: torch.Tensor) -> Outputs:
            normalised, total = _add_and_normalise(summed, problem.residual, problem.weight)
            put_quantised(normalised, QUANT_FORMAT, rows, None, scales)
            return rows, scales, total

        return _sum_then(problem.input, then)

    def _layer_norm(self, problem: AllReduceLayerNorm) -> Call:
        weight, bias = problem.weight, problem.bias

        def then(summed: torch.Tensor) -> Outputs:
            total = summed + problem.residual
            return torch.nn.functional.layer_norm(total, weight.shape, weight, bias, EPSILON), total

        return _sum_then(problem.input, then)

    def _quant(self, problem: AllReduceQuant) -> Call:
        rows, scales = _like_expected(problem)

        def then(summed: torch.Tensor) -> Outputs:
            put_quantised(summed, QUANT_FORMAT, rows, None, scales)
            return rows, scales

        return _sum_then(problem.input, then)

    def _finalise(self, problem: MoeFinalize) -> Outputs:
        rows, then = problem.experts.finalise_by_torch(), problem.then
        dist.all_reduce(rows)
        return (rows,) if isinstance(then, AllReduce) else _add_and_normalise(rows, then.residual, then.weight)

    def _minimax(self, problem: MinimaxRms) -> Outputs:
        return self._normalise_columns([problem.input], [problem.norm_weight])

    def _minimax_qk(self, problem: MinimaxRmsQk) -> Outputs:
        weights = problem.q_weight, problem.k_weight
        return self._normalise_columns(problem.qkv.split([*map(len, weights), problem.kv_size], dim=-1)[:2], weights)

    def _normalise_columns(self, columns: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> Outputs:
        """All-reduce the sums of squares, then normalise, in float32, as vLLM's model does without the fused kernel."""
        parts = [part.float() for part in columns]
        mean_squares = torch.cat([part.pow(2).mean(-1, keepdim=True) for part in parts], dim=-1)
        dist.all_reduce(mean_squares)
        means = (mean_squares / self.member.world_size).chunk(len(parts), dim=-1)
        return tuple(
            normalise(part, mean, weight).to(columns[0].dtype)
            for part, mean, weight in zip(parts, means, weights, strict=True)
        )


class EagerGloo(EagerNccl):
    """The same between processes on the host."""

    name = "torch_eager_gloo"
    backend = "host"


def _like_expected(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    rows, scales = (torch.empty_like(each.values) for each in problem.expected[:2])
    return rows, scales


def _sum_then(partial_sum: torch.Tensor, then: Callable[[torch.Tensor], Outputs]) -> Call:
    """Return the process group's all-reduce of a copy, in place, and what `then` makes of it."""
    buffer = partial_sum.clone()

    def run() -> Outputs:
        dist.all_reduce(buffer)
        return then(buffer)

    return Call(run, in_place=buffer)


def _add_and_normalise(
    rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total = rows + residual
    return torch.nn.functional.rms_norm(total, weight.shape, weight, EPSILON), total


def all_reduce_of(buffer: torch.Tensor) -> Call:
    """Return the process group's all-reduce of `buffer`, in place."""

    def run() -> tuple[torch.Tensor]:
        dist.all_reduce(buffer)
        return (buffer,)

    return Call(run, in_place=buffer)


def fill_shared(memory: torch.Tensor, problem: AllReduce, member: Member) -> torch.Tensor:
    """Return the part of `memory`, bytes that peers read, that now holds the problem's input. Collective."""
    buffer = memory[: problem.input.nbytes].view(problem.input.dtype)
    # A peer may still be reading it in an operation of the case before.
    member.synchronize()
    dist.barrier(member.host_group)
    return buffer.copy_(problem.input)


def reduce_then_norm(
    partial_sum: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The process group's all-reduce, in place, and the norm."""
    dist.all_reduce(partial_sum)
    return add_rms_norm(partial_sum, residual, weight)


class SymmMem(Implementation):
    """Symmetric memory, whose buffer holds the input, or takes a step's partial sums, from the start: no copy is timed.

    Never its `multimem` operators: they use NVLink multicast.
    """

    backend = "cuda"
    operations = frozenset({"all_reduce", *STEPS})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        from torch.distributed import _symmetric_memory

        group = dist.group.WORLD
        assert group is not None
        self._group_name = group.group_name
        largest = largest_message(cases)
        self._memory = _symmetric_memory.empty(largest, dtype=torch.uint8, device=member.device)
        self._handle = _symmetric_memory.rendezvous(self._memory, self._group_name)

    def prepare(self, problem: Problem) -> Call:
        """Return the call on the symmetric buffer."""
        if isinstance(problem, DecodeStep):
            place = self._memory.view(problem.case.dtype)
            return Call(partial(problem.run, Communication(self._reduce_norm, place)))
        assert isinstance(problem, AllReduce)
        return self._all_reduce(problem)

    def _reduce_norm(
        self, partial_sum: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return add_rms_norm(self._sum(partial_sum), residual, weight)

    @abstractmethod
    def _all_reduce(self, problem: AllReduce) -> Call:
        """Return the call that sums the problem's input."""

    @abstractmethod
    def _sum(self, partial_sum: torch.Tensor) -> torch.Tensor:
        """Return the sum of what stands in the symmetric buffer."""

    def _buffer(self, problem: AllReduce) -> torch.Tensor:
        return fill_shared(self._memory, problem, self.member)


class SymmMemOneShot(SymmMem):
    """Every rank loads the peers' buffers and sums."""

    name = "symm_mem_one_shot"

    def _all_reduce(self, problem: AllReduce) -> Call:
        """Return the call, with the output allocated once."""
        buffer, out, name = self._buffer(problem), torch.empty_like(problem.input), self._group_name

        def run() -> tuple[torch.Tensor]:
            torch.ops.symm_mem.one_shot_all_reduce_out(buffer, "sum", name, out)
            return (out,)

        return Call(run)

    def _sum(self, partial_sum: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce(partial_sum, "sum", self._group_name)
        return total


class SymmMemTwoShot(SymmMem):
    """Every rank sums its part of the peers' buffers and stores it there, in place."""

    name = "symm_mem_two_shot"

    def _all_reduce(self, problem: AllReduce) -> Call:
        """Return the call on the symmetric buffer."""
        buffer, name = self._buffer(problem), self._group_name

        def run() -> tuple[torch.Tensor]:
            torch.ops.symm_mem.two_shot_all_reduce_(buffer, "sum", name)
            return (buffer,)

        return Call(run, in_place=buffer)

    def _sum(self, partial_sum: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.ops.symm_mem.two_shot_all_reduce_(partial_sum, "sum", self._group_name)
        return total
