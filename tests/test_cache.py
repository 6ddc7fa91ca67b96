"""get_allreduce_workspace: one workspace per group and size, found again by the group itself."""

import ctypes
import gc
import threading
import weakref
from dataclasses import dataclass

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import (
    LamportError,
    LamportWorkspace,
    bind_to_thread,
    clear_workspace_cache,
    get_allreduce_workspace,
)
from ranks import Rank, ThreadRanks
from reference import check_same_bits


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_workspace_cache()
    yield
    clear_workspace_cache()


def check_table(me: Rank, table: torch.Tensor) -> None:
    total = lamport_rs.all_reduce(torch.ones(8), table)
    check_same_bits(total, torch.full((8,), float(me.world_size)))


def comm_size_of(me: Rank, table: torch.Tensor) -> int:
    """What the table itself says."""
    return (ctypes.c_int64 * 2).from_address(int(table[3 * me.world_size + 1]))[1]


def call_like_the_seed(me: Rank) -> None:
    """Each way in which serving stacks call it."""
    fused = LamportWorkspace.compute_comm_size_for_minimax
    rank, world_size = me.rank, me.world_size
    table = get_allreduce_workspace(rank, world_size)
    assert comm_size_of(me, table) == fused(16384, world_size)
    assert get_allreduce_workspace(rank=rank, world_size=world_size) is table
    assert get_allreduce_workspace(rank, world_size, None, 16384, None) is table
    assert get_allreduce_workspace(rank, world_size, fused(16384, world_size)) is table
    assert get_allreduce_workspace(rank, world_size, process_group=dist.group.WORLD) is table
    more = get_allreduce_workspace(rank=rank, world_size=world_size, max_tokens=1 << 18, process_group=None)
    assert more is not table
    assert comm_size_of(me, more) == fused(1 << 18, world_size)
    explicit = get_allreduce_workspace(rank, world_size, comm_size=8192)
    assert comm_size_of(me, explicit) == 8192
    for each in (table, more, explicit, table):
        check_table(me, each)
    clear_workspace_cache()
    for each in (table, more, explicit):
        with pytest.raises(LamportError, match="cleaned up"):
            check_table(me, each)
    again = get_allreduce_workspace(rank, world_size)
    assert again is not table
    check_table(me, again)
    clear_workspace_cache()


def test_the_seeds_calls_are_served_and_the_same_call_returns_the_same_tensor(ranks_of):
    ranks_of(2).run(call_like_the_seed)


def use_two_groups(me: Rank) -> None:
    groups = [dist.new_group([0, 1]) for _ in range(2)]
    tables = [get_allreduce_workspace(me.rank, 2, 4096, process_group=group) for group in groups]
    assert tables[0] is not tables[1], "two groups share a workspace"
    assert tables[0].data_ptr() != tables[1].data_ptr()
    for group, table in zip(groups, tables, strict=True):
        assert get_allreduce_workspace(me.rank, 2, 4096, process_group=group) is table
        check_table(me, table)
    clear_workspace_cache()


def test_each_group_has_its_own_workspace(ranks_of):
    ranks_of(2).run(use_two_groups)


def test_the_cache_holds_the_group_so_that_no_other_can_be_taken_for_it():
    """An `id()` is reused when its object has gone: the next group at the address must not get the old workspace."""
    ranks = ThreadRanks(2)

    class Group:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __call__(self, message: bytes) -> list[bytes]:
            return ranks.all_gather(self.rank, message)

    def create(me: Rank) -> tuple[weakref.ref, torch.Tensor]:
        group = Group(me.rank)
        return weakref.ref(group), get_allreduce_workspace(me.rank, 2, 4096, process_group=group)

    first = ranks.run(create)
    gc.collect()
    assert all(group() is not None for group, _ in first)
    second = ranks.run(create)
    assert all(old[1] is not new[1] for old, new in zip(first, second, strict=True))
    clear_workspace_cache()
    gc.collect()
    assert all(group() is None for group, _ in first + second), "the cleared cache still holds groups"


