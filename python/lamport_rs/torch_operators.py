"""The collectives as operators, `torch.ops.lamport_rs.*`: for torch.compile, and for stacks that call operators.

They take the workspace's table in the workspace's place, and allocate their outputs, which never require a gradient.
Under torch.compile the functions of `lamport_rs.operations` become these.
"""

from __future__ import annotations

import torch

from lamport_rs import operations

_library = torch.library.Library("lamport_rs", "DEF")
_library.define('all_reduce(Tensor input, Tensor workspace, str algorithm="auto") -> Tensor')
_library.define(
    "all_reduce_rms_norm(Tensor input, Tensor residual, Tensor weight, Tensor workspace, float eps=1e-06,"
    ' float weight_bias=0.0, str algorithm="auto") -> (Tensor, Tensor)'
)
_library.define(
    "minimax_allreduce_rms(Tensor input, Tensor norm_weight, Tensor workspace, int rank, int nranks, float eps)"
    " -> Tensor"
)
_library.define(
    "minimax_allreduce_rms_qk(Tensor qkv, Tensor norm_weight_q, Tensor norm_weight_k, Tensor workspace,"
    " int q_size, int kv_size, int rank, int nranks, float eps) -> (Tensor, Tensor)"
)


def _all_reduce(
    input: torch.Tensor,  # noqa: A002
    workspace: torch.Tensor,
    algorithm: operations.Algorithm = "auto",
) -> torch.Tensor:
    return operations.all_reduce(input, workspace, algorithm=algorithm)


def _all_reduce_fake(
    input: torch.Tensor,  # noqa: A002
    workspace: torch.Tensor,
    algorithm: str = "auto",
) -> torch.Tensor:
    return torch.empty_like(input)


def _all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    workspace: torch.Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    algorithm: operations.Algorithm = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    return operations.all_reduce_rms_norm(input, residual, weight, workspace, eps, weight_bias, algorithm=algorithm)


def _all_reduce_rms_norm_fake(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    workspace: torch.Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    algorithm: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(input), torch.empty_like(input)


def _minimax_allreduce_rms_fake(
    input: torch.Tensor,  # noqa: A002
    norm_weight: torch.Tensor,
    workspace: torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
) -> torch.Tensor:
    return torch.empty_like(input, memory_format=torch.contiguous_format)


def _minimax_allreduce_rms_qk_fake(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    workspace: torch.Tensor,
    q_size: int,
    kv_size: int,
    rank: int,
    nranks: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = qkv.shape[:-1]
    return qkv.new_empty((*rows, q_size)), qkv.new_empty((*rows, kv_size))


for _name, _operation, _fake in (
    ("all_reduce", _all_reduce, _all_reduce_fake),
    ("all_reduce_rms_norm", _all_reduce_rms_norm, _all_reduce_rms_norm_fake),
    ("minimax_allreduce_rms", operations.minimax_allreduce_rms, _minimax_allreduce_rms_fake),
    ("minimax_allreduce_rms_qk", operations.minimax_allreduce_rms_qk, _minimax_allreduce_rms_qk_fake),
):
    for _key in ("CPU", "CUDA"):
        _library.impl(_name, _operation, _key)
    # No gradient, like the functions: torch's default for operators without one is a result that requires it and warns.
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"lamport_rs::{_name}", _fake, lib=_library)
