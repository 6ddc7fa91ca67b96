"""MiniMax's layer, with its operator bound when the module is imported."""

import torch
from vllm.distributed.parallel_state import get_tp_group

MOST_TOKENS = 2048


def note(what):
    get_tp_group().notes.append(what)


def own_operator(qkv, q_weight, k_weight, workspace, q_size, kv_size, rank, world, eps):
    note("operator")
    return by_parts(qkv, q_weight, k_weight, q_size, kv_size, world, eps)


_MINIMAX_FUSED_AR_RMS_QK = own_operator


def by_parts(qkv, q_weight, k_weight, q_size, kv_size, world, eps):
    q, k = (each.float() for each in qkv[:, : q_size + kv_size].split([q_size, kv_size], -1))
    squares = torch.cat([each.square().mean(-1, keepdim=True) for each in (q, k)], -1)
    torch.distributed.all_reduce(squares, group=get_tp_group().cpu_group)
    q_scale, k_scale = torch.rsqrt(squares / world + eps).split(1, -1)
    return (q * q_scale * q_weight).to(qkv.dtype), (k * k_scale * k_weight).to(qkv.dtype)


def _minimax_qk_norm_tp_fallback(qkv, q_weight, k_weight, q_size, kv_size, tp_rank, tp_world, eps):
    note("fallback")
    return by_parts(qkv, q_weight, k_weight, q_size, kv_size, tp_world, eps)


def _minimax_qk_norm_fusion(qkv, q_weight, k_weight, q_size, kv_size, tp_rank, tp_world, eps, workspace):
    if workspace is not None and qkv.shape[0] <= MOST_TOKENS and _MINIMAX_FUSED_AR_RMS_QK is not None:
        return _MINIMAX_FUSED_AR_RMS_QK(qkv, q_weight, k_weight, workspace, q_size, kv_size, tp_rank, tp_world, eps)
    return _minimax_qk_norm_tp_fallback(qkv, q_weight, k_weight, q_size, kv_size, tp_rank, tp_world, eps)


class MiniMaxText01RMSNormTP:
    def __init__(self, hidden_size, eps=1e-06, *, weight_shard_world_size=None, weight_shard_rank=None):
        group = get_tp_group()
        self.weight = torch.ones(hidden_size // group.world_size)
        self.variance_epsilon = eps
        self.workspace = None
        if _MINIMAX_FUSED_AR_RMS_QK is not None:
            from .lamport_workspace import get_allreduce_workspace

            self.workspace = get_allreduce_workspace(
                rank=group.rank_in_group,
                world_size=group.world_size,
                max_tokens=MOST_TOKENS,
                process_group=group.cpu_group,
            )

    @staticmethod
    def forward_qkv(q_norm, k_norm, qkv, q_size, kv_size):
        group = get_tp_group()
        q, k = _minimax_qk_norm_fusion(
            qkv, q_norm.weight, k_norm.weight, q_size, kv_size, group.rank_in_group, group.world_size,
            q_norm.variance_epsilon, q_norm.workspace,
        )  # fmt: skip
        return q, k, qkv[:, q_size + kv_size :]
