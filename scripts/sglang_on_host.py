"""Runs groups, fused norms, experts' sums and MiniMax's norms of unpacked SGLang releases with the plugin, on the CPU.

    python scripts/sglang_on_host.py SOURCES...

The registry of hooks, the groups and the layers are SGLang's own; only what they import else is a mock. Two ranks make
groups as SGLang does, sum, normalise, and see that it goes on by itself where a rank has no workspace.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from engine_on_host import WORLD_SIZE, Mocks, Settings, expect, register_operator, run_releases

REGISTRY = "sglang.srt.plugins.hook_registry"
PARALLEL_STATE = "sglang.srt.distributed.parallel_state"
COMM_FUSION = "sglang.srt.layers.flashinfer_comm_fusion"
ADD_NORM = "sglang.srt.layers.layer_boundary.residual.add_norm"
CUTEDSL = "sglang.srt.layers.layer_boundary.fusions.cutedsl"
MODEL_LOADER = "sglang.srt.model_loader.utils"
MINIMAX = "sglang.srt.models.minimax_m2"
PUSH_FUSION = "sglang.srt.layers.layer_boundary.fusions.custom_all_reduce_fusion"
PUSH_KERNELS = "sglang.kernels.ops.communication.all_reduce_fusion"
PUSH_MEMORY = "sglang.srt.layers.quantization.mxfp4_flashinfer_trtllm_moe"
COMMUNICATORS = "sglang.srt.distributed.device_communicators"
MODULES = {
    *(REGISTRY, "sglang.srt.plugins", PARALLEL_STATE, COMM_FUSION, ADD_NORM, CUTEDSL, MODEL_LOADER, MINIMAX),
    *(PUSH_FUSION, PUSH_KERNELS),
    *("sglang.srt.utils.custom_op", "sglang.kernels.kernel_api_logging", "sglang.srt.compilation.compilation_config"),
}
parallel = SimpleNamespace()
"""What SGLang's `get_parallel()` returns."""


class OwnAllreduce:
    """The custom all-reduce that SGLang would make on a GPU."""

    def __init__(self, group: Any, device: Any) -> None:
        self.disabled, self.max_size, self.obj = False, 1 << 24, "handle"

    def should_custom_ar(self, inp: Any) -> bool:
        """Whether it sums a tensor."""
        return True

    def capture(self) -> Any:
        """Surround the capture of a graph."""
        return MagicMock()

    def close(self) -> None:
        """Give it up."""


def register(**options: Any) -> None:
    """Register an operator of SGLang's."""
    import torch

    libraries.append(torch.library.Library("sglang", "FRAGMENT"))
    register_operator(libraries[-1], **options)


libraries: list[Any] = []
"""Operators last as long as these."""


SETTINGS: Settings = {
    "sglang.srt.utils.common": {"direct_register_custom_op": register},
    "sglang.srt.environ": {"envs.SGLANG_PLUGINS.get": lambda: None, "envs.SGLANG_PLATFORM.get": lambda: None},
    "sglang.srt.utils": {
        **{f"is_{name}": lambda: False for name in ("hip", "npu", "xpu", "musa", "cpu", "flashinfer_available")},
        "is_gfx95_supported": lambda: False,
        "is_gfx1250_supported": lambda: False,
        "is_cuda": lambda: True,
        "is_cuda_alike": lambda: False,
        "get_bool_env_var": lambda *_: False,
        "get_int_env_var": lambda _name, default: default,
        "get_compiler_backend": lambda: "eager",
    },
    "sglang.srt.runtime_context": {
        "get_parallel": lambda: parallel,
        "get_exec": lambda: SimpleNamespace(comm=SimpleNamespace(enable_quant_communications=False)),
    },
    "sglang.srt.layers.dp_attention": {"is_dp_attention_enabled": lambda: False},
    "sglang.srt": {"platforms.current_platform.is_out_of_tree": lambda: False},
    f"{COMMUNICATORS}.custom_all_reduce": {"dispatch_custom_allreduce": lambda **_: OwnAllreduce},
    "sglang.srt.layers.flashinfer_mnnvl_cutedsl": {
        "get_flashinfer_mnnvl_cutedsl_ar_fusion": lambda **options: SimpleNamespace(
            max_m=options["max_m"], supports=lambda rows: rows <= options["max_m"]
        )
    },
    # For the push plane: all batches fit it, and the mode is that of a decoding rank.
    PUSH_MEMORY: {
        "register_fused_all_reduce_comm": lambda *, max_push_size=None, max_push_blocks=None: None,
        "can_fuse_all_reduce": lambda _tokens, _columns: True,
    },
    "sglang.kernels.jit.utils": {"cache_once": lambda function: function},
    "sglang.srt.batch_invariant_ops": {"is_batch_invariant_mode_enabled": lambda: False},
    "sglang.srt.layers.layer_boundary": {
        "UnreducedOutput": SimpleNamespace,
        "get_attn_tp_context": lambda: SimpleNamespace(input_scattered=False),
    },
    "sglang.srt.layers.layer_boundary.fusions.norm": {"fused_norm_gamma": lambda norm: norm.weight},
    "sglang.srt.model_executor.runner_backend_utils.breakable_cuda_graph": {
        "is_in_breakable_cuda_graph": lambda: False,
    },
    f"{COMMUNICATORS}.pcie_ipc_ar": {"eligible_group": lambda **_: False},
    "sglang.srt.layers.moe.utils": {
        "post_experts_reduction_group": lambda: parallel.tp_group,
        "can_merge_post_experts_all_reduce": lambda: False,
    },
}
"""What the mocks must answer for a rank on NVIDIA GPUs without FlashInfer, but for what needs a GPU."""


