"""Ranks that do different things: an error on every rank that names both operations, and never a number."""

import _thread
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, LamportMismatchError, LamportTimeoutError
from mismatches import (
    COMPILED_AND_REFUSED,
    DIFFERENT,
    REFUSED,
    call_all,
    check_that_rank_0_heard_of_it,
    check_that_they_differ,
    go_on_after_a_refusal,
    refuse_on_all_ranks,
    total,
)
from ranks import Rank, ThreadRanks


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_whose_calls_differ_all_hear_what_the_other_does(world_size, name):
    texts = ThreadRanks(world_size).run(check_that_they_differ, name)
    of_rank_1 = DIFFERENT[name][2]
    for rank, text in enumerate(texts):
        if rank == 1:
            assert re.search(rf"rank 1 runs operation \d, .*{of_rank_1}.*, but rank [02] runs operation 3, ", text), (
                text
            )
        else:
            # A call that has nothing to do is told as a refused one is, or rank 1's next is found.
            skipped = "|has refused its call of that number" if name == "nothing" else ""
            assert re.search(rf"rank {rank} runs operation 3, .*, but rank 1 (runs .*{of_rank_1}{skipped})", text), text


@pytest.mark.parametrize("name", REFUSED)
def test_a_rank_that_goes_on_after_a_refused_call_parts_the_ranks_with_an_error_on_all(name):
    check_that_rank_0_heard_of_it(ThreadRanks(2).run(go_on_after_a_refusal, name)[0])


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_all_ranks_refuse_changes_nothing(name):
    # The rank that is wrong there is right here for its successor's.
    assert ThreadRanks(2).run(refuse_on_all_ranks, name) == [[2.0] * 8] * 2


@pytest.mark.parametrize("name", COMPILED_AND_REFUSED)
def test_a_call_that_is_refused_in_compiled_code_counts_as_all_do(ranks_of, name):
    check_that_rank_0_heard_of_it(ranks_of(2).run(go_on_after_a_refusal, name, timeout=90)[0])
    assert ranks_of(2).run(refuse_on_all_ranks, name, timeout=90) == [[2.0] * 8] * 2


def exchange_in_another_order(me: Rank) -> None:
    """Two operations that differ, in another order on one rank."""
    workspace = me.workspace(4096, timeout=20)
    calls = [total(4), total(8)]
    with pytest.raises(LamportMismatchError):
        call_all(calls[::-1] if me.rank == 0 else calls, me, workspace)


def test_another_order_is_noticed_between_processes(ranks_of):
    ranks_of(3).run(exchange_in_another_order)


def wait_for_a_rank(me: Rank, calls: int) -> str:
    workspace = me.workspace(4096, kept=True, timeout=0.3)
    for _ in range(calls):
        total()(me, workspace)
    if me.rank == 1:
        return ""
    with pytest.raises(LamportTimeoutError) as caught:
        lamport_rs.all_reduce_rms_norm(torch.ones(2, 16), torch.ones(2, 16), torch.ones(16), workspace)
    return str(caught.value)


def test_a_timeout_says_what_this_rank_was_doing():
    text = ThreadRanks(2).run(wait_for_a_rank, 2)[0]
    assert re.match(
        r"operation 3, all_reduce_rms_norm of \[2, 16\] float32, one_shot \(digest .*\): rank 0 waited .* rank 1", text
    )


def wait_for_one_that_differs_and_one_that_is_missing(me: Rank) -> None:
    workspace = me.workspace(4096, kept=True, timeout=0.5)
    if me.rank == 2:
        return
    with pytest.raises(LamportMismatchError):
        total(4 + 4 * me.rank)(me, workspace)


def test_a_rank_that_differs_is_named_rather_than_one_that_is_missing():
    ThreadRanks(3).run(wait_for_one_that_differs_and_one_that_is_missing)