def test_threads_that_call_at_once_get_the_same_tensor():
    """Eight threads of each of two ranks: one of the eight creates, the others wait for it."""
    ranks, rounds = ThreadRanks(2), []
    gathers = [lambda message: rounds.append(0) or ranks.all_gather(0, message), ranks.member(1).group]
    start, found = threading.Barrier(16), ([], [])

    def call(rank: int) -> None:
        start.wait(20)
        found[rank].append(get_allreduce_workspace(rank, 2, 4096, process_group=gathers[rank]))

    threads = [threading.Thread(target=call, args=(index % 2,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for tables in found:
        assert len(tables) == 8
        assert len({id(table) for table in tables}) == 1
    steps = len(rounds)
    assert found[0][0] is not found[1][0]

    def check(me: Rank) -> None:
        table = found[me.rank][0]
        bind_to_thread(table)
        check_table(me, table)

    ThreadRanks(2).run(check)
    ranks.run(lambda me: me.workspace(4096, process_group=gathers[me.rank]))
    assert len(rounds) == 2 * steps, "the threads created more than one workspace"


def test_a_failed_creation_is_not_cached():
    ranks = ThreadRanks(2)
    group = [ranks.member(rank).group for rank in range(2)]

    def fail(me: Rank) -> None:
        with pytest.raises(LamportError, match="comm_size"):
            get_allreduce_workspace(me.rank, 2, 4095 if me.rank else 4096, process_group=group[me.rank])

    ranks.run(fail)
    ranks.run(lambda me: check_table(me, get_allreduce_workspace(me.rank, 2, 4096, process_group=group[me.rank])))


def test_a_failed_creation_lets_the_group_go():
    """An entry that stayed would hold the group: its sockets, its memory."""

    class Group:
        def __call__(self, message: bytes) -> list[bytes]:
            raise ConnectionError

    group = Group()
    observer = weakref.ref(group)
    with pytest.raises(LamportError):
        get_allreduce_workspace(0, 2, 4096, process_group=group)
    del group
    gc.collect()
    assert observer() is None, "the cache holds the group of a workspace that there is not"


def test_threads_that_wait_for_a_creation_that_fails_raise_what_it_raises():
    """One creation, one outcome: to try again is for those who know that the peers do, too."""
    asked, go_on, start = [], threading.Event(), threading.Barrier(5)

    def all_gather(message: bytes) -> list[bytes]:
        asked.append(message)
        go_on.wait(20)
        raise ConnectionError("the wire is cut")

    errors = []

    def call() -> None:
        start.wait(20)
        try:
            get_allreduce_workspace(0, 2, 4096, process_group=all_gather)
        except LamportError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait(20)
    # Those that come late create for themselves, and are not what this test is about.
    threading.Event().wait(0.2)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 4
    assert all("the wire is cut" in error for error in errors)
    assert len(asked) == 1


def test_a_creation_after_one_that_failed_is_found_by_all_threads():
    ranks, failures = ThreadRanks(2), [True, True]

    class Group:
        def __init__(self, rank: int) -> None:
            self.rank = rank

        def __call__(self, message: bytes) -> list[bytes]:
            if failures[self.rank]:
                raise ConnectionError
            return ranks.all_gather(self.rank, message)

    groups = [Group(rank) for rank in range(2)]

    def fail_then_create(me: Rank) -> None:
        with pytest.raises(LamportError):
            get_allreduce_workspace(me.rank, 2, 4096, process_group=groups[me.rank])
        failures[me.rank] = False
        table = get_allreduce_workspace(me.rank, 2, 4096, process_group=groups[me.rank])
        assert get_allreduce_workspace(me.rank, 2, 4096, process_group=groups[me.rank]) is table
        check_table(me, table)

    ranks.run(fail_then_create)


def test_a_group_that_cannot_be_hashed_is_known_by_its_identity():
    ranks = ThreadRanks(2)

    @dataclass
    class Group:
        rank: int

        def __call__(self, message: bytes) -> list[bytes]:
            return ranks.all_gather(self.rank, message)

    def create(me: Rank) -> None:
        group, equal = Group(me.rank), Group(me.rank)
        table = get_allreduce_workspace(me.rank, 2, 4096, process_group=group)
        assert get_allreduce_workspace(me.rank, 2, 4096, process_group=group) is table
        other = get_allreduce_workspace(me.rank, 2, 4096, process_group=equal)
        assert other is not table
        check_table(me, table)
        check_table(me, other)

    ranks.run(create)


def ask_for_a_device(me: Rank) -> None:
    table = get_allreduce_workspace(me.rank, me.world_size, 4096, device="cpu")
    assert table.device == torch.device("cpu")
    for same in ("cpu", torch.device("cpu")):
        assert get_allreduce_workspace(me.rank, me.world_size, 4096, device=same) is table
    is_default = not torch.cuda.is_available()
    assert (get_allreduce_workspace(me.rank, me.world_size, 4096) is table) == is_default
    check_table(me, table)
    clear_workspace_cache()


def test_a_workspace_of_the_host_can_be_asked_for_by_its_device(ranks_of):
    ranks_of(2).run(ask_for_a_device)


@pytest.mark.gpu(2)
def test_on_gpus_too_a_workspace_of_the_host_can_be_asked_for(ranks_of):
    ranks_of(2).run(ask_for_a_device)


def test_clearing_an_empty_cache_does_nothing():
    clear_workspace_cache()
    clear_workspace_cache()
