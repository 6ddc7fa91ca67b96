"""The norms of a group of one rank on a GPU, by torch: the kernels of the package wait for peers.

Operands are as the kernels take them, and checked.
"""

from __future__ import annotations

import torch


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
        residual_out.copy_(input if residual is None else input.float() + residual.float())
        normalise(residual_out, weight.float() + weight_bias, eps, out)


def normalise(
    input: torch.Tensor,  # noqa: A002
    weight: torch.Tensor,
    eps: float,
    out: torch.Tensor,
) -> None:
    """`minimax_allreduce_rms` of one rank."""
    with torch.inference_mode():
        rows = input.float()
        scale = torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
        out.copy_(rows * scale * weight.float())


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
