"""The parts that the ranks of a group agree on: what all of them have chosen.

A rank that replaced more than another would take another path, and both would wait for ever. So the ranks agree before
anything is replaced, those with `LAMPORT_RS_VLLM=0` among them.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch.distributed as dist

from lamport_rs.exchange import all_gather_over
from lamport_rs.vllm_plugin import SWITCH
from lamport_rs.vllm_plugin.log import logger

_agreed: WeakKeyDictionary[dist.ProcessGroup, frozenset[str]] = WeakKeyDictionary()
_served = True


def serve_nothing() -> None:
    """Have no group agree on anything: this release makes its groups in a way that the plugin does not know."""
    global _served
    _served = False


def parts_of(group: dist.ProcessGroup, device: Any = None) -> frozenset[str]:
    """Return the parts that serve a group. Collective for the first time."""
    if not _served:
        return frozenset()
    if (known := _agreed.get(group)) is not None:
        return known
    chosen = SWITCH.chosen()
    parts = chosen
    if dist.get_world_size(group) > 1:
        parts, with_more = SWITCH.chosen_by_all(chosen, all_gather_over(group, device))
        if with_more and dist.get_rank(group) == 0:
            logger.warning(
                "the ranks have different values of %s: ranks %s choose more than all do. What all choose is used: %s. "
                "Set it alike on every rank",
                *(SWITCH.variable, ", ".join(map(str, with_more)), ", ".join(sorted(parts)) or "nothing"),
            )
    _agreed[group] = parts
    return parts
