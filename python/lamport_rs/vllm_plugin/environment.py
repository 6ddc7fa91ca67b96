"""What vLLM's environment asks for, and has."""

from __future__ import annotations

import importlib
import os
import sys

from lamport_rs.vllm_plugin.imports import has_module

FLASHINFER_VARIABLE = "VLLM_ALLREDUCE_USE_FLASHINFER"
HAS_FLASHINFER = ("vllm.utils.flashinfer", "has_flashinfer")
"""What vLLM's rule for the fusion asks."""


def flashinfer_comes_first() -> bool:
    """Whether the user has asked for FlashInfer's all-reduce, rather than vLLM by default."""
    return os.environ.get(FLASHINFER_VARIABLE, "0") not in ("", "0")


def flashinfer_is_usable() -> bool:
    """Whether vLLM takes FlashInfer for usable: it may be there and lack a compiler."""
    name, function = HAS_FLASHINFER
    return has_module(name) and bool(getattr(importlib.import_module(name), function, lambda: False)())


def batch_invariant() -> bool:
    """Whether vLLM is to give a request the same bits in every batch."""
    return bool(getattr(sys.modules.get("vllm.envs"), "VLLM_BATCH_INVARIANT", False))
