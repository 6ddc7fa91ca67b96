"""Ranks that do not come: kernels end, and what they missed is an error that names the rank."""

import signal
import time

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, LamportTimeoutError
from minimax_rows import Operation, workspace_for
from ranks import Failure, Rank
from worlds import WORLD_SIZES

TIMEOUT = 0.5
SLACK = 1.5
"""Seconds that a busy machine may take longer."""


def start_anew(me: Rank) -> None:
    workspace = workspace_for(me, 64)
    operation = Operation.random(me, 64, (256, 64), seed=1)
    operation(workspace)
    operation.check("after a fault")


def wait_in_vain(me: Rank, absent: int, tokens: int, way: str) -> tuple[float, tuple[int, ...]] | None:
    """Good rounds, then one to which a rank does not come."""
    workspace = workspace_for(me, tokens, timeout=TIMEOUT)
    operation, graph = Operation.random(me, tokens, (256, 64)), torch.cuda.CUDAGraph()
    for _ in range(5):
        operation(workspace)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        operation(workspace)
    dist.barrier()
    outcome = None
    if me.rank != absent:
        started = time.monotonic()
        if way == "replay":
            graph.replay()
        else:
            operation(workspace)
        if way == "synchronize":
            with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
                workspace.synchronize()
        else:
            torch.cuda.synchronize()
            with pytest.raises(LamportTimeoutError, match="create a new one") as caught:
                operation(workspace)
        waited = time.monotonic() - started
        torch.cuda.synchronize()
        assert time.monotonic() - started < waited + 0.2, "the kernel went on after the error"
        for refused in (lambda: operation(workspace), lambda: operation(workspace.workspace), workspace.synchronize):
            with pytest.raises(LamportError, match=r"failed earlier and can no longer be used \(.*waited"):
                refused()
        assert time.monotonic() - started < waited + TIMEOUT, "a refusal waits"
        outcome = waited, caught.value.missing_ranks
    dist.barrier()
    workspace.cleanup()
    start_anew(me)
    return outcome


@pytest.mark.parametrize("way", ["synchronize", "next call", "replay"])
@pytest.mark.parametrize("tokens", [1, 700, 16384])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_missing_rank_is_named_after_the_timeout_and_a_new_workspace_works(ranks_of, world_size, tokens, way):
    absent = world_size - 1
    outcomes = ranks_of(world_size).run(wait_in_vain, absent, tokens, way)
    assert outcomes[absent] is None
    for waited, missing in outcomes[:absent]:
        assert missing == (absent,)
        # However many waves of blocks the grid takes, they wait but once.
        assert TIMEOUT <= waited < TIMEOUT + SLACK


def come_late(me: Rank, timeout: float) -> None:
    """Later than a moment, and earlier than the timeout."""
    workspace = workspace_for(me, 512, timeout=timeout)
    for late in range(me.world_size):
        operation = Operation.random(me, 300, (256, 64), seed=late)
        torch.cuda.synchronize()
        if me.rank == late:
            time.sleep(0.4)
        operation(workspace)
        workspace.synchronize()
        operation.check(f"rank {late} came late")


@pytest.mark.parametrize("timeout", [0, 10])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_late_rank_is_waited_for(ranks_of, world_size, timeout):
    ranks_of(world_size).run(come_late, timeout)


def operate_until_an_error(me: Rank) -> None:
    workspace, operation = workspace_for(me, 64, timeout=TIMEOUT), Operation.random(me, 64, (256, 64))
    dist.barrier()
    while True:
        operation(workspace)
        workspace.synchronize()


def be_there(me: Rank) -> int:
    torch.zeros(1, device=me.device)
    return me.rank


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_killed_rank_is_an_error_on_the_others(new_gpu_ranks, world_size):
    ranks, victim = new_gpu_ranks(world_size), world_size - 1
    ranks.run(be_there)
    ranks.start(operate_until_an_error)
    time.sleep(2.0)
    ranks.signal(victim, signal.SIGKILL)
    killed = time.monotonic()
    outcomes = ranks.finish(30)
    assert time.monotonic() - killed < 2 * TIMEOUT + 10, "the error came late"
    for outcome in outcomes[:victim]:
        assert isinstance(outcome, Failure)
        assert isinstance(outcome.error, LamportTimeoutError), str(outcome)
    # Whoever the killed rank still served waits for it alone; one may in turn have waited for the other.
    assert any(outcome.error.missing_ranks == (victim,) for outcome in outcomes[:victim])
