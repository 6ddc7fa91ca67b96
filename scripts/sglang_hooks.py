"""What the plugin for SGLang relies on in a release of SGLang: recorded in tests/sglang_hooks.json.

    python scripts/sglang_hooks.py SOURCES...            compares the releases unpacked there with what is recorded
    python scripts/sglang_hooks.py --record SOURCES...   records them

`SOURCES` is a folder that holds the package `sglang`: an environment's site-packages, or an unpacked wheel.
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
    release_of,
    signatures_of,
    tree_of,
)

TABLE = Path(__file__).parent.parent / "tests" / "sglang_hooks.json"
PLUGINS = "sglang.srt.plugins"
PARALLEL_STATE = "sglang.srt.distributed.parallel_state"
COMMUNICATORS = "sglang.srt.distributed.device_communicators"
COMM_FUSION = "sglang.srt.layers.flashinfer_comm_fusion"
ADD_NORM = "sglang.srt.layers.layer_boundary.residual.add_norm"
LAYERNORM = "sglang.srt.layers.layernorm"
CUTEDSL = "sglang.srt.layers.layer_boundary.fusions.cutedsl"
MINIMAX = "sglang.srt.models.minimax_m2"
PUSH_FUSION = "sglang.srt.layers.layer_boundary.fusions.custom_all_reduce_fusion"
V2 = "CustomAllReduceV2"
SIGNATURES = {
    PLUGINS: ["load_plugins"],
    f"{PLUGINS}.hook_registry": ["HookRegistry", "HookRegistry.register", "HookRegistry.apply_hooks", "HookSource"],
    PARALLEL_STATE: [
        *(f"GroupCoordinator.{name}" for name in ("__init__", "all_reduce", "graph_capture", "destroy")),
        *(f"GroupCoordinator.{name}" for name in ("_all_reduce_out_place", "_can_use_flashinfer_allreduce")),
    ],
    f"{COMMUNICATORS}.custom_all_reduce": [
        *("dispatch_custom_allreduce", "CustomAllreduce"),
        *(f"CustomAllreduce.{name}" for name in ("should_custom_ar", "custom_all_reduce", "capture", "close")),
    ],
    f"{COMMUNICATORS}.custom_all_reduce_v2": [
        V2,
        *(f"{V2}.{name}" for name in ("__init__", "should_custom_ar", "custom_all_reduce", "capture", "close")),
    ],
    COMM_FUSION: ["flashinfer_allreduce_residual_rmsnorm", "pre_initialize_workspaces", "resolve_fusion_group"],
    ADD_NORM: ["flashinfer_ar_fusion_applies"],
    LAYERNORM: ["_forward_with_allreduce_fusion"],
    # Experts' rows that are finalised in an all-reduce.
    CUTEDSL: [
        f"CuteDSLWorkspace.{name}"
        for name in ("__init__", "prepare", "supports", "finalize", "all_reduce_residual_rms_norm")
    ],
    "sglang.srt.layers.flashinfer_mnnvl_cutedsl": [
        f"FlashInferMNNVLCuteDSLARFusion.{name}"
        for name in ("supports", "moe_finalize_all_reduce_rms_norm", "all_reduce_residual_rms_norm")
    ],
    # Norms fused by a kernel of SGLang's own.
    PUSH_FUSION: [f"CustomAllReduceFusion.{name}" for name in ("__init__", "_all_reduce_add_norm", "_eligible")],
    "sglang.kernels.ops.communication.all_reduce_fusion": ["all_reduce_residual_norm"],
    "sglang.srt.layers.quantization.mxfp4_flashinfer_trtllm_moe": [
        *("register_fused_all_reduce_comm", "can_fuse_all_reduce"),
    ],
    "sglang.srt.layers.dp_attention": ["is_dp_attention_enabled"],
    "sglang.srt.runtime_context": ["get_parallel"],
    "sglang.srt.model_loader.utils": ["get_model_architecture"],
    MINIMAX: [
        "fused_tp_qknorm",
        *(f"MiniMaxM2QKRMSNorm.{name}" for name in ("__init__", "forward", "_forward_naive", "_forward_fused")),
    ],
}
"""The functions and classes that the plugin hooks, calls or serves, by module."""
CALLS = {
    # Who asks for workspaces, and with which arguments.
    "pre_initialize_workspaces": "sglang.srt.model_executor.runner.base_runner",
    "flashinfer_allreduce_residual_rmsnorm": LAYERNORM,
    "load_plugins": "sglang.srt.managers.scheduler",
    "MiniMaxM2QKRMSNorm": MINIMAX,
    "all_reduce_residual_norm": PUSH_FUSION,
    "register_fused_all_reduce_comm": "sglang.srt.models.minimax_m3",
}
"""The modules that call a function of SGLang's."""


