"""Replaces the class `CustomAllreduce`, if this release of vLLM has it as the plugin knows it."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from lamport_rs.vllm_plugin.communicator import CONSTRUCTOR_PARAMETERS, LamportAllreduce, communicator_class
from lamport_rs.vllm_plugin.log import logger

MODULE = "vllm.distributed.device_communicators.custom_all_reduce"
CLASS = "CustomAllreduce"
METHODS = {"should_custom_ar": 1, "custom_all_reduce": 1, "capture": 0, "close": 0}
"""What the class must have for its place to be taken, and how many arguments vLLM passes."""


def replace_custom_all_reduce() -> None:
    """Put the package's communicator in the class's place. `CudaCommunicator` looks it up whenever it is made."""
    try:
        module: Any = importlib.import_module(MODULE)
        own = getattr(module, CLASS)
    except Exception as error:  # Whatever it is, vLLM comes to it by itself, if it needs the module at all.
        _leave_to_vllm(repr(error))
        return
    if isinstance(own, type) and issubclass(own, LamportAllreduce):
        return
    if obstacle := obstacle_of(own):
        _leave_to_vllm(obstacle)
        return
    setattr(module, CLASS, communicator_class(own))
    logger.debug("%s of %s is replaced", CLASS, MODULE)


def obstacle_of(own: Any) -> str | None:
    """Say what keeps the package from taking the place of `own`, vLLM's class; None if nothing does."""
    if not isinstance(own, type):
        return f"{CLASS} is no class"
    missing = CONSTRUCTOR_PARAMETERS - set(inspect.signature(own).parameters)
    if missing:
        return f"{CLASS} takes no {', '.join(sorted(missing))}"
    for name, count in METHODS.items():
        method = getattr(own, name, None)
        if method is None:
            return f"{CLASS} has no {name}"
        try:
            inspect.signature(method).bind(*[None] * (1 + count))
        except TypeError as error:
            return f"{CLASS}.{name} takes other arguments: {error}"
    return None


def _leave_to_vllm(reason: str) -> None:
    logger.warning(
        "this release of vLLM has no hook for lamport_rs's all-reduce: %s; vLLM's own goes on. A newer lamport_rs may "
        "know this release; LAMPORT_RS_VLLM=0 silences this",
        reason,
    )
