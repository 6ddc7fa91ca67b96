"""All-reduces with residual and RMSNorm of models that have a kernel on the memory of `CustomAllReduceV2` for them.

That is MiniMax-M3. SGLang decides for each batch whether its layers use that kernel. Sums of experts' rows that a layer
leaves to the next norm have another kernel there, and keep it: it rounds them twice before they are summed over ranks.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch

from lamport_rs._core import __version__
from lamport_rs.plugin_groups import gather_over
from lamport_rs.sglang_plugin import hooks, operators
from lamport_rs.sglang_plugin.communicator import MAX_SIZE
from lamport_rs.sglang_plugin.fused import PART
from lamport_rs.sglang_plugin.groups import groups, is_served, leave_to_sglang
from lamport_rs.sglang_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace

DTYPE = torch.bfloat16
"""Of all that SGLang's kernel takes."""
COLUMN_MULTIPLE = 8
WHAT = "fused norms on CustomAllReduceV2"
"""For the log."""


@dataclass
class Served:
    """What is served, once SGLang has prepared for it; the same on all ranks."""

    group: str = ""
    """The name of the tensor-parallel group; empty while nothing is served."""
    world_size: int = 0
    max_bytes: int = 0
    """Of the largest sum."""

    def takes(self, rows: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, world_size: int) -> bool:
        """Whether the package's workspace takes such operands: the same on every rank."""
        dtypes_fit = rows.dtype == DTYPE and operators.dtypes_fit(rows, residual, weight)
        shapes_fit = rows.shape == residual.shape and rows.shape[-1] % COLUMN_MULTIPLE == 0
        fits = dtypes_fit and shapes_fit and self.world_size == world_size
        return fits and 0 < rows.numel() * DTYPE.itemsize <= self.max_bytes


served = Served()


def register_hooks() -> None:
    """Have SGLang tell when it prepares its kernel's memory, if it has this kind of fusion."""
    if hooks.MODEL_CHOICE.obstacle() is None:
        hooks.when_model_is_chosen(hooks.PUSH_PREPARATION.module, hook_preparation)


def hook_preparation() -> None:
    """Have the norms served once the memory is prepared, before graphs are captured."""
    if (obstacle := hooks.PUSH_PREPARATION.obstacle()) is not None:
        leave_to_sglang(WHAT, obstacle)
        return
    hooks.register(hooks.PUSH_PREPARATION, serve_norms, "AFTER")
    hooks.apply()


def serve_norms(_result: Any, *_arguments: Any, max_push_size: int | None = None, **_options: Any) -> None:
    """Have the package run the norms, on all ranks or on none. Collective for the first time."""
    if hooks.PUSH_FUSION not in sys.modules or served.group:
        return  # The memory is for other kernels, of DeepSeek V4.
    try:
        group = hooks.PARALLEL.find()().tp_group
    except Exception as error:  # Nothing has been asked of the other ranks yet, and they come here as well.
        leave_to_sglang(WHAT, repr(error))
        return
    if (obstacle := hooks.PUSH_NORM.obstacle()) is not None:
        leave_to_sglang(WHAT, obstacle)
        return
    if group.world_size == 1 or not is_served(group.device) or PART not in groups.parts_of(group.cpu_group):
        return
    # Without a plane on one of the ranks SGLang fuses nothing.
    registered = getattr(sys.modules[hooks.PUSH_NORM.module], "get_registered_comm", None)
    has_plane = registered is None or registered(group.world_size) is not None
    if not all(map(any, gather_over(group.cpu_group, group.device)(bytes([has_plane])))):
        return
    max_bytes = min(max_push_size or MAX_SIZE, MAX_SIZE)
    workspace = groups.workspace_of(
        *(PART, group.cpu_group, group.device),
        lambda world_size: LamportWorkspace.compute_comm_size_for_all_reduce(max_bytes, world_size),
    )
    if workspace is None:
        return
    operators.norm_workspaces[group.unique_name] = workspace
    served.group, served.world_size, served.max_bytes = group.unique_name, group.world_size, max_bytes
    hooks.register(hooks.PUSH_NORM, all_reduce_residual_norm, "AROUND")
    hooks.apply()
    if group.rank_in_group == 0:
        logger.info(
            "lamport_rs %s fuses all-reduces with residual and RMSNorm in the place of SGLang's kernel on "
            "CustomAllReduceV2: group %s, up to %g MiB, %.0f MiB of memory for each rank",
            *(__version__, group.unique_name, max_bytes / 2**20, workspace.memory_bytes / 2**20),
        )


def all_reduce_residual_norm(
    original: Any,
    input: torch.Tensor,  # noqa: A002  (SGLang's name)
    residual: torch.Tensor | None,
    norm_weight: torch.Tensor | None,
    norm_eps: float | None,
    *,
    world_size: int,
    gemma: bool = False,
    residual_out: torch.Tensor | None = None,
    **geometry: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the normalised rows and `residual_out`, which is `residual` if it is not given.

    `geometry` is how SGLang's kernel would divide the work.
    """
    if (
        residual is None
        or norm_weight is None
        or norm_eps is None
        or gemma
        or not served.takes(input, residual, norm_weight, world_size)
    ):
        unserved: tuple[torch.Tensor, torch.Tensor | None] = original(
            *(input, residual, norm_weight, norm_eps),
            world_size=world_size,
            gemma=gemma,
            residual_out=residual_out,
            **geometry,
        )
        return unserved
    place = residual if residual_out is None else residual_out
    return operators.all_reduce_rms_norm(input, residual, norm_weight, norm_eps, served.group, place)
