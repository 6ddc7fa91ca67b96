"""Has MiniMax's norms of Q and K run by the package: vLLM's workspace and the operator that takes it, together.

vLLM's layer takes a workspace's table from `get_allreduce_workspace`, and passes it to an operator. The first returns
the package's table where the group can have one, the second goes by the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from lamport_rs.operations import minimax_allreduce_rms_qk
from lamport_rs.plugin_groups import GroupWorkspace
from lamport_rs.vllm_plugin.agreement import parts_of
from lamport_rs.vllm_plugin.group_workspace import workspace_of
from lamport_rs.vllm_plugin.imports import has_module, when_imported
from lamport_rs.vllm_plugin.log import leave_to_vllm
from lamport_rs.vllm_plugin.wrapping import is_wrapped, obstacle_of, wrap
from lamport_rs.workspace import LamportWorkspace

PACKAGE = "vllm.model_executor.layers.minimax_rms_norm"
WORKSPACES, NORM = f"{PACKAGE}.lamport_workspace", f"{PACKAGE}.rms_norm_tp"
EARLIER_WORKSPACES = "vllm.model_executor.layers.mamba.lamport_workspace"
"""Where earlier releases have them; their compile pass calls torch's operator."""
GET = "get_allreduce_workspace"
PARAMETERS = ("rank", "world_size", "comm_size", "max_tokens", "process_group")
OPERATOR = "_MINIMAX_FUSED_AR_RMS_QK"
TORCH_OPERATOR = "minimax_allreduce_rms_qk"
FALLBACK = "_minimax_qk_norm_tp_fallback"
"""vLLM's norm by way of an all-reduce."""
FALLBACK_PARAMETERS = ("qkv", "q_weight", "k_weight", "q_size", "kv_size", "tp_rank", "tp_world", "eps")
_COLUMN_MULTIPLE = 8

_tables: dict[int, GroupWorkspace] = {}
"""The package's workspaces, by the addresses of their tables."""


def replace_minimax() -> None:
    """Have the modules adjusted once vLLM has imported them. Safe to call again."""
    if has_module(WORKSPACES) and has_module(NORM):
        when_imported(WORKSPACES, _adjust_workspaces)
        when_imported(NORM, _adjust_norm)
    elif has_module(EARLIER_WORKSPACES):
        when_imported(EARLIER_WORKSPACES, _adjust_earlier)
    else:
        leave_to_vllm("minimax", f"there is neither {WORKSPACES} nor {EARLIER_WORKSPACES}")


def _adjust_workspaces(module: Any) -> None:
    _serve_tables(module, lambda: getattr(sys.modules.get(NORM), OPERATOR, None))


def _adjust_norm(module: Any) -> None:
    if getattr(module, OPERATOR, None) is None:
        # This build of vLLM has none, and so makes no workspace.
        return
    if obstacle := obstacle_of(module, FALLBACK, *FALLBACK_PARAMETERS):
        leave_to_vllm("minimax", obstacle)
    else:
        wrap(module, OPERATOR, lambda own: _by_the_table(own, getattr(module, FALLBACK)))


def _adjust_earlier(module: Any) -> None:
    operators: Any = torch.ops._C
    if hasattr(operators, TORCH_OPERATOR):
        wrap(operators, TORCH_OPERATOR, lambda own: _by_the_table(own, None))
        _serve_tables(module, lambda: getattr(operators, TORCH_OPERATOR))


def _serve_tables(module: Any, operator: Callable[[], Any]) -> None:
    if obstacle := obstacle_of(module, GET, *PARAMETERS):
        leave_to_vllm("minimax", obstacle)
    else:
        wrap(module, GET, lambda own: _ours_first(own, operator))


def _ours_first(own: Callable[..., torch.Tensor], operator: Callable[[], Any]) -> Callable[..., torch.Tensor]:
    """`get_allreduce_workspace`: the table of the package's workspace, or of vLLM's own."""

    def adjusted(
        rank: int,
        world_size: int,
        comm_size: int | None = None,
        max_tokens: int = 16384,
        process_group: Any = None,
    ) -> torch.Tensor:
        # A table of the package's is for the package's operator.
        if process_group is not None and is_wrapped(operator()) and "minimax" in parts_of(process_group):
            held = workspace_of(
                "minimax",
                process_group,
                lambda ranks: comm_size or LamportWorkspace.compute_comm_size_for_minimax(max_tokens, ranks),
            )
            if held is not None:
                _tables[held.table.data_ptr()] = held
                return held.table
        return own(rank, world_size, comm_size, max_tokens, process_group)

    return adjusted


def _by_the_table(own: Callable[..., Any], fallback: Callable[..., Any] | None) -> Callable[..., Any]:
    """Wrap vLLM's operator, which goes on with tables that are not the package's."""

    def adjusted(
        qkv: torch.Tensor,
        norm_weight_q: torch.Tensor,
        norm_weight_k: torch.Tensor,
        workspace: torch.Tensor,
        q_size: int,
        kv_size: int,
        rank: int,
        nranks: int,
        eps: float,
    ) -> Any:
        held = _tables.get(workspace.data_ptr())
        if held is None or held.is_closed:
            return own(qkv, norm_weight_q, norm_weight_k, workspace, q_size, kv_size, rank, nranks, eps)
        if fallback is not None and (q_size % _COLUMN_MULTIPLE or kv_size % _COLUMN_MULTIPLE):
            return fallback(qkv, norm_weight_q, norm_weight_k, q_size, kv_size, rank, nranks, eps)
        return minimax_allreduce_rms_qk(
            qkv, norm_weight_q, norm_weight_k, held.here(), q_size, kv_size, rank, nranks, eps
        )

    return adjusted
