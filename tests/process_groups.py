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
def counted(expected: int) -> Iterator[None]:
    """Check how many sums of the block the package does."""
    count = 0
    plain = distributed.run_all_reduce

    def counting(*arguments: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return plain(*arguments)

    distributed.run_all_reduce = counting
    try:
        yield
    finally:
        distributed.run_all_reduce = plain
    assert count == expected, f"the package did {count} sums, not {expected}"


def total_of(me: Rank) -> int:
    """The sum of the contributions."""
    return me.world_size * (me.world_size + 1) // 2


def contribution(me: Rank, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Rank r has r + 1 in each element."""
    return torch.full(shape, me.rank + 1, dtype=dtype, device=me.device)
