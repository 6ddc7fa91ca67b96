"""What stands between two operations of a CUDA graph: kernels of torch's. What they write is not looked at."""

from __future__ import annotations

import torch
from torch.nn.functional import rms_norm

NORM_ROWS, NORM_HIDDEN = 8, 4096
PRODUCT_ROWS, PRODUCT_HIDDEN = 8, 8192
"""Of the product's first operand; the second is square, 134 MB: more than any second-level cache holds."""


class Between:
    """An elementwise kernel that reads the result of an operation."""

    def __init__(self, like: torch.Tensor) -> None:
        """Make one for results of the shape and the dtype of `like`."""
        self._like = like
        self._out = torch.empty_like(_arithmetic(like))

    def after(self, result: torch.Tensor) -> object:
        """Run the kernel behind the operation that has this result."""
        return torch.mul(_arithmetic(result), 0.5, out=self._out)

    def alone(self) -> object:
        """Run the kernel without an operation, to see what is its own time."""
        return self.after(self._like)


class NormBetween(Between):
    """The RMSNorm of a few rows of its own."""

    def __init__(self, like: torch.Tensor) -> None:
        """Make one on the device of `like`."""
        self._like = like
        self._rows = torch.ones(NORM_ROWS, NORM_HIDDEN, dtype=torch.bfloat16, device=like.device)

    def after(self, _result: torch.Tensor) -> object:
        """Run the kernel behind the operation."""
        return rms_norm(self._rows, self._rows.shape[-1:], self._rows[0], 1e-6)


class ProductBetween(Between):
    """A product of matrices that empties the caches."""

    def __init__(self, like: torch.Tensor) -> None:
        """Make one on the device of `like`."""
        self._like = like
        self._left = torch.ones(PRODUCT_ROWS, PRODUCT_HIDDEN, dtype=torch.bfloat16, device=like.device)
        self._right = torch.ones(PRODUCT_HIDDEN, PRODUCT_HIDDEN, dtype=torch.bfloat16, device=like.device)
        self._out = torch.empty_like(self._left)

    def after(self, _result: torch.Tensor) -> object:
        """Run the kernel behind the operation."""
        return torch.mm(self._left, self._right, out=self._out)


def _arithmetic(result: torch.Tensor) -> torch.Tensor:
    """The result, as values that can be multiplied: two bytes of FP8 as one of two bytes."""
    return result.view(torch.bfloat16) if result.dtype.itemsize == 1 else result
