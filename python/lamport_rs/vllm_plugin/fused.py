"""Has vLLM's fused all-reduce, residual, RMSNorm and quantisation run by the package, with FlashInfer or without.

vLLM gets its workspaces from `get_fi_ar_workspace`, and passes them to `flashinfer.comm.allreduce_fusion`. The first
returns the package's where the group can have one, which is made with the group; the second goes by the workspace's
type. vLLM asks for another workspace for quantised patterns: it is the same one, where the package quantises such rows,
else FlashInfer's or none.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias
from weakref import WeakSet

import torch
import torch.distributed as dist

from lamport_rs.operations import QuantFormat
from lamport_rs.vllm_plugin.agreement import parts_of
from lamport_rs.vllm_plugin.environment import batch_invariant, flashinfer_comes_first
from lamport_rs.vllm_plugin.fused_operation import (
    FusedWorkspace,
    dispatching,
    run_again_with_the_stand_in,
    stand_in,
    takes,
)
from lamport_rs.vllm_plugin.group_workspace import left_to_the_pass, workspace_of
from lamport_rs.vllm_plugin.imports import has_module, when_imported
from lamport_rs.vllm_plugin.log import leave_to_vllm, logger
from lamport_rs.vllm_plugin.wrapping import is_wrapped, obstacle_of, wrap
from lamport_rs.workspace import LamportWorkspace

WORKSPACES = "vllm.distributed.device_communicators.flashinfer_all_reduce"
FUSION_PASS = "vllm.compilation.passes.fusion.allreduce_rms_fusion"
HELPER = "vllm.model_executor.layers.fused_allreduce_gemma_rms_norm"
HELPER_USERS = ("vllm.models.common.ops.fused_allreduce_rms_norm", "vllm.models.deepseek_v32.nvidia.fused_ops")
"""Other helpers, which take names from this one when they are imported: each release has one of them."""
TAKEN_FROM_HELPER = ("_AR_RESIDUAL_RMS_NORM", "_can_use_flashinfer", "flashinfer_trtllm_fused_allreduce_norm")
CONFIGURATION = "vllm.config.vllm"
CONFIGURATIONS, CURRENT = "vllm.config", "get_current_vllm_config_or_none"
"""Where vLLM has the configuration of this process while it makes groups."""
PARALLEL_STATE = "vllm.distributed.parallel_state"
HAS_FLASHINFER = ("vllm.utils.flashinfer", "has_flashinfer")
"""What vLLM's rule for the fusion asks."""
PARAMETERS = ("world_size", "rank", "max_token_num", "hidden_dim", "dtype", "group")
"""Of the functions that return workspaces."""
GET, GET_FOR_QUANTISED = "get_fi_ar_workspace", "get_fi_ar_quant_workspace"
PASS, OPERATOR = "AllReduceFusionPass", "flashinfer_trtllm_fused_allreduce_norm"
"""vLLM's pass, and its operator, which that and its eager models call."""
QUANTISED_PATTERNS = frozenset(
    f"AllReduceFused{norm}StaticQuant{quant}Pattern" for norm in ("RMSNorm", "AddRMSNorm") for quant in ("FP8", "NVFP4")
)
"""The classes of vLLM's pass that quantise, on NVIDIA GPUs."""
NVFP4_CAPABILITY = 100
"""From which compute capability on the pass forms those with NVFP4."""
FormatsOf: TypeAlias = Callable[[], Sequence[QuantFormat | None]]
"""Returns what rows become that a workspace is asked for; None for what they are."""
_pass_is_being_made: ContextVar[bool] = ContextVar("pass_is_being_made", default=False)


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
        _serve(module, is_usable=True)


def _obstacle(module: Any) -> str | None:
    if not hasattr(module, "fi_ar_available"):
        return f"{module.__name__} does not say whether FlashInfer is available"
    return obstacle_of(module, GET, *PARAMETERS) or obstacle_of(module, GET_FOR_QUANTISED, *PARAMETERS)


def _serve(module: Any, is_usable: bool, left: frozenset[str] = frozenset(), is_pass: bool = False) -> None:
    """Have a module take the package's workspaces, and else vLLM's own: where FlashInfer is, and is usable.

    Args:
        module: A module that has the functions.
        is_usable: Whether vLLM takes FlashInfer for usable.
        left: The functions whose workspaces are not the package's.
        is_pass: Whether it is the module of the pass.
    """
    is_there = sys.modules[WORKSPACES].fi_ar_available
    for name, formats_of in _FORMATS.items():
        if hasattr(module, name):
            getter = functools.partial(_getter, is_there, is_usable, None if name in left else formats_of, is_pass)
            wrap(module, name, getter)


def _as_they_are() -> tuple[None]:
    return (None,)


def _quantised_formats() -> tuple[QuantFormat, ...]:
    """What vLLM's pass quantises to on this platform, by the question that the pass asks."""
    platform = sys.modules["vllm.platforms"].current_platform
    return ("fp8_static", "nvfp4_swizzled") if platform.has_device_capability(NVFP4_CAPABILITY) else ("fp8_static",)


_FORMATS: dict[str, FormatsOf] = {GET: _as_they_are, GET_FOR_QUANTISED: _quantised_formats}


