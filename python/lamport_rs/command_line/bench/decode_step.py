"""The problem of a decode step: a model of random weights, a batch of tokens, and what they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.decoder import LLAMA_3_8B, SMALL, Communication, Decoder, add_rms_norm
from lamport_rs.command_line.bench.member import Member, UnavailableError, rank_sum, shared
from lamport_rs.command_line.bench.problems import Expected, Problem

_MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of an output, relative to it as a whole: what roundings of the sums come to after all layers."""


@dataclass(frozen=True)
class DecodeStep(Problem):
    """A step of `decoder` for `tokens`. Outputs: the last rows, this rank's logits."""

    decoder: Decoder
    tokens: torch.Tensor

    def run(self, communication: Communication) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the step's outputs. Collective, if the communication is."""
        return self.decoder.step(self.tokens, communication)

    def check(self, outputs: Sequence[torch.Tensor], rounds_once: bool) -> None:
        """Raise AssertionError unless the outputs are the reference's, but for roundings of its sums."""
        for name, found, expected in zip(("rows", "logits"), outputs, self.expected, strict=True):
            wanted = expected.values.float()
            error = ((found.float() - wanted).norm() / wanted.norm()).item()
            allowed = _MOST_ERROR[self.case.dtype]
            # NaN is no less than anything.
            assert error <= allowed, f"the last {name} differ by {error:.2g} of their norm; {allowed:.2g} is allowed"


def pose_decode_step(case: Case, member: Member) -> DecodeStep:
    """Return the step with new weights and tokens. Collective.

    Raises:
        UnavailableError: If the model cannot be shared out among the ranks.
    """
    assert case.tokens is not None
    assert case.layers is not None
    whole = LLAMA_3_8B if case.hidden == LLAMA_3_8B.hidden else SMALL
    with torch.device(member.device):
        try:
            decoder = Decoder(whole, case.layers, case.tokens, member.world_size, case.dtype, shared)
        except ValueError as error:
            raise UnavailableError(str(error)) from error
        tokens = shared(torch.randint(whole.vocabulary, (case.tokens,)))
    expected = decoder.step(tokens, Communication(_reference))
    return DecodeStep(
        case, member.world_size, tuple(Expected(values, exact=False) for values in expected), decoder, tokens
    )


def _reference(
    partial_sum: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return add_rms_norm(rank_sum(partial_sum).to(partial_sum.dtype), residual, weight)
