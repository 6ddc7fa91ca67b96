"""Faults that are told to the peers, and what makes a workspace work again, between processes."""

import ctypes
import gc
import os
import signal
import threading
import time

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import (
    LamportAbortedError,
    LamportError,
    LamportMismatchError,
    LamportTimeoutError,
    LamportWorkspace,
)
from ranks import Failure, Rank, ThreadRanks

SOON = 5.0
"""Seconds by which peers have heard of a fault on a machine that is busy."""
HELD = 1.0
"""Seconds for which a rank stays after its fault."""
PAUSE = 0.2
"""Seconds after which the others wait."""


def ones_sum(workspace: LamportWorkspace) -> torch.Tensor:
    return lamport_rs.all_reduce(torch.ones(8), workspace)


def abort(workspace: LamportWorkspace) -> None:
    workspace.abort("the tokenizer is on fire")


def clean_up(workspace: LamportWorkspace) -> None:
    workspace.cleanup()


def be_refused(workspace: LamportWorkspace) -> None:
    with pytest.raises(LamportError):
        lamport_rs.all_reduce(torch.ones(8, dtype=torch.float64), workspace)


def call_another(workspace: LamportWorkspace) -> None:
    with pytest.raises(LamportMismatchError):
        lamport_rs.all_reduce(torch.ones(16), workspace)


def reset(workspace: LamportWorkspace) -> None:
    with pytest.raises(LamportTimeoutError):
        workspace.reset(timeout=HELD)


def drop(_workspace: LamportWorkspace) -> None:
    """The function's own reference goes when it returns."""


FAULTS = {
    "abort": (abort, LamportAbortedError),
    "clean_up": (clean_up, LamportAbortedError),
    "drop": (drop, LamportAbortedError),
    "reset": (reset, LamportAbortedError),
    "be_refused": (be_refused, LamportMismatchError),
    "call_another": (call_another, LamportMismatchError),
}


def meet_a_fault(me: Rank, name: str) -> tuple[float, BaseException] | None:
    """What a rank that waits raises, and when, if another meets the fault."""
    fault, expected = FAULTS[name]
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    if me.rank == 1:
        time.sleep(PAUSE)
        fault(workspace)
        if name == "drop":
            del workspace
            gc.collect()
        time.sleep(2 * HELD)
        return None
    out = torch.ones(8)
    started = time.monotonic()
    with pytest.raises(LamportError) as caught:
        lamport_rs.all_reduce(torch.ones(8), workspace, out=out)
    took = time.monotonic() - started - PAUSE
    assert type(caught.value) is expected, caught.value
    assert out.isnan().all()
    with pytest.raises(expected):
        workspace.check()
    assert workspace.status().failure is not None
    with pytest.raises(LamportError, match="failed earlier"):
        lamport_rs.all_reduce(torch.ones(8), workspace, out=(out := torch.ones(8)))
    assert out.isnan().all()
    return took, caught.value


@pytest.mark.parametrize("name", FAULTS)
def test_whoever_waits_hears_of_a_fault_at_once(new_ranks, name):
    outcomes = new_ranks(3).run(meet_a_fault, name)
    for rank in (0, 2):
        took, error = outcomes[rank]
        assert took < SOON, f"rank {rank} waited {took} s"
        if isinstance(error, LamportAbortedError):
            assert error.rank == 1
            cause = "cleaned its workspace up" if name in ("clean_up", "drop") else "aborted"
            assert f"rank 1 has {cause}" in str(error)
            reasons = {"abort": "the tokenizer is on fire", "reset": "it has called reset()"}
            assert error.reason == reasons.get(name, "")
        else:
            assert 1 in (error.rank, error.peer)


def leave_in_order(me: Rank) -> None:
    workspace = me.workspace()
    ones_sum(workspace)
    if me.rank == 0:
        workspace.cleanup()
        return
    time.sleep(PAUSE)
    workspace.check()
    workspace.synchronize()
    assert workspace.status().failure is None
    with pytest.raises(LamportAbortedError, match="rank 0 has cleaned its workspace up"):
        ones_sum(workspace)


def test_a_peer_that_has_left_is_no_fault_until_it_is_needed(new_ranks):
    new_ranks(2).run(leave_in_order)