def run_rank(sources: Path, rank: int) -> None:
    """Make groups, and ask of them what SGLang asks."""
    import torch

    sys.meta_path.insert(0, Mocks(sources, "sglang", MODULES, SETTINGS))
    # What a rank has loaded when it loads its plugins.
    for name in (PARALLEL_STATE, COMM_FUSION, ADD_NORM, MODEL_LOADER):
        importlib.import_module(name)
    plugins = importlib.import_module("sglang.srt.plugins")
    from lamport_rs.sglang_plugin import install
    from lamport_rs.sglang_plugin.groups import SERVED_DEVICES

    SERVED_DEVICES.add("cpu")
    vars(plugins)["load_plugins_by_group"] = lambda *_, **__: {"lamport_rs": (install, "lamport-rs")}
    plugins.load_plugins()
    with torch.inference_mode():
        check_groups(rank)
        check_fused_norms(rank)
        check_minimax(rank)
        check_experts(rank)
        check_push_plane(rank)
        # Without a workspace on one rank, SGLang's own object stays on both.
        if rank == 1:
            os.environ["LAMPORT_RS_MAX_MEMORY"] = "0"
        expect(type(make_group("tp").ca_comm).__name__, "OwnAllreduce")


def make_group(name: str, use_custom_allreduce: bool = True) -> Any:
    """A group of all ranks, made as SGLang makes it."""
    flags = ("use_pynccl", "use_mscclpp", "use_torch_symm_mem_all_reduce", "use_hpu_communicator")
    return sys.modules[PARALLEL_STATE].GroupCoordinator(
        group_ranks=[list(range(WORLD_SIZE))],
        local_rank=0,
        torch_distributed_backend="gloo",
        use_custom_allreduce=use_custom_allreduce,
        group_name=name,
        use_xpu_communicator=False,
        **dict.fromkeys(flags, False),
    )


def check_groups(rank: int) -> None:
    """Sums by the method that SGLang chooses for a tensor on a GPU; ones on the CPU never get so far."""
    import torch

    make_group("world", use_custom_allreduce=False)
    group = parallel.tp_group = parallel.attn_tp_group = make_group("tp")
    parallel.attn_tp_size = parallel.tp_size = parallel.moe_tp_size = WORLD_SIZE
    parallel.attn_tp_rank, parallel.moe_ep_size = rank, 1
    expect(type(group.ca_comm).__name__, "LamportAllreduce")
    expect(isinstance(group.ca_comm, OwnAllreduce), True)
    mine = torch.full((4, 8), rank + 1.0)
    group._fi_workspace_hint = "attn_tp"
    expect(group._can_use_flashinfer_allreduce(mine), False)
    with group.ca_comm.capture():
        expect(group._resolve_outplace_all_reduce_method(mine, False), "ca")
        expect(group._all_reduce_out_place(mine, "auto").tolist(), torch.full((4, 8), 3.0).tolist())


