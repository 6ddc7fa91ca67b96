"""The norms and the experts' rows of a group of one rank on a GPU, by torch: the kernels of the package wait for peers.

Operands are as the kernels take them, and checked.
"""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm


def normalise_sum(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    weight_bias: float,
    out: torch.Tensor,
    residual_out: torch.Tensor,
) -> None:
    """`all_reduce_rms_norm` of one rank."""
    with torch.inference_mode():
        add_residual(input, residual, residual_out)
        normalise(residual_out, weight.float() + weight_bias, eps, out)


def add_residual(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    residual_out: torch.Tensor,
) -> None:
    """The sum of one rank and the residual, if there is one."""
    residual_out.copy_(input if residual is None else input.float() + residual.float())


def finalise(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    shared_rows: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """`moe_finalize_all_reduce` of one rank, bit for bit as the kernels do it, but for the sign of zeros.

    The host waits for nothing, so it can be captured.
    """
    with torch.inference_mode():
        rows = expert_rows.reshape(-1, out.shape[-1])
        total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
        for index, weight in zip(row_index.unbind(-1), expert_weights.float().unbind(-1), strict=True):
            is_row = (index >= 0) & (index < rows.shape[0])
            if rows.shape[0] > 0:
                product = rows[index.where(is_row, 0)].float() * weight[..., None]
            else:
                product = torch.empty_like(total)
            product.masked_fill_(~is_row[..., None], torch.nan)
            total += product.masked_fill_((index == -1)[..., None], 0.0)
        out.copy_(total if shared_rows is None else total + shared_rows.float())


def normalise(
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """`minimax_allreduce_rms` of one rank."""
    with torch.inference_mode():
        out.copy_(rms_norm(input.float(), weight.shape, weight.float(), eps))


def normalise_pair(
    qkv: torch.Tensor,
    q_size: int,
    kv_size: int,
    weights: tuple[torch.Tensor, torch.Tensor],
    eps: float,
    outputs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    """`minimax_allreduce_rms_qk` of one rank."""
    with torch.inference_mode():
        matrices = qkv[..., : q_size + kv_size].split([q_size, kv_size], dim=-1)
    for matrix, weight, out in zip(matrices, weights, outputs, strict=True):
        normalise(matrix, weight, eps, out)
