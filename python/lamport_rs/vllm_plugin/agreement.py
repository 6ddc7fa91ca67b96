"""The parts that the ranks of a group agree on: what all of them have chosen.

A rank that replaced more than another would take another path, and both would wait for ever. So the ranks agree before
anything is replaced, those with `LAMPORT_RS_VLLM=0` among them.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from lamport_rs.plugin_groups import Plugin
from lamport_rs.vllm_plugin import SWITCH
from lamport_rs.vllm_plugin.log import logger

plugin = Plugin("vLLM", SWITCH, logger)
_agreed: WeakKeyDictionary[dist.ProcessGroup, frozenset[str]] = WeakKeyDictionary()
_served = True


def serve_nothing() -> None:
    """Have no group agree on anything: this release makes its groups in a way that the plugin does not know."""
    global _served
    _served = False


def agreed() -> dict[dist.ProcessGroup, frozenset[str]]:
    """Return the parts of the groups of more than one rank that have agreed."""
    return {group: parts for group, parts in _agreed.items() if group.size() > 1}


def parts_of(group: dist.ProcessGroup, device: Any = None) -> frozenset[str]:
    """Return the parts that serve a group. Collective for the first time."""
    if not _served:
        return frozenset()
    if (known := _agreed.get(group)) is not None:
        return known
    chosen = SWITCH.chosen()
    parts = chosen
    if dist.get_world_size(group) > 1:
        parts = plugin.parts_of_all(chosen, group, device)
    _agreed[group] = parts
    return parts
