"""What there is to know of gradients: the operations have none, and run in backward passes all the same."""

from __future__ import annotations

import sys
import threading
import warnings

import torch

_warned_of: set[str] = set()
_LIBRARIES = frozenset({"lamport_rs", "torch", "contextlib"})  # What stands between a user's line and the warning.


def warn_of_lost_gradient(operation: str, *inputs: torch.Tensor | None) -> None:
    """Say, once per process and operation, that a gradient ends here. To be called where gradients are enabled."""
    if operation not in _warned_of and any(each is not None and each.requires_grad for each in inputs):
        text = (
            f"lamport_rs.{operation} has no gradient, but an input of it requires one: nothing flows back through its "
            "results. Call it under torch.no_grad(), or on inputs that are detached, if that is meant"
        )
        warnings.warn(text, stacklevel=_callers_level())
        # Behind it: where warnings are errors, every call raises.
        _warned_of.add(operation)


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

    A backward pass runs in the caller's own thread too, on the CPU. That one has a name in Python, and autograd's have
    none.
    """
    in_backward_pass = torch._C._current_graph_task_id() != -1
    return in_backward_pass and isinstance(threading.current_thread(), threading._DummyThread)
