"""What a `GroupCoordinator` has in the place of SGLang's custom all-reduce.

SGLang's own object is kept. Other kernels of it work on that object's memory, and tensors that a workspace does not
take are its own's.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import torch

from lamport_rs._core import __version__
from lamport_rs.operations import all_reduce
from lamport_rs.plugin_communicator import PluginAllreduce
from lamport_rs.plugin_groups import GroupWorkspace, gather_over
from lamport_rs.sglang_plugin import hooks
from lamport_rs.sglang_plugin.groups import groups
from lamport_rs.sglang_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace

PART = "all_reduce"
POINTS = (hooks.FLASHINFER_SUMS,)
MAX_SIZE = 8 << 20
"""Bytes of the largest tensor that is summed: the largest size that was measured beside SGLang's own kernels."""


class LamportAllreduce(PluginAllreduce):
    """The all-reduces of one group: what SGLang asks of its custom all-reduce."""

    def __init__(self, workspace: GroupWorkspace, own: Any, max_size: int) -> None:
        """Take over tensors of up to `max_size` bytes from `own`, SGLang's object; None if it could not make one."""
        super().__init__(workspace, own)
        self._max_sum = max_size

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        # SGLang asks `isinstance(..., CustomAllReduceV2)` before it uses that class's memory, which is there.
        return LamportAllreduce if self._own is None else type(self._own)

    def should_custom_ar(self, inp: torch.Tensor) -> bool:
        """Whether to sum `inp` here or by SGLang's own: the same on every rank, for it depends on shape and dtype."""
        if self.disabled:
            return False
        return self._sums(inp) or (self._own is not None and self._own.should_custom_ar(inp))

    def custom_all_reduce(self, input: torch.Tensor) -> torch.Tensor | None:  # noqa: A002  (SGLang's name)
        """Return the sum in a new tensor, or None if others are to sum."""
        if self._sums(input):
            return all_reduce(input, self._workspace.here())
        total: torch.Tensor | None = None if self._own is None else self._own.custom_all_reduce(input)
        return total

    def _sums(self, inp: torch.Tensor) -> bool:
        return inp.numel() * inp.element_size() <= self._max_sum and self._is_summable(inp)


def register_hooks() -> None:
    """Have FlashInfer's all-reduce, which comes first in SGLang's dispatch, leave served groups alone."""

    def can_use_flashinfer(original: Any, group: Any, input_: torch.Tensor) -> Any:
        return False if type(group.ca_comm) is LamportAllreduce else original(group, input_)

    hooks.register(hooks.FLASHINFER_SUMS, can_use_flashinfer, "AROUND")


class Own(IntEnum):
    """What SGLang has for a group, the least first: the ranks go by the least that one of them has."""

    NO_USE = 0
    """An object that sums nothing, as SGLang has it for GPUs without NVLink between them: NCCL is to sum."""
    NOT_MADE = 1
    """None, as where its kernels cannot be compiled."""
    SUMS = 2


def replace_communicator(group: Any) -> None:
    """Replace a group's custom all-reduce, on all ranks or on none. Collective."""
    mine = own_of(group.ca_comm, group.world_size)
    least = min(message[0] for message in gather_over(group.cpu_group, group.device)(bytes([mine])))
    if least == Own.NO_USE:
        if group.rank_in_group == 0:
            logger.info(
                "lamport_rs leaves group %s to SGLang, which has no custom all-reduce for such GPUs", group.unique_name
            )
        return
    own = group.ca_comm if least == Own.SUMS else None
    max_size = min(getattr(own, "max_size", MAX_SIZE), MAX_SIZE)
    workspace = groups.workspace_of(
        *(PART, group.cpu_group, group.device),
        lambda world_size: LamportWorkspace.compute_comm_size_for_all_reduce(max_size, world_size),
    )
    if workspace is None:
        return
    group.ca_comm = LamportAllreduce(workspace, own, max_size)
    if group.rank_in_group == 0:
        logger.info(
            "lamport_rs %s sums in the place of %s: group %s, %d ranks, float32, float16 and bfloat16 tensors "
            "of up to %g MiB, %.0f MiB of memory for each rank",
            *(__version__, "NCCL" if own is None else f"SGLang's {type(own).__name__}"),
            *(group.unique_name, group.world_size),
            *(max_size / 2**20, workspace.memory_bytes / 2**20),
        )


def own_of(own: Any, world_size: int) -> Own:
    """Say what SGLang has for a group; its first custom all-reduce leaves more than two GPUs without NVLink to NCCL."""
    if own is None:
        return Own.NOT_MADE
    has_links = world_size == 2 or bool(getattr(own, "full_nvlink", True))
    return Own.NO_USE if getattr(own, "disabled", True) or not has_links else Own.SUMS
