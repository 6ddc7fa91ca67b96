"""A rank's place in the group that is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

import lamport_rs
from lamport_rs.command_line.launch import TIMEOUT
from lamport_rs.rendezvous import all_gather_over

T = TypeVar("T")
_LONGEST_REASON = 240
_MESSAGE_BYTES = 2048
"""That ranks send one another to agree; what is longer, as a comparison of tensors may be, is cut off."""


class UnavailableError(Exception):
    """An implementation cannot do something here; the text says why."""


@dataclass(frozen=True)
class Member:
    """This rank, and what all implementations share."""

    workspace: lamport_rs.LamportWorkspace
    host_group: dist.ProcessGroup
    """The same ranks over gloo: for handles, and to agree."""

    @property
    def rank(self) -> int:
        """This rank."""
        return self.workspace.rank

    @property
    def world_size(self) -> int:
        """Ranks in the group."""
        return self.workspace.world_size

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.workspace.device

    def synchronize(self) -> None:
        """Wait for the device; raise what went wrong on it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.workspace.synchronize()

    def agree(self, reason: str | None) -> str | None:
        """Return the first rank's reason that is not None, on all ranks. Collective."""
        # Objects would be gathered by way of numpy, which torch does without.
        text = b"" if reason is None else reason.encode()[:_MESSAGE_BYTES]
        message = bytes([reason is not None]) + text.ljust(_MESSAGE_BYTES, b"\0")
        gathered = enumerate(all_gather_over(self.host_group)(message))
        found = {rank: each[1:].rstrip(b"\0").decode(errors="replace") for rank, each in gathered if each[0]}
        if not found:
            return None
        rank, first = next(iter(found.items()))
        return first if len(found) == self.world_size else f"rank {rank}: {first}"

    def attempt(self, action: Callable[[], T]) -> T:
        """Return what `action` does, or raise `UnavailableError` on all ranks if it fails on any. Collective."""
        result: T
        reason = None
        try:
            result = action()
            self.synchronize()
        except Exception as error:  # Others' libraries raise what they like.
            reason = _describe(error)
        if (agreed := self.agree(reason)) is not None:
            raise UnavailableError(agreed)
        return result


@contextmanager
def join(rank: int, world_size: int, device: torch.device, largest: int, most_tokens: int) -> Iterator[Member]:
    """Enter the group with a workspace for sums of up to `largest` bytes and norms of `most_tokens`. Collective."""
    torch.seed()  # Ranks start with the same seed: their tensors would be equal, and errors could go unseen.
    host_group = dist.new_group(backend="gloo", timeout=TIMEOUT) if device.type == "cuda" else dist.group.WORLD
    assert host_group is not None
    comm_size = max(
        lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(largest, world_size),
        lamport_rs.LamportWorkspace.compute_comm_size_for_minimax(most_tokens, world_size),
    )
    with lamport_rs.LamportWorkspace(rank, world_size, comm_size, host_group, device=device) as workspace:
        yield Member(workspace, host_group)


def rank_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Every rank's tensor in float32, summed in rank order; gathered through the process group."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    total = gathered[0].float()
    for other in gathered[1:]:
        total = total + other.float()
    return total


def shared(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on all ranks."""
    dist.broadcast(tensor, 0)
    return tensor


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    if len(text) > _LONGEST_REASON:
        text = text[:_LONGEST_REASON] + " …"
    return text if isinstance(error, UnavailableError | lamport_rs.LamportError) else f"{type(error).__name__}: {text}"
