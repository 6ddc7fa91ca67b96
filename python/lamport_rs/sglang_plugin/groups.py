"""What happens when SGLang makes a group: its ranks agree on the parts, and its communicator is replaced.

Everything else of the plugin is put in place when the first group is made. Only then is a process known to be a rank,
and SGLang has loaded what is hooked; processes without ranks load none of it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from lamport_rs.plugin_groups import Plugin, PluginGroups
from lamport_rs.sglang_plugin import SWITCH, hooks
from lamport_rs.sglang_plugin.log import logger

SERVED_DEVICES = {"cuda"}
ATTRIBUTES = ("ca_comm", "cpu_group", "device", "rank_in_group", "unique_name", "use_custom_allreduce", "world_size")
"""What the plugin asks of a `GroupCoordinator`."""
groups = PluginGroups(Plugin("SGLang", SWITCH, logger))


@dataclass
class State:
    """How far the plugin has come in this process."""

    is_watching: bool = False
    is_in_place: bool = False
    left: set[str] = field(default_factory=set)
    """The parts that the log says are left to SGLang."""


_state = State()


def watch_groups(chosen: frozenset[str]) -> None:
    """Have SGLang call the plugin for each group that it makes from now on. Safe to call again."""
    if _state.is_watching:
        return
    if hooks.REGISTRY not in sys.modules:
        obstacle: str | None = f"there is no {hooks.REGISTRY}"
    else:
        obstacle = hooks.GROUP.obstacle()
    if obstacle is not None:
        leave_to_sglang("anything", obstacle)
        return
    groups.chosen = chosen
    _state.is_watching = True
    signature = inspect.signature(hooks.GROUP.find())

    def after_group(_result: Any, group: Any, *arguments: Any, **options: Any) -> None:
        given = signature.bind(group, *arguments, **options)
        given.apply_defaults()
        serve_group(group, given.arguments)

    hooks.register(hooks.GROUP, after_group, "AFTER")


def serve_group(group: Any, given: dict[str, Any]) -> None:
    """Agree on the parts of a group that SGLang has just made, and replace its communicator. Collective.

    Args:
        group: The `GroupCoordinator`.
        given: The arguments of its constructor.
    """
    if missing := [name for name in ATTRIBUTES if not hasattr(group, name)]:
        leave_to_sglang("anything", f"a group has no {', '.join(missing)}")
        return
    if group.world_size == 1 or not is_served(group.device) or is_elastic(given):
        return
    if not _state.is_in_place:
        _state.is_in_place = True
        put_parts_in_place()
    if "all_reduce" in groups.parts_of(group.cpu_group) and group.use_custom_allreduce:
        from lamport_rs.sglang_plugin.communicator import replace_communicator

        replace_communicator(group)


def is_served(device: torch.device) -> bool:
    """Whether the device of a group is an NVIDIA GPU; SGLang's other platforms have all-reduces of their own."""
    return device.type in SERVED_DEVICES and torch.version.hip is None


def is_elastic(given: dict[str, Any]) -> bool:
    """Whether ranks may join a group later, or come back: no collective may be added to how it is made."""
    return "mooncake" in str(given["torch_distributed_backend"]) or given["recovered_rank"] or given["rank_offset"] > 0


def put_parts_in_place() -> None:
    """Register the hooks of the chosen parts; what this release has no hooks for is chosen no longer."""
    from lamport_rs.sglang_plugin import communicator, experts, fused, minimax, push_plane

    def register_fused() -> None:
        fused.register_hooks()
        experts.register_hooks()
        push_plane.register_hooks()

    parts: dict[str, tuple[tuple[hooks.Point, ...], Callable[[], None]]] = {
        "all_reduce": (communicator.POINTS, communicator.register_hooks),
        "fused": (fused.POINTS, register_fused),
        "minimax": (minimax.POINTS, minimax.register_hooks),
    }
    for part in sorted(groups.chosen):
        points, register_hooks = parts[part]
        if (obstacle := hooks.first_obstacle(points)) is not None:
            leave_to_sglang(part, obstacle)
            groups.chosen -= {part}
        else:
            register_hooks()
    hooks.apply()


def leave_to_sglang(part: str, reason: str) -> None:
    """Say once why a part cannot be replaced. All ranks are of one release: the first one's warning will do."""
    is_known = part in _state.left
    _state.left.add(part)
    if not is_known and (not dist.is_initialized() or dist.get_rank() == 0):
        logger.warning(
            "this release of SGLang has no hook for lamport_rs to replace %s: %s; SGLang's own goes on. A newer "
            "lamport_rs may know this release; %s=0 silences this",
            *(part, reason, SWITCH.variable),
        )
