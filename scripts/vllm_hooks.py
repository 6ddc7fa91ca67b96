"""What the plugin for vLLM relies on in a release of vLLM: recorded in tests/vllm_hooks.json, read from its sources.

    python scripts/vllm_hooks.py SOURCES...            compares the releases unpacked there with what is recorded
    python scripts/vllm_hooks.py --record SOURCES...   records them

`SOURCES` is a folder that holds the package `vllm`: an environment's site-packages, or an unpacked wheel. Nothing of it
is imported, so neither torch nor a GPU is needed. A release that is not recorded is compared with the newest one that
is: what differs is what the plugin has to learn.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from hook_record import (
    Facts,
    asked_of_the_communicator,
    calls_in,
    compare_or_record,
    definition,
    file_of,
    parsed,
    release_of,
    signatures_of,
    tree_of,
)
from vllm_facts import RULE, batch_invariance_facts, compile_cache_facts, fused_facts, minimax_facts, taken_from

TABLE = Path(__file__).parent.parent / "tests" / "vllm_hooks.json"
COMMUNICATORS = "vllm.distributed.device_communicators"
CLASS = "CustomAllreduce"
FUSION_PASS = "vllm.compilation.passes.fusion.allreduce_rms_fusion"
GEMMA_NORM = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"
OTHER_HELPERS = {
    "vllm.models.common.ops.fused_allreduce_rms_norm": "fused_allreduce_rms_norm",
    "vllm.models.deepseek_v32.nvidia.fused_ops": "fused_allreduce_rms_norm",
    "vllm.models.kimi_k3.nvidia.latent_moe_runner": "LatentMoERunner.allreduce_norm_latent_out",
}
"""What else runs eager, by what it takes from Gemma's helper."""
CONFIGURATION = "vllm.config.vllm"
MINIMAX = "vllm.model_executor.layers.minimax_rms_norm"
SIGNATURES = {
    "vllm.plugins": ["load_general_plugins"],
    # What its caches of compiled code go by.
    "vllm.envs": ["compile_factors"],
    f"{COMMUNICATORS}.custom_all_reduce": [
        CLASS,
        *(f"{CLASS}.{name}" for name in ("__init__", "should_custom_ar", "custom_all_reduce", "all_reduce")),
        *(f"{CLASS}.{name}" for name in ("capture", "close", "custom_all_gather", "custom_reduce_scatter")),
        *(f"{CLASS}.{name}" for name in ("create_shared_buffer", "free_shared_buffer")),
    ],
    f"{COMMUNICATORS}.cuda_communicator": [
        *(f"CudaCommunicator.{name}" for name in ("__init__", "all_reduce", "destroy", "suspend", "resume")),
        *(f"CudaCommunicator.{name}" for name in ("checkpoint_prepare", "checkpoint_restore")),
    ],
    f"{COMMUNICATORS}.flashinfer_all_reduce": [
        *("FlashInferAllReduce.__init__", "FlashInferAllReduce.should_use_fi_ar"),
        *("_create_workspace", "get_fi_ar_workspace", "get_fi_ar_quant_workspace", "destroy_fi_ar_workspace"),
    ],
    # Where norms fused with all-reduces are made, and what switches them on.
    FUSION_PASS: ["call_trtllm_fused_allreduce_norm", "AllReduceFusionPass", "AllReduceFusionPass.__init__"],
    GEMMA_NORM: ["fused_allreduce_gemma_rms_norm", "_can_use_flashinfer"],
    **{module: [name] for module, name in OTHER_HELPERS.items()},
    CONFIGURATION: [RULE, "get_current_vllm_config_or_none"],
    "vllm.config.compilation": ["PassConfig.flashinfer_max_size"],
    "vllm.utils.flashinfer": ["has_flashinfer"],
    "vllm.distributed.parallel_state": ["get_tp_group"],
    # vLLM's rule for GPUs without NVLink between them.
    "vllm.platforms.cuda": ["NvmlCudaPlatform.is_fully_connected"],
    "vllm.platforms.interface": [
        *("Platform.is_cuda", "Platform.visible_device_id_to_physical_device_id", "Platform.has_device_capability"),
    ],
    # MiniMax's norms, and where earlier releases have them.
    "vllm.model_executor.layers.mamba.lamport_workspace": ["get_allreduce_workspace"],
    f"{MINIMAX}.lamport_workspace": ["get_allreduce_workspace"],
    f"{MINIMAX}.rms_norm_tp": [
        *("_minimax_qk_norm_fusion", "MiniMaxText01RMSNormTP", "MiniMaxText01RMSNormTP.__init__"),
        *("MiniMaxText01RMSNormTP.forward", "MiniMaxText01RMSNormTP.forward_qkv", "_minimax_qk_norm_tp_fallback"),
    ],
}
"""The functions and classes that the plugin replaces, wraps, calls or serves, by module."""
FLASHINFER_USERS = [
    f"{COMMUNICATORS}.flashinfer_all_reduce",
    FUSION_PASS,
    GEMMA_NORM,
    *OTHER_HELPERS,
]
"""The modules that sum by `flashinfer.comm`."""


