"""For tests of torch's process groups: groups whose sums go through the package, and a count of those that do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lamport_rs import distributed, group_sums
from ranks import Rank
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

NEEDS_A_PAUSE = torch.__version__.startswith("2.6.")
"""torch 2.6 deadlocks if a group goes right after a collective of gloo, its own groups too.

It holds the interpreter's lock while it waits for gloo's thread, which may still want that lock.
"""


@contextmanager
def group_of(backend: str = "lamport", ranks: list[int] | None = None) -> Iterator[dist.ProcessGroup]:
    """A group whose sums go through the package."""
    group = dist.new_group(ranks, backend=backend)
    if backend != "lamport":
        distributed.install(group)
    yield group
    if group is not dist.GroupMember.NON_GROUP_MEMBER:
        dist.destroy_process_group(group)
        if NEEDS_A_PAUSE:
            time.sleep(0.2)


@contextmanager
def recorded() -> Iterator[list[torch.Size]]:
    """The shapes of the sums of the block that the package does."""
    shapes: list[torch.Size] = []
    plain = group_sums.run_all_reduce_in_place

    def record(tensor: torch.Tensor, *arguments: Any) -> None:
        shapes.append(tensor.shape)
        plain(tensor, *arguments)

    group_sums.run_all_reduce_in_place = record
    try:
        yield shapes
    finally:
        group_sums.run_all_reduce_in_place = plain


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


def sum_dtypes(me: Rank, backend: str) -> None:
    """Sums of the dtypes that the package takes, and of others."""
    with group_of(backend) as group:
        for dtype, served in [
            (torch.float32, 1),
            (torch.float16, 1),
            (torch.bfloat16, 1),
            (torch.float64, 0),
            (torch.int64, 0),
            (torch.uint8, 0),
        ]:
            tensor = contribution(me, 1000, dtype=dtype)
            with counted(served):
                assert dist.all_reduce(tensor, group=group) is None
            assert (tensor == total_of(me)).all(), dtype


def use_tensor_parallelism(me: Rank, tolerance: float | None) -> None:
    """A DTensor's sum, and an MLP by `parallelize_module`, within `tolerance` of the whole one; None for torch's."""
    mesh = mesh_of(me)
    with counted(1):
        partial = DTensor.from_local(contribution(me, 100), mesh, [Partial()])
        whole = partial.redistribute(placements=[Replicate()]).to_local()
    assert (whole == total_of(me)).all()
    torch.manual_seed(0)
    linear = torch.nn.Linear
    model = torch.nn.Sequential(linear(64, 128, bias=False), torch.nn.ReLU(), linear(128, 64, bias=False))
    model, rows = model.to(me.device), torch.randn(4, 64).to(me.device)
    with torch.no_grad():
        expected = model(rows)
        model = parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        with counted(1):
            torch.testing.assert_close(model(rows), expected, atol=tolerance, rtol=tolerance)
    dist.destroy_process_group(mesh.get_group())


def mesh_of(me: Rank) -> DeviceMesh:
    """A mesh of all ranks over a group of the backend."""
    group = dist.new_group(backend="lamport")
    return DeviceMesh.from_group(group, me.device.type, mesh=list(range(me.world_size)))
