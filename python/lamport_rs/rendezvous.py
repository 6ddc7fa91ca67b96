"""What carries the rendezvous of the ranks: a torch process group, or any all-gather of bytes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from lamport_rs._core import LamportError
from lamport_rs.timeouts import limit_of

AllGather: TypeAlias = Callable[[bytes], list[bytes]]
"""Takes this rank's message and returns all ranks' messages in rank order, this rank's among them."""

Group: TypeAlias = "dist.ProcessGroup | AllGather | None"
"""A torch process group of any backend, an `AllGather`, or None for torch's default group."""


_LISTENING = timedelta(milliseconds=100)
"""How long a wait for the group goes on before Python may run a signal's handler."""
_POLL_SECONDS = 50e-6
_recent: deque[list[torch.Tensor]] = deque(maxlen=16)
"""Tensors of the last rounds, on the CPU. On a GPU they would stay in whatever memory pool is in use at the moment.

gloo's thread drops its references some time after a round. Were they the last, torch 2.6 would ask for the
interpreter's lock there, and `destroy_process_group`, which holds it, waits for that thread without an end.
"""


def resolve_group(group: Group) -> dist.ProcessGroup | AllGather | None:
    """Return the group itself: torch's default group in None's place, if there is one."""
    if group is None and dist.is_available() and dist.is_initialized():
        return dist.group.WORLD
    return group


def is_alone() -> bool:
    """Whether the environment tells of no other ranks than this one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" and os.environ.get("RANK", "0") == "0"


def all_gather_over(
    group: Group, device: object = None, timeout: object = None, world_size: object = None
) -> AllGather:
    """Return the all-gather of bytes over `group`. A single rank, as `world_size` says, needs none.

    Over a process group it waits for so many seconds at most, whatever the group's own limit is (0 for ever, None for
    the default), and hears Ctrl-C meanwhile. A callable has to end by itself.

    Messages travel as fixed-size uint8 tensors, on the CPU or, where the group's backend takes only CUDA tensors, on
    `device` if that is one (checked or not), and else on the current one. Were the current one another rank's, the
    group's backend would wait for ever.
    """
    resolved = resolve_group(group)
    if resolved is None and world_size == 1:
        return lambda message: [message]
    if resolved is None:

        def unavailable(_message: bytes) -> list[bytes]:
            raise LamportError(
                "there is no process group: call torch.distributed.init_process_group() first, "
                "or pass process_group=<group or all_gather callable>"
            )

        return unavailable
    if isinstance(resolved, dist.ProcessGroup):
        process_group = resolved
        seconds = limit_of(timeout)
        return lambda message: _all_gather_tensors(message, process_group, device, seconds)
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


def _all_gather_tensors(message: bytes, group: dist.ProcessGroup, device: object, seconds: float) -> list[bytes]:
    length = len(message)
    # Tensors over memory of Python's: neither numpy, which torch does without, nor a list of numbers in between.
    gathered = bytearray(group.size() * length)
    received = torch.frombuffer(gathered, dtype=torch.uint8).view(-1, length)
    sent = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    takes_cpu_tensors = any(device.type == "cpu" for device in group._device_types)
    arrived = received
    if not takes_cpu_tensors:
        place = _cuda_device(device)
        sent, arrived = sent.to(place), torch.empty_like(received, device=place)
    by_rank = list(arrived.unbind())
    if takes_cpu_tensors:
        # Also if the wait ends without the peers: the group still has them then.
        _recent.append([sent, *by_rank])
    # The group's own method: `dist.all_gather` around it takes as long again as the exchange.
    _wait_for(group.allgather([by_rank], [sent]), seconds, takes_cpu_tensors)
    if arrived is not received:
        received.copy_(arrived)
    return [bytes(gathered[start : start + length]) for start in range(0, len(gathered), length)]


def _wait_for(work: dist.Work, seconds: float, on_cpu: bool) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not on_cpu:
            # NCCL's work would end its communicator with the time that it is given.
            if work.is_completed():
                work.wait()
                return
            time.sleep(_POLL_SECONDS)
            continue
        try:
            if work.wait(_LISTENING):
                return
        except RuntimeError:
            # Its time is over, or it failed. Or it has ended just now, after its time: only this says how.
            if work.is_completed():
                work.wait()
                return
    raise LamportError(
        f"waited {seconds:g} s for the other ranks of the process group; all must call the same, in the same order"
    )


def _cuda_device(asked: Any) -> torch.device:
    """The CUDA device that was asked for, or else the current one: what is wrong is for the exchange to tell."""
    try:
        device = torch.device(asked)
    except Exception:
        device = torch.device("cuda")
    is_certain = device.type == "cuda" and device.index is not None and device.index < torch.cuda.device_count()
    return device if is_certain else torch.device("cuda", torch.cuda.current_device())
