"""What the plugin for vLLM relies on in a release of vLLM: recorded in tests/vllm_hooks.json, read from its sources.

    python scripts/vllm_hooks.py SOURCES...            compares the releases unpacked there with what is recorded
    python scripts/vllm_hooks.py --record SOURCES...   records them

`SOURCES` is a folder that holds the package `vllm`: an environment's site-packages, or an unpacked wheel. Nothing of it
is imported, so neither torch nor a GPU is needed. A release that is not recorded is compared with the newest one that
is: what differs is what the plugin has to learn.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_facts import batch_invariance_facts, fused_facts, minimax_facts

TABLE = Path(__file__).parent.parent / "tests" / "vllm_hooks.json"
COMMUNICATORS = "vllm.distributed.device_communicators"
CLASS = "CustomAllreduce"
FIELD = "ca_comm"
"""The attribute of `CudaCommunicator` that holds an instance of the class."""
FUSION_PASS = "vllm.compilation.passes.fusion.allreduce_rms_fusion"
GEMMA_NORM = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"
CONFIGURATION = "vllm.config.vllm"
MINIMAX = "vllm.model_executor.layers.minimax_rms_norm"
SIGNATURES = {
    "vllm.plugins": ["load_general_plugins"],
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
    GEMMA_NORM: ["fused_allreduce_gemma_rms_norm"],
    CONFIGURATION: ["enable_allreduce_rms_fusion"],
    "vllm.utils.flashinfer": ["has_flashinfer"],
    "vllm.distributed.parallel_state": ["get_tp_group"],
    # vLLM's rule for GPUs without NVLink between them.
    "vllm.platforms.cuda": ["NvmlCudaPlatform.is_fully_connected"],
    "vllm.platforms.interface": ["Platform.is_cuda", "Platform.visible_device_id_to_physical_device_id"],
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
]
"""The modules that sum by `flashinfer.comm`."""

Facts = dict[str, Any]


def main() -> int:
    """Compare or record; the exit status says whether all is as recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("sources", type=Path, nargs="+")
    arguments = parser.parse_args()
    table: dict[str, Facts] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    differences = 0
    for sources in arguments.sources:
        release, facts = facts_of(sources)
        if arguments.record:
            table[release] = facts
            continue
        recorded = release if release in table else newest(table)
        found = list(differences_of(table[recorded], facts))
        print(f"vllm {release}, recorded {recorded}: {len(found)} differences", *found, sep="\n  ")
        differences += len(found)
    if arguments.record:
        TABLE.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    return int(differences > 0)


def newest(table: dict[str, Facts]) -> str:
    """Return the newest release of the table."""
    return max(table, key=lambda release: [int(part) for part in release.split(".")])


def facts_of(sources: Path) -> tuple[str, Facts]:
    """Return the release that is unpacked in a folder, and what the table holds of it."""
    package = sources / "vllm"
    facts = {
        "signatures": signatures_of(sources),
        "construction": construction_of(package / "distributed/device_communicators/cuda_communicator.py"),
        "dispatch": dispatch_of(package / "distributed/device_communicators/cuda_communicator.py"),
        "asked_of_flashinfer": asked_of_flashinfer(sources),
        "asked_of_the_communicator": sorted(asked_of_the_communicator(package)),
        "fused": fused_facts([tree_of(sources, user) for user in FLASHINFER_USERS], tree_of(sources, CONFIGURATION)),
        "minimax": minimax_facts(tree_of(sources, f"{MINIMAX}.rms_norm_tp")),
        "batch_invariance": batch_invariance_facts(
            definition(tree_of(sources, f"{COMMUNICATORS}.custom_all_reduce"), CLASS),
            tree_of(sources, "vllm.config.parallel"),
        ),
        "environment": defaults_of(package / "envs.py", ["VLLM_ALLREDUCE_USE_FLASHINFER", "VLLM_BATCH_INVARIANT"]),
    }
    return release_of(package), facts


