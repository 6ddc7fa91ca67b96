"""The groups of a serving engine that a plugin serves: the parts their ranks agree on, and their workspaces.

A rank that replaced more than another would take another path, and both would wait for ever. So the ranks agree before
anything is replaced, those that choose nothing among them; and a workspace is made on all ranks or on none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError
from lamport_rs.arguments import refused_on_all_ranks
from lamport_rs.plugin_switch import PluginSwitch
from lamport_rs.rendezvous import AllGather, all_gather_over
from lamport_rs.sizing import default_comm_size
from lamport_rs.timeouts import default_timeout, limit_of
from lamport_rs.workspace import LamportWorkspace, bind_to_thread

TIMEOUT = 600.0
"""Seconds that ranks wait for each other, unless `LAMPORT_RS_TIMEOUT` says how long. While a server warms up, one rank
may compile for minutes that others do not: those are no fault. It is torch's limit for a collective of NCCL."""


def gather_over(group: dist.ProcessGroup, device: Any = None) -> AllGather:
    """Return the all-gather of bytes over an engine's group, which waits for the other ranks as long."""
    return all_gather_over(group, device, limit_of(None, TIMEOUT))


class GroupWorkspace:
    """A workspace that changes over to the thread that calls."""

    def __init__(self, workspace: LamportWorkspace) -> None:
        self._workspace = workspace
        self._thread = threading.get_ident()
        self.is_closed = False

    def here(self) -> LamportWorkspace:
        """Return the workspace, bound to this thread.

        An engine may make the model in one thread and run it in another. All ranks change over between the same two
        operations, for an engine's threads take turns in one order.
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
        """Give the workspace up. Safe to call again."""
        self.is_closed = True
        self._workspace.cleanup()


@dataclass(frozen=True)
class Plugin:
    """A plugin, as far as its groups concern it."""

    engine: str
    """The engine's name."""
    switch: PluginSwitch
    logger: logging.Logger

    def parts_of_all(self, chosen: frozenset[str], group: dist.ProcessGroup, device: Any = None) -> frozenset[str]:
        """Return the parts that all ranks of a group have chosen. Collective."""
        parts, with_more = self.switch.chosen_by_all(chosen, gather_over(group, device))
        if with_more and dist.get_rank(group) == 0:
            self.logger.warning(
                "the ranks have different values of %s: ranks %s choose more than all do. What all choose is used: %s. "
                "Set it alike on every rank",
                *(self.switch.variable, ", ".join(map(str, with_more)), ", ".join(sorted(parts)) or "nothing"),
            )
        return parts

    def make_workspace(
        self,
        part: str,
        group: dist.ProcessGroup,
        device: Any,
        comm_size_of: Callable[[int], int],
        check: Callable[[], None] | None = None,
    ) -> GroupWorkspace | None:
        """Make a workspace; None, on all ranks, if one of them cannot have it, or there is but one rank. Collective.

        It keeps within `LAMPORT_RS_MAX_MEMORY`: what is larger than a slot runs in chunks.

        Args:
            part: The part of the plugin that it is for.
            group: The group.
            device: The device of the tensors to come.
            comm_size_of: Returns the bytes of a slot for a number of ranks.
            check: Raises if this rank cannot have a workspace for a reason of the engine's.
        """
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        if world_size == 1:
            return None
        try:
            with refused_on_all_ranks(rank, world_size, gather_over(group, device)):
                seconds = default_timeout(TIMEOUT)
                if check is not None:
                    check()
                comm_size = min(comm_size_of(world_size), default_comm_size(world_size))
            return GroupWorkspace(LamportWorkspace(rank, world_size, comm_size, group, device=device, timeout=seconds))
        except LamportError as error:
            # All ranks have the same text: one line will do.
            if rank == 0:
                self.logger.warning(
                    "%s's own path goes on for %s, because lamport_rs has no workspace: %s", self.engine, part, error
                )
            return None


class PluginGroups:
    """The process groups of one plugin's engine, and what has been agreed and made for them."""

    def __init__(self, plugin: Plugin) -> None:
        """Begin with a choice of nothing."""
        self._plugin = plugin
        self.chosen: frozenset[str] = frozenset()
        """The parts that this process is to replace."""
        self._agreed: WeakKeyDictionary[dist.ProcessGroup, frozenset[str]] = WeakKeyDictionary()
        self._made: WeakKeyDictionary[dist.ProcessGroup, dict[str, GroupWorkspace | None]] = WeakKeyDictionary()

    def parts_of(self, group: dist.ProcessGroup, device: Any = None) -> frozenset[str]:
        """Return the parts that all ranks of a group have chosen. Collective for the first time."""
        if group not in self._agreed:
            self._agreed[group] = self._plugin.parts_of_all(self.chosen, group, device)
        return self._agreed[group]

    def workspace_of(
        self, part: str, group: dist.ProcessGroup, device: Any, comm_size_of: Callable[[int], int]
    ) -> GroupWorkspace | None:
        """Return the group's workspace for a part, or None on all ranks. Collective for the first time.

        What could not be made is not tried again. The arguments are those of `Plugin.make_workspace`.
        """
        made = self._made.setdefault(group, {})
        if part not in made:
            made[part] = self._plugin.make_workspace(part, group, device, comm_size_of)
        return made[part]
