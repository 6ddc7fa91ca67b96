"""What else of vLLM has to know of the communicator: who comes before it in the dispatch, and who asks it to sleep.

The modules are adjusted when the first communicator is made. vLLM has imported them by then; earlier, in processes
without a GPU, they would take seconds to import.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from lamport_rs._core import LamportError
from lamport_rs.vllm_plugin.log import logger

PACKAGE = "vllm.distributed.device_communicators"
FLASHINFER_VARIABLE = "VLLM_ALLREDUCE_USE_FLASHINFER"
_adjusted = "_adjusted_by_lamport_rs"


def flashinfer_comes_first() -> bool:
    """Whether the user has asked for FlashInfer's all-reduce, rather than vLLM by default."""
    return os.environ.get(FLASHINFER_VARIABLE, "0") not in ("", "0")


def adjust_neighbours(communicator_of: Callable[[Any], Any]) -> None:
    """Have FlashInfer leave to a group's communicator what that takes, and refuse checkpoints. Safe to call again.

    Args:
        communicator_of: Returns the communicator of a group that has one of the package's, else None.
    """
    flashinfer = getattr(sys.modules.get(f"{PACKAGE}.flashinfer_all_reduce"), "FlashInferAllReduce", None)
    if flashinfer is not None and not flashinfer_comes_first():
        if hasattr(flashinfer, "should_use_fi_ar"):
            _adjust(flashinfer, "should_use_fi_ar", lambda method: _after_the_communicator(method, communicator_of))
        else:
            logger.warning(
                "FlashInferAllReduce has no should_use_fi_ar in this release of vLLM: what FlashInfer takes, it sums "
                "before lamport_rs; %s=0 switches it off",
                FLASHINFER_VARIABLE,
            )
    owner = getattr(sys.modules.get(f"{PACKAGE}.cuda_communicator"), "CudaCommunicator", None)
    if hasattr(owner, "checkpoint_prepare"):
        _adjust(owner, "checkpoint_prepare", lambda method: _refused_with_a_workspace(method, communicator_of))


def _adjust(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    method = getattr(owner, name)
    if not hasattr(method, _adjusted):
        adjusted = functools.wraps(method)(wrapper(method))
        setattr(adjusted, _adjusted, True)
        setattr(owner, name, adjusted)


def _after_the_communicator(should_use_fi_ar: Any, communicator_of: Callable[[Any], Any]) -> Any:
    """`FlashInferAllReduce.should_use_fi_ar`, but for what the group's communicator takes.

    Recent releases try FlashInfer first, by default; it does not sum in rank order.
    """

    def adjusted(self: Any, input_tensor: Any) -> bool:
        # A disabled one need not know its group.
        communicator = communicator_of(getattr(self, "group", None))
        if communicator is not None and communicator.should_custom_ar(input_tensor):
            return False
        return bool(should_use_fi_ar(self, input_tensor))

    return adjusted


def _refused_with_a_workspace(checkpoint_prepare: Any, communicator_of: Callable[[Any], Any]) -> Any:
    """`CudaCommunicator.checkpoint_prepare`, an error for groups with a workspace: peers have mapped its memory."""

    def adjusted(self: Any) -> Any:
        if communicator_of(self.cpu_group) is not None:
            raise LamportError(
                "a process whose memory other ranks have mapped cannot be checkpointed, and lamport_rs's workspace is "
                "such memory; start vLLM with LAMPORT_RS_VLLM=0 (and disable_custom_all_reduce) to checkpoint it"
            )
        return checkpoint_prepare(self)

    return adjusted
