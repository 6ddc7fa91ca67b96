"""What the user hears of gradients: the operations have none."""

from __future__ import annotations

import warnings

import torch

_warned_of: set[str] = set()


def warn_of_lost_gradient(operation: str, *inputs: torch.Tensor) -> None:
    """Say, once per process and operation, that a gradient ends here. To be called where gradients are enabled."""
    if operation not in _warned_of and any(each.requires_grad for each in inputs):
        text = (
            f"lamport_rs.{operation} has no gradient, but an input of it requires one: nothing flows back through its "
            "results. Call it under torch.no_grad(), or on inputs that are detached, if that is meant"
        )
        warnings.warn(text, stacklevel=4)
        # Behind it: where warnings are errors, every call raises.
        _warned_of.add(operation)
