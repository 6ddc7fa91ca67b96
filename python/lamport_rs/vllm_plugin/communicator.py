"""What vLLM's `CudaCommunicator` has in the place of its `CustomAllreduce`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.distributed as dist

from lamport_rs._core import __version__
from lamport_rs.operations import all_reduce
from lamport_rs.plugin_communicator import PluginAllreduce
from lamport_rs.plugin_groups import GroupWorkspace
from lamport_rs.vllm_plugin.agreement import parts_of
from lamport_rs.vllm_plugin.environment import batch_invariant, flashinfer_comes_first
from lamport_rs.vllm_plugin.group_workspace import make_workspace
from lamport_rs.vllm_plugin.log import logger
from lamport_rs.workspace import LamportWorkspace

MODULE = "vllm.distributed.device_communicators.custom_all_reduce"
CLASS = "CustomAllreduce"
REPLACED_MARK = "_replaced_by_lamport_rs"
"""What vLLM's class has once it makes the package's communicators."""
CONSTRUCTOR_PARAMETERS = frozenset({"group", "device", "max_size"})
"""What the constructor of vLLM's class must take."""
REPLACED = frozenset(
    {"all_reduce", "capture", "close", "custom_all_reduce", "register_graph_buffers", "should_custom_ar"}
)
"""The methods of vLLM's class that summing takes. If it has others, vLLM's own object is kept for them."""

communicators: WeakValueDictionary[dist.ProcessGroup, LamportAllreduce] = WeakValueDictionary()
"""Those in use, by their groups."""


@dataclass(frozen=True)
class Request:
    """What vLLM asks of a communicator when it makes one."""

    group: dist.ProcessGroup
    device: torch.device
    max_size: int
    """Bytes from which on a tensor is left to others."""


class LamportAllreduce(PluginAllreduce):
    """The all-reduces of one group, by a workspace: what vLLM asks of its `CustomAllreduce`."""

    def __init__(self, request: Request, workspace: GroupWorkspace, own: Any) -> None:
        """Take over from `own`, vLLM's object, which goes on with its gathers and scatters; None if it only sums."""
        super().__init__(workspace, own)
        self.group, self.device, self.max_size = request.group, request.device, request.max_size
        self.rank, self.world_size = dist.get_rank(request.group), dist.get_world_size(request.group)
        self.batch_invariant = batch_invariant()
        communicators[request.group] = self
        if self.rank == 0:
            logger.info(
                "lamport_rs %s sums in the place of vLLM's CustomAllreduce: %d ranks, float32, float16 and bfloat16 "
                "tensors %s, %.0f MiB of memory for each rank%s",
                *(__version__, self.world_size, self._bound(), workspace.memory_bytes / 2**20),
                "; what FlashInfer takes is FlashInfer's, as the environment asks" if flashinfer_comes_first() else "",
            )

    def _bound(self) -> str:
        return "of any size" if self.batch_invariant else f"of less than {self.max_size / 2**20:g} MiB"

    @property
    def fully_connected(self) -> bool:
        """Whether vLLM's own collectives have NVLink between all ranks; False where they are not made."""
        return bool(getattr(self._own, "fully_connected", False))

    def should_custom_ar(self, inp: torch.Tensor) -> bool:
        """Whether to sum `inp` here: the same on every rank, since only its shape and dtype are looked at.

        With batch invariance every tensor is, because a sum that others did would have other bits.
        """
        fits = self.batch_invariant or inp.numel() * inp.element_size() < self.max_size
        return fits and self._is_summable(inp)

    def custom_all_reduce(self, input: torch.Tensor) -> torch.Tensor | None:  # noqa: A002  (vLLM's name)
        """Return the sum in a new tensor, or None if others are to sum."""
        return self.all_reduce(input) if self.should_custom_ar(input) else None

    def all_reduce(
        self, inp: torch.Tensor, *, out: torch.Tensor | None = None, registered: bool = False
    ) -> torch.Tensor:
        """Return the sum; `registered` means nothing here, since no operand has to be known to the peers."""
        return all_reduce(inp, self._workspace.here(), out)

    def __del__(self) -> None:
        self.close()


def does_more_than_sum(own: type) -> bool:
    """Whether vLLM's class has methods that a workspace does not serve."""
    names = {name for name in dir(own) if not name.startswith("_")}
    return any(inspect.isfunction(inspect.getattr_static(own, name)) for name in names - REPLACED)


def constructor_of(own: Any) -> inspect.Signature:
    """Return the signature of a class's `__init__`, with `self`."""
    return inspect.signature(own.__init__)


def request_of(own: type, *arguments: Any, **options: Any) -> Request:
    """Read the arguments of vLLM's constructor by their names, which releases have in various orders."""
    bound = constructor_of(own).bind(None, *arguments, **options)
    bound.apply_defaults()
    values = bound.arguments
    device = torch.device("cuda", values["device"]) if isinstance(values["device"], int) else values["device"]
    device = torch.device(device)
    max_size = int(values["max_size"])
    if values.get("symm_mem_enabled"):
        # From here on torch's symmetric memory has its turn, which comes next in vLLM's dispatch.
        max_size = min(max_size, _symmetric_memory_from(own, device, dist.get_world_size(values["group"])) or max_size)
    return Request(values["group"], device, max_size)


def _symmetric_memory_from(own: type, device: torch.device, world_size: int) -> int | None:
    sizes = getattr(sys.modules[own.__module__], "CUSTOM_ALL_REDUCE_MAX_SIZES", {})
    capability = ".".join(map(str, torch.cuda.get_device_capability(device))) if device.type == "cuda" else "none"
    least: int | None = sizes.get(capability, {}).get(world_size)
    return least


def communicator_of(own: type, request: Request, make_own: Callable[[], Any]) -> LamportAllreduce | None:
    """Return the package's communicator of a group, or None, on all ranks. Collective.

    Args:
        own: vLLM's class.
        request: What is asked for.
        make_own: Makes an object of vLLM's class, for what a workspace does not serve.
    """
    if "all_reduce" not in parts_of(request.group, request.device):
        return None
    workspace = make_workspace(
        "all_reduce",
        request.group,
        request.device,
        lambda world_size: LamportWorkspace.compute_comm_size_for_all_reduce(request.max_size, world_size),
    )
    if workspace is None:
        return None
    return LamportAllreduce(request, workspace, make_own() if does_more_than_sum(own) else None)


def replacement_of_nothing(group: dist.ProcessGroup, device: Any) -> LamportAllreduce | None:
    """Return a communicator where vLLM has made none because its own cannot have one: for batch invariance. Collective.

    A release whose class knows of batch invariance makes one. Others set `disable_custom_all_reduce` themselves, to
    have the same bits in every batch. The package has those.
    """
    own: Any = getattr(sys.modules.get(MODULE), CLASS, None)
    makes_one = not hasattr(own, REPLACED_MARK) or hasattr(own, "batch_invariant")
    if makes_one or not batch_invariant() or dist.get_world_size(group) == 1:
        return None
    return communicator_of(own, request_of(own, group, device), lambda: None)