def call_from_two_threads(me: Rank) -> tuple[list[float], list[str]]:
    """Sums of ones by one thread, of tens by another, at will. Returns sums of others, and what was refused."""
    workspace = me.workspace(4096, timeout=5)
    wrong: list[float] = []
    errors: list[str] = []
    stop = threading.Event()

    def sum_again_and_again(value: float, calls: int, pause: float) -> None:
        for _ in range(calls):
            try:
                result = lamport_rs.all_reduce(torch.full((4,), value), workspace)[0].item()
            except LamportError as error:
                errors.append(str(error))
                break
            if result != value * me.world_size:
                wrong.append(result)
            time.sleep(pause)
            if stop.is_set():
                break
        stop.set()

    threads = [
        threading.Thread(target=sum_again_and_again, args=arguments)
        for arguments in ((1.0, 10**6, 0), (10.0, 20, 0.01))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return wrong, errors


def test_two_threads_on_one_workspace_are_refused_and_no_sum_is_of_both(new_ranks):
    for wrong, errors in new_ranks(2).run(call_from_two_threads):
        assert not wrong
        assert errors
        assert all("in another thread" in error for error in errors), errors


def start_and_join(function: Callable[..., object], *arguments: object) -> None:
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def call_beside_the_maker(me: Rank) -> tuple[list[float], list[str]]:
    """Sums of ones by the thread that made the workspace, and of tens by another. They never overlap."""
    workspace = me.workspace(4096, timeout=5)
    wrong: list[float] = []
    errors: list[str] = []

    def reduce(value: float) -> None:
        try:
            result = lamport_rs.all_reduce(torch.full((4,), value), workspace)[0].item()
        except LamportError as error:
            errors.append(str(error))
        else:
            if result != value * me.world_size:
                wrong.append(result)

    # In another order on every rank.
    for thread in [10.0, 1.0] if me.rank else [1.0, 10.0]:
        if thread == 1.0:
            reduce(thread)
        else:
            start_and_join(reduce, thread)
    return wrong, errors


def test_calls_of_two_threads_that_never_overlap_are_refused_too():
    for wrong, errors in ThreadRanks(2).run(call_beside_the_maker):
        assert not wrong
        assert any("in another thread than the one" in error for error in errors), errors


def hand_over(me: Rank) -> list[float]:
    """One thread after the other: each waits for the one before."""
    workspace = me.workspace(4096, timeout=20)
    sums: list[float] = []

    def reduce(value: float) -> None:
        lamport_rs.bind_to_thread(workspace)
        sums.append(lamport_rs.all_reduce(torch.full((4,), value), workspace)[0].item())

    for value in range(20):
        start_and_join(reduce, float(value))
    return sums


def test_threads_that_are_bound_one_after_the_other_take_turns():
    assert ThreadRanks(2).run(hand_over) == [[2.0 * value for value in range(20)]] * 2


class _SumsGradients(torch.autograd.Function):
    """The identity, whose gradient is summed over the ranks."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, workspace: lamport_rs.LamportWorkspace) -> torch.Tensor:
        context.workspace = workspace
        return tensor.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return lamport_rs.all_reduce(gradients[0], context.workspace), None


class _RunsBackward(torch.autograd.Function):
    """The identity, whose backward pass runs others within, so deeply that torch goes on in a thread of its own."""

    DEEPEST = 100

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, depth: int, workspace: lamport_rs.LamportWorkspace) -> torch.Tensor:
        context.depth, context.workspace = depth, workspace
        return tensor.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        depth, workspace = context.depth, context.workspace
        if isinstance(threading.current_thread(), threading._DummyThread):
            return lamport_rs.all_reduce(gradients[0], workspace), None, None
        assert depth < _RunsBackward.DEEPEST, "torch never went on in a thread of its own"
        with torch.enable_grad():
            tensor = torch.ones(4, requires_grad=True)
            _RunsBackward.apply(tensor, depth + 1, workspace).sum().backward()
        assert tensor.grad is not None
        return tensor.grad, None, None


def run_backward_deeply(me: Rank) -> float:
    workspace = me.workspace(4096, timeout=20)
    tensor = torch.ones(4, requires_grad=True)
    _RunsBackward.apply(tensor, 0, workspace).sum().backward()
    assert tensor.grad is not None
    return tensor.grad[0].item()


def run_backward_elsewhere(me: Rank) -> tuple[list[float], list[str]]:
    """Backward passes in threads that are not the workspace's, one of which Python's `threading` has not made."""
    workspace = me.workspace(4096, timeout=20)
    gradients: list[float] = []
    errors: list[str] = []
    done = threading.Event()

    def backward() -> None:
        tensor = torch.ones(4, requires_grad=True)
        try:
            _SumsGradients.apply(tensor, workspace).sum().backward()
            assert tensor.grad is not None
            gradients.append(tensor.grad[0].item())
        except LamportError as error:
            errors.append(str(error))
        done.set()

    _thread.start_new_thread(backward, ())
    assert done.wait(20)
    start_and_join(backward)
    return gradients, errors


def test_backward_passes_run_in_the_threads_of_autograd_and_no_other():
    assert ThreadRanks(2).run(run_backward_deeply) == [2.0, 2.0]
    for gradients, errors in ThreadRanks(2).run(run_backward_elsewhere):
        assert gradients == []
        assert len(errors) == 2
        assert all("bind_to_thread" in error for error in errors)
