"""What else changes around vLLM's `CudaCommunicator`: agreement, the order of dispatch, checkpoints, teardown."""

from __future__ import annotations

import inspect
from typing import Any

from lamport_rs._core import LamportError
from lamport_rs.vllm_plugin import SWITCH
from lamport_rs.vllm_plugin.agreement import parts_of, serve_nothing
from lamport_rs.vllm_plugin.communicator import communicators, replacement_of_nothing
from lamport_rs.vllm_plugin.environment import FLASHINFER_VARIABLE, flashinfer_comes_first
from lamport_rs.vllm_plugin.group_workspace import close_workspaces, workspaces_of
from lamport_rs.vllm_plugin.imports import has_module, when_imported
from lamport_rs.vllm_plugin.log import leave_to_vllm, logger
from lamport_rs.vllm_plugin.wrapping import wrap

PACKAGE = "vllm.distributed.device_communicators"
COMMUNICATOR = f"{PACKAGE}.cuda_communicator"
FLASHINFER = f"{PACKAGE}.flashinfer_all_reduce"
CONSTRUCTOR_PARAMETERS = ("cpu_group", "device", "unique_name")
"""What the constructor of `CudaCommunicator` must take."""


def adjust_cuda_communicator() -> None:
    """Have groups agree on their parts, and the rest, once vLLM has imported the modules. Safe to call again."""
    if not has_module(COMMUNICATOR):
        _give_up(f"there is no {COMMUNICATOR}")
        return
    when_imported(COMMUNICATOR, _adjust_communicator)
    if "all_reduce" in SWITCH.chosen() and has_module(FLASHINFER):
        when_imported(FLASHINFER, _adjust_flashinfer)


def _adjust_communicator(module: Any) -> None:
    owner = getattr(module, "CudaCommunicator", None)
    if obstacle := _obstacle(owner):
        _give_up(obstacle)
        return
    wrap(owner, "__init__", _agreeing)
    wrap(owner, "destroy", _closing)
    if hasattr(owner, "checkpoint_prepare"):
        wrap(owner, "checkpoint_prepare", _refused_with_a_workspace)


def _obstacle(owner: Any) -> str | None:
    if owner is None:
        return f"{COMMUNICATOR} has no CudaCommunicator"
    missing = [name for name in CONSTRUCTOR_PARAMETERS if name not in inspect.signature(owner.__init__).parameters]
    if missing:
        return f"CudaCommunicator takes no {', '.join(missing)}"
    return None if hasattr(owner, "destroy") else "CudaCommunicator has no destroy"


def _give_up(reason: str) -> None:
    """Replace nothing: ranks that cannot agree could take different paths."""
    serve_nothing()
    if SWITCH.chosen():
        leave_to_vllm("parts", reason)


def _agreeing(constructor: Any) -> Any:
    """`CudaCommunicator.__init__`, in which the ranks of a tensor-parallel group agree on the parts first."""
    signature = inspect.signature(constructor)

    def adjusted(self: Any, *arguments: Any, **options: Any) -> None:
        bound = signature.bind(self, *arguments, **options)
        bound.apply_defaults()
        group, device, name = (bound.arguments[each] for each in CONSTRUCTOR_PARAMETERS)
        # As vLLM tells these groups; others have no communicator that the plugin replaces.
        is_tensor_parallel = name.split(":")[0] == "tp"
        parts = parts_of(group, device) if is_tensor_parallel else frozenset()
        constructor(self, *arguments, **options)
        if is_tensor_parallel and getattr(self, "ca_comm", None) is None:
            self.ca_comm = replacement_of_nothing(group, self.device)
        if "fused" in parts:
            # Imported here: only a rank that has the part itself comes here.
            from lamport_rs.vllm_plugin.fused_workspaces import make_workspace_early

            make_workspace_early(group, device)

    return adjusted


def _closing(destroy: Any) -> Any:
    """`CudaCommunicator.destroy`, which takes the group's other workspaces down as well."""

    def adjusted(self: Any) -> Any:
        group = self.cpu_group
        try:
            return destroy(self)
        finally:
            close_workspaces(group)

    return adjusted


def _refused_with_a_workspace(checkpoint_prepare: Any) -> Any:
    """`CudaCommunicator.checkpoint_prepare`, an error for groups with a workspace: peers have mapped its memory."""

    def adjusted(self: Any) -> Any:
        if self.cpu_group in communicators or any(workspaces_of(self.cpu_group).values()):
            raise LamportError(
                "a process whose memory other ranks have mapped cannot be checkpointed, and lamport_rs's workspace is "
                "such memory; start vLLM with LAMPORT_RS_VLLM=0 (and disable_custom_all_reduce) to checkpoint it"
            )
        return checkpoint_prepare(self)

    return adjusted


def _adjust_flashinfer(module: Any) -> None:
    """Have FlashInfer leave to a group's communicator what that takes."""
    if flashinfer_comes_first():
        return
    owner = module.FlashInferAllReduce
    if hasattr(owner, "should_use_fi_ar"):
        wrap(owner, "should_use_fi_ar", _after_the_communicator)
    else:
        logger.warning(
            "FlashInferAllReduce has no should_use_fi_ar in this release of vLLM: what FlashInfer takes, it sums "
            "before lamport_rs; %s=0 switches it off",
            FLASHINFER_VARIABLE,
        )


def _after_the_communicator(should_use_fi_ar: Any) -> Any:
    """`FlashInferAllReduce.should_use_fi_ar`, but for what the group's communicator takes.

    Recent releases try FlashInfer first, by default; it does not sum in rank order.
    """

    def adjusted(self: Any, input_tensor: Any) -> bool:
        # A disabled one need not know its group.
        group = getattr(self, "group", None)
        communicator = None if group is None else communicators.get(group)
        if communicator is not None and communicator.should_custom_ar(input_tensor):
            return False
        return bool(should_use_fi_ar(self, input_tensor))

    return adjusted