def be_killed(me: Rank) -> tuple[float, BaseException]:
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    if me.rank == 1:
        time.sleep(PAUSE)
        os.kill(os.getpid(), signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(LamportAbortedError) as caught:
        ones_sum(workspace)
    with pytest.raises(LamportAbortedError, match="rank 1"):
        workspace.reset(timeout=0)
    return time.monotonic() - started - PAUSE, caught.value


def test_a_death_is_noticed_without_waiting_for_the_timeout(new_ranks):
    outcomes = new_ranks(3).try_run(be_killed)
    assert isinstance(outcomes[1], Failure)
    for rank in (0, 2):
        took, error = outcomes[rank]
        assert (error.rank, error.cause) == (1, "ended")
        assert str(error).endswith("This workspace can no longer be used: create a new one on every rank")
        assert took < SOON


def check_without_a_call(me: Rank) -> None:
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    workspace.check()
    dist.barrier()
    if me.rank == 0:
        workspace.abort("stop")
    time.sleep(HELD)
    with pytest.raises(LamportAbortedError, match="rank 0 has aborted: stop"):
        workspace.check()


def test_a_check_hears_of_a_fault(new_ranks):
    new_ranks(2).run(check_without_a_call)


def abort_from_another_thread(me: Rank) -> float:
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    aborted = []

    def after_a_while() -> None:
        time.sleep(PAUSE)
        aborted.append(time.monotonic())
        workspace.abort("a watchdog barks")

    if me.rank == 0:
        thread = threading.Thread(target=after_a_while)
        thread.start()
        with pytest.raises(LamportAbortedError, match="rank 0 has aborted: a watchdog barks"):
            ones_sum(workspace)
        took = time.monotonic() - aborted[0]
        thread.join()
        return took
    time.sleep(2 * PAUSE)
    with pytest.raises(LamportAbortedError, match="rank 0 has aborted: a watchdog barks"):
        ones_sum(workspace)
    return 0.0


def abort_from_c(me: Rank) -> None:
    """The function is called by a thread of which the interpreter knows nothing, with a wait in the way."""
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    if me.rank == 0:
        function, argument = (ctypes.c_void_p(address) for address in workspace.abort_hook("a handler in C"))

        def after_a_while() -> None:
            time.sleep(PAUSE)
            thread = ctypes.c_ulong()
            assert ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, function, argument) == 0

        thread = threading.Thread(target=after_a_while)
        thread.start()
    else:
        time.sleep(2 * PAUSE)
    for _ in range(2):
        with pytest.raises(LamportError, match="rank 0 has aborted: a handler in C"):
            ones_sum(workspace)
    if me.rank == 0:
        thread.join()
    dist.barrier()
    workspace.reset()
    ones_sum(workspace)
    workspace.cleanup()
    if me.rank == 0:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function.value)(argument)


def test_a_function_in_c_can_end_an_operation_that_waits(new_ranks):
    new_ranks(2).run(abort_from_c)


def test_another_thread_can_end_an_operation_that_waits(new_ranks):
    assert max(new_ranks(2).run(abort_from_another_thread)) < SOON


def fail_and_reset(me: Rank, name: str) -> None:
    fault, _ = FAULTS[name]
    workspace = me.workspace(timeout=60)
    table = workspace.workspace
    for round_ in range(10):
        assert ones_sum(workspace).tolist() == [me.world_size] * 8
        if me.rank == round_ % me.world_size:
            fault(workspace)
        else:
            with pytest.raises(LamportError):
                ones_sum(workspace)
        workspace.reset()
        workspace.check()
        assert workspace.status().resets == round_ + 1
        assert lamport_rs.all_reduce(torch.ones(8), table).tolist() == [me.world_size] * 8


@pytest.mark.parametrize("name", ["abort", "be_refused", "call_another"])
def test_a_reset_makes_workspace_and_table_work_again(new_ranks, name):
    new_ranks(3).run(fail_and_reset, name)


def time_out_and_reset(me: Rank) -> None:
    workspace = me.workspace(timeout=0.3)
    for _ in range(3):
        if me.rank == 0:
            time.sleep(0.6)
            with pytest.raises(LamportError):
                ones_sum(workspace)
        else:
            with pytest.raises(LamportTimeoutError) as caught:
                ones_sum(workspace)
            assert caught.value.missing_ranks == (0,)
        workspace.reset()
        assert ones_sum(workspace).tolist() == [me.world_size] * 8


def test_a_reset_follows_a_timeout(new_ranks):
    new_ranks(3).run(time_out_and_reset)


def reset_alone(me: Rank) -> None:
    workspace = me.workspace(4096)
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError, match=r"reset: waited .* for rank 1") as caught:
            workspace.reset(timeout=0.2)
        assert caught.value.missing_ranks == (1,)
    else:
        time.sleep(0.6)
    with pytest.raises(LamportError, match="must be positive"):
        workspace.reset(timeout=-1)
    workspace.reset(timeout=20)
    assert ones_sum(workspace).tolist() == [2] * 8