def _getter(
    is_there: bool, is_usable: bool, formats_of: FormatsOf | None, is_pass: bool, own: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap a function that returns workspaces. vLLM's own would look for what only FlashInfer has."""
    served: WeakSet[Any] = WeakSet()

    def adjusted(
        world_size: int, rank: int, max_token_num: int, hidden_dim: int, dtype: torch.dtype, group: Any
    ) -> Any:
        cpu_group = _cpu_group_of(group)
        is_agreed = "fused" in parts_of(cpu_group)
        if is_agreed and batch_invariant():
            # Batches beyond vLLM's bound are not fused: their sums are rounded before the residual is added.
            return None
        is_taken = formats_of is not None and all(takes(dtype, hidden_dim, each) for each in formats_of())
        if is_pass and not _pass_is_being_made.get() and formats_of is not None:
            # A pattern that the pass has formed needs a workspace, also for a draft model's rows of another length.
            is_taken |= cpu_group in served or not (is_there and is_usable)
        if is_taken and (ours := fused_workspace(max_token_num * hidden_dim * dtype.itemsize, cpu_group)) is not None:
            served.add(cpu_group)
            return ours
        # Ranks that do not agree on the part do as those without it: they ask vLLM's own in any case.
        if not is_there or (not is_usable and is_agreed):
            return None
        return own(world_size, rank, max_token_num, hidden_dim, dtype, group)

    return adjusted


def _marked(constructor: Callable[..., None]) -> Callable[..., None]:
    """`AllReduceFusionPass.__init__`, which asks for workspaces to decide what it forms."""

    def adjusted(self: Any, *arguments: Any, **options: Any) -> None:
        token = _pass_is_being_made.set(True)
        try:
            constructor(self, *arguments, **options)
        finally:
            _pass_is_being_made.reset(token)

    return adjusted


def fused_workspace(max_bytes: int, group: Any, device: Any = None) -> FusedWorkspace | None:
    """Return the group's workspace, or None on all ranks. Collective for the first time."""
    if "fused" not in parts_of(group):
        return None
    held = workspace_of(
        *("fused", group),
        lambda world_size: LamportWorkspace.compute_comm_size_for_all_reduce(max_bytes, world_size),
        device,
    )
    return None if held is None else FusedWorkspace(held)


def make_workspace_early(group: Any, device: Any) -> None:
    """Make the workspace of a group now, if vLLM's pass is going to ask for one. Collective.

    vLLM looks for compiled code before it makes the pass, and whether the group has a workspace decides which code that
    may be. A configuration that the plugin does not know leaves it to the pass, and no start shares its compiled code.
    """
    if batch_invariant():
        return
    left_to_the_pass.discard(group)
    configuration: Any = getattr(sys.modules.get(CONFIGURATIONS), CURRENT, lambda: None)()
    try:
        compilation = configuration.compilation_config
        is_on = compilation.mode.name == "VLLM_COMPILE" and compilation.pass_config.fuse_allreduce_rms
        max_bytes = compilation.pass_config.flashinfer_max_size(dist.get_world_size(group)) or 0 if is_on else 0
        is_served = max_bytes > 0 and is_wrapped(getattr(importlib.import_module(FUSION_PASS), GET, None))
    except Exception as error:
        left_to_the_pass.add(group)
        level = logging.DEBUG if configuration is None else logging.INFO
        logger.log(level, "vLLM's compiled code is not kept for the next start: %r", error)
        return
    if is_served:
        fused_workspace(max_bytes, group, device)


def _cpu_group_of(group: Any) -> Any:
    """Return the group whose ranks have agreed: some releases pass the same ranks' group for NCCL."""
    coordinator = sys.modules[PARALLEL_STATE].get_tp_group()
    return coordinator.cpu_group if group is coordinator.device_group else group


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
    # FlashInfer may be there and lack a compiler. vLLM's own rule has the pass off then, and its workspaces unused.
    name, function = HAS_FLASHINFER
    is_usable = getattr(importlib.import_module(name), function)()
    unknown = {each for each in vars(module) if each.startswith("AllReduce") and "Quant" in each} - QUANTISED_PATTERNS
    if unknown:
        logger.warning(
            "this release of vLLM fuses all-reduces with quantisation in ways that lamport_rs does not know (%s): "
            "quantised patterns are left to FlashInfer, or not formed where it is missing",
            ", ".join(sorted(unknown)),
        )
    left = frozenset({GET_FOR_QUANTISED}) if unknown else frozenset()
    _serve(module, is_usable, left, is_pass=True)
    wrap(getattr(module, PASS), "__init__", _marked)


def _adjust_helper(module: Any) -> None:
    """The function of eager models."""
    if getattr(module, OPERATOR, None) is None and hasattr(sys.modules.get(FUSION_PASS), OPERATOR):
        # It was imported before the plugin, and so were those that have its names, perhaps.
        module.__spec__.loader.exec_module(module)
        for user in filter(None, map(sys.modules.get, HELPER_USERS)):
            vars(user).update({name: getattr(module, name) for name in TAKEN_FROM_HELPER if hasattr(user, name)})
    if getattr(module, GET, None) is not None and not _obstacle(sys.modules[WORKSPACES]):
        _serve(module, is_usable=True)


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
        with _flashinfer_is_there():
            return bool(rule(cfg))

    return adjusted


@contextmanager
def _flashinfer_is_there() -> Iterator[None]:
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
