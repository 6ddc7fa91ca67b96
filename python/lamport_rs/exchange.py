"""What carries the exchange of handles: a torch process group, or any all-gather of bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError

AllGather: TypeAlias = Callable[[bytes], list[bytes]]
"""Takes this rank's message and returns all ranks' messages in rank order, this rank's among them."""

Group: TypeAlias = "dist.ProcessGroup | AllGather | None"
"""A torch process group of any backend, an `AllGather`, or None for torch's default group."""


def resolve_group(group: Group) -> dist.ProcessGroup | AllGather | None:
    """Return the group itself: torch's default group in None's place, if there is one."""
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def all_gather_over(group: Group, device: object = None) -> AllGather:
    """Return the all-gather of bytes over `group`.

    Messages travel as fixed-size uint8 tensors, on the CPU or, where the group's backend takes only CUDA tensors, on
    `device` if that is one (checked or not), and else on the current one. Were the current one another rank's, the
    group's backend would wait for ever.
    """
    resolved = resolve_group(group)
    if resolved is None:

        def unavailable(_message: bytes) -> list[bytes]:
            raise LamportError(
                "there is no process group: call torch.distributed.init_process_group() first, "
                "or pass process_group=<group or all_gather callable>"
            )

        return unavailable
    if isinstance(resolved, dist.ProcessGroup):
        process_group = resolved
        return lambda message: _all_gather_tensors(message, process_group, device)
    if callable(resolved):
        return resolved
    if isinstance(resolved, int) and resolved == dist.GroupMember.NON_GROUP_MEMBER:
        # What `new_group` gives ranks that are not among those it was told.
        raise LamportError(
            "this rank is not in process_group, as torch.distributed.new_group() has it; only the group's own ranks "
            "take part"
        )
    raise LamportError(
        "process_group must be a torch process group, an all_gather(bytes) -> list[bytes] callable, or None, "
        f"not {type(group).__name__}"
    )


def _all_gather_tensors(message: bytes, group: dist.ProcessGroup, device: object) -> list[bytes]:
    length = len(message)
    # Tensors over memory of Python's: neither numpy, which torch does without, nor a list of numbers in between.
    gathered = bytearray(group.size() * length)
    received = torch.frombuffer(gathered, dtype=torch.uint8).view(-1, length)
    sent = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    # The group's own method: `dist.all_gather` around it takes as long again as the exchange.
    if any(device.type == "cpu" for device in group._device_types):
        group.allgather([list(received.unbind())], [sent]).wait()
    else:
        place = _cuda_device(device)
        arrived = torch.empty_like(received, device=place)
        group.allgather([list(arrived.unbind())], [sent.to(place)]).wait()
        received.copy_(arrived)
    return [bytes(gathered[start : start + length]) for start in range(0, len(gathered), length)]


def _cuda_device(asked: Any) -> torch.device:
    """The CUDA device that was asked for, or else the current one: what is wrong is for the exchange to tell."""
    try:
        device = torch.device(asked)
    except Exception:
        device = torch.device("cuda")
    is_certain = device.type == "cuda" and device.index is not None and device.index < torch.cuda.device_count()
    return device if is_certain else torch.device("cuda", torch.cuda.current_device())