def test_a_reset_is_bounded_and_names_who_is_missing():
    ThreadRanks(2).run(reset_alone)


def abort_a_reset(me: Rank, aborter: int) -> None:
    workspace = me.workspace(timeout=60)
    ones_sum(workspace)
    dist.barrier()
    if me.rank == 0:
        aborted = []

        def after_a_while() -> None:
            time.sleep(PAUSE)
            aborted.append(time.monotonic())
            workspace.abort("a watchdog barks")

        if aborter == 0:
            threading.Thread(target=after_a_while).start()
        with pytest.raises(LamportAbortedError, match=f"rank {aborter} has aborted: a watchdog barks"):
            workspace.reset()
        if aborter == 0:
            assert time.monotonic() - aborted[0] < SOON
    elif me.rank == aborter:
        time.sleep(PAUSE)
        workspace.abort("a watchdog barks")
    dist.barrier()
    workspace.reset()
    assert ones_sum(workspace).tolist() == [me.world_size] * 8


@pytest.mark.parametrize("aborter", [0, 1])
def test_an_abort_ends_a_reset_that_waits_on_any_rank(new_ranks, aborter):
    new_ranks(2).run(abort_a_reset, aborter, timeout=20)


def be_refused_and_reset(me: Rank) -> None:
    workspace = me.workspace(timeout=60)
    for _ in range(10):
        ones_sum(workspace)
        if me.rank == 1:
            time.sleep(0.01)
            be_refused(workspace)
        else:
            with pytest.raises(LamportMismatchError):
                ones_sum(workspace)
        workspace.reset()


def test_a_refusal_is_named_though_a_reset_follows_at_once(new_ranks):
    new_ranks(3).run(be_refused_and_reset)


def say_what_was_done(me: Rank) -> None:
    workspace = me.workspace()
    assert workspace.status() == lamport_rs.WorkspaceStatus(None, 0, {}, {}, 0.0, ())
    ones_sum(workspace)
    if me.rank == 0:
        time.sleep(PAUSE)
    lamport_rs.all_reduce_rms_norm(torch.ones(2, 64), torch.ones(2, 64), torch.ones(64), workspace)
    status = workspace.status()
    assert status.operations == {"all_reduce": 1, "all_reduce_rms_norm": 1}
    assert status.bytes == {"all_reduce": 32, "all_reduce_rms_norm": 512}
    if me.rank == 1:
        assert status.longest_wait > PAUSE / 2
        assert status.longest_wait_for == (0,)


def test_a_workspace_says_what_it_has_done(ranks_of):
    ranks_of(2).run(say_what_was_done)


def be_patient(me: Rank) -> None:
    workspaces = [me.workspace(4096), me.workspace(4096, timeout=60)]
    started = time.monotonic()
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError):
            ones_sum(workspaces[0])
        assert 0.2 < time.monotonic() - started < 5
    table = lamport_rs.get_allreduce_workspace(me.rank, me.world_size, 4096, process_group=me.group, timeout=0.4)
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError, match="waited 4"):
            lamport_rs.all_reduce(torch.ones(8), table)
    me.group(b"")


def test_the_environment_and_the_cache_take_a_timeout(monkeypatch):
    monkeypatch.setenv("LAMPORT_RS_TIMEOUT", "0.3")
    try:
        ThreadRanks(2).run(be_patient)
    finally:
        lamport_rs.clear_workspace_cache()


@pytest.mark.parametrize("text", ["soon", "-1", "nan"])
def test_a_timeout_in_the_environment_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("LAMPORT_RS_TIMEOUT", text)
    with pytest.raises(LamportError, match=r"LAMPORT_RS_TIMEOUT is 'soon'|must be positive"):
        LamportWorkspace(0, 1, 4096, lambda message: [message])


class MuteError(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("nothing")


def abort_for(_me: Rank, reason: object, told: str) -> None:
    for hooked in (False, True):
        workspace = LamportWorkspace(0, 1, 4096, lambda message: [message], device="cpu")
        if hooked:
            function, argument = workspace.abort_hook(reason)
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(argument)
        else:
            workspace.abort(reason)
        with pytest.raises(LamportAbortedError) as caught:
            workspace.check()
        assert caught.value.reason == told


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (ValueError("the tokenizer is on fire"), "the tokenizer is on fire"),
        (3, "3"),
        ("\udc80", "\\udc80"),
        (MuteError(), "MuteError, which has no text"),
    ],
)
def test_a_workspace_is_aborted_for_whatever_reason(ranks_of, reason, told):
    # In processes of their own: what a hook writes to stays mapped.
    ranks_of(2).run(abort_for, reason, told)
