"""Operands that lie in memory in another way than the kernels read and write them: copies take their place.

The core finds them, after all else has been checked, and raises `LamportLayoutError` before anything is sent. So what
lies as it should is not looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

ALIGNMENT = 16
"""Bytes; of the kernels' vectors."""


def run_on_copies(
    operation: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], None],
    inputs: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
) -> None:
    """Call `operation([*inputs, *weights], outputs)`, with copies of those that are not dense, row-major and aligned.

    Outputs are copied back. The operands are right in all other respects: the core has checked that.
    """
    # In inference mode everything can be written, and nothing is recorded for a gradient.
    with torch.inference_mode():
        dense_weights = [_dense(weight) for weight in weights]
        if any(copy is not weight and copy.is_cuda for copy, weight in zip(dense_weights, weights, strict=True)):
            # Weights may be read before the kernel in front of the operation has ended: put one between.
            torch.zeros(1, device=dense_weights[0].device)
        dense_outputs = [output if is_dense(output) else empty_dense(output) for output in outputs]
        operation([*(_dense(each) for each in inputs), *dense_weights], dense_outputs)
        for output, dense in zip(outputs, dense_outputs, strict=True):
            if dense is not output:
                output.copy_(dense)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether every operation takes `tensor` as it lies."""
    return tensor.is_contiguous() and not tensor.is_neg() and tensor.data_ptr() % ALIGNMENT == 0


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if is_dense(tensor) else empty_dense(tensor).copy_(tensor)


def empty_dense(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor like `tensor` that every operation takes."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
