"""Operands that lie in memory in another way than the kernels read and write them: copies take their place.

The core finds them, after all else has been checked, and raises `LamportLayoutError` before anything is sent. So what
lies as it should is not looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lamport_rs._core import LamportError

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


def check_tensor(name: str, value: object) -> None:
    """Raise if `value` is no tensor."""
    if not isinstance(value, torch.Tensor):
        raise LamportError(f"{name} must be a torch.Tensor, not {type(value).__name__}")


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether it is a dense tensor."""
    return tensor.layout is torch.strided and not tensor.is_nested


def share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether a byte of one is one of the other; also of fake tensors, which have storages, but no memory.

    Exact for rows that lie evenly apart, equally far in both. Others are taken to share what lies between.
    """
    storage, its_storage = (each.untyped_storage()._cdata for each in (one, other))
    if storage != its_storage or one.numel() == 0 or other.numel() == 0:
        return False
    (first, end), (its_first, its_end) = _span(one), _span(other)
    if first >= its_end or its_first >= end:
        return False
    apart, its_apart = _bytes_apart(one), _bytes_apart(other)
    if not apart or apart != its_apart:
        return True
    distance = (its_first - first) % apart
    width, its_width = (each.shape[-1] * each.itemsize for each in (one, other))
    return distance < width or distance + its_width > apart


def _span(tensor: torch.Tensor) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """From the first byte to behind the last, in the storage."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first = tensor.storage_offset()
    return first * tensor.itemsize, (first + last + 1) * tensor.itemsize


def _bytes_apart(tensor: torch.Tensor) -> int | None:
    """From one row to the next, if rows are evenly spaced and contiguous, and there may be several."""
    if tensor.dim() < 2 or tensor.stride(-1) != 1:
        return None
    for size, stride, outer in zip(tensor.shape[1:-1], tensor.stride()[1:-1], tensor.stride()[:-2], strict=True):
        if outer != size * stride:
            return None
    return tensor.stride(-2) * tensor.itemsize
