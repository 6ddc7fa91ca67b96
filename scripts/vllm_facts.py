"""What `vllm_hooks.py` reads from a release's sources of norms fused with all-reduces, and of batch invariance."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from hook_record import calls_in, definition

WORKSPACE_NAMES = {"workspace", "self.workspace"}
"""Under these names vLLM holds a workspace of FlashInfer's."""
BATCH_INVARIANT = "envs.VLLM_BATCH_INVARIANT"
RULE = "enable_allreduce_rms_fusion"
"""The function that switches the fusion on."""


def fused_facts(users: Iterable[ast.Module], configuration: ast.Module) -> dict[str, Any]:
    """Return what the plugin's part `fused` relies on, besides signatures.

    Args:
        users: The modules that sum by FlashInfer.
        configuration: The module with the rule that switches the fusion on.
    """
    nodes = [node for user in users for node in ast.walk(user)]
    groups = {ast.unparse(each) for each in nodes if isinstance(each, ast.Attribute)}
    attributes = [each for each in nodes if isinstance(each, ast.Attribute)]
    return {
        "groups": sorted(each.removeprefix("get_tp_group().") for each in groups if each.startswith("get_tp_group().")),
        "operators": sorted(
            ast.literal_eval(keyword.value)
            for each in calls_of(nodes, "direct_register_custom_op")
            for keyword in each.keywords
            if keyword.arg == "op_name"
        ),
        "workspaces": sorted(
            {
                f"{name}({', '.join(f'{keyword.arg}=' if keyword.arg else '**' for keyword in each.keywords)})"
                for name in ("get_fi_ar_workspace", "get_fi_ar_quant_workspace", "get_workspace_fn")
                for each in calls_of(nodes, name)
            }
        ),
        "asked_of_a_workspace": sorted(
            {each.attr for each in attributes if ast.unparse(each.value) in WORKSPACE_NAMES}
        ),
        "flags": sorted({each.id for each in nodes if isinstance(each, ast.Name) and each.id == "fi_ar_available"}),
        "rule": rule_facts(configuration),
    }


def taken_from(user: ast.Module, module: str) -> list[str]:
    """Return the names that one module imports from another, at its top or within a function."""
    imports = [node for node in ast.walk(user) if isinstance(node, ast.ImportFrom) and node.module == module]
    return sorted(name.name for node in imports for name in node.names)


def rule_facts(configuration: ast.Module) -> list[str]:
    """Return what the rule imports, and the tables that hold it."""
    facts: list[str] = []
    for node in configuration.body:
        if isinstance(node, ast.FunctionDef) and node.name == RULE:
            facts += [ast.unparse(each) for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
        if isinstance(node, ast.Assign) and RULE in names_in(node.value):
            facts += [ast.unparse(target) for target in node.targets]
    return sorted(facts)


def minimax_facts(norm: ast.Module) -> dict[str, list[str]]:
    """Return how MiniMax's layer binds its operator, calls it, and asks for a workspace."""
    name = "_MINIMAX_FUSED_AR_RMS_QK"
    nodes = list(ast.walk(norm))
    bound = [each for each in norm.body if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == name]
    asked = calls_of(nodes, "get_allreduce_workspace")
    return {
        "bound": [ast.unparse(each) for each in bound],
        "called": [ast.unparse(each) for each in calls_of(nodes, name)],
        "workspace": [ast.unparse(each) for each in asked],
    }


def compile_cache_facts(backend: ast.Module, worker: ast.Module) -> dict[str, list[str]]:
    """Return in which order the backend asks for its key and makes its passes, and in what groups are made.

    Args:
        backend: The module of `VllmBackend`.
        worker: The module of `WorkerWrapperBase`, which has its worker make groups.
    """
    order = calls_in(
        definition(backend, "VllmBackend.__call__"), {"envs.compile_factors", "self.configure_post_pass"}.__contains__
    )
    device = definition(worker, "WorkerWrapperBase.init_device")
    around = [
        ast.unparse(item.context_expr)
        for node in (ast.walk(device) if device else ())
        if isinstance(node, ast.With) and "self.worker.init_device()" in map(ast.unparse, node.body)
        for item in node.items
    ]
    return {"order": order, "groups": around}


def batch_invariance_facts(communicator: ast.AST | None, parallel: ast.Module, rule: ast.AST | None) -> dict[str, bool]:
    """Return whether batch invariance is known to vLLM's class, switches the class off, and is asked by the rule."""
    assigned = {
        target.id
        for each in getattr(communicator, "body", [])
        if isinstance(each, ast.Assign)
        for target in each.targets
        if isinstance(target, ast.Name)
    }
    disabling = [
        each
        for each in ast.walk(parallel)
        if isinstance(each, ast.If)
        and ast.unparse(each.test) == BATCH_INVARIANT
        and "self.disable_custom_all_reduce = True" in map(ast.unparse, each.body)
    ]
    asked = BATCH_INVARIANT in map(ast.unparse, ast.walk(rule)) if rule else False
    return {"class_attribute": "batch_invariant" in assigned, "disables": bool(disabling), "rule_asks": asked}


def calls_of(nodes: Iterable[ast.AST], name: str) -> Iterator[ast.Call]:
    """Yield the calls of a function that is named so."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def names_in(node: ast.AST) -> set[str]:
    """Return the names that an expression uses."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
