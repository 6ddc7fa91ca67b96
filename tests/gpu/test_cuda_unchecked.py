"""With LAMPORT_RS_CHECK=0 the ranks of a GPU do not compare operations: right sums, and no mismatch."""

import os

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportTimeoutError
from ranks import Rank, one_gpu_per_rank
from reference import check_same_bits


def without_checks(rank: int) -> torch.device:
    """The variable is read when the device is first used."""
    os.environ["LAMPORT_RS_CHECK"] = "0"
    return one_gpu_per_rank(rank)


def sum_and_differ(me: Rank) -> None:
    """Sums in a graph; then norms of which each rank has another epsilon."""
    with me.workspace(1 << 20, timeout=5) as workspace:
        x = torch.full((4, 1024), me.rank + 1.0, device=me.device)
        out = torch.empty_like(x)
        lamport_rs.all_reduce(x, workspace, out=out)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(5):
                lamport_rs.all_reduce(x, workspace, out=out)
        for _ in range(3):
            out.zero_()
            graph.replay()
            check_same_bits(out, torch.full_like(out, sum(range(1, me.world_size + 1))), "the sum")
        weight = torch.ones(1024, device=me.device)
        lamport_rs.all_reduce_rms_norm(x, x, weight, workspace, eps=1e-6 * (me.rank + 1))
        workspace.synchronize()


def fail(me: Rank) -> None:
    """Rank 1 stays away: the operation ends with an error, and those after it leave NaN."""
    workspace = me.workspace(1 << 20, timeout=0.2)
    if me.rank == 1:
        # Here as long as the other needs: what it hears of is the timeout.
        dist.barrier()
        return
    x = torch.ones(64, device=me.device)
    lamport_rs.all_reduce(x, workspace)
    after = torch.empty_like(x)
    lamport_rs.all_reduce(x, workspace, out=after)
    torch.cuda.synchronize()
    assert bool(after.isnan().all()), after
    with pytest.raises(LamportTimeoutError, match="rank 1"):
        workspace.synchronize()
    dist.barrier()


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
@pytest.mark.parametrize("work", [sum_and_differ, fail])
def test_ranks_that_do_not_compare(new_gpu_ranks, work):
    new_gpu_ranks(2, without_checks).run(work)
