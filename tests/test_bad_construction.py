"""Arguments that make no workspace: all ranks raise the same error, promptly, whichever rank's they are."""

import copy
import pickle
import time

import lamport_rs
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks, errors_of

PROMPTLY = 5.0


class Unspeakable:
    """Raises wherever an error would describe it."""

    def __repr__(self) -> str:
        raise ZeroDivisionError("no words")


BAD = {
    # name: (changes to the arguments, what the error says)
    "a group of none": ({"world_size": 0}, "world_size is 0, but must be between 1 and 16"),
    "a negative group": ({"world_size": -2}, "world_size is -2"),
    "a group of seventeen": ({"world_size": 17}, "world_size is 17"),
    "a negative rank": ({"rank": -1}, r"rank is -1, but must be between 0 and 1 \(world_size is 2\)"),
    "a rank beyond the group": ({"rank": 2}, "rank is 2, but must be between 0 and 1"),
    "no memory": ({"comm_size": 0}, "comm_size is 0 bytes, but must be a positive multiple of 16"),
    "negative memory": ({"comm_size": -16}, "comm_size is -16 bytes"),
    "memory of half vectors": ({"comm_size": 4104}, "comm_size is 4104 bytes, but must be a positive multiple of 16"),
    "more memory than addresses": ({"comm_size": 2**62}, "more than this machine can address"),
    "more memory than there is": ({"comm_size": 2**56}, "pass a smaller comm_size"),
    "memory in fractions": ({"comm_size": 4096.0}, "must be an integer"),
    "more memory than an integer": ({"comm_size": 2**70}, "must be an integer of at most 64 bits"),
    "a rank in words": ({"rank": "0"}, "rank is '0', but must be an integer"),
    "a negative timeout": ({"timeout": -1.0}, "timeout is -1 seconds, but must be positive, or 0 or infinite"),
    "a timeout that is no number": ({"timeout": float("nan")}, "timeout is NaN"),
    "a timeout before all time": ({"timeout": float("-inf")}, "timeout is -inf"),
    "an unknown backend": ({"backend": "rdma"}, "backend is 'rdma'"),
    "a device that no backend serves": ({"device": "meta"}, "meta"),
    "a backend that does not fit the device": ({"backend": "cuda", "device": "cpu"}, "cannot serve device cpu"),
    "a timeout in words": ({"timeout": "5"}, "timeout is '5', but must be a number of seconds"),
    "a timeout of more digits than a float": ({"timeout": 10**400}, "must be a number of seconds"),
    "a timeout of several numbers": ({"timeout": torch.ones(2)}, "must be a number of seconds"),
    "a device of more digits than an index": ({"device": 2**70}, "cannot serve device="),
    "a device that is a list": ({"device": []}, "cannot serve device="),
    "a backend that is an array": ({"backend": np.ones(3)}, r"backend is array\(\[1., 1., 1.\]\), but must be"),
    "a backend that cannot be hashed": ({"backend": []}, r"backend is \[\], but must be"),
    "a backend that cannot be told": ({"backend": Unspeakable()}, "ZeroDivisionError: no words"),
    "a backend that is no text to others": ({"backend": "\ud800"}, "but must be"),
    "a rank that is a bool": ({"rank": True}, "rank is True, but must be an integer"),
    "a rank that cannot be hashed": ({"rank": []}, r"rank is \[\], but must be an integer"),
    "a group size that is several": ({"world_size": np.ones(3, int)}, "world_size is array.*, but must be an integer"),
    "two shots from less than nothing": ({"two_shot_from": -1}, "two_shot_from is -1 bytes, but must not be negative"),
    "two shots from a fraction on": ({"two_shot_from": 0.5}, "two_shot_from is 0.5, but must be an integer"),
    "memory in a wrong type": ({"comm_size": None}, "comm_size is None, but must be an integer"),
}


def create(me: Rank, offenders: list[int], changes: dict) -> str:
    """A workspace with bad arguments on some ranks."""
    arguments = {"rank": me.rank, "world_size": me.world_size, "comm_size": 4096, "device": "cpu"}
    if me.rank in offenders:
        arguments |= changes
    lamport_rs.LamportWorkspace(process_group=me.group, **arguments)
    return "a workspace"


def refusals(ranks: ThreadRanks, function, offenders: list[int], changes: dict, text: str) -> list[BaseException]:
    """What both ranks raise: promptly, with the same words, and `text` among them."""
    started = time.monotonic()
    errors = errors_of(ranks.try_run(function, offenders, changes))
    assert time.monotonic() - started < PROMPTLY
    assert str(errors[0]) == str(errors[1])
    with pytest.raises(LamportError, match=text):
        raise errors[0]
    return errors


@pytest.mark.timeout(30)
@pytest.mark.parametrize("offenders", [[0, 1], [1], [0]], ids=["on all ranks", "on rank 1", "on rank 0"])
@pytest.mark.parametrize("name", BAD)
def test_all_ranks_raise_the_same_error_promptly(name, offenders):
    changes, text = BAD[name]
    ranks = ThreadRanks(2, patience=PROMPTLY)
    errors = refusals(ranks, create, offenders, changes, text)
    for error in errors:
        assert isinstance(error, LamportError), repr(error)
    if len(offenders) == 1:
        assert f"rank {offenders[0]}" in str(errors[0])
    assert ranks.run(create, [], {}) == ["a workspace"] * 2


def test_ranks_that_would_choose_between_the_algorithms_differently_get_no_workspace():
    text = "the ranks differ in two_shot_from: rank 0 has None, rank 1 has 64"
    errors = refusals(ThreadRanks(2, patience=PROMPTLY), create, [1], {"two_shot_from": 64}, text)
    assert {type(error) for error in errors} == {LamportError}