def main() -> int:
    """Compare or record; the exit status says whether all is as recorded."""
    return compare_or_record("vllm", TABLE, facts_of)


def facts_of(sources: Path) -> tuple[str, Facts]:
    """Return the release that is unpacked in a folder, and what the table holds of it."""
    package = sources / "vllm"
    facts = {
        "signatures": signatures_of(sources, SIGNATURES),
        "construction": construction_of(package / "distributed/device_communicators/cuda_communicator.py"),
        "dispatch": dispatch_of(package / "distributed/device_communicators/cuda_communicator.py"),
        "asked_of_flashinfer": asked_of_flashinfer(sources),
        "asked_of_the_communicator": sorted(
            # There the same name is ROCm's communicator.
            asked_of_the_communicator(package, skipped=file_of(sources, FUSION_PASS))
        ),
        "fused": fused_facts([tree_of(sources, user) for user in FLASHINFER_USERS], tree_of(sources, CONFIGURATION)),
        "taken_from_helper": {user: taken_from(tree_of(sources, user), GEMMA_NORM) for user in OTHER_HELPERS},
        "minimax": minimax_facts(tree_of(sources, f"{MINIMAX}.rms_norm_tp")),
        "compile_cache": compile_cache_facts(
            tree_of(sources, "vllm.compilation.backends"), tree_of(sources, "vllm.v1.worker.worker_base")
        ),
        "batch_invariance": batch_invariance_facts(
            definition(tree_of(sources, f"{COMMUNICATORS}.custom_all_reduce"), CLASS),
            tree_of(sources, "vllm.config.parallel"),
            definition(tree_of(sources, CONFIGURATION), RULE),
        ),
        "environment": defaults_of(package / "envs.py", ["VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_BATCH_INVARIANT"]),
    }
    return release_of(package), facts


def construction_of(file: Path) -> list[str]:
    """Return how `CudaCommunicator` makes the object: the import, which must be in the constructor, and the call."""
    constructor = definition(parsed(file), "CudaCommunicator.__init__")
    found = []
    for node in ast.walk(constructor) if constructor else ():
        if isinstance(node, ast.ImportFrom) and CLASS in [each.name for each in node.names]:
            found.append(ast.unparse(node))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == CLASS:
            found.append(f"{CLASS}({', '.join(f'{each.arg}=' for each in node.keywords)})")
    return sorted(found)


def dispatch_of(file: Path) -> list[str]:
    """Return the communicators that `CudaCommunicator.all_reduce` looks at, in the order in which it asks them."""

    def is_of_a_communicator(name: str) -> bool:
        return name.startswith(("should_", "torch.ops.vllm")) or "_comm." in name

    return calls_in(definition(parsed(file), "CudaCommunicator.all_reduce"), is_of_a_communicator)


def asked_of_flashinfer(sources: Path) -> list[str]:
    """Return what the release takes from `flashinfer.comm` to sum, and the keywords of its calls."""
    asked: set[str] = set()
    for module in FLASHINFER_USERS:
        for node in ast.walk(tree_of(sources, module)):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("flashinfer_comm."):
                asked.add(ast.unparse(node).removeprefix("flashinfer_comm."))
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flashinfer_comm."):
                keywords = ", ".join(f"{keyword.arg}=" for keyword in node.keywords)
                asked.add(f"{ast.unparse(node.func).removeprefix('flashinfer_comm.')}({keywords})")
    return sorted(asked)


def defaults_of(file: Path, variables: list[str]) -> dict[str, str | None]:
    """Return the documented defaults of environment variables."""
    defaults: dict[str, str | None] = dict.fromkeys(variables)
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in defaults:
            defaults[node.target.id] = ast.unparse(node.value) if node.value else None
    return defaults


if __name__ == "__main__":
    sys.exit(main())
