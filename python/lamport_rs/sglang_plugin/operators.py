"""The fused operations as operators that know a workspace by its group's name: compilers look no further.

SGLang's own collectives are such operators, so that its backends of torch.compile, which split graphs, take these as
they take those. They are ordered by their operands, as SGLang's are.
"""

from __future__ import annotations

import torch

from lamport_rs.operations.minimax import run_minimax_rms_qk
from lamport_rs.operations.moe_finalize import run_moe_finalize_rms_norm
from lamport_rs.operations.rms_norm import run_all_reduce_rms_norm
from lamport_rs.plugin_groups import GroupWorkspace

_library = torch.library.Library("lamport_rs_sglang", "DEF")
_library.define(
    "all_reduce_rms_norm(Tensor input, Tensor residual, Tensor weight, float eps, str group) -> (Tensor, Tensor)"
)
_library.define(
    "minimax_rms_qk(Tensor q, Tensor k, Tensor q_weight, Tensor k_weight, float eps, str group) -> (Tensor, Tensor)"
)
_library.define(
    "moe_finalize_rms_norm(Tensor expert_rows, Tensor row_index, Tensor expert_weights, Tensor? shared_rows, "
    "Tensor residual, Tensor weight, float eps, str group) -> (Tensor, Tensor)"
)
norm_workspaces: dict[str, GroupWorkspace] = {}
"""The workspaces of fused norms, by their groups' names."""
minimax_workspaces: dict[str, GroupWorkspace] = {}
"""Those of MiniMax's norms."""


def dtypes_fit(rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the package's norms take a residual and a weight of such dtypes beside the rows."""
    return residual.dtype == rows.dtype and weight.dtype in (rows.dtype, torch.float32)


def all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised rows, and the sum with the residual added: in a new tensor, or in `residual_out`."""
    if torch.compiler.is_compiling():
        rows, total = torch.ops.lamport_rs_sglang.all_reduce_rms_norm(input, residual, weight, eps, group)
        return rows, total if residual_out is None else residual_out.copy_(total)
    return _all_reduce_rms_norm(input, residual, weight, eps, group, residual_out)


def moe_finalize_rms_norm(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    shared_rows: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised rows, and the sum of the finalised rows with the residual added."""
    arguments = (expert_rows, row_index, expert_weights, shared_rows, residual, weight, eps, group)
    if torch.compiler.is_compiling():
        traced: tuple[torch.Tensor, torch.Tensor] = torch.ops.lamport_rs_sglang.moe_finalize_rms_norm(*arguments)
        return traced
    return _moe_finalize_rms_norm(*arguments)


def minimax_rms_qk(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's columns of Q and K, normalised by whole rows."""
    if torch.compiler.is_compiling():
        traced: tuple[torch.Tensor, torch.Tensor] = torch.ops.lamport_rs_sglang.minimax_rms_qk(
            q, k, q_weight, k_weight, eps, group
        )
        return traced
    return _minimax_rms_qk(q, k, q_weight, k_weight, eps, group)


def _all_reduce_rms_norm(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
    residual_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    workspace = norm_workspaces[group].here()
    return run_all_reduce_rms_norm(input, residual, weight, workspace, eps, residual_out=residual_out)


def _moe_finalize_rms_norm(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    shared_rows: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    workspace = norm_workspaces[group].here()
    return run_moe_finalize_rms_norm(
        expert_rows, row_index, expert_weights, residual, weight, workspace, shared_rows, eps
    )


def _minimax_rms_qk(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    workspace = minimax_workspaces[group].here()
    sizes = q.shape[-1], k.shape[-1]
    return run_minimax_rms_qk(
        packed(q, k), q_weight, k_weight, workspace, *sizes, workspace.rank, workspace.world_size, eps
    )


def packed(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Return `[q | k]`: the memory that they are parts of, if they lie side by side in it, else a copy."""
    width = q.shape[-1]
    if (
        q.dim() == k.dim() == 2
        and q.stride() == k.stride()
        and q.stride(1) == 1
        and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
        and k.storage_offset() == q.storage_offset() + width
    ):
        return torch.as_strided(q, (q.shape[0], width + k.shape[1]), q.stride())
    return torch.cat([q, k], dim=-1)


def _all_reduce_rms_norm_fake(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return input.new_empty(input.shape), input.new_empty(input.shape)


def _moe_finalize_rms_norm_fake(
    expert_rows: torch.Tensor,
    row_index: torch.Tensor,
    expert_weights: torch.Tensor,
    shared_rows: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    group: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    return residual.new_empty(residual.shape), residual.new_empty(residual.shape)


def _minimax_rms_qk_fake(
    q: torch.Tensor, k: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, eps: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


for _key in ("CPU", "CUDA"):
    _library.impl("all_reduce_rms_norm", _all_reduce_rms_norm, _key)
    _library.impl("moe_finalize_rms_norm", _moe_finalize_rms_norm, _key)
    _library.impl("minimax_rms_qk", _minimax_rms_qk, _key)
torch.library.register_fake("lamport_rs_sglang::all_reduce_rms_norm", _all_reduce_rms_norm_fake, lib=_library)
torch.library.register_fake("lamport_rs_sglang::moe_finalize_rms_norm", _moe_finalize_rms_norm_fake, lib=_library)
torch.library.register_fake("lamport_rs_sglang::minimax_rms_qk", _minimax_rms_qk_fake, lib=_library)
