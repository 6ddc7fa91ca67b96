"""What `vllm_layers_on_host.py` checks of the helpers of models that run eager."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine_on_host import WORLD_SIZE, expect
from hook_record import file_of
from vllm_quantised import EPS, HIDDEN, TOKENS

GEMMA_NORM = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"
HELPERS = (
    (GEMMA_NORM, "fused_allreduce_gemma_rms_norm", 1.0),
    ("vllm.models.common.ops.fused_allreduce_rms_norm", "fused_allreduce_rms_norm", 0.0),
    ("vllm.models.deepseek_v32.nvidia.fused_ops", "fused_allreduce_rms_norm", 0.0),
)
"""Modules, functions, and what they add to weights. Not every release has all."""
LATENT_MOE = "vllm.models.kimi_k3.nvidia.latent_moe_runner"


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


def check_helpers(sources: Path, rank: int) -> None:
    """Run the helpers that the release has: for weights that are a distance from 1, and plain ones."""
    import torch

    reference: Any = importlib.import_module("reference")
    every = [reference.random_tensor((TOKENS, HIDDEN), torch.bfloat16, 1, each) for each in range(WORLD_SIZE)]
    residual, weight = (reference.random_tensor(shape, torch.bfloat16, 2) for shape in ((TOKENS, HIDDEN), (HIDDEN,)))
    # It cannot be called: what goes on by parts is an error.
    norm = SimpleNamespace(weight=weight, variance_epsilon=EPS)

    def check_rows(rows: torch.Tensor, total: torch.Tensor, bias: float) -> None:
        exact = reference.rms_norm_of_rows(total, weight, EPS, bias)
        reference.check_rounding(rows.as_subclass(torch.Tensor), exact)

    names = existing(sources)
    helpers = [each for each in HELPERS if each[0] in names]
    expect(len(helpers), 2)
    for module, function, bias in helpers:
        helper = getattr(importlib.import_module(module), function)
        rows, total = helper(of_a_gpu(every[rank].clone()), residual, norm)
        expected = reference.rounded_sum_with(residual, every)
        reference.check_same_bits(total.as_subclass(torch.Tensor), expected)
        check_rows(rows, expected, bias)
    if LATENT_MOE in names:
        runner = importlib.import_module(LATENT_MOE).LatentMoERunner
        layer = SimpleNamespace(moe_config=SimpleNamespace(tp_size=WORLD_SIZE))
        layer._get_zero_residual = functools.partial(runner._get_zero_residual, layer)
        rows = runner.allreduce_norm_latent_out(layer, of_a_gpu(every[rank].clone()), norm)
        check_rows(rows, reference.rounded_sum(every), 0.0)


def existing(sources: Path) -> set[str]:
    """Return the modules of helpers that a release has."""
    return {name for name in (*(each[0] for each in HELPERS), LATENT_MOE) if file_of(sources, name).exists()}


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
