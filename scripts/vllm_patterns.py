"""What `vllm_layers_on_host.py` checks of the pass's patterns: it fuses them, and the fused graph computes the same."""

from __future__ import annotations

import importlib
from typing import Any

from engine_on_host import WORLD_SIZE, expect
from vllm_quantised import EPS, HIDDEN, TOKENS, values

OPERATOR = "flashinfer_trtllm_fused_allreduce_norm"


def fused(fusion: Any, model: Any, inputs: tuple[Any, ...], count: int) -> Any:
    """Return the graph of a model, in which the pass has fused all of its so many norms with the sums before them."""
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    # As Inductor hands it to passes: decomposed, and without what is not used.
    graph = make_fx(model, select_decomp_table(), tracing_mode="fake")(*inputs)
    graph.graph.eliminate_dead_code()
    fusion(graph.graph)
    graph.recompile()
    expect(fusion.matched_count, count)
    expect("sum_of_ranks" in graph.code, False)
    expect(graph.code.count(OPERATOR), count)
    return graph


def check_layers(fusion: Any, rank: int) -> None:
    """Have the pass fuse a graph of two norms, the second one of what the first returns."""
    import torch

    ops: Any = importlib.import_module("vllm.ir.ops")

    def model(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        normed, residual = ops.fused_add_rms_norm(torch.ops.vllm.sum_of_ranks(x), residual, weight, EPS)
        total = torch.ops.vllm.sum_of_ranks(normed * 2)
        return ops.rms_norm(total, weight, EPS), total, residual

    inputs = values(rank, TOKENS, HIDDEN), values(7, TOKENS, HIDDEN), values(8, HIDDEN)
    expected = model(*inputs)
    *normed, residual = fused(fusion, model, inputs, 2)(*[each.clone() for each in inputs])
    expect(torch.equal(residual, expected[2]), True)
    for found, own in zip(normed, expected, strict=False):
        # vLLM's norm rounds once more, and the second one starts from what the first has rounded.
        torch.testing.assert_close(found, own, rtol=2**-5, atol=2**-5)


def check_norm(fusion: Any, rank: int, is_gemma: bool, shape: tuple[int, ...]) -> None:
    """Have the pass fuse one norm, with a residual and without: its first result alone, and both."""
    import torch

    reference: Any = importlib.import_module("reference")
    ops: Any = importlib.import_module("vllm.ir.ops")

    def model(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = torch.ops.vllm.sum_of_ranks(x)
        # As vLLM's layer has it, in float32.
        factor = weight.float() + 1.0 if is_gemma else weight
        if residual is None:
            return ops.rms_norm(total, factor, EPS), total
        results: tuple[torch.Tensor, ...] = ops.fused_add_rms_norm(total, residual, factor, EPS)
        return results

    every = [values(seed, *shape) for seed in range(WORLD_SIZE)]
    residual, weight = values(7, *shape), values(8, HIDDEN)
    for given in (None, residual):
        total = reference.rounded_sum_with(torch.zeros_like(residual) if given is None else given, every)
        rows = reference.rms_norm_of_rows(total, weight, EPS, float(is_gemma))
        for count in (1, 2):
            graph = fused(fusion, lambda *inputs, count=count: model(*inputs)[:count], (every[rank], given, weight), 1)
            expect("weight_bias = 1.0" in graph.code, is_gemma)
            operands = [None if each is None else each.clone() for each in (every[rank], given, weight)]
            found = graph(*operands)
            reference.check_rounding(found[0], rows)
            if count == 2:
                reference.check_same_bits(found[1], total)
