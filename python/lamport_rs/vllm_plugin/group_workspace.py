"""The workspaces of vLLM's groups: made on all ranks or on none, and used by whichever thread calls."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError
from lamport_rs.arguments import refused_on_all_ranks
from lamport_rs.exchange import AllGather, all_gather_over
from lamport_rs.sizing import default_comm_size
from lamport_rs.vllm_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace, bind_to_thread

TIMEOUT = 600.0
"""Seconds that an operation waits for its peers. While a server warms up, one rank may compile for minutes that others
do not: those are no fault. It is torch's limit for a collective of NCCL."""
_UNKNOWN = -1


class GroupWorkspace:
    """A workspace that changes over to the thread that calls."""

    def __init__(self, workspace: LamportWorkspace) -> None:
        self._workspace = workspace
        self._thread = threading.get_ident()
        self.is_closed = False

    def here(self) -> LamportWorkspace:
        """Return the workspace, bound to this thread.

        An executor may make the model in one thread and run it in another. All ranks change over between the same two
        operations, for vLLM's threads take turns in one order.
        """
        if (thread := threading.get_ident()) != self._thread:
            bind_to_thread(self._workspace)
            self._thread = thread
        return self._workspace

    @property
    def table(self) -> torch.Tensor:
        """The workspace's table."""
        return self._workspace.workspace

    @property
    def memory_bytes(self) -> int:
        """Bytes that this rank takes."""
        return self._workspace.memory_bytes

    def close(self) -> None:
        """Give the workspace up."""
        self.is_closed = True
        self._workspace.cleanup()


_made: dict[tuple[str, dist.ProcessGroup], GroupWorkspace | None] = {}
"""By part and group; None for what could not be made, and is not tried again."""


def workspace_of(part: str, group: dist.ProcessGroup, comm_size_of: Callable[[int], int]) -> GroupWorkspace | None:
    """Return the group's workspace for a part, or None on all ranks. Collective for the first time.

    Args:
        part: The part of the plugin that it is for.
        group: The group.
        comm_size_of: Returns the bytes of a slot for a number of ranks.
    """
    key = (part, group)
    if key not in _made:
        _made[key] = make_workspace(part, group, None, comm_size_of)
        if (made := _made[key]) is not None and dist.get_rank(group) == 0:
            logger.info(
                "lamport_rs serves %s: %d ranks, %.0f MiB of memory for each rank",
                *(part, dist.get_world_size(group), made.memory_bytes / 2**20),
            )
    return _made[key]


def has_workspace(group: dist.ProcessGroup) -> bool:
    """Whether a part other than `all_reduce` has a workspace of the group."""
    return any(key[1] is group and made is not None for key, made in _made.items())


def close_workspaces(group: dist.ProcessGroup) -> None:
    """Give the workspaces of a group up, which vLLM takes down."""
    for key in [key for key in _made if key[1] is group]:
        if (made := _made.pop(key)) is not None:
            made.close()


def make_workspace(
    part: str, group: dist.ProcessGroup, device: Any, comm_size_of: Callable[[int], int]
) -> GroupWorkspace | None:
    """Make a workspace; None, on all ranks, if it cannot be made on one of them, or there is but one rank. Collective.

    It keeps within `LAMPORT_RS_MAX_MEMORY`: what is larger than a slot runs in chunks.
    """
    rank, world_size = dist.get_rank(group), dist.get_world_size(group)
    if world_size == 1:
        return None
    all_gather = all_gather_over(group, device)
    try:
        gpus = physical_gpus(device, all_gather)
        with refused_on_all_ranks(rank, world_size, all_gather):
            check_links(gpus)
            comm_size = min(comm_size_of(world_size), default_comm_size(world_size))
        return GroupWorkspace(LamportWorkspace(rank, world_size, comm_size, group, device=device, timeout=TIMEOUT))
    except LamportError as error:
        # All ranks have the same text: one line will do.
        if rank == 0:
            logger.warning("vLLM's own path goes on for %s, because lamport_rs has no workspace: %s", part, error)
        return None


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
