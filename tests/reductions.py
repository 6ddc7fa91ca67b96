"""All-reduces and norms of summed rows on a rank's device, and what they must return.

Inputs come from seeds, so that each rank can make every rank's. An operation that is run with changing inputs gets the
others' through the process group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import lamport_rs
import torch
import torch.distributed as dist
from minimax_rows import Operation, bits_of, random_rows
from quantised_rows import FORMATS, check_quantised, empty_quantised_rows, scale_for
from ranks import Rank
from reference import check_layer_norm, check_rounding, check_same_bits, rms_norm_of_rows, rounded_sum, rounded_sum_with

ALGORITHMS = ["one_shot", "two_shot"]
EPS = 1e-5
GUARD, GUARD_ELEMENTS = 7.0, 64


def comm_size_for(me: Rank, most_bytes: int) -> int:
    """That of a workspace for tensors of so many bytes."""
    return lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(most_bytes, me.world_size)


def contributions(me: Rank, shape: Sequence[int], dtype: torch.dtype, *seeds: int) -> list[torch.Tensor]:
    """Every rank's random tensor: the same on every rank."""
    return [random_rows(me, shape, dtype, *seeds, rank) for rank in range(me.world_size)]


def gathered(me: Rank, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's tensor, bit by bit. A collective call."""
    own = tensor.cpu().reshape(-1).view(torch.uint8)
    everybodys = [torch.empty_like(own) for _ in range(me.world_size)]
    dist.all_gather(everybodys, own, group=me.group)
    return [each.view(tensor.dtype).reshape(tensor.shape).to(me.device) for each in everybodys]


def guarded(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """An output full of NaN between guard elements, and the memory of all."""
    count = math.prod(shape)
    memory = torch.full((count + 2 * GUARD_ELEMENTS,), GUARD, dtype=dtype, device=device)
    output = memory[GUARD_ELEMENTS : GUARD_ELEMENTS + count]
    output.fill_(math.nan)
    return output.view(shape), memory


def check_guard_elements(memory: torch.Tensor, what: str) -> None:
    """Nothing was written beside the output."""
    assert bool((memory[:GUARD_ELEMENTS] == GUARD).all()), f"{what}: written to before the output"
    assert bool((memory[-GUARD_ELEMENTS:] == GUARD).all()), f"{what}: written to behind the output"


@dataclass
class Reduction:
    """One all-reduce with its tensors. `rows`, the input, may be given other values between calls."""

    OUTPUTS: ClassVar[tuple[str, ...]] = ("out",)
    me: Rank
    rows: torch.Tensor
    out: torch.Tensor
    algorithm: str

    @classmethod
    def random(
        cls, me: Rank, elements: int, algorithm: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
    ) -> Reduction:
        """An input of this rank's own."""
        rows = random_rows(me, (elements,), dtype, seed, me.rank)
        return cls(me, rows, torch.empty_like(rows), algorithm)

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the output stays the same tensor."""
        lamport_rs.all_reduce(self.rows, workspace, self.out, algorithm=self.algorithm)
        return [self.out]

    def poison(self) -> None:
        """Make it show if the operation leaves the output as it was."""
        self.fill(math.nan)

    def fill(self, value: float) -> None:
        """Give the output this value."""
        self.out.fill_(value)

    def results(self) -> list[torch.Tensor]:
        """A copy of the output."""
        return [self.out.clone()]

    def check(self, what: str) -> None:
        """The output is right. A collective call."""
        check_same_bits(self.out, rounded_sum(gathered(self.me, self.rows)), f"{what}, {self.describe()}")

    def check_against(self, expected: list[torch.Tensor], what: str) -> None:
        """The output is the same bits."""
        check_same_bits(self.out, expected[0], f"{what}, {self.describe()}")

    def differences(self, expected: list[torch.Tensor]) -> torch.Tensor:
        """How many elements of the output are other bits, counted on the device and without waiting."""
        return (bits_of(self.out) != bits_of(expected[0])).sum()

    def describe(self) -> str:
        """Its shape in words."""
        return f"{self.algorithm} of {self.rows.numel()} elements {self.rows.dtype}"


@dataclass
class NormedReduction:
    """One all-reduce with a residual and RMSNorm, likewise."""

    OUTPUTS: ClassVar[tuple[str, ...]] = ("out", "residual_out")
    me: Rank
    rows: torch.Tensor
    residual: torch.Tensor
    weight: torch.Tensor
    out: torch.Tensor
    residual_out: torch.Tensor
    algorithm: str
    eps: float = EPS
    weight_bias: float = 0.0

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        hidden: int,
        algorithm: str,
        dtype: torch.dtype = torch.bfloat16,
        weight_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> NormedReduction:
        """Rows of this rank's own; residual and weight are everybody's."""
        rows = random_rows(me, (tokens, hidden), dtype, seed, me.rank)
        residual = random_rows(me, (tokens, hidden), dtype, seed, 1000)
        weight = random_rows(me, (hidden,), weight_dtype or dtype, seed, 1001)
        return cls(me, rows, residual, weight, torch.empty_like(rows), torch.empty_like(rows), algorithm)

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        lamport_rs.all_reduce_rms_norm(
            self.rows,
            self.residual,
            self.weight,
            workspace,
            self.eps,
            self.weight_bias,
            out=self.out,
            residual_out=self.residual_out,
            algorithm=self.algorithm,
        )
        return [self.out, self.residual_out]

    def poison(self) -> None:
        """Make it show if the operation leaves an output as it was."""
        self.fill(math.nan)

    def fill(self, value: float) -> None:
        """Give the outputs this value."""
        self.out.fill_(value)
        self.residual_out.fill_(value)

    def results(self) -> list[torch.Tensor]:
        """Copies of the outputs."""
        return [self.out.clone(), self.residual_out.clone()]

    def check(self, what: str) -> None:
        """The outputs are right. A collective call."""
        what = f"{what}, {self.describe()}"
        rows = rounded_sum_with(self.residual, gathered(self.me, self.rows))
        check_same_bits(self.residual_out, rows, f"residual_out, {what}")
        check_rounding(self.out, rms_norm_of_rows(rows, self.weight, self.eps, self.weight_bias), f"out, {what}")

    def check_against(self, expected: list[torch.Tensor], what: str) -> None:
        """The outputs are the same bits."""
        check_same_bits(self.out, expected[0], f"out, {what}, {self.describe()}")
        check_same_bits(self.residual_out, expected[1], f"residual_out, {what}, {self.describe()}")

    def differences(self, expected: list[torch.Tensor]) -> torch.Tensor:
        """How many elements of the outputs are other bits, counted on the device and without waiting."""
        pairs = zip((self.out, self.residual_out), expected, strict=True)
        return sum((bits_of(out) != bits_of(each)).sum() for out, each in pairs)

    def describe(self) -> str:
        """Its shape in words."""
        tokens, hidden = self.rows.shape
        return f"{self.algorithm} of {tokens} tokens of {hidden} {self.rows.dtype}, weight {self.weight.dtype}"


@dataclass
class LayerNormedReduction(NormedReduction):
    """One all-reduce with a residual and layer norm, likewise. The biases are the weights, backwards."""

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        lamport_rs.all_reduce_layer_norm(
            self.rows,
            self.residual,
            self.weight,
            workspace,
            self.weight.flip(0),
            self.eps,
            out=self.out,
            residual_out=self.residual_out,
            algorithm=self.algorithm,
        )
        return [self.out, self.residual_out]

    def check(self, what: str) -> None:
        """The outputs are right. A collective call."""
        what = f"{what}, {self.describe()}"
        rows = rounded_sum_with(self.residual, gathered(self.me, self.rows))
        check_same_bits(self.residual_out, rows, f"residual_out, {what}")
        check_layer_norm(self.out, rows, self.weight, self.weight.flip(0), self.eps, f"out, {what}")


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory."""
    return tensor.view(torch.uint8)


@dataclass
class QuantisedOutputs:
    """What a quantiser that computes its scales adds to an operation on rows, whose class comes behind this one."""

    quant_format: str = "fp8_token"
    given: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    scales: torch.Tensor | None = None

    @staticmethod
    def empty(me: Rank, rows: torch.Tensor, quant_format: str) -> dict[str, torch.Tensor | None]:
        """Places for what becomes of `rows`, and the scale that the format wants to be given, by their names."""
        (tokens, hidden), definition = rows.shape, FORMATS[quant_format]
        codes = empty_quantised_rows(quant_format, (tokens, hidden), rows.device)
        groups = hidden // (definition.group or hidden)
        scales = torch.empty(tokens, groups, dtype=definition.scale, device=rows.device)
        return {"given": scale_for(me, quant_format), "codes": codes, "scales": scales}

    def poison(self) -> None:
        """Make it show if the operation leaves an output as it was."""
        super().poison()
        bytes_of(self.codes).fill_(0x7F)
        bytes_of(self.scales).fill_(0xFF)

    def results(self) -> list[torch.Tensor]:
        """Copies of the outputs."""
        return [*super().results(), self.codes.clone(), self.scales.clone()]

    def check(self, what: str) -> None:
        """The outputs are right. A collective call."""
        super().check(what)
        what = f"{what}, {self.describe()}"
        check_quantised(self.codes, self.scales, self.out, self.quant_format, what, self.given)

    def check_against(self, expected: list[torch.Tensor], what: str) -> None:
        """The outputs are the same bits."""
        super().check_against(expected[:-2], what)
        for name, found, each in zip(("codes", "scales"), (self.codes, self.scales), expected[-2:], strict=True):
            assert torch.equal(bytes_of(found), bytes_of(each)), f"{name}, {what}, {self.describe()}"

    def differences(self, expected: list[torch.Tensor]) -> torch.Tensor:
        """How many elements of the outputs are other bits, counted on the device and without waiting."""
        pairs = zip((self.codes, self.scales), expected[-2:], strict=True)
        return super().differences(expected[:-2]) + sum((bytes_of(out) != bytes_of(each)).sum() for out, each in pairs)

    def describe(self) -> str:
        """Its shape in words."""
        return f"{super().describe()}, to {self.quant_format}"


@dataclass
class QuantisedReduction(QuantisedOutputs, NormedReduction):
    """One all-reduce with a residual, RMSNorm and a quantiser that computes its scales, likewise."""

    OUTPUTS: ClassVar[tuple[str, ...]] = (*NormedReduction.OUTPUTS, "codes", "scales")

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        hidden: int,
        algorithm: str,
        quant_format: str = "fp8_token",
        dtype: torch.dtype = torch.bfloat16,
        weight_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> QuantisedReduction:
        """As without a quantiser."""
        step = super().random(me, tokens, hidden, algorithm, dtype, weight_dtype, seed)
        return replace(step, quant_format=quant_format, **cls.empty(me, step.rows, quant_format))

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        lamport_rs.all_reduce_rms_norm_quant(
            self.rows,
            self.residual,
            self.weight,
            workspace,
            self.quant_format,
            self.given,
            self.eps,
            self.weight_bias,
            out=self.codes,
            scale_out=self.scales,
            residual_out=self.residual_out,
            norm_out=self.out,
            algorithm=self.algorithm,
        )
        return [self.out, self.residual_out, self.codes, self.scales]


@dataclass
class QuantisedSum(QuantisedOutputs, Reduction):
    """One all-reduce of rows with a quantiser that computes its scales, likewise."""

    OUTPUTS: ClassVar[tuple[str, ...]] = (*Reduction.OUTPUTS, "codes", "scales")

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        hidden: int,
        algorithm: str,
        quant_format: str = "fp8_token",
        dtype: torch.dtype = torch.bfloat16,
        seed: int = 0,
    ) -> QuantisedSum:
        """Rows of this rank's own."""
        rows = random_rows(me, (tokens, hidden), dtype, seed, me.rank)
        return cls(me, rows, torch.empty_like(rows), algorithm, quant_format, **cls.empty(me, rows, quant_format))

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        lamport_rs.all_reduce_quant(
            self.rows,
            workspace,
            self.quant_format,
            self.given,
            out=self.codes,
            scale_out=self.scales,
            sum_out=self.out,
            algorithm=self.algorithm,
        )
        return [self.out, self.codes, self.scales]


def run_checked(operation: Operation | Reduction | NormedReduction, workspace, what: str) -> None:
    """Do it, and check what it left. A collective call."""
    operation.poison()
    operation(workspace)
    operation.check(what)


def repeat(
    operations: Sequence[Operation | Reduction | NormedReduction], workspace, order: Iterable[int], what: str
) -> None:
    """Do each once, checked, and then by their numbers in `order`, with nothing between: the results stay the same."""
    expected = []
    for operation in operations:
        run_checked(operation, workspace, "the first time")
        expected.append(operation.results())
        operation.poison()
    for index in order:
        operations[index](workspace)
    for operation, results in zip(operations, expected, strict=True):
        operation.check_against(results, what)