BAD_TO_THE_CACHE = {
    "tokens in words": ({"max_tokens": "many"}, "max_tokens is 'many', but must be an integer"),
    "tokens in fractions": ({"max_tokens": 1.5}, "max_tokens is 1.5"),
    "no tokens": ({"max_tokens": None}, "max_tokens is None"),
    "a group size in words": ({"world_size": "2"}, "world_size is '2'"),
    "a rank that cannot be hashed": ({"rank": {}}, "rank is {}"),
    "memory that cannot be hashed": ({"comm_size": [4096]}, r"comm_size is \[4096\]"),
    "a device that is none": ({"device": 2**70}, "cannot serve device="),
}


def get(me: Rank, offenders: list[int], changes: dict) -> str:
    """A cached workspace with bad arguments on some ranks."""
    arguments = {"rank": me.rank, "world_size": me.world_size, "process_group": me.group, "device": "cpu"}
    lamport_rs.get_allreduce_workspace(**arguments | (changes if me.rank in offenders else {}))
    return "a workspace"


@pytest.mark.timeout(30)
@pytest.mark.parametrize("offenders", [[0, 1], [1]], ids=["on all ranks", "on rank 1"])
@pytest.mark.parametrize("name", BAD_TO_THE_CACHE)
def test_the_cache_too_raises_the_same_error_on_all_ranks_promptly(name, offenders):
    changes, text = BAD_TO_THE_CACHE[name]
    errors = refusals(ThreadRanks(2, patience=PROMPTLY), get, offenders, changes, text)
    assert {type(error) for error in errors} == {LamportError}


def create_of_other_integers(me: Rank) -> None:
    arguments = [np.int64(me.rank), torch.tensor(2), np.int32(4096), me.group]
    with lamport_rs.LamportWorkspace(*arguments, device="cpu", timeout=np.float32(7)) as workspace:
        numbers = (workspace.rank, workspace.world_size, workspace.comm_size)
        assert numbers == (me.rank, 2, 4096)
        assert {type(number) for number in numbers} == {int}
    assert len(lamport_rs.IpcBuffer(*arguments, device="cpu").peer_ptrs) == 2


def test_integers_of_other_libraries_are_integers():
    ThreadRanks(2).run(create_of_other_integers)


@pytest.mark.parametrize("size", [0, -1, 2**62])
def test_a_buffer_of_an_impossible_size_is_refused_on_every_rank(size):
    errors = errors_of(ThreadRanks(2).try_run(create_buffer, size))
    assert all(isinstance(error, LamportError) for error in errors)
    assert str(errors[0]) == str(errors[1])


def create_buffer(me: Rank, size: int) -> None:
    lamport_rs.IpcBuffer(me.rank, me.world_size, size if me.rank == 0 else 4096, me.group, device="cpu")


def test_a_buffers_errors_speak_of_its_own_arguments():
    def create(me: Rank, size: object) -> None:
        lamport_rs.IpcBuffer(me.rank, me.world_size, size if me.rank else 4096, me.group, device="cpu")

    for size, text in [(8192, "pass the same size on every rank"), ("4096", "size is '4096', but must be an integer")]:
        errors = errors_of(ThreadRanks(2).try_run(create, size))
        assert {type(error) for error in errors} == {LamportError}
        for error in errors:
            assert text in str(error)
            assert "comm_size" not in str(error)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps], ids=lambda each: each.__name__)
def test_what_owns_shared_memory_cannot_be_copied(duplicate):
    def create(me: Rank) -> tuple:
        buffer = lamport_rs.IpcBuffer(me.rank, me.world_size, 4096, me.group, device="cpu")
        return me.workspace(4096), buffer

    for each in ThreadRanks(2).run(create)[0]:
        with pytest.raises(LamportError, match="cannot be copied or pickled"):
            duplicate(each)


@pytest.mark.parametrize("pointer", [0, -4])
def test_a_fill_of_memory_at_no_address_is_refused(pointer):
    with pytest.raises(
        LamportError, match=f"device_ptr is {pointer}, but must be the address of 64 bytes on the device"
    ):
        lamport_rs.lamport_fill_neg_zero(pointer, 64)


@pytest.mark.parametrize("arguments", [(None, 64), ("0", 64), (True, 64), (4096, 1.5), (2**64, 4)])
def test_a_fill_takes_integers_only(arguments):
    with pytest.raises(LamportError, match="must be an integer of at most 64 bits"):
        lamport_rs.lamport_fill_neg_zero(*arguments)


def use_another_ranks_group(me: Rank) -> None:
    group = dist.new_group([0, 1])
    if me.rank < 2:
        return
    for create in (lamport_rs.LamportWorkspace, lamport_rs.IpcBuffer, lamport_rs.get_allreduce_workspace):
        with pytest.raises(LamportError, match="this rank is not in process_group"):
            create(0, 2, 4096, process_group=group, device="cpu")


def test_a_rank_that_is_not_in_the_group_is_told_so(ranks_of):
    ranks_of(3).run(use_another_ranks_group)


@pytest.mark.parametrize("group", ["group", 5, object(), [0, 1], torch.ones(2)], ids=lambda group: type(group).__name__)
def test_a_process_group_of_a_wrong_type_is_refused(group):
    with pytest.raises(LamportError, match=f"process_group must be .*, not {type(group).__name__}"):
        lamport_rs.LamportWorkspace(0, 2, 4096, group, device="cpu")


def test_without_any_process_group_the_error_says_what_to_call():
    with pytest.raises(LamportError, match=r"torch\.distributed\.init_process_group"):
        lamport_rs.LamportWorkspace(0, 2, 4096, device="cpu")
    with pytest.raises(LamportError, match=r"torch\.distributed\.init_process_group"):
        lamport_rs.get_allreduce_workspace(0, 2)
