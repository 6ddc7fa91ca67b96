"""What `vllm_layers_on_host.py` checks of the helpers of models that run eager."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from engine_on_host import WORLD_SIZE, expect
from vllm_quantised import EPS, HIDDEN, TOKENS

GEMMA_NORM = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"


def of_a_gpu(rows: Any) -> Any:
    """Return rows that say that they are a GPU's, as the helpers want them."""
    return rows.as_subclass(_class_of_a_gpu())


@functools.cache
def _class_of_a_gpu() -> Any:
    import torch

    return type("OfAGpu", (torch.Tensor,), {"is_cuda": True})


class Norm:
    """A layer of RMSNorm, by torch."""

    def __init__(self, weight: Any, bias: float, eps: float = EPS) -> None:
        self.weight, self.bias, self.variance_epsilon = weight, bias, eps

    def __call__(self, total: Any, residual: Any = None) -> Any:
        """Normalise a sum, as vLLM's layers do: with a residual it is added, and returned as well."""
        import torch

        added = total if residual is None else (total.float() + residual.float()).to(total.dtype)
        weight = self.weight.float() + self.bias
        rows = torch.nn.functional.rms_norm(added.float(), [added.shape[-1]], weight, self.variance_epsilon)
        return rows.to(total.dtype) if residual is None else (rows.to(total.dtype), added)


def check_gemma(rank: int) -> None:
    """Run the helper with weights that are a distance from 1."""
    import torch

    helper: Any = importlib.import_module(GEMMA_NORM)
    rows = torch.full((TOKENS, HIDDEN), rank + 1.0, dtype=torch.bfloat16)
    residual = torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16)
    norm = Norm(torch.full((HIDDEN,), 0.5, dtype=torch.bfloat16), bias=1.0, eps=0.0)
    normed, total = helper.fused_allreduce_gemma_rms_norm(of_a_gpu(rows), residual, norm)
    torch.testing.assert_close(total.as_subclass(torch.Tensor), torch.full_like(residual, 4.0))
    torch.testing.assert_close(normed.as_subclass(torch.Tensor), torch.full_like(residual, 1.5))


@contextmanager
def batch_invariant() -> Iterator[None]:
    """Have vLLM's environment ask for batch invariance."""
    envs: Any = importlib.import_module("vllm.envs")
    envs.VLLM_BATCH_INVARIANT = True
    try:
        yield
    finally:
        envs.VLLM_BATCH_INVARIANT = False


def check_batch_invariance(rank: int) -> None:
    """A row's bits are the same in batches that the helper fuses otherwise, and in larger ones."""
    import torch

    bound, more = 4, 9
    sizes: Any = importlib.import_module("vllm.config.compilation").PassConfig
    own = sizes.default_fi_allreduce_fusion_max_size_mb
    sizes.default_fi_allreduce_fusion_max_size_mb = lambda: {WORLD_SIZE: bound * HIDDEN * 2 / 2**20}
    helper: Any = importlib.import_module(GEMMA_NORM)
    rows, residual = (
        torch.randn(more, HIDDEN, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in (rank, 9)
    )
    norm = Norm(torch.ones(HIDDEN, dtype=torch.bfloat16), bias=1.0)
    few, many = (
        helper.fused_allreduce_gemma_rms_norm(of_a_gpu(rows[:count].clone()), residual[:count], norm)
        for count in (bound, more)
    )
    for each, other in zip(few, many, strict=True):
        expect(torch.equal(each, other[:bound]), True)
    sizes.default_fi_allreduce_fusion_max_size_mb = own
