"""Runs the fusion pass and MiniMax's layer of unpacked releases of vLLM with the plugin, on the CPU.

    python scripts/vllm_layers_on_host.py SOURCES...

As `vllm_on_host.py` does it for communicators: `MODULES` are vLLM's own, whatever else they import is a mock. The pass
finds its patterns in a graph, and the fused graph computes what the graph computes as it was.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine_on_host import WORLD_SIZE, expect, register_operator, run_releases
from vllm_eager import batch_invariant, check_batch_invariance, check_helpers, existing
from vllm_mocks import load
from vllm_patterns import check_layers, check_norm
from vllm_quantised import EPS, HIDDEN, TOKENS, check_quantised, define_quantisers

FUSION = "vllm.compilation.passes.fusion.allreduce_rms_fusion"
WORKSPACES = "vllm.distributed.device_communicators.flashinfer_all_reduce"
CONFIGURATION = "vllm.config.vllm"
MINIMAX = "vllm.model_executor.layers.minimax_rms_norm"
MODULES = {
    *(FUSION, WORKSPACES, CONFIGURATION),
    *(f"vllm.compilation.passes.{name}" for name in ("fx_utils", "inductor_pass", "vllm_inductor_pass")),
    *(f"vllm.ir{name}" for name in ("", ".op", ".util", ".tolerances", ".ops", ".ops.layernorm", ".ops.activation")),
    *(MINIMAX, f"{MINIMAX}.rms_norm_tp", f"{MINIMAX}.lamport_workspace"),
    "vllm.distributed.communication_op",
    *(f"vllm.compilation.passes.fusion.{name}" for name in ("matcher_utils", "rms_quant_fusion")),
}
FP8_KEY = "kFp8StaticTensorSym"


def main() -> int:
    """Run all releases; return the exit status."""
    return run_releases(run_rank, "fused norms compute with the plugin")


def settings_for(rank: int) -> dict[str, dict[str, Any]]:
    """Return what the mocks must answer."""
    import torch
    import torch.distributed as dist

    library = torch.library.Library("vllm", "FRAGMENT")

    def all_reduce(input_: torch.Tensor) -> torch.Tensor:
        total = input_.clone()
        dist.all_reduce(total)
        return total

    library.define("sum_of_ranks(Tensor input_) -> Tensor")
    library.impl("sum_of_ranks", all_reduce, dispatch_key="CPU")
    library._register_fake("sum_of_ranks", lambda input_: torch.empty_like(input_))
    group = dist.group.WORLD
    state = {
        "get_tp_group": lambda: SimpleNamespace(
            cpu_group=group, device_group=group, all_reduce=torch.ops.vllm.sum_of_ranks
        ),
        "get_tensor_model_parallel_rank": lambda: rank,
        "get_tensor_model_parallel_world_size": lambda: WORLD_SIZE,
    }
    operators = torch.library.Library("_C", "FRAGMENT")
    define_quantisers(operators)
    # What vLLM's modules of patterns look for, and is not asked here.
    for owner, name in [
        *((library, name) for name in ("flashinfer_rotary_embedding", "mrope")),
        *((operators, name) for name in ("rotary_embedding", "silu_and_mul", "dynamic_scaled_fp8_quant")),
        *((operators, name) for name in ("dynamic_per_token_scaled_fp8_quant", "fused_add_rms_norm")),
        *((operators, f"{name}rms_norm_static_fp8_quant") for name in ("", "fused_add_")),
        (operators, "rms_norm_dynamic_per_token_quant"),
    ]:
        owner.define(f"{name}() -> ()")
    operators.define(
        "minimax_allreduce_rms_qk(Tensor qkv, Tensor q, Tensor k, Tensor workspace, int q_size, int kv_size, int rank, "
        "int nranks, float eps) -> (Tensor, Tensor)"
    )
    platform = {
        "is_rocm": lambda: False,
        # The package's workspaces are of the CPU.
        "is_cuda": lambda: False,
        "fp8_dtype": lambda: torch.float8_e4m3fn,
        # For NVFP4.
        "has_device_capability": lambda _capability: True,
        "get_device_capability": lambda: None,
    }
    return {
        "vllm.envs": {"VLLM_BATCH_INVARIANT": False, "compile_factors": dict},
        "vllm.distributed.parallel_state": state,
        "vllm.distributed": {
            **state,
            "tensor_model_parallel_all_reduce": lambda input_: torch.ops.vllm.sum_of_ranks(input_),
        },
        "vllm.platforms": {f"current_platform.{name}": answer for name, answer in platform.items()},
        "vllm.utils.flashinfer": {"has_flashinfer": lambda: False},
        "vllm.utils.torch_utils": {"direct_register_custom_op": functools.partial(register_operator, library)},
        "vllm.config": {
            "get_current_vllm_config": configuration,
            "get_current_vllm_config_or_none": configuration,
        },
        "vllm.model_executor.layers.quantization.utils.quant_utils": {
            f"{FP8_KEY}.{name}": value
            for name, value in {
                "dtype": torch.float8_e4m3fn,
                "scale2": None,
                "scale.static": True,
                "scale.group_shape.row": -1,
                "scale.group_shape.col": -1,
                "scale.group_shape.is_per_group": lambda: False,
            }.items()
        },
        "vllm.config.compilation": {"PassConfig.default_fi_allreduce_fusion_max_size_mb": lambda: {WORLD_SIZE: 64}},
        "vllm.model_executor.layers.fused_moe.runner.moe_runner": {"MoERunner": object},
        "vllm.model_executor.custom_op": {"CustomOp": CustomOp},
        "vllm.triton_utils": {"HAS_TRITON": False, "triton.jit": lambda function: function},
        "vllm._aiter_ops": {"rocm_aiter_ops.get_aiter_allreduce": lambda: None},
        "": {"libraries": (library, operators)},
    }


class CustomOp:
    """What MiniMax's layer is derived from, as far as it is needed."""

    @staticmethod
    def register(_name: str) -> Callable[[type], type]:
        """Leave the class as it is."""
        return lambda layer: layer


