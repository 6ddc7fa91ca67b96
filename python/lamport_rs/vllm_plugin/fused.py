"""Has vLLM's fused all-reduce, residual, RMSNorm and quantisation run by the package, with FlashInfer or without.

vLLM gets its workspaces from `get_fi_ar_workspace`, and passes them to `flashinfer.comm.allreduce_fusion`. The first
returns the package's where the group can have one, which is made with the group; the second goes by the workspace's
type. vLLM asks for another workspace for quantised patterns: it is the same one, where the package quantises such rows,
else none; FlashInfer's where the group has no workspace of the package's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lamport_rs.vllm_plugin.environment import (
    HAS_FLASHINFER,
    batch_invariant,
    flashinfer_comes_first,
    flashinfer_is_usable,
)
from lamport_rs.vllm_plugin.fused_operation import dispatching, run_again_with_the_stand_in, stand_in
from lamport_rs.vllm_plugin.fused_workspaces import (
    FUSION_PASS,
    GET,
    GET_FOR_QUANTISED,
    PARAMETERS,
    WORKSPACES,
    WorkspaceChoice,
    marked_as_being_made,
)
from lamport_rs.vllm_plugin.imports import has_module, when_imported
from lamport_rs.vllm_plugin.log import leave_to_vllm, logger
from lamport_rs.vllm_plugin.wrapping import is_wrapped, obstacle_of, wrap

HELPER = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"
HELPER_USERS = ("vllm.models.common.ops.fused_allreduce_rms_norm", "vllm.models.deepseek_v32.nvidia.fused_ops")
"""Other helpers, which take names from this one when they are imported: each release has one of them."""
TAKEN_FROM_HELPER = ("_AR_RESIDUAL_RMS_NORM", "_can_use_flashinfer", "flashinfer_trtllm_fused_allreduce_norm")
CONFIGURATION = "vllm.config.vllm"
PASS, OPERATOR = "AllReduceFusionPass", "flashinfer_trtllm_fused_allreduce_norm"
"""vLLM's pass, and its operator, which that and its eager models call."""
QUANTISED_PATTERNS = frozenset(
    f"AllReduceFused{norm}StaticQuant{quant}Pattern" for norm in ("RMSNorm", "AddRMSNorm") for quant in ("FP8", "NVFP4")
)
"""The classes of vLLM's pass that quantise, on NVIDIA GPUs."""


def replace_fused() -> None:
    """Have the modules adjusted once vLLM has imported them. Safe to call again."""
    missing = [name for name in (WORKSPACES, FUSION_PASS, CONFIGURATION) if not has_module(name)]
    if missing:
        leave_to_vllm("fused", f"there is no {', '.join(missing)}")
        return
    when_imported(WORKSPACES, _adjust_workspaces)
    when_imported(FUSION_PASS, _adjust_fusion_pass)
    when_imported(HELPER, _adjust_helper)
    when_imported(CONFIGURATION, _adjust_configuration)


def _adjust_workspaces(module: Any) -> None:
    """The module that makes FlashInfer's workspaces, and sums by them."""
    if obstacle := _obstacle(module):
        leave_to_vllm("fused", obstacle)
        return
    if module.fi_ar_available:
        wrap(module.flashinfer_comm, "allreduce_fusion", dispatching)
    elif not hasattr(module, "flashinfer_comm"):
        # For eager models. `FlashInferAllReduce` stays switched off.
        module.flashinfer_comm = stand_in()
    if not flashinfer_comes_first():
        WorkspaceChoice(is_standalone=True).serve(module)


def _obstacle(module: Any) -> str | None:
    if not hasattr(module, "fi_ar_available"):
        return f"{module.__name__} does not say whether FlashInfer is available"
    return obstacle_of(module, GET, *PARAMETERS) or obstacle_of(module, GET_FOR_QUANTISED, *PARAMETERS)


def _adjust_fusion_pass(module: Any) -> None:
    """The compile pass, whose module is empty without FlashInfer."""
    if _obstacle(importlib.import_module(WORKSPACES)):
        return  # Which was told of.
    if module.flashinfer_comm is None:
        run_again_with_the_stand_in(module)
    missing = [name for name in (OPERATOR, GET, GET_FOR_QUANTISED, PASS) if not hasattr(module, name)]
    if missing:
        leave_to_vllm("fused", f"{module.__name__} has no {', '.join(missing)}")
        return
    unknown = {each for each in vars(module) if each.startswith("AllReduce") and "Quant" in each} - QUANTISED_PATTERNS
    if unknown:
        logger.warning(
            "this release of vLLM fuses all-reduces with quantisation in ways that lamport_rs does not know (%s): vLLM "
            "quantises after the fused norm",
            ", ".join(sorted(unknown)),
        )
    left = frozenset({GET_FOR_QUANTISED}) if unknown else frozenset()
    WorkspaceChoice(is_pass=True, is_usable=flashinfer_is_usable(), left=left).serve(module)
    wrap(getattr(module, PASS), "__init__", marked_as_being_made)


def _adjust_helper(module: Any) -> None:
    """The function of eager models."""
    if getattr(module, OPERATOR, None) is None and hasattr(sys.modules.get(FUSION_PASS), OPERATOR):
        # It was imported before the plugin, and so were those that have its names, perhaps.
        module.__spec__.loader.exec_module(module)
        for user in filter(None, map(sys.modules.get, HELPER_USERS)):
            vars(user).update({name: getattr(module, name) for name in TAKEN_FROM_HELPER if hasattr(user, name)})
    if getattr(module, GET, None) is not None and not _obstacle(sys.modules[WORKSPACES]):
        WorkspaceChoice().serve(module)


def _adjust_configuration(module: Any) -> None:
    """The rule that switches the fusion on: as it stands, but for FlashInfer, and never in batch-invariant mode."""
    name = "enable_allreduce_rms_fusion"
    own = getattr(module, name, None)
    if is_wrapped(own):
        return
    if own is None:
        leave_to_vllm("fused", f"{module.__name__} has no {name}, so that the fusion stays as it is")
        return
    wrap(module, name, _for_the_package)
    # vLLM keeps the rule itself in its tables of optimisation levels.
    for table in [value for value in vars(module).values() if isinstance(value, dict)]:
        _replace_in(table, own, getattr(module, name))


def _for_the_package(rule: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Wrap the rule: FlashInfer need not be there. Not every release's asks for batch invariance."""

    def adjusted(cfg: Any) -> bool:
        if batch_invariant():
            return False
        if rule(cfg):
            return True
        with _flashinfer_taken_for_there():
            return bool(rule(cfg))

    return adjusted


@contextmanager
def _flashinfer_taken_for_there() -> Iterator[None]:
    name, function = HAS_FLASHINFER
    module = importlib.import_module(name)
    own = getattr(module, function)
    setattr(module, function, lambda: True)
    try:
        yield
    finally:
        setattr(module, function, own)


def _replace_in(table: dict[Any, Any], old: Any, new: Any) -> None:
    for key, value in table.items():
        if value is old:
            table[key] = new
        elif isinstance(value, dict) and value is not table:
            _replace_in(value, old, new)
