"""Has vLLM's class `CustomAllreduce` make the package's communicators, if this release has it as the plugin knows it.

The class itself stays: its code refers to it by its name, and others use its static methods.
"""

from __future__ import annotations

import inspect
from typing import Any

from lamport_rs.vllm_plugin.communicator import (
    CLASS,
    CONSTRUCTOR_PARAMETERS,
    MODULE,
    REPLACED_MARK,
    communicator_of,
    constructor_of,
    request_of,
)
from lamport_rs.vllm_plugin.imports import has_module, when_imported
from lamport_rs.vllm_plugin.log import leave_to_vllm, logger

METHODS = {"should_custom_ar": 1, "custom_all_reduce": 1, "capture": 0, "close": 0}
"""What the class must have for its place to be taken, and how many arguments vLLM passes."""


def replace_custom_all_reduce() -> None:
    """Have the class make the package's communicators, once vLLM has imported it. Safe to call again."""
    if has_module(MODULE):
        when_imported(MODULE, _replace)
    else:
        leave_to_vllm("all_reduce", f"there is no {MODULE}")


def _replace(module: Any) -> None:
    own: Any = getattr(module, CLASS, None)
    if hasattr(own, REPLACED_MARK):
        return
    if obstacle := obstacle_of(own):
        leave_to_vllm("all_reduce", obstacle)
        return

    def make(cls: Any, *arguments: Any, **options: Any) -> Any:
        return object.__new__(cls) if cls is not own else make_communicator(cls, *arguments, **options)

    own.__new__ = make
    setattr(own, REPLACED_MARK, True)
    logger.debug("%s of %s is replaced", CLASS, MODULE)


def make_communicator(own: Any, *arguments: Any, **options: Any) -> Any:
    """Return the package's communicator, or an object of vLLM's class, which Python then initialises. Collective.

    A workspace is made on all ranks or on none, so all of them return the same.
    """

    def make_own() -> Any:
        kept = object.__new__(own)
        kept.__init__(*arguments, **options)
        return kept

    communicator = communicator_of(own, request_of(own, *arguments, **options), make_own)
    return object.__new__(own) if communicator is None else communicator


def obstacle_of(own: Any) -> str | None:
    """Say what keeps the package from taking the place of `own`, vLLM's class; None if nothing does."""
    if not isinstance(own, type):
        return f"{CLASS} is no class" if own is not None else f"{MODULE} has no {CLASS}"
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
