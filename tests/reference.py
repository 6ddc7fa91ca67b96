"""What the operations must return, computed from all ranks' inputs; and inputs that every rank can make for itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SENTINEL = -(2**31)
"""The word 0x80000000 as int32."""


def random_tensor(shape: Sequence[int], dtype: torch.dtype, *seeds: int) -> torch.Tensor:
    """Normal values times powers of two, so that sums depend on the order; the same for the same seeds."""
    generator = torch.Generator().manual_seed(hash(seeds) & (2**63 - 1))
    count = math.prod(shape)
    exponents = torch.randint(-6, 6, (count,), generator=generator)
    return (torch.randn(count, generator=generator) * 2.0**exponents).to(dtype).reshape(shape)


def words_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as it travels: int32 words, the last one filled up with zeros."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    padding = torch.zeros(-flat.numel() % 4, dtype=torch.uint8, device=flat.device)
    return torch.cat([flat, padding]).view(torch.int32)


def float32_sum(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum in float32, in rank order."""
    total = inputs[0].float()
    for contribution in inputs[1:]:
        total = total + contribution.float()
    return total


def rounded_sum(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What all_reduce returns: the float32 sum, rounded once; never -0.0."""
    return (float32_sum(inputs) + 0.0).to(inputs[0].dtype)


def rounded_sum_with(residual: torch.Tensor, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """What all_reduce_rms_norm returns as `residual_out`: the residual is added in float32, after the contributions."""
    return (float32_sum(inputs) + residual.float() + 0.0).to(residual.dtype)


def rms_norm(
    values: torch.Tensor, mean_of_squares: torch.Tensor, weight: torch.Tensor, eps: float, weight_bias: float = 0.0
) -> torch.Tensor:
    """`values / sqrt(mean_of_squares + eps) * (weight + weight_bias)` in float64."""
    return values.double() / (mean_of_squares[..., None] + eps).sqrt() * (weight.double() + weight_bias)


def rms_norm_of_rows(rows: torch.Tensor, weight: torch.Tensor, eps: float, weight_bias: float = 0.0) -> torch.Tensor:
    """Likewise, of rows that are whole."""
    return rms_norm(rows, mean_of_squares([rows]), weight, eps, weight_bias)


def layer_norm_of_rows(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """`torch.nn.functional.layer_norm` in float64."""
    wide = None if bias is None else bias.double()
    return torch.nn.functional.layer_norm(rows.double(), weight.shape, weight.double(), wide, eps)


def check_layer_norm(
    found: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float, what: str = ""
) -> None:
    """As `check_rounding`, of terms that may cancel: values and their mean, and what the bias is added to."""
    exact = layer_norm_of_rows(rows, weight, bias, eps)
    wide = rows.double()
    mean = wide.mean(-1, keepdim=True)
    scale = ((wide - mean).square().mean(-1, keepdim=True) + eps).rsqrt()
    terms = (wide.abs() + mean.abs()) * scale * weight.double().abs()
    if bias is not None:
        terms = terms + bias.double().abs()
    single = torch.finfo(torch.float32).eps * (8 + math.sqrt(rows.shape[-1]) / 16)
    half_unit = torch.finfo(found.dtype).eps / 2
    tiny = torch.finfo(found.dtype).tiny * torch.finfo(found.dtype).eps
    error, bound = (found.double() - exact).abs(), exact.abs() * half_unit + terms * single + tiny
    is_right = (error <= bound) | (found.isnan() & exact.isnan())
    assert bool(is_right.all()), f"{what}: the error is up to {float((error / bound).nan_to_num(nan=math.inf).max())}"


def mean_of_squares(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of whole rows, each part being some of their columns; in float64."""
    return torch.cat([part.double() for part in parts], dim=-1).square().mean(dim=-1)


def check_same_bits(found: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    """Equal bit by bit; where a NaN is expected, any NaN will do."""
    assert found.dtype == expected.dtype, f"{what}: dtype {found.dtype} instead of {expected.dtype}"
    assert found.shape == expected.shape, f"{what}: shape {found.shape} instead of {expected.shape}"
    integers = torch.int32 if found.element_size() == 4 else torch.int16
    same = found.contiguous().view(integers) == expected.contiguous().view(integers)
    same |= found.isnan() & expected.isnan()
    if not bool(same.all()):
        at = int((~same.reshape(-1)).nonzero()[0])
        values = (found.reshape(-1)[at].item(), expected.reshape(-1)[at].item())
        raise AssertionError(f"{what}: {int((~same).sum())} elements differ; the first, {at}, is {values}")


def check_rounding(found: torch.Tensor, exact: torch.Tensor, what: str = "") -> None:
    """Within the rounding to the dtype of a float32 result that is itself off by a few units in the last place.

    Eight, and more for rows of thousands of elements: the rounding errors of a sum grow like the root of its length.
    """
    assert found.shape == exact.shape, f"{what}: shape {found.shape} instead of {exact.shape}"
    columns = exact.shape[-1] if exact.dim() else 1
    single = torch.finfo(torch.float32).eps * (8 + math.sqrt(columns) / 16)
    half_unit = 0.0 if found.dtype == torch.float32 else torch.finfo(found.dtype).eps / 2
    tiny = torch.finfo(found.dtype).tiny * torch.finfo(found.dtype).eps
    error = (found.double() - exact).abs()
    bound = exact.abs() * (half_unit + single) + tiny
    if not bool((error <= bound).all()):  # also false for NaN
        excess = float((error / bound).nan_to_num(nan=math.inf).max())
        raise AssertionError(f"{what}: the error is up to {excess} times the bound")


def digest(*tensors: torch.Tensor) -> str:
    """Of the bits, NaN payloads included: to compare results between ranks."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    return hashed.hexdigest()
