"""Sums of rows that experts made, and their norms: as classes of `reductions`, whose rows are the finalised ones."""

from __future__ import annotations

from dataclasses import dataclass

import lamport_rs
import torch
from moe_rows import Experts
from ranks import Rank
from reductions import NormedReduction, Reduction

K = 4


@dataclass
class FinalisedReduction(Reduction):
    """One sum of rows that experts made. The experts are not given other values between calls."""

    experts: Experts | None = None

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        hidden: int,
        dtype: torch.dtype = torch.bfloat16,
        weight_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> FinalisedReduction:
        """Experts of this rank's own."""
        experts = Experts.of_rank(me.rank, (tokens, hidden), K, (dtype, weight_dtype), seed)
        rows = experts.finalised().to(me.device)
        return cls(me, rows, torch.empty_like(rows), "one_shot", experts.to(me.device))

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the output stays the same tensor."""
        experts = self.experts
        lamport_rs.moe_finalize_all_reduce(*experts.first(), workspace, experts.shared_rows, out=self.out)
        return [self.out]


@dataclass
class FinalisedNorm(NormedReduction):
    """The same with a residual and RMSNorm."""

    experts: Experts | None = None

    @classmethod
    def random(
        cls,
        me: Rank,
        tokens: int,
        hidden: int,
        dtype: torch.dtype = torch.bfloat16,
        weight_dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> FinalisedNorm:
        """Experts of this rank's own; residual and weight, which is of the experts' weights' dtype, are everybody's."""
        total = FinalisedReduction.random(me, tokens, hidden, dtype, weight_dtype, seed)
        norm = NormedReduction.random(me, tokens, hidden, total.algorithm, dtype, weight_dtype, seed)
        return cls(**{**vars(norm), "rows": total.rows}, experts=total.experts)

    def __call__(self, workspace: lamport_rs.LamportWorkspace | torch.Tensor) -> list[torch.Tensor]:
        """Do it; the outputs stay the same tensors."""
        experts = self.experts
        lamport_rs.moe_finalize_all_reduce_rms_norm(
            *experts.first(),
            self.residual,
            self.weight,
            workspace,
            experts.shared_rows,
            self.eps,
            self.weight_bias,
            out=self.out,
            residual_out=self.residual_out,
        )
        return [self.out, self.residual_out]