def check_fused_norms(rank: int) -> None:
    """A norm that SGLang fuses with the sum before it, though FlashInfer is not there."""
    import torch

    fusion, choice = sys.modules[COMM_FUSION], sys.modules[ADD_NORM]
    expect(bool(choice.flashinfer_ar_fusion_applies(4)), False)
    fusion.pre_initialize_workspaces(max_token_num=2048, hidden_dim=64, dtype=torch.float32)
    expect([choice.flashinfer_ar_fusion_applies(rows) for rows in (0, 1, 2048, 2049)], [False, True, True, False])
    # The hook lies over SGLang's operator, which a compiler would otherwise find in the graph.
    expect(fusion.flashinfer_allreduce_residual_rmsnorm.__wrapped__.__name__, "flashinfer_allreduce_residual_rmsnorm")
    expect(hasattr(torch.ops.sglang, "flashinfer_allreduce_residual_rmsnorm"), True)
    graphs: list[str] = []

    def compiler(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph

    def layer(rows: torch.Tensor, **options: bool) -> Any:
        return fusion.flashinfer_allreduce_residual_rmsnorm(
            input_tensor=rows,
            residual=torch.ones(3, 64),
            weight=torch.full((64,), 0.5),
            eps=0.0,
            max_token_num=2048,
            **options,
        )

    for run in (layer, torch.compile(layer, backend=compiler, fullgraph=True)):
        for options in ({}, {"use_attn_tp_group": True}, {"use_attn_tp_group": False}):
            norm, total = run(torch.full((3, 64), rank + 1.0), **options)
            expect((norm.unique().tolist(), total.unique().tolist()), ([0.5], [4.0]))
    expect([code.count("torch.ops.lamport_rs_sglang.all_reduce_rms_norm") for code in graphs], [1] * len(graphs))
    expect(len(graphs) > 0 and "torch.ops.sglang" not in "".join(graphs), True)


def check_minimax(rank: int) -> None:
    """MiniMax's norm of Q and K, of a model that SGLang imports when it has chosen it."""
    import torch

    registry: Any = importlib.import_module("sglang.srt.models.registry")
    registry.ModelRegistry.resolve_model_cls = lambda *_: (importlib.import_module(MINIMAX).MiniMaxM2QKRMSNorm, "M2")
    model_config = MagicMock(is_embedding_gemma=False, quantization=None)
    model_config.hf_config.architectures = ["MiniMaxM2ForCausalLM"]
    # It has imported its other models, too, with what they import.
    for name in (CUTEDSL, PUSH_MEMORY):
        importlib.import_module(name)
    made: Callable[..., Any] = sys.modules[MODEL_LOADER].get_model_architecture(model_config)[0]
    norms = [SimpleNamespace(weight=torch.ones(width), variance_epsilon=0.0, attn_tp_size=2) for width in (32, 16)]
    found = made(*norms).forward(torch.full((2, 32), rank + 1.0), torch.full((2, 16), 2.0))
    root = (2.5) ** 0.5
    expect(bool((found[0] * root).allclose(torch.full((2, 32), rank + 1.0))), True)
    expect(found[1].unique().tolist(), [1.0])


def check_experts(rank: int) -> None:
    """Sums of experts' rows and of others, by what SGLang prepares of FlashInfer's."""
    import torch

    service = sys.modules[CUTEDSL].CuteDSLWorkspace(hidden_size=64, top_k=2, rms_epsilon=0.0)
    service.prepare(max_m=2048)
    expect((service.supports(2048), service.supports(2049)), (True, False))
    ones = torch.ones(2, 64, dtype=torch.bfloat16)
    handoff = SimpleNamespace(
        routed_output=ones * (rank + 1),
        permuted_indices=torch.tensor([[0, 1], [-1, 0]], dtype=torch.int32),
        expert_weights=torch.full((2, 2), 0.5),
        gated_shared_output=ones,
    )
    # Each token has the sum of its experts' rows, the shared expert's on each rank, and the residual.
    norm, total = service.finalize(handoff, residual=ones, gamma=ones[0] / 2)
    expect((total[:, 0].tolist(), norm.unique().tolist()), ([6.0, 4.5], [0.5]))
    norm, total = service.all_reduce_residual_rms_norm(ones * (rank + 1), residual=ones, gamma=ones[0] / 2)
    expect((total.unique().tolist(), norm.unique().tolist()), ([4.0], [0.5]))


def check_push_plane(rank: int) -> None:
    """Norms that MiniMax-M3's layers fuse with the sums of attention and of experts."""
    import torch

    fusion = importlib.import_module(PUSH_FUSION).CustomAllReduceFusion(hidden_size=64, defers_finalize=False)
    # As SGLang's own function leaves it where the group has a plane.
    importlib.import_module(PUSH_KERNELS).register_comm(SimpleNamespace(world_size=2))
    sys.modules[PUSH_MEMORY].register_fused_all_reduce_comm(max_push_size=1 << 22, max_push_blocks=512)
    ones = torch.ones(3, 64, dtype=torch.bfloat16)
    plan = SimpleNamespace(
        norm=SimpleNamespace(weight=ones[0] / 2, variance_epsilon=0.0),
        fused_input_rows=lambda _batch: SimpleNamespace(sharded=()),
    )
    mode = SimpleNamespace(is_decode=lambda: True)
    batch = SimpleNamespace(forward_mode=mode, can_run_tbo=False)
    owed = SimpleNamespace(partial=ones * (rank + 1), group=parallel.tp_group)
    for norm, total in (
        fusion._ffn_input_add_norm(plan, ones * (rank + 1), ones, batch),
        fusion._all_reduce_add_norm(plan, owed, ones, batch, None),
    ):
        expect((norm.unique().tolist(), total.unique().tolist()), ([0.5], [4.0]))
    # SGLang itself has its layers unfused in batch-invariant mode.
    invariance: Any = importlib.import_module("sglang.srt.batch_invariant_ops")
    invariance.is_batch_invariant_mode_enabled = lambda: True
    expect(fusion._ffn_input_add_norm(plan, ones, ones, batch), None)
    expect(fusion._all_reduce_add_norm(plan, owed, ones, batch, None), None)


def main() -> int:
    """Run all releases; return the exit status."""
    return run_releases(run_rank, "groups, fused norms, experts' sums and MiniMax's norms work with the plugin")


if __name__ == "__main__":
    sys.exit(main())
