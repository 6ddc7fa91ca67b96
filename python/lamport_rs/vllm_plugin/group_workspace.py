"""The workspaces of vLLM's groups, and vLLM's rule for GPUs without NVLink between them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError
from lamport_rs.plugin_groups import GroupWorkspace, gather_over
from lamport_rs.rendezvous import AllGather
from lamport_rs.vllm_plugin.agreement import plugin
from lamport_rs.vllm_plugin.log import logger

_UNKNOWN = -1
_SERVED = {
    "fused": "all-reduces with residual and RMSNorm, in the place of FlashInfer's: rows a multiple of 8 long, of 64 "
    "where they become NVFP4",
    "minimax": "norms of Q and K of up to 2048 tokens, in the place of vLLM's kernel",
}
"""What each part replaces, and with what limits."""
_made: dict[tuple[str, dist.ProcessGroup], GroupWorkspace | None] = {}
"""By part and group; None for what could not be made, and is not tried again."""
left_to_the_pass: WeakSet[dist.ProcessGroup] = WeakSet()
"""Groups whose workspace for `fused` is made, or not, after vLLM has looked for compiled code."""


def workspace_of(
    part: str, group: dist.ProcessGroup, comm_size_of: Callable[[int], int], device: Any = None
) -> GroupWorkspace | None:
    """Return the group's workspace for a part, or None on all ranks. Collective for the first time.

    Args:
        part: The part of the plugin that it is for.
        group: The group.
        comm_size_of: Returns the bytes of a slot for a number of ranks.
        device: The device of the tensors to come; None for the current one.
    """
    key = (part, group)
    if key not in _made:
        _made[key] = make_workspace(part, group, device, comm_size_of)
        if (made := _made[key]) is not None and dist.get_rank(group) == 0:
            logger.info(
                "lamport_rs serves %s: %d ranks, %.0f MiB of memory for each rank; %s",
                *(part, dist.get_world_size(group), made.memory_bytes / 2**20, _SERVED[part]),
            )
    return _made[key]


def workspaces_of(group: dist.ProcessGroup) -> dict[str, bool]:
    """Return which parts other than `all_reduce` have asked for a workspace of the group, and whether they got it."""
    return {part: made is not None for (part, its_group), made in _made.items() if its_group is group}


def close_workspaces(group: dist.ProcessGroup) -> None:
    """Give the workspaces of a group up, which vLLM takes down."""
    for key in [key for key in _made if key[1] is group]:
        if (made := _made.pop(key)) is not None:
            made.close()


def make_workspace(
    part: str, group: dist.ProcessGroup, device: Any, comm_size_of: Callable[[int], int]
) -> GroupWorkspace | None:
    """Make a workspace, if vLLM would not leave such GPUs to NCCL, as `Plugin.make_workspace` does. Collective."""
    if dist.get_world_size(group) == 1:
        return None
    gpus = physical_gpus(device, gather_over(group, device))
    return plugin.make_workspace(part, group, device, comm_size_of, lambda: check_links(gpus))


def physical_gpus(device: Any, all_gather: AllGather) -> list[int]:
    """Return the numbers of the ranks' GPUs, as vLLM's platform has them; -1 where it does not say. Collective."""
    number = _UNKNOWN
    platform = _platform()
    if platform is not None and platform.is_cuda():
        try:
            index = device.index if isinstance(device, torch.device) else None
            number = platform.visible_device_id_to_physical_device_id(
                torch.cuda.current_device() if index is None else index
            )
        except Exception as error:
            logger.debug("this rank's GPU is not known: %r", error)
    return [
        int.from_bytes(each, "little", signed=True) for each in all_gather(number.to_bytes(8, "little", signed=True))
    ]


def check_links(gpus: list[int]) -> None:
    """Raise `LamportError` where vLLM's own rule has NCCL sum: more than two GPUs, not all joined by NVLink."""
    platform = _platform()
    if len(gpus) <= 2 or platform is None or _UNKNOWN in gpus or len(set(gpus)) < len(gpus):
        # Ranks that share a number are on several hosts, or share a GPU: for the workspace to judge.
        return
    if not platform.is_fully_connected(gpus):
        raise LamportError(
            f"NVLink does not join all of the GPUs {', '.join(map(str, gpus))}, and vLLM leaves more than two such "
            "GPUs to NCCL"
        )


def _platform() -> Any:
    return getattr(sys.modules.get("vllm.platforms"), "current_platform", None)