def release_of(package: Path) -> str:
    """Return the release's number, from the file that setuptools_scm writes."""
    for node in ast.walk(parsed(package / "_version.py")):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "__version__" in names:
                return str(node.value.value)
    raise SystemExit(f"{package / '_version.py'} assigns no __version__; expected the sources of a release of vLLM")


def signatures_of(sources: Path) -> dict[str, dict[str, str | None]]:
    """Return the parameters of `SIGNATURES`, as they are written; None for what the release does not have."""
    signatures: dict[str, dict[str, str | None]] = {}
    for module, names in SIGNATURES.items():
        tree = tree_of(sources, module)
        signatures[module] = {name: signature_of(definition(tree, name)) for name in names}
    return signatures


def file_of(sources: Path, module: str) -> Path:
    """Return the file of a module, which need not be there."""
    path = sources / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree_of(sources: Path, module: str) -> ast.Module:
    """Return the syntax tree of a module, an empty one if there is no such module."""
    file = file_of(sources, module)
    return parsed(file) if file.exists() else ast.Module([], [])


def definition(tree: ast.AST, name: str) -> ast.AST | None:
    """Find a function or class by its dotted name; it may be defined under a condition."""
    found: ast.AST | None = tree
    for part in name.split("."):
        found = next((node for node in defined_in(found) if node.name == part), None)
    return found


def defined_in(node: ast.AST | None) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Yield the functions and classes of a body, those under its conditions too."""
    for each in getattr(node, "body", []):
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            yield each
        elif isinstance(each, ast.If | ast.Try):
            yield from defined_in(each)


def signature_of(node: ast.AST | None) -> str | None:
    """Return a function's parameters without their types, a class as the names of its public methods."""
    if isinstance(node, ast.ClassDef):
        methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
        return ", ".join(sorted(name for name in methods if not name.startswith("_")))
    if not isinstance(node, ast.FunctionDef):
        return None
    parameters = node.args
    for parameter in [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]:
        parameter.annotation = None
    return ast.unparse(parameters)


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
    method = definition(parsed(file), "CudaCommunicator.all_reduce")
    order: list[tuple[int, str]] = []
    for node in ast.walk(method) if method else ():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = ast.unparse(node.func)
            if name.startswith(("should_", "torch.ops.vllm")) or "_comm." in name:
                order.append((node.lineno, name))
    return [name for _line, name in sorted(order)]


def asked_of_the_communicator(package: Path) -> set[str]:
    """Return the attributes that the release's code reads from `ca_comm`, by whatever name it holds it."""
    asked: set[str] = set()
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(errors="replace")
        # There the same name is ROCm's communicator.
        if FIELD not in text or file == file_of(package.parent, FUSION_PASS):
            continue
        tree = ast.parse(text)
        names = {FIELD} | {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and is_the_communicator(node.value, set())
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_the_communicator(node.value, names):
                asked.add(node.attr)
    return asked


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


def is_the_communicator(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is `ca_comm`, as an attribute, by `getattr`, or by one of these names."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        return len(node.args) > 1 and isinstance(node.args[1], ast.Constant) and node.args[1].value == FIELD
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Attribute) and node.attr == FIELD


def defaults_of(file: Path, variables: list[str]) -> dict[str, str | None]:
    """Return the documented defaults of environment variables."""
    defaults: dict[str, str | None] = dict.fromkeys(variables)
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in defaults:
            defaults[node.target.id] = ast.unparse(node.value) if node.value else None
    return defaults


def parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text())


def differences_of(recorded: Any, found: Any, place: str = "") -> Iterator[str]:
    """Yield a line for each difference."""
    if isinstance(recorded, dict) and isinstance(found, dict):
        for key in sorted({*recorded, *found}):
            yield from differences_of(recorded.get(key), found.get(key), f"{place}{key}: ")
    elif recorded != found:
        yield f"{place}recorded {recorded!r}, found {found!r}"


if __name__ == "__main__":
    sys.exit(main())
