"""What vLLM's environment asks for."""

from __future__ import annotations

import os
import sys

FLASHINFER_VARIABLE = "VLLM_ALLREDUCE_USE_FLASHINFER"


def flashinfer_comes_first() -> bool:
    """Whether the user has asked for FlashInfer's all-reduce, rather than vLLM by default."""
    return os.environ.get(FLASHINFER_VARIABLE, "0") not in ("", "0")


def batch_invariant() -> bool:
    """Whether vLLM is to give a request the same bits in every batch."""
    return bool(getattr(sys.modules.get("vllm.envs"), "VLLM_BATCH_INVARIANT", False))
