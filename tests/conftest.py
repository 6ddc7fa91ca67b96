"""Fixtures: groups of ranks, as `ranks` describes them. And which tests may run beside which."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
from ranks import SHARING, ProcessRanks, let_go, on_the_host, one_gpu_per_rank

# readline, imported by pytest, sets it behind Python's back, and the processes of pytest-xdist inherit it.
os.environ.pop("COLUMNS", None)
# Files that are there, to lock: whoever is to run holds the room, and passes the gate to get it.
GATE, ROOM = ((Path(__file__).parent / name).open() for name in ("conftest.py", "ranks.py"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu(n=1): needs n CUDA GPUs, one per rank, or one that n ranks may share")
    config.addinivalue_line("markers", "long: takes seconds: left to `make test-all`")
    config.addinivalue_line("markers", "own_gpus: the ranks cannot share one")
    config.addinivalue_line("markers", "alone: compares times: no other test runs beside it (pytest-xdist)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu(n)` where there are fewer than n GPUs.

    With `LAMPORT_RS_SHARE_GPU=1` one GPU is enough, but for tests marked `own_gpus`.
    """
    gpus = torch.cuda.device_count()
    share = gpus > 0 and SHARING
    for item in items:
        marker = item.get_closest_marker("gpu")
        needed = marker.args[0] if marker and marker.args else 1
        may_share = share and item.get_closest_marker("own_gpus") is None
        if marker and gpus < needed and not may_share:
            item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA GPUs, and there are {gpus}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tests that are marked `alone` wait until those of the other processes have ended, which then wait for them."""
    fcntl.flock(GATE, fcntl.LOCK_EX)
    fcntl.flock(ROOM, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
    # Not before: others, which take turns in the room, would never leave it empty.
    fcntl.flock(GATE, fcntl.LOCK_UN)
    try:
        return (yield)
    finally:
        fcntl.flock(ROOM, fcntl.LOCK_UN)


@pytest.fixture(autouse=True)
def _let_go() -> Iterator[None]:
    yield
    let_go()


@pytest.fixture(scope="session")
def _pools() -> Iterator[dict[tuple[int, str], ProcessRanks]]:
    pools: dict[tuple[int, str], ProcessRanks] = {}
    yield pools
    for pool in pools.values():
        pool.kill()


@pytest.fixture
def ranks_of(_pools, request: pytest.FixtureRequest) -> Callable[[int], ProcessRanks]:
    """`ranks_of(n)`: n rank processes that tests share, on GPUs in tests marked `gpu`."""
    placement = one_gpu_per_rank if request.node.get_closest_marker("gpu") else on_the_host

    def find(world_size: int) -> ProcessRanks:
        key = (world_size, placement.__name__)
        if key not in _pools or not _pools[key].alive:
            _pools[key] = ProcessRanks(world_size, placement)
        return _pools[key]

    return find


@pytest.fixture
def new_ranks() -> Iterator[Callable[[int], ProcessRanks]]:
    """`new_ranks(n)`: n rank processes for this test only, which may kill them."""
    pools: list[ProcessRanks] = []

    def create(world_size: int) -> ProcessRanks:
        pools.append(ProcessRanks(world_size))
        return pools[-1]

    yield create
    for pool in pools:
        pool.kill()