def main() -> int:
    """Compare or record; the exit status says whether all is as recorded."""
    return compare_or_record("sglang", TABLE, facts_of)


def facts_of(sources: Path) -> tuple[str, Facts]:
    """Return the release that is unpacked in a folder, and what the table holds of it."""
    state, norms = tree_of(sources, PARALLEL_STATE), tree_of(sources, ADD_NORM)
    facts = {
        "signatures": signatures_of(sources, SIGNATURES),
        "entry_points": assigned(tree_of(sources, PLUGINS), "GENERAL_PLUGINS_GROUP"),
        "kinds_of_hooks": names_assigned_in(definition(tree_of(sources, f"{PLUGINS}.hook_registry"), "HookType")),
        "construction": construction_of(definition(state, "GroupCoordinator.__init__")),
        "attributes": attributes_of(definition(state, "GroupCoordinator.__init__")),
        "dispatch": calls_in(definition(state, "GroupCoordinator.all_reduce"), is_of_a_communicator)
        + calls_in(definition(state, "GroupCoordinator._resolve_outplace_all_reduce_method"), is_of_a_communicator),
        "asked_of_the_communicator": sorted(asked_of_the_communicator(sources / "sglang" / "srt")),
        "asked_of_experts_workspace": asked_of_the_workspace(tree_of(sources, CUTEDSL)),
        "memory_of_the_communicator": users_of_its_memory(sources),
        "fusion_applies": returned_by(definition(norms, "flashinfer_ar_fusion_applies")),
        "most_fused_rows": assigned(norms, "FUSE_ALLREDUCE_MAX_BATCH_SIZE"),
        "calls": {name: call_of(tree_of(sources, module), name) for name, module in CALLS.items()},
    }
    return release_of(sources / "sglang"), facts


def is_of_a_communicator(name: str) -> bool:
    """Whether a function's name is one of a communicator's, or of what the dispatch asks."""
    return "_comm." in name or name in {"flashinfer_allreduce", "self._can_use_flashinfer_allreduce"}


def construction_of(constructor: ast.AST | None) -> list[str]:
    """Return how a group's custom all-reduce is made."""
    found = []
    for node in ast.walk(constructor) if constructor else ():
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("dispatch_custom_allreduce", "CAClass"):
            found.append(f"{ast.unparse(node.func)}({', '.join(f'{each.arg}=' for each in node.keywords)})")
        if isinstance(node, ast.If) and "use_custom_allreduce" in ast.unparse(node.test):
            found.append(f"if {ast.unparse(node.test)}")
    return sorted(found)


def attributes_of(constructor: ast.AST | None) -> list[str]:
    """Return the attributes that a group has."""
    nodes = list(ast.walk(constructor)) if constructor else []
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in nodes if isinstance(node, ast.AnnAssign)]
    found = {each.attr for each in targets if isinstance(each, ast.Attribute)}
    return sorted(name for name in found if not name.startswith("_"))


def users_of_its_memory(sources: Path) -> list[str]:
    """Return the modules that look for the class of the custom all-reduce before they use its memory."""
    srt = sources / "sglang" / "srt"
    users = []
    for file in sorted(srt.rglob("*.py")):
        text = file.read_text(errors="replace")
        if f", {V2})" in text and "isinstance(" in text:
            users.append(str(file.relative_to(srt).with_suffix("")).replace("/", "."))
    return users


def asked_of_the_workspace(tree: ast.AST) -> list[str]:
    """Return the attributes that SGLang reads from its workspace for fused sums of experts' rows."""
    held = ("self._workspace", "workspace")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return sorted({node.attr for node in nodes if ast.unparse(node.value) in held})


def returned_by(function: ast.AST | None) -> list[str]:
    """Return the conditions of a function that returns whether all of them hold."""
    for node in ast.walk(function) if function else ():
        if isinstance(node, ast.Return) and isinstance(node.value, ast.BoolOp):
            return [ast.unparse(each) for each in node.value.values]
    return []


def assigned(tree: ast.AST, name: str) -> str | None:
    """Return what a module assigns to a name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name in [ast.unparse(each) for each in node.targets]:
            return ast.unparse(node.value)
    return None


def names_assigned_in(node: ast.AST | None) -> list[str]:
    """Return the names that a class's body assigns."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    return [ast.unparse(target) for each in body if isinstance(each, ast.Assign) for target in each.targets]


def call_of(tree: ast.AST, name: str) -> str | None:
    """Return the first call of a function, with what it is given."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
    return ast.unparse(min(calls, key=lambda call: call.lineno)) if calls else None


if __name__ == "__main__":
    sys.exit(main())
