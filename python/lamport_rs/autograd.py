"""What there is to know of gradients: the operations have none, and run in backward passes all the same."""

from __future__ import annotations

import sys
import threading
import warnings
from types import FrameType

import torch
from torch.autograd import forward_ad

from lamport_rs._core import LamportError

_warned_of: set[str] = set()
_LIBRARIES = frozenset({"lamport_rs", "torch", "contextlib"})  # What stands between a user's line and the warning.


def check_history(*inputs: object, **outputs: object) -> None:
    """Raise LamportError if an output that was passed in requires a gradient. For where gradients are enabled.

    A backward pass would go past the operation, to what the output was computed from before. Operations in place, whose
    output is an input, are warned of like all others whose input requires a gradient.
    """
    for name, out in outputs.items():
        if getattr(out, "requires_grad", False) and all(out is not each for each in inputs):
            raise LamportError(
                f"{name} requires a gradient, but the operation that is to overwrite it has none; pass "
                f"{name}.detach(), or call it under torch.no_grad()"
            )


def warn_of_lost_gradient(operation: str, *inputs: torch.Tensor | None) -> None:
    """Say, once per process and operation, that a gradient ends here. To be called where gradients are enabled."""
    if operation not in _warned_of and any(each is not None and _has_gradient(each) for each in inputs):
        text = (
            f"lamport_rs.{operation} has no gradient, but an input of it requires one: nothing flows through it to its "
            "results or back. Call it under torch.no_grad(), or on inputs that are detached, if that is meant"
        )
        warnings.warn(text, stacklevel=_callers_level())
        # Behind it: where warnings are errors, every call raises.
        _warned_of.add(operation)


def _has_gradient(tensor: torch.Tensor) -> bool:
    """Whether a gradient is computed backward from here, or forward up to here."""
    is_forward = forward_ad._current_level >= 0
    return tensor.requires_grad or (is_forward and forward_ad.unpack_dual(tensor).tangent is not None)


def _callers_level() -> int:
    """Return the `stacklevel` with which the calling function warns of a line of the user's.

    How many frames of the package and of torch lie between depends on how the operation was called.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level


def in_thread_of_autograd() -> bool:
    """Whether this is one of the threads in which torch runs backward passes, while the one that asked for it waits.

    A backward pass runs in the caller's own thread too, on the CPU. That one has a name in Python, or the call that
    began the pass is further down on its stack.
    """
    in_backward_pass = torch._C._current_graph_task_id() != -1
    return (
        in_backward_pass
        and isinstance(threading.current_thread(), threading._DummyThread)
        and not _began_backward_pass()
    )


def _began_backward_pass() -> bool:
    """Whether this thread has called a backward pass that has not ended."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == _BEGINS and frame.f_globals.get("__name__", "").startswith("torch.autograd"):
            return True
        frame = frame.f_back
    return False


_BEGINS = "_engine_run_backward"
"""The function through which all of Python's backward passes begin."""
