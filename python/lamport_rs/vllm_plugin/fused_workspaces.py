"""Which workspaces vLLM's modules get for fused all-reduces: the package's, FlashInfer's, or none.

Compiled code is kept on disk, and a start may find it there or not, so what it runs goes by what the ranks agree on:
where their group has the package's workspace, code of the pass never runs FlashInfer.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from lamport_rs.operations import QuantFormat
from lamport_rs.vllm_plugin.agreement import parts_of
from lamport_rs.vllm_plugin.environment import batch_invariant
from lamport_rs.vllm_plugin.fused_operation import FusedWorkspace, takes
from lamport_rs.vllm_plugin.group_workspace import left_to_the_pass, workspace_of, workspaces_of
from lamport_rs.vllm_plugin.log import logger
from lamport_rs.vllm_plugin.wrapping import is_wrapped, wrap
from lamport_rs.workspace import LamportWorkspace

WORKSPACES = "vllm.distributed.device_communicators.flashinfer_all_reduce"
FUSION_PASS = "vllm.compilation.passes.fusion.allreduce_rms_fusion"
CONFIGURATIONS, CURRENT = "vllm.config", "get_current_vllm_config_or_none"
"""Where vLLM has the configuration of this process while it makes groups."""
PARALLEL_STATE = "vllm.distributed.parallel_state"
PARAMETERS = ("world_size", "rank", "max_token_num", "hidden_dim", "dtype", "group")
"""Of the functions that return workspaces."""
GET, GET_FOR_QUANTISED = "get_fi_ar_workspace", "get_fi_ar_quant_workspace"
NVFP4_CAPABILITY = 100
"""From which compute capability on the pass forms patterns with NVFP4."""
FormatsOf: TypeAlias = Callable[[], Sequence[QuantFormat | None]]
"""Returns what rows become that a workspace is asked for; None for what they are."""
_pass_is_being_made: ContextVar[bool] = ContextVar("pass_is_being_made", default=False)


def _as_they_are() -> tuple[None]:
    return (None,)


def _quantised_formats() -> tuple[QuantFormat, ...]:
    """What vLLM's pass quantises to on this platform, by the question that the pass asks."""
    platform = sys.modules["vllm.platforms"].current_platform
    return ("fp8_static", "nvfp4_swizzled") if platform.has_device_capability(NVFP4_CAPABILITY) else ("fp8_static",)


_FORMATS: dict[str, FormatsOf] = {GET: _as_they_are, GET_FOR_QUANTISED: _quantised_formats}


@dataclass(frozen=True)
class WorkspaceChoice:
    """Which workspaces a module of vLLM's gets.

    Attributes:
        is_pass: Whether it is the module of the pass, and of the operator in compiled code.
        is_standalone: Whether it is that of FlashInfer's all-reduce alone. That runs what the package does not take,
            also where the group has the package's workspace.
        is_usable: Whether vLLM takes FlashInfer for usable, if it is there.
        left: The functions whose workspaces are never the package's.
    """

    is_pass: bool = False
    is_standalone: bool = False
    is_usable: bool = True
    left: frozenset[str] = frozenset()

    def serve(self, module: Any) -> None:
        """Replace the module's functions that return workspaces."""
        for name in _FORMATS:
            if hasattr(module, name):
                wrap(module, name, functools.partial(self._replaced, name))

    def _replaced(self, name: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def adjusted(
            world_size: int, rank: int, max_token_num: int, hidden_dim: int, dtype: torch.dtype, group: Any
        ) -> Any:
            cpu_group = _cpu_group_of(group)
            is_agreed = "fused" in parts_of(cpu_group)
            if is_agreed and batch_invariant():
                # Batches beyond vLLM's bound are not fused: their sums are rounded before the residual is added.
                return None
            if is_agreed and name not in self.left:
                is_taken = all(takes(dtype, hidden_dim, each) for each in _FORMATS[name]())
                if is_taken or self._runs_by_parts(cpu_group):
                    ours = fused_workspace(max_token_num * hidden_dim * dtype.itemsize, cpu_group)
                    if ours is not None:
                        return ours
            if is_agreed and not self.is_standalone and _has_workspace(cpu_group):
                return None
            # Ranks that do not agree on the part do as those without it.
            if not _flashinfer_is_there() or (is_agreed and not self.is_usable):
                return None
            return own(world_size, rank, max_token_num, hidden_dim, dtype, group)

        return adjusted

    def _runs_by_parts(self, group: dist.ProcessGroup) -> bool:
        """Whether a pattern that the pass has formed runs by parts: sum, norm, quantise.

        A draft model's rows may have another length than those that the pass was made for, and not be taken.
        """
        is_formed = self.is_pass and not _pass_is_being_made.get()
        return is_formed and (_has_workspace(group) or not (_flashinfer_is_there() and self.is_usable))


def _flashinfer_is_there() -> bool:
    """Whether vLLM has found FlashInfer, itself and not the package's stand-in."""
    return bool(sys.modules[WORKSPACES].fi_ar_available)


def _has_workspace(group: dist.ProcessGroup) -> bool:
    """Whether the group has the package's workspace now."""
    return workspaces_of(group).get("fused", False)


def marked_as_being_made(constructor: Callable[..., None]) -> Callable[..., None]:
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
