"""Dead and late ranks, and signals: an error in bounded time, never a hang."""

import os
import pickle
import re
import signal
import time

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportAbortedError, LamportError, LamportTimeoutError
from ranks import Rank, ThreadRanks, errors_of_survivors
from reference import check_same_bits

TIMEOUT = 0.5
LONG_TIMEOUT = 60
SLACK = 2.0
"""Seconds that a busy machine may take longer."""
LONG = 40_000
"""Elements of which a rank that waits has pushed a part only."""
OPERATIONS = {
    "all_reduce": lambda me, workspace: lamport_rs.all_reduce(torch.ones(8), workspace),
    "all_reduce of a long tensor": lambda me, workspace: lamport_rs.all_reduce(torch.ones(LONG), workspace),
    "all_reduce in two shots": lambda me, workspace: lamport_rs.all_reduce(
        torch.ones(8), workspace, algorithm="two_shot"
    ),
    "all_reduce of a long tensor in two shots": lambda me, workspace: lamport_rs.all_reduce(
        torch.ones(LONG), workspace, algorithm="two_shot"
    ),
    "all_reduce_rms_norm": lambda me, workspace: lamport_rs.all_reduce_rms_norm(
        torch.ones(2, 8), torch.ones(2, 8), torch.ones(8), workspace
    ),
    "all_reduce_rms_norm of long rows": lambda me, workspace: lamport_rs.all_reduce_rms_norm(
        torch.ones(2, LONG // 2), torch.ones(2, LONG // 2), torch.ones(LONG // 2), workspace
    ),
    "minimax_allreduce_rms": lambda me, workspace: lamport_rs.minimax_allreduce_rms(
        torch.ones(2, 8), torch.ones(8), workspace, me.rank, me.world_size, 1e-6
    ),
    "minimax_allreduce_rms_qk": lambda me, workspace: lamport_rs.minimax_allreduce_rms_qk(
        torch.ones(2, 16), torch.ones(8), torch.ones(8), workspace, 8, 8, me.rank, me.world_size, 1e-6
    ),
}


def wait_in_vain(me: Rank, absent: list[int], operation: str) -> tuple[float, LamportTimeoutError] | None:
    """Good rounds, then one to which some ranks do not come."""
    workspace = me.workspace(1 << 20, kept=True, timeout=TIMEOUT)
    for _ in range(5):
        lamport_rs.all_reduce(torch.ones(8), workspace)
    me.group(b"")
    if me.rank in absent:
        return None
    started = time.monotonic()
    with pytest.raises(LamportTimeoutError) as caught:
        OPERATIONS[operation](me, workspace)
    waited = time.monotonic() - started
    for call in OPERATIONS.values():
        called = time.monotonic()
        with pytest.raises(LamportError, match=r"failed earlier and can no longer be used \(.*waited") as refused:
            call(me, workspace)
        assert not isinstance(refused.value, LamportTimeoutError)
        assert time.monotonic() - called < TIMEOUT, "a refusal waits"
    return waited, caught.value


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("absent", [[1], [0, 2], [0, 1, 3]], ids=str)
def test_missing_ranks_are_named_after_the_timeout(absent, operation):
    outcomes = ThreadRanks(4).run(wait_in_vain, absent, operation)
    for rank in set(range(4)) - set(absent):
        waited, error = outcomes[rank]
        # Whoever gives up tells the others, who began to wait a little later.
        assert TIMEOUT - 0.1 <= waited < TIMEOUT + SLACK
        assert error.missing_ranks == tuple(absent)
        named = f"rank {absent[0]}" if len(absent) == 1 else "ranks " + ", ".join(map(str, absent))
        assert str(error).startswith(f"operation 6, {operation.split()[0]} of ")
        # The same text on all that waited: of the one that gave up.
        waiter = re.search(r"\): rank (\d) waited [^ ]+ for ", str(error))
        assert waiter is not None
        assert int(waiter[1]) not in absent
        assert f"for {named};" in str(error)
        assert "create a new one" in str(error)


def test_a_timeout_error_survives_pickling():
    """Stacks hand exceptions from worker processes to the one that reports them."""
    outcomes = ThreadRanks(2).run(wait_in_vain, [1], "all_reduce")
    copy = pickle.loads(pickle.dumps(outcomes[0][1]))
    assert type(copy) is LamportTimeoutError
    assert copy.missing_ranks == (1,)
    assert str(copy) == str(outcomes[0][1])


def come_late(me: Rank, timeout: float) -> None:
    """Later than a sleep lasts, and earlier than the timeout."""
    workspace = me.workspace(4096, timeout=timeout)
    for late in range(me.world_size):
        if me.rank == late:
            time.sleep(0.3)
        check_same_bits(lamport_rs.all_reduce(torch.ones(4), workspace), torch.full((4,), float(me.world_size)))


@pytest.mark.parametrize("timeout", [0, 10, float("inf"), 1e300])
def test_a_late_rank_is_waited_for(timeout):
    ThreadRanks(3).run(come_late, timeout)


def wait_briefly(me: Rank) -> None:
    workspace = me.workspace(4096, kept=True, timeout=1e-10)
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError):
            lamport_rs.all_reduce(torch.ones(4), workspace)


def test_a_timeout_below_a_nanosecond_is_a_short_one_and_not_none():
    ThreadRanks(2).run(wait_briefly)


def start_anew_after_a_fault(me: Rank) -> None:
    wait_in_vain(me, [0], "all_reduce")
    workspace = me.workspace(4096)
    check_same_bits(lamport_rs.all_reduce(torch.ones(4), workspace), torch.full((4,), float(me.world_size)))


def test_a_new_workspace_works_after_a_fault():
    ThreadRanks(3).run(start_anew_after_a_fault)


def reduce_until_an_error(me: Rank) -> None:
    workspace = me.workspace(1 << 20, timeout=LONG_TIMEOUT)
    dist.barrier()
    while True:
        lamport_rs.all_reduce(torch.ones(10_000), workspace)


def test_a_rank_killed_in_the_middle_of_a_loop_is_named(new_ranks):
    ranks = new_ranks(3)
    ranks.run(signal_is_handled)
    errors = errors_of_survivors(ranks, reduce_until_an_error, SLACK)
    assert [type(error) for error in errors] == [LamportAbortedError] * 2, errors
    assert [(error.rank, error.cause) for error in errors] == [(2, "ended")] * 2
    assert all("rank 2 has ended: process " in str(error) for error in errors), errors


def signal_is_handled(me: Rank) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


def be_stopped(me: Rank) -> float:
    workspace = me.workspace(4096, timeout=30)
    dist.barrier()
    started = time.monotonic()
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    lamport_rs.all_reduce(torch.ones(4), workspace)
    return time.monotonic() - started


def test_a_rank_that_was_stopped_for_a_while_is_waited_for(new_ranks):
    ranks = new_ranks(2)
    ranks.run(signal_is_handled)
    ranks.start(be_stopped)
    time.sleep(1.5)
    ranks.signal(1, signal.SIGCONT)
    assert ranks.finish(20)[0] > 0.5
