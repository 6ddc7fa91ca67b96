"""What `vllm_layers_on_host.py` checks of norms that are quantised: the pass fuses them, with vLLM's own results."""

from __future__ import annotations

import importlib
from typing import Any

from engine_on_host import expect

HIDDEN, TOKENS, EPS = 64, 5, 1e-5
NVFP4_SCALE = 150.0


def define_quantisers(operators: Any) -> None:
    """Define vLLM's quantising operators, by definitions that are not the package's."""
    import torch

    definitions: Any = importlib.import_module("quantised_rows")

    def to_fp8(result: Any, input: Any, scale: Any, group_shape: Any = None) -> None:  # noqa: A002
        result.copy_((input.float() * scale.reciprocal()).clamp(-448, 448))

    def to_nvfp4(input: Any, scale: Any, _is_swizzled: bool, *, output: Any, output_scale: Any) -> None:  # noqa: A002
        codes, scales = definitions.quantised(input, "nvfp4", scale)
        output.copy_(codes)
        # Tiles of 128 rows and 4 scales, in which rows that are 32 apart lie together.
        rows, columns = -(-scales.shape[0] // 128) * 128, scales.shape[1]
        padded = torch.zeros(rows, columns, dtype=torch.uint8)
        padded[: scales.shape[0]] = scales
        tiles = padded.view(rows // 128, 4, 32, columns // 4, 4).permute(0, 3, 2, 1, 4)
        output_scale.view(torch.uint8).view(-1).copy_(tiles.reshape(-1))

    for name, schema, run in [
        ("static_scaled_fp8_quant", "(Tensor(a!) result, Tensor input, Tensor scale, int[]? group_shape=None)", to_fp8),
        (
            "scaled_fp4_quant.out",
            "(Tensor input, Tensor input_scale, bool is_sf_swizzled_layout, *, Tensor(a!) output, "
            "Tensor(b!) output_scale)",
            to_nvfp4,
        ),
    ]:
        operators.define(f"{name}{schema} -> ()")
        operators.impl(name, run, dispatch_key="CPU")
        operators._register_fake(name, lambda *_arguments, **_options: None)


def values(seed: int, *shape: int) -> Any:
    """Return numbers of few bits, so that sums are exact, and differ in the norms alone."""
    import torch

    return torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def check_quantised(fusion: Any, rank: int, is_fp8: bool, has_residual: bool) -> None:
    """Have the pass fuse a norm that is quantised: to what vLLM's operator makes of the rows of the fused norm."""
    import torch
    from torch._higher_order_ops.auto_functionalize import auto_functionalized
    from torch._inductor.pattern_matcher import stable_topological_sort
    from torch.fx.experimental.proxy_tensor import make_fx

    ops: Any = importlib.import_module("vllm.ir.ops")
    operators: Any = torch.ops._C

    def norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.ops.vllm.sum_of_ranks(x)
        if not has_residual:
            return ops.rms_norm(total, weight, EPS), total
        rows, total = ops.fused_add_rms_norm(total, residual, weight, EPS)
        return rows, total

    def quantised(rows: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
        # In the order of vLLM's pattern.
        operator, operands = (
            operators.static_scaled_fp8_quant.default,
            {
                "result": torch.empty(rows.shape, dtype=torch.float8_e4m3fn),
                "input": rows,
                "scale": scale,
                "group_shape": [-1, -1],
            },
        )
        if not is_fp8:
            operator, operands = (
                operators.scaled_fp4_quant.out,
                {
                    "input": rows,
                    "input_scale": scale,
                    "is_sf_swizzled_layout": True,
                    "output": torch.empty(TOKENS, HIDDEN // 2, dtype=torch.uint8),
                    "output_scale": torch.zeros(128, HIDDEN // 64, dtype=torch.int32),
                },
            )
        results: tuple[Any, ...] = auto_functionalized(operator, **operands)
        return list(results[1:])

    def model(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, total = norm(*inputs[:3])
        return *quantised(rows, inputs[3]), total

    inputs = values(rank, TOKENS, HIDDEN), values(7, TOKENS, HIDDEN), values(8, HIDDEN)
    scale = torch.tensor([[0.01 if is_fp8 else NVFP4_SCALE]])
    graph, plain = make_fx(model, tracing_mode="fake")(*inputs, scale), make_fx(norm, tracing_mode="fake")(*inputs)
    for each in (graph, plain):
        each.graph.eliminate_dead_code()
        fusion(each.graph)
        # As Inductor does: the pattern may lie in front of the places for its results.
        stable_topological_sort(each.graph)
        each.recompile()
        expect(fusion.matched_count, 1)
        expect("sum_of_ranks" in each.code, False)
    expect("quant_out = None" in plain.code, True)
    expect("fp8_quant" in graph.code or "fp4_quant" in graph.code, False)
    *found, total = graph(*[each.clone() for each in inputs], scale)
    rows, plain_total = plain(*[each.clone() for each in inputs])
    expect(torch.equal(total, plain_total), True)
    for each, own in zip(found, quantised(rows, scale), strict=True):
        expect(torch.equal(each.view(torch.uint8), own.view(torch.uint8)), True)
