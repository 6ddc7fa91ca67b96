"""A peer that starts early must not lose its first push: memory is filled before anybody can reach it."""

import time

import lamport_rs
import numpy as np
import pytest
import torch
from foreign_kernel import SENTINEL, SLOTS, Table
from lamport_rs import LamportAbortedError, LamportTimeoutError
from lamport_rs.rendezvous import AllGather, all_gather_over
from ranks import Rank

COMM_SIZE = 4096
TIMEOUT, LATE = 1.5, 0.4
LARGE_COMM_SIZE = 1 << 20
"""Of which a fill takes a while."""
TIMES, SHORTLY = 10, 0.02


def fill_own_slots(me: Rank, workspace: lamport_rs.LamportWorkspace) -> None:
    """What the class that this package replaces did last, when peers had the handles."""
    if me.device.type == "cuda":
        own = workspace.workspace.tolist()[2 * me.world_size + me.rank]
        lamport_rs.lamport_fill_neg_zero(own, SLOTS * COMM_SIZE)
        return
    table = Table(workspace.workspace, me.world_size)
    for index in range(SLOTS):
        table.slot(me.rank, index)[:] = np.uint32(SENTINEL)


def held_up(me: Rank, seconds: float) -> AllGather:
    """Return an all-gather after which rank 0 is held up for so long."""
    over_group = all_gather_over(None)

    def all_gather(message: bytes) -> list[bytes]:
        gathered = over_group(message)
        if me.rank == 0:
            time.sleep(seconds)
        return gathered

    return all_gather


def start_late(me: Rank, filled_late: bool) -> str:
    """Rank 0 is held up after each round, and when it has a workspace: the others have pushed before it goes on."""
    workspace = me.workspace(COMM_SIZE, process_group=held_up(me, LATE), timeout=TIMEOUT)
    if me.rank == 0:
        time.sleep(LATE)
    if filled_late and me.rank == 0:
        fill_own_slots(me, workspace)
    try:
        total = lamport_rs.all_reduce(torch.full((64,), 1.0 + me.rank, device=me.device), workspace)
        workspace.synchronize()
    except LamportTimeoutError as error:
        return f"missed {error.missing_ranks}"
    except LamportAbortedError as error:
        # The others have what they need, and go.
        return f"missed {(error.rank,)}"
    assert bool((total == sum(range(1, me.world_size + 1))).all())
    return "right"


def test_a_push_to_a_rank_that_is_late_after_the_rendezvous_is_not_lost(ranks_of):
    assert ranks_of(3).run(start_late, False) == ["right"] * 3


def push_at_once(me: Rank) -> list[str]:
    """Rank 0 is held up after each round, so that it maps memory last. It pushes as soon as all have."""
    outcomes = []
    for _ in range(TIMES):
        tensor = torch.ones(64, device=me.device)
        workspace = me.workspace(LARGE_COMM_SIZE, process_group=held_up(me, SHORTLY), timeout=TIMEOUT)
        try:
            lamport_rs.all_reduce(tensor, workspace)
            workspace.synchronize()
            outcomes.append("right")
        except (LamportTimeoutError, LamportAbortedError):
            outcomes.append("missed")
    return outcomes


def test_a_push_right_after_the_last_rank_has_mapped_is_not_lost(ranks_of):
    """The others hear of it later. Were that the time to fill memory, the push would be lost."""
    assert ranks_of(3).run(push_at_once) == [["right"] * TIMES] * 3


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_fill_after_the_rendezvous_would_be_noticed(ranks_of, world_size):
    """The planted defect: what the other test is there for does happen if ranks fill late."""
    outcome = ranks_of(world_size).run(start_late, True)[0]
    assert outcome in {f"missed {others}" for others in [(1,), (2,), tuple(range(1, world_size))]}