def run_rank(sources: Path, rank: int) -> None:
    """Make the pass and the layer, and compare with vLLM's own results."""
    import torch

    settings = settings_for(rank)
    load(sources, MODULES | existing(sources), settings)
    module: Any = importlib.import_module(FUSION)
    expect(module.flashinfer_comm.__doc__.partition(",")[0], "lamport_rs's stand-in for FlashInfer")
    check_compile_cache()
    fusion = module.AllReduceFusionPass(configuration())
    expect((fusion.disabled, fusion.supports_quant_fusion), (False, True))
    check_layers(fusion, rank)
    for is_gemma in (False, True):
        for shape in ((TOKENS, HIDDEN), (1, TOKENS, HIDDEN)):
            check_norm(fusion, rank, is_gemma, shape)
    for is_fp8 in (True, False):
        for has_residual in (True, False):
            check_quantised(fusion, rank, is_fp8, has_residual)
    check_helpers(sources, rank)
    with batch_invariant():
        expect(module.AllReduceFusionPass(configuration()).disabled, True)
        check_batch_invariance(rank)
    with torch.no_grad():
        check_minimax(rank)
    check_rule()


def configuration() -> Any:
    """Return vLLM's configuration, as far as the pass looks at it."""
    import torch

    passes = SimpleNamespace(flashinfer_max_size=lambda _size: 1 << 20, fuse_allreduce_rms=True)
    mode = SimpleNamespace(name="VLLM_COMPILE")
    compilation = SimpleNamespace(mode=mode, splitting_ops=[], use_inductor_graph_partition=False, pass_config=passes)
    return SimpleNamespace(
        compilation_config=compilation,
        model_config=SimpleNamespace(dtype=torch.bfloat16, get_hidden_size=lambda: HIDDEN),
        device_config=SimpleNamespace(device="cpu"),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=4096),
        speculative_config=None,
        compile_debug_dump_path=lambda: None,
    )


def check_compile_cache() -> None:
    """Have the workspace made with the group, before vLLM asks by what it keeps compiled code."""
    import torch
    import torch.distributed as dist
    from lamport_rs.vllm_plugin.agreement import parts_of
    from lamport_rs.vllm_plugin.fused_workspaces import make_workspace_early

    group: Any = dist.group.WORLD
    parts_of(group)
    make_workspace_early(group, torch.device("cpu"))
    expect("fused=True" in importlib.import_module("vllm.envs").compile_factors()["lamport_rs"], True)


def check_minimax(rank: int) -> None:
    """Run MiniMax's layer: by the package's workspace, and by parts."""
    import torch

    module: Any = importlib.import_module(f"{MINIMAX}.rms_norm_tp")
    q_size, kv_size = 32, 16
    norms = [module.MiniMaxText01RMSNormTP(size * WORLD_SIZE, EPS) for size in (q_size, kv_size)]
    expect([type(each.workspace) for each in norms], [torch.Tensor] * 2)
    qkv = torch.randn(TOKENS, q_size + 2 * kv_size, generator=torch.Generator().manual_seed(rank)).bfloat16()
    found = module.MiniMaxText01RMSNormTP.forward_qkv(*norms, qkv, q_size, kv_size)
    for norm in norms:
        norm.workspace = None
    own = module.MiniMaxText01RMSNormTP.forward_qkv(*norms, qkv, q_size, kv_size)
    for each, other in zip(found, own, strict=True):
        torch.testing.assert_close(each, other, rtol=2**-7, atol=2**-7)


def check_rule() -> None:
    """Ask vLLM's rule whether the pass is to run on two GPUs without FlashInfer."""
    levels: Any = importlib.import_module(CONFIGURATION)
    rule = levels.OPTIMIZATION_LEVEL_02["compilation_config"]["pass_config"]["fuse_allreduce_rms"]
    platform = sys.modules["vllm.platforms"].current_platform
    platform.is_cuda = platform.is_device_capability_family = lambda *_capability: True
    sizes = [SimpleNamespace(parallel_config=SimpleNamespace(tensor_parallel_size=size)) for size in (1, 2)]
    expect([rule(each) for each in sizes], [False, True])
    with batch_invariant():
        expect([rule(each) for each in sizes], [False, False])


if __name__ == "__main__":
    sys.exit(main())
