"""For tests of torch's process groups: groups whose sums go through the package, and a count of those that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lamport_rs import distributed
from ranks import Rank


@contextmanager
def group_of(backend: str = "lamport", ranks: list[int] | None = None) -> Iterator[dist.ProcessGroup]:
    """A group whose sums go through the package."""
    group = dist.new_group(ranks, backend=backend)
    if backend != "lamport":
        distributed.install(group)
    yield group
    if group is not dist.GroupMember.NON_GROUP_MEMBER:
        dist.destroy_process_group(group)


@contextmanager
def recorded() -> Iterator[list[torch.Size]]:
    """The shapes of the sums of the block that the package does."""
    shapes: list[torch.Size] = []
    plain = distributed.run_all_reduce_in_place

    def record(tensor: torch.Tensor, *arguments: Any) -> None:
        shapes.append(tensor.shape)
        plain(tensor, *arguments)

    distributed.run_all_reduce_in_place = record
    try:
        yield shapes
    finally:
        distributed.run_all_reduce_in_place = plain


@contextmanager
def counted(expected: int) -> Iterator[None]:
    """Check how many sums of the block the package does."""
    with recorded() as shapes:
        yield
    assert len(shapes) == expected, f"the package did {len(shapes)} sums, not {expected}"


def total_of(me: Rank) -> int:
    """The sum of the contributions."""
    return me.world_size * (me.world_size + 1) // 2


def contribution(me: Rank, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rank r has r + 1 in each element."""
    return torch.full(shape, me.rank + 1, dtype=dtype, device=me.device)
