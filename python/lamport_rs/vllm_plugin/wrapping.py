"""Wraps what a module or class of vLLM has, once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

_MARK = "_wrapped_by_lamport_rs"


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace `owner.name` by `wrapper(owner.name)`; a second time it is the same function that is wrapped."""
    own = own_of(getattr(owner, name))
    wrapped = wrapper(own)
    if inspect.isfunction(own):
        functools.update_wrapper(wrapped, own)
    setattr(wrapped, _MARK, own)
    setattr(owner, name, wrapped)


def own_of(function: Any) -> Any:
    """Return what `wrap` has wrapped, or the function itself."""
    return getattr(function, _MARK, function)


def is_wrapped(function: Any) -> bool:
    """Whether `wrap` has made a function."""
    return hasattr(function, _MARK)


def obstacle_of(owner: Any, name: str, *parameters: str) -> str | None:
    """Say what keeps a function from being called with these keywords; None if nothing does."""
    place = getattr(owner, "__qualname__", None) or owner.__name__
    function = getattr(owner, name, None)
    if function is None:
        return f"{place} has no {name}"
    try:
        inspect.signature(function).bind(**dict.fromkeys(parameters))
    except TypeError as error:
        return f"{place}.{name} takes other arguments: {error}"
    return None
