"""Has vLLM's caches of compiled code tell by what the plugin replaces.

vLLM keeps compiled code on disk, by its configuration, its own environment variables and the model's source. None of it
says whether the plugin had fused operations formed: a later start, with another choice or another version, would load
them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from lamport_rs import __version__
from lamport_rs.sizing import MEMORY_VARIABLE
from lamport_rs.vllm_plugin.imports import when_imported
from lamport_rs.vllm_plugin.wrapping import wrap

MODULE, FUNCTION = "vllm.envs", "compile_factors"


def tell_compile_cache(parts: frozenset[str]) -> None:
    """Have what compiled code depends on include these parts, the version, and the bound of a workspace's memory."""
    ours = {"lamport_rs": f"{__version__} {' '.join(sorted(parts))} {os.environ.get(MEMORY_VARIABLE, '')}"}
    when_imported(MODULE, functools.partial(_adjust, ours=ours))


def _adjust(module: Any, ours: dict[str, str]) -> None:
    # A release without it keys by something else.
    if hasattr(module, FUNCTION):
        wrap(module, FUNCTION, functools.partial(_with, ours))


def _with(ours: dict[str, str], own: Callable[[], dict[str, object]]) -> Callable[[], dict[str, object]]:
    def adjusted() -> dict[str, object]:
        return own() | ours

    return adjusted
