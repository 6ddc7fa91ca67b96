"""What there is to know of gradients: the operations have none, and run in backward passes all the same."""

from __future__ import annotations

import threading
import warnings

import torch

_warned_of: set[str] = set()


def warn_of_lost_gradient(operation: str, *inputs: torch.Tensor | None) -> None:
    """Say, once per process and operation, that a gradient ends here. To be called where gradients are enabled."""
    if operation not in _warned_of and any(each is not None and each.requires_grad for each in inputs):
        text = (
            f"lamport_rs.{operation} has no gradient, but an input of it requires one: nothing flows back through its "
            "results. Call it under torch.no_grad(), or on inputs that are detached, if that is meant"
        )
        warnings.warn(text, stacklevel=4)
        # Behind it: where warnings are errors, every call raises.
        _warned_of.add(operation)


def in_thread_of_autograd() -> bool:
    """Whether this is one of the threads in which torch runs backward passes, while the one that asked for it waits.

    A backward pass runs in the caller's own thread too, on the CPU. That one has a name in Python, and autograd's have
    none.
    """
    in_backward_pass = torch._C._current_graph_task_id() != -1
    return in_backward_pass and isinstance(threading.current_thread(), threading._DummyThread)
