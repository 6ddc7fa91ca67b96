"""Rows for the MiniMax operations on a rank's device, and what the operations must make of them.

Each rank makes its own columns, from its rank's seed; what the reference needs of the others, the sums of squares of
their columns, comes through the process group in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import lamport_rs
import torch
import torch.distributed as dist
from ranks import Rank
from reference import DTYPES, check_rounding, check_same_bits, rms_norm

EPS = 1e-6
WEIGHTS = [*((dtype, dtype) for dtype in DTYPES), *((dtype, torch.float32) for dtype in DTYPES[1:])]
"""Dtypes of rows and of their weight."""
GUARD = 7.0


def workspace_for(me: Rank, tokens: int, **options) -> lamport_rs.LamportWorkspace:
    """One that is large enough for Q and K of so many tokens."""
    return me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(tokens, me.world_size), **options)


def random_rows(me: Rank, shape: Sequence[int], dtype: torch.dtype, *seeds: int) -> torch.Tensor:
    """Normal values times powers of two, so that sums depend on the order; the same for the same seeds."""
    generator = torch.Generator(me.device).manual_seed(hash(seeds) & (2**63 - 1))
    count = math.prod(shape)
    exponents = torch.randint(-6, 6, (count,), generator=generator, device=me.device)
    return (torch.randn(count, generator=generator, device=me.device) * 2.0**exponents).to(dtype).reshape(shape)


def expected_rows(me: Rank, rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The float64 result, from the data of all ranks. A collective call."""
    sums = rows.double().square().sum(-1).cpu()
    dist.all_reduce(sums, group=me.group)
    return rms_norm(rows, (sums / (me.world_size * rows.shape[-1])).to(me.device), weight, eps)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers, which compare bit by bit."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16)


def poisoned(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """An output full of NaN between two guard rows, and the memory of both."""
    memory = torch.full((rows + 2, columns), GUARD, dtype=dtype, device=device)
    output = memory[1:-1]
    output.fill_(math.nan)
    return output, memory


def check_guards(memory: torch.Tensor, what: str) -> None:
    """Nothing was written beside the output."""
    assert bool((memory[0] == GUARD).all()), f"{what}: the row before the output was written to"
    assert bool((memory[-1] == GUARD).all()), f"{what}: the row behind the output was written to"


@dataclass
class Operation:
    """One MiniMax operation with its tensors: `widths` has one entry, or two for Q and K."""

    me: Rank
    rows: torch.Tensor
    weights: list[torch.Tensor]
    widths: tuple[int, ...]
    outs: list[torch.Tensor]
    eps: float = EPS

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        widths: tuple[int, ...],
        dtype: torch.dtype = torch.bfloat16,
        weight_dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> Operation:
        """Rows and weights of this rank's own."""
        columns = sum(widths)
        weights = random_rows(me, (columns,), weight_dtype or dtype, seed, 1000 + me.rank).split(list(widths))
        return cls(
            me,
            random_rows(me, (tokens, columns), dtype, seed, me.rank),
            [weight.clone() for weight in weights],
            widths,
            [torch.empty((tokens, width), dtype=dtype, device=me.device) for width in widths],
        )

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        settings = (self.me.rank, self.me.world_size, self.eps)
        if len(self.widths) == 1:
            lamport_rs.minimax_allreduce_rms(self.rows, self.weights[0], workspace, *settings, out=self.outs[0])
        else:
            lamport_rs.minimax_allreduce_rms_qk(
                self.rows, *self.weights, workspace, *self.widths, *settings, q_out=self.outs[0], k_out=self.outs[1]
            )
        return self.outs

    def poison(self) -> None:
        """Make it show if the operation leaves an output as it was."""
        self.fill(math.nan)

    def fill(self, value: float) -> None:
        """Give the outputs this value."""
        for out in self.outs:
            out.fill_(value)

    def results(self) -> list[torch.Tensor]:
        """Copies of the outputs."""
        return [out.clone() for out in self.outs]

    def check(self, what: str) -> None:
        """The outputs are right. A collective call."""
        for part, weight, out in zip(self.rows.split(self.widths, -1), self.weights, self.outs, strict=True):
            check_rounding(out, expected_rows(self.me, part, weight, self.eps), f"{what}, {self.describe()}")

    def check_against(self, expected: list[torch.Tensor], what: str) -> None:
        """The outputs are the same bits."""
        for out, each in zip(self.outs, expected, strict=True):
            check_same_bits(out, each, f"{what}, {self.describe()}")

    def differences(self, expected: list[torch.Tensor]) -> torch.Tensor:
        """How many elements of the outputs are other bits, counted on the device and without waiting."""
        pairs = zip(self.outs, expected, strict=True)
        return sum((bits_of(out) != bits_of(each)).sum() for out, each in pairs)

    def describe(self) -> str:
        """Its shape in words."""
        return f"{self.rows.shape[0]} tokens of {self.widths} {self.rows.dtype}, weight {self.weights[0].dtype}"
