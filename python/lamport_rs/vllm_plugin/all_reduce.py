"""Has vLLM's class `CustomAllreduce` make the package's communicators, if this release has it as the plugin knows it.

The class itself stays: its code refers to it by its name, and others use its static methods.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from lamport_rs.vllm_plugin.communicator import (
    CONSTRUCTOR_PARAMETERS,
    LamportAllreduce,
    constructor_of,
    does_more_than_sum,
    make_workspace,
    request_of,
)
from lamport_rs.vllm_plugin.log import logger

MODULE = "vllm.distributed.device_communicators.custom_all_reduce"
CLASS = "CustomAllreduce"
METHODS = {"should_custom_ar": 1, "custom_all_reduce": 1, "capture": 0, "close": 0}
"""What the class must have for its place to be taken, and how many arguments vLLM passes."""
_replaced = "_replaced_by_lamport_rs"


def replace_custom_all_reduce() -> None:
    """Have the class make the package's communicators from now on. Safe to call again."""
    try:
        module: Any = importlib.import_module(MODULE)
        own = getattr(module, CLASS)
    except Exception as error:  # Whatever it is, vLLM comes to it by itself, if it needs the module at all.
        _leave_to_vllm(repr(error))
        return
    if hasattr(own, _replaced):
        return
    if obstacle := obstacle_of(own):
        _leave_to_vllm(obstacle)
        return

    def make(cls: Any, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls) if cls is not own else make_communicator(cls, *arguments, **options)

    own.__new__ = make
    setattr(own, _replaced, True)
    logger.debug("%s of %s is replaced", CLASS, MODULE)


def make_communicator(own: Any, *arguments: Any, **options: Any) -> Any:
    """Return the package's communicator, or an object of vLLM's class, which Python then initialises. Collective.

    A workspace is made on all ranks or on none, so all of them return the same.
    """
    request = request_of(own, *arguments, **options)
    workspace = make_workspace(request)
    if workspace is None:
        return object.__new__(own)
    kept = None
    if does_more_than_sum(own):
        kept = object.__new__(own)
        kept.__init__(*arguments, **options)
    return LamportAllreduce(request, workspace, kept)


def obstacle_of(own: Any) -> str | None:
    """Say what keeps the package from taking the place of `own`, vLLM's class; None if nothing does."""
    if not isinstance(own, type):
        return f"{CLASS} is no class"
    if inspect.getattr_static(own, "__new__") is not inspect.getattr_static(object, "__new__"):
        return f"{CLASS} has a __new__ of its own"
    missing = CONSTRUCTOR_PARAMETERS - set(constructor_of(own).parameters)
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
