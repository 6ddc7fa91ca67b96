"""A kernel that was prepared is not loaded by its first launch, which would wait for kernels that run."""

import time

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from ranks import Rank

MOST_SECONDS = 1.0
"""Host time of a launch that waits for nothing, on a busy machine."""
TIMEOUT = 10.0


def launch_behind_a_kernel_that_waits(me: Rank) -> None:
    workspace = me.workspace(8 << 20, timeout=TIMEOUT)
    small = torch.full((256,), 1.0 + me.rank, device=me.device)
    rows = torch.full((64, 4096), 1.0 + me.rank, device=me.device, dtype=torch.bfloat16)
    weight, zeros = torch.ones(4096, device=me.device, dtype=torch.bfloat16), torch.zeros_like(rows)
    out, residual_out, small_out = torch.empty_like(rows), torch.empty_like(rows), torch.empty_like(small)
    lamport_rs.all_reduce(small, workspace, out=small_out)
    workspace.prepare(rows, "all_reduce_rms_norm")
    workspace.synchronize()
    dist.barrier()

    def run() -> float:
        lamport_rs.all_reduce(small, workspace, out=small_out)
        started = time.monotonic()
        lamport_rs.all_reduce_rms_norm(rows, zeros, weight, workspace, out=out, residual_out=residual_out)
        return time.monotonic() - started

    # The others begin when the first rank has launched both. Its first kernel waits for them.
    if me.rank != 0:
        dist.barrier()
    took = run()
    if me.rank == 0:
        assert took < MOST_SECONDS
        dist.barrier()
    workspace.synchronize()
    total = me.world_size * (me.world_size + 1) / 2
    assert small_out.tolist() == [total] * 256
    assert bool((residual_out == total).all())


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_a_prepared_kernel_is_launched_behind_one_that_waits(new_gpu_ranks):
    """In fresh processes: no other test has loaded the kernels."""
    new_gpu_ranks(2).run(launch_behind_a_kernel_that_waits)
