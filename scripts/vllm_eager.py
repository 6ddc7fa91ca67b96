"""What `vllm_layers_on_host.py` checks of the helpers of models that run eager."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
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


def check_gemma(rank: int) -> None:
    """Run the helper with weights that are a distance from 1."""
    import torch

    helper: Any = importlib.import_module(GEMMA_NORM)
    rows = torch.full((TOKENS, HIDDEN), rank + 1.0, dtype=torch.bfloat16)
    residual = torch.ones(TOKENS, HIDDEN, dtype=torch.bfloat16)
    norm = SimpleNamespace(weight=torch.full((HIDDEN,), 0.5, dtype=torch.bfloat16), variance_epsilon=0.0)
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

    def norm(total: torch.Tensor, held: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = (total.float() + held.float()).to(held.dtype)
        return torch.nn.functional.rms_norm(total.float(), [HIDDEN], eps=EPS).mul(2.0).to(held.dtype), total

    norm.weight, norm.variance_epsilon = torch.ones(HIDDEN, dtype=torch.bfloat16), EPS
    few, many = (
        helper.fused_allreduce_gemma_rms_norm(of_a_gpu(rows[:count].clone()), residual[:count], norm)
        for count in (bound, more)
    )
    for each, other in zip(few, many, strict=True):
        expect(torch.equal(each, other[:bound]), True)
    sizes.default_fi_allreduce_fusion_max_size_mb = own
