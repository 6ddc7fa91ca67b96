"""Mappings are proved while a workspace is made: every rank's of every peer, not only the first."""

import dataclasses
from itertools import permutations

import lamport_rs
import pytest
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks, errors_of
from wire import FIRST_STEP, Hello, HostHandle, content_of
from wire import message as encode

WORLD_SIZE = 3


def spoil_handle(message: bytes, sender: int) -> bytes:
    """The handle names another descriptor of the owner's."""
    hello = Hello.decode(content_of(message))
    handle = dataclasses.replace(HostHandle.decode(hello.handle), descriptor=2)
    return encode(FIRST_STEP, sender, dataclasses.replace(hello, handle=handle.encode()).encode())


@pytest.mark.parametrize(("reader", "owner"), list(permutations(range(WORLD_SIZE), 2)))
def test_a_mapping_that_is_wrong_for_one_pair_is_an_error_on_every_rank(reader, owner):
    def create(me: Rank) -> None:
        steps = iter(range(100))

        def all_gather(message: bytes) -> list[bytes]:
            gathered = list(me.group(message))
            if me.rank == reader and next(steps) == 0:
                gathered[owner] = spoil_handle(gathered[owner], owner)
            return gathered

        lamport_rs.LamportWorkspace(me.rank, me.world_size, 4096, all_gather, device="cpu")

    errors = errors_of(ThreadRanks(WORLD_SIZE, patience=10).try_run(create))
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    assert f"rank {reader}: cannot map the memory of rank {owner}" in str(errors[0])
