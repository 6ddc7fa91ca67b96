"""Has vLLM's caches of compiled code tell by what the plugin replaces.

vLLM keeps compiled code on disk, by its configuration, its own environment variables and the model's source. None of it
says whether the plugin had fused operations formed: a later start that has others would load them. It asks for the key
once groups exist, so that the key is made of what their ranks have in common: all ranks must run the same code.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from lamport_rs import __version__
from lamport_rs.sizing import MEMORY_VARIABLE
from lamport_rs.vllm_plugin import SWITCH
from lamport_rs.vllm_plugin.agreement import agreed
from lamport_rs.vllm_plugin.communicator import communicators
from lamport_rs.vllm_plugin.environment import flashinfer_is_usable
from lamport_rs.vllm_plugin.group_workspace import left_to_the_pass, workspaces_of
from lamport_rs.vllm_plugin.imports import when_imported
from lamport_rs.vllm_plugin.wrapping import wrap

MODULE, FUNCTION = "vllm.envs", "compile_factors"
_START = uuid.uuid4().hex
"""Of this process: where it is not known yet what will be replaced, no other start has the same key."""


def tell_compile_cache() -> None:
    """Have what compiled code depends on include what is replaced, the version, and the bound of workspaces' memory."""
    when_imported(MODULE, _adjust)


def _adjust(module: Any) -> None:
    # A release without it keys by something else.
    if hasattr(module, FUNCTION):
        wrap(module, FUNCTION, _with_what_is_replaced)


def _with_what_is_replaced(own: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    def adjusted() -> dict[str, object]:
        return own() | {"lamport_rs": f"{__version__} {os.environ.get(MEMORY_VARIABLE, '')} {replaced()}"}

    return adjusted


def replaced() -> str:
    """Say what this process replaces: for its groups the parts that their ranks agree on, and which have workspaces."""
    if not (groups := agreed()):
        return " ".join(sorted(SWITCH.chosen()))
    return "; ".join(sorted({_replaced_in(group, parts) for group, parts in groups.items()}))


def _replaced_in(group: dist.ProcessGroup, parts: frozenset[str]) -> str:
    made: dict[str, object] = {"all_reduce": group in communicators, **workspaces_of(group)}
    # None for a workspace that nobody has asked for.
    if group in left_to_the_pass:
        made.setdefault("fused", _START)
    keys = [f"{part}={made.get(part)}" for part in sorted(parts)]
    if "fused" in parts and made.get("fused") is not True:
        # FlashInfer runs what was fused. The plugin has the fusion on with it or without, so vLLM's key is the same.
        keys.append(f"flashinfer={flashinfer_is_usable()}")
    return " ".join(keys)
