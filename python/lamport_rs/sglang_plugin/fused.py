"""All-reduces fused with residual and RMSNorm: what SGLang has FlashInfer for, and now not only where that is.

SGLang decides by its own options whether all-reduces are fused (`--flashinfer-allreduce-fusion-backend`, which it sets
itself for many models), and prepares for it before graphs are captured. That is where workspaces are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from lamport_rs._core import __version__
from lamport_rs.plugin_communicator import DTYPES
from lamport_rs.plugin_groups import GroupWorkspace, gather_over
from lamport_rs.sglang_plugin import hooks, operators
from lamport_rs.sglang_plugin.communicator import MAX_SIZE
from lamport_rs.sglang_plugin.groups import groups, is_served, leave_to_sglang
from lamport_rs.sglang_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace

PART = "fused"
POINTS = (
    *(hooks.PREPARATION, hooks.FUSED_NORM, hooks.FUSION_GROUP, hooks.FUSION_CHOICE),
    *(hooks.DP_ATTENTION_ENABLED, hooks.PARALLEL),
)


@dataclass
class Served:
    """What is fused, once SGLang has prepared for it; the same on all ranks of a tensor-parallel group."""

    rows: int = 0
    """Most rows; 0 while nothing is fused by the package."""
    widths: set[int] = field(default_factory=set)
    """The lengths of rows that the workspaces take."""
    group_of: Any = None
    """SGLang's function that finds a fusion's group. It is kept for compilers, which do not follow `sys.modules`."""
    has_dp_attention: Any = None
    """SGLang's function that says whether attention is data-parallel, so that nothing is fused."""


served = Served()


def register_hooks() -> None:
    """Have SGLang prepare workspaces, ask whether they serve, and use them."""
    served.group_of = hooks.FUSION_GROUP.find()
    served.has_dp_attention = hooks.DP_ATTENTION_ENABLED.find()
    hooks.register(hooks.PREPARATION, prepare, "AROUND")
    hooks.register(hooks.FUSION_CHOICE, applies, "AROUND")
    hooks.register(hooks.FUSED_NORM, all_reduce_rms_norm, "AROUND")


def prepare(
    original: Any, max_token_num: int, hidden_dim: int, dtype: torch.dtype, use_oneshot: bool | None = None
) -> None:
    """Make the workspaces of the groups whose sums are fused, or have FlashInfer make its own. Collective."""
    if not prepare_workspaces(max_token_num, hidden_dim, dtype):
        original(max_token_num=max_token_num, hidden_dim=hidden_dim, dtype=dtype, use_oneshot=use_oneshot)


def prepare_workspaces(rows: int, width: int, dtype: torch.dtype) -> bool:
    """Make the workspaces, on all ranks of the tensor-parallel group or on none."""
    try:
        everybody = hooks.PARALLEL.find()().tp_group
        fusing = {group.unique_name: group for group in map(fusion_group, (True, False)) if group.world_size > 1}
    except Exception as error:  # Nothing has been asked of the other ranks yet, and they come here as well.
        leave_to_sglang(PART, repr(error))
        return False
    if not fusing or not is_served(everybody.device) or served.has_dp_attention():
        return False
    if PART not in groups.parts_of(everybody.cpu_group):
        return False
    made = {name: workspace_for(group, rows, width, dtype) for name, group in fusing.items()}
    # The groups are parts of the tensor-parallel one: another part may have failed where this one has not.
    mine = all(made.values())
    if not all(message[0] for message in gather_over(everybody.cpu_group)(bytes([mine]))):
        return False
    operators.norm_workspaces.update({name: workspace for name, workspace in made.items() if workspace is not None})
    served.rows = max(served.rows, rows)
    served.widths.add(width)
    if everybody.rank_in_group == 0:
        logger.info(
            "lamport_rs %s fuses all-reduces with residual and RMSNorm in the place of FlashInfer: groups %s, up to %d "
            "rows of %d, %.0f MiB of memory for each rank",
            *(__version__, ", ".join(made), rows, width),
            sum(workspace.memory_bytes for workspace in made.values() if workspace is not None) / 2**20,
        )
    return True


def fusion_group(use_attn_tp_group: bool) -> Any:
    """Return the `GroupCoordinator` of attention's sums, or of the experts'."""
    return served.group_of(use_attn_tp_group=use_attn_tp_group)[-1]


def workspace_for(group: Any, rows: int, width: int, dtype: torch.dtype) -> GroupWorkspace | None:
    """Return the group's workspace; None, on all ranks, if there is none, or it does not take such rows."""
    max_bytes = min(rows * width * dtype.itemsize, MAX_SIZE)
    workspace = groups.workspace_of(
        *(PART, group.cpu_group, group.device),
        lambda world_size: LamportWorkspace.compute_comm_size_for_all_reduce(max_bytes, world_size),
    )
    row = torch.empty(1, width, dtype=dtype, device="meta")
    if workspace is None or not workspace.here().supports(row, "all_reduce_rms_norm"):
        return None
    return workspace


def applies(original: Any, batch_size: int) -> Any:
    """Whether an all-reduce over so many rows is fused with what follows."""
    if served.rows and not served.has_dp_attention():
        # The size comes last: a compiler makes the graph depend on what is asked of it.
        return batch_size > 0 and batch_size <= served.rows
    return original(batch_size)


def all_reduce_rms_norm(
    original: Any,
    input_tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    max_token_num: int = 2048,
    use_oneshot: bool | None = None,
    trigger_completion_at_end: bool = False,
    fp32_acc: bool = True,
    use_attn_tp_group: bool = True,
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Return the normalised rows and the new residual; None twice has SGLang sum and normalise by itself."""
    if not served.rows:
        unfused: tuple[torch.Tensor, torch.Tensor] | tuple[None, None] = original(
            *(input_tensor, residual, weight, eps, max_token_num, use_oneshot, trigger_completion_at_end, fp32_acc),
            use_attn_tp_group=use_attn_tp_group,
        )
        return unfused
    group = fusion_group(use_attn_tp_group).unique_name
    if group not in operators.norm_workspaces or not takes(input_tensor, residual, weight):
        return None, None
    return operators.all_reduce_rms_norm(input_tensor, residual, weight, eps, group)


def takes(rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the workspaces take such operands: the same on every rank, and for any number of rows."""
    dtypes_fit = rows.dtype in DTYPES and operators.dtypes_fit(rows, residual, weight)
    return dtypes_fit and rows.shape[-1] in served.widths
