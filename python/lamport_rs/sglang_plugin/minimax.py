"""MiniMax-M2's norms of Q and K over the ranks' columns, in the place of `fused_tp_qknorm` and of the unfused form.

SGLang imports its models when it has chosen one. So the norms are hooked once it has, before the model is made.
"""

from __future__ import annotations

from typing import Any

import torch

from lamport_rs._core import __version__
from lamport_rs.plugin_communicator import DTYPES
from lamport_rs.plugin_groups import GroupWorkspace
from lamport_rs.sglang_plugin import hooks, operators
from lamport_rs.sglang_plugin.groups import groups, is_served, leave_to_sglang
from lamport_rs.sglang_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace

PART = "minimax"
POINTS = (hooks.MODEL_CHOICE, hooks.PARALLEL)
TOKENS = 16384
"""Tokens that are normalised at once; more are in several turns."""


def register_hooks() -> None:
    """Have the norms hooked when SGLang has imported its models."""
    hooks.when_model_is_chosen(hooks.MINIMAX, hook_norms)


def hook_norms() -> None:
    """Have each norm served once it has been made."""
    if (obstacle := hooks.first_obstacle((hooks.MINIMAX_NORM, hooks.MINIMAX_FORWARD))) is not None:
        leave_to_sglang(PART, obstacle)
        return
    hooks.register(hooks.MINIMAX_NORM, serve_norm, "AFTER")
    hooks.apply()


def serve_norm(_result: Any, norm: Any, q_norm: Any, k_norm: Any) -> None:
    """Have the package normalise Q and K of a layer, on all ranks or on none. Collective for the first layer."""
    try:
        group, eps = hooks.PARALLEL.find()().attn_tp_group, float(q_norm.variance_epsilon)
        widths = q_norm.weight.shape[0], k_norm.weight.shape[0]
    except Exception as error:  # Nothing has been asked of the other ranks yet, and they come here as well.
        leave_to_sglang(PART, repr(error))
        return
    if group.world_size == 1 or not is_served(group.device) or PART not in groups.parts_of(group.cpu_group):
        return
    workspace = workspace_for(group, *widths, q_norm.weight.dtype)
    if workspace is None:
        return
    name = group.unique_name
    if name not in operators.minimax_workspaces and group.rank_in_group == 0:
        logger.info(
            "lamport_rs %s normalises MiniMax's Q and K: group %s, %d ranks, %.0f MiB of memory for each rank",
            *(__version__, name, group.world_size, workspace.memory_bytes / 2**20),
        )
    operators.minimax_workspaces[name] = workspace
    own = norm.forward

    def forward(q: torch.Tensor, k: torch.Tensor) -> Any:
        if q.dtype not in DTYPES or q_norm.weight.dtype not in (q.dtype, torch.float32):
            return own(q, k)
        return operators.minimax_rms_qk(q, k, q_norm.weight, k_norm.weight, eps, name)

    norm.forward = forward


def workspace_for(group: Any, q_size: int, kv_size: int, weight_dtype: torch.dtype) -> GroupWorkspace | None:
    """Return the group's workspace; None, on all ranks, if there is none, or it does not take such rows."""
    workspace = groups.workspace_of(
        *(PART, group.cpu_group, group.device),
        lambda world_size: LamportWorkspace.compute_comm_size_for_minimax(TOKENS, world_size),
    )
    if workspace is None:
        return None
    dtype = torch.bfloat16 if weight_dtype == torch.float32 else weight_dtype
    row = torch.empty(1, q_size + kv_size, dtype=dtype, device="meta")
    served = workspace.here().supports(
        row, "minimax_allreduce_rms_qk", weight_dtype=weight_dtype, q_size=q_size, kv_size=kv_size
    )
    return workspace if served else None
