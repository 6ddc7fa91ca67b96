"""Fixtures of GPU tests, beside those of the folder above."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ranks import Placement, ProcessRanks, one_gpu_per_rank


@pytest.fixture
def new_gpu_ranks() -> Iterator[Callable[..., ProcessRanks]]:
    """`new_gpu_ranks(n)`: n fresh rank processes for this test only, which may spoil or kill them."""
    pools: list[ProcessRanks] = []

    def create(world_size: int, placement: Placement = one_gpu_per_rank) -> ProcessRanks:
        pools.append(ProcessRanks(world_size, placement))
        return pools[-1]

    yield create
    for pool in pools:
        pool.kill()
