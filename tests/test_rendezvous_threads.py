"""Threads of one process that create over one group at the same time."""

import threading
import time
from collections.abc import Callable
from typing import Any

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from lamport_rs.rendezvous import all_gather_over
from lamport_rs.turns import turn_of
from ranks import Rank, ThreadRanks

HELD_UP = 0.2
"""Seconds that rank 0's thread which came first spends in its rendezvous: the other comes meanwhile."""
PATIENCE = 20.0
SIZES = 4096, 8192


def create_from_two_threads(me: Rank, first: tuple[int, ...], create: Callable[..., Any]) -> list[str]:
    """Two threads ask for workspaces of their own. On this rank number `first[rank]` is in its rendezvous first."""
    over_group, is_inside = all_gather_over(None), threading.Event()
    outcomes = [""] * 2

    def all_gather(message: bytes) -> list[bytes]:
        if not is_inside.is_set():
            is_inside.set()
            time.sleep(HELD_UP if me.rank == 0 else 0)
        return over_group(message)

    def ask(number: int) -> None:
        try:
            workspace = create(me, SIZES[number], all_gather)
            lamport_rs.bind_to_thread(workspace)
            total = lamport_rs.all_reduce(torch.full((8,), 1.0 + number), workspace)
            outcomes[number] = f"sum {total[0]:g}"
        except LamportError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (first[me.rank], 1 - first[me.rank])]
    threads[0].start()
    assert is_inside.wait(PATIENCE)
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE)
    return outcomes


def construct(me: Rank, size: int, all_gather: Callable[[bytes], list[bytes]]) -> lamport_rs.LamportWorkspace:
    return me.workspace(size, process_group=all_gather, kept=True)


def ask_the_cache(me: Rank, size: int, all_gather: Callable[[bytes], list[bytes]]) -> torch.Tensor:
    return lamport_rs.get_allreduce_workspace(
        me.rank, me.world_size, size, process_group=all_gather, device=me.device, timeout=PATIENCE
    )


CREATE = pytest.mark.parametrize("create", [construct, ask_the_cache])


@CREATE
def test_threads_in_one_order_on_all_ranks_get_their_workspaces(new_ranks, create):
    """One waits for the other; their rounds do not mix."""
    assert new_ranks(2).run(create_from_two_threads, (0, 0), create) == [["sum 2", "sum 4"]] * 2


@CREATE
def test_threads_in_another_order_on_another_rank_are_refused_on_all(new_ranks, create):
    outcomes = new_ranks(2).run(create_from_two_threads, (0, 1), create)
    # The one that came first on rank 0 met the other one on rank 1.
    assert outcomes[0] == outcomes[1][::-1]
    for text, (one, other) in zip(outcomes[0], (SIZES, SIZES[::-1]), strict=True):
        assert f"differ in comm_size: rank 0 has {one}, rank 1 has {other};" in text
        assert "threads that create over one group must do so in the same order on every rank" in text


def create_over_two_groups(me: Rank, first: tuple[int, ...], create: Callable[..., Any]) -> list[str]:
    """Two threads, each with a group of its own. On this rank number `first[rank]` is in its rendezvous first."""
    groups = [dist.new_group(backend="gloo") for _ in SIZES]
    outcomes, is_inside = [""] * 2, threading.Event()

    def ask(number: int) -> None:
        if number != first[me.rank]:
            assert is_inside.wait(PATIENCE)
            time.sleep(HELD_UP)
        is_inside.set()
        workspace = create(me, SIZES[number], groups[number])
        lamport_rs.bind_to_thread(workspace)
        outcomes[number] = f"sum {lamport_rs.all_reduce(torch.full((8,), 1.0 + number), workspace)[0]:g}"

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return outcomes


@CREATE
@pytest.mark.parametrize("first", [(0, 0), (0, 1)], ids=["in one order", "in another on another rank"])
def test_threads_with_groups_of_their_own_do_not_wait_for_each_other(new_ranks, create, first):
    began = time.monotonic()
    assert new_ranks(2).run(create_over_two_groups, first, create) == [["sum 2", "sum 4"]] * 2
    assert time.monotonic() - began < PATIENCE


def test_ranks_that_are_threads_may_share_one_callable():
    """Whose turn it is goes by the rank, too: they have to be in the rendezvous together."""
    ranks, own = ThreadRanks(2, PATIENCE), threading.local()

    def all_gather(message: bytes) -> list[bytes]:
        return ranks.all_gather(own.rank, message)

    def create(me: Rank) -> float:
        own.rank = me.rank
        workspace = me.workspace(4096, process_group=all_gather, timeout=PATIENCE)
        return lamport_rs.all_reduce(torch.ones(8), workspace)[0].item()

    assert ranks.run(create) == [2.0, 2.0]


def test_a_turn_that_does_not_come_is_an_error_in_time_and_one_within_another_at_once():
    group, outcomes = object(), []

    def wait() -> None:
        with pytest.raises(LamportError, match=r"waited 0\.1 s for another thread, which is creating a workspace"):
            turn_of(group, 0, 0.1).__enter__()
        with turn_of(group, 1, 0.1), turn_of(object(), 0, 0.1):
            outcomes.append("others")

    with turn_of(group, 0, 0.1):
        with pytest.raises(LamportError, match="asks for a rendezvous over a group while the thread"):
            turn_of(group, 0, 100).__enter__()
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(PATIENCE)
    assert outcomes == ["others"]
    with turn_of(group, 0, 0.1):
        pass


def test_a_turn_ends_with_its_frame_however_that_ends():
    group = [object()]

    def leave() -> None:
        turn_of(group, 0, 1).__enter__()

    leave()
    with turn_of(group, 0, 0.1):
        pass
