"""Mappings are proved while a workspace is made: every rank's of every peer, not only the first."""

import os
import struct
from itertools import permutations

import lamport_rs
import pytest
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks, errors_of

WORLD_SIZE = 3
LENGTH_OFFSET, PAYLOAD_OFFSET = 28, 32
"""Where a message has its payload's length, and the payload: rust/core/src/exchange/message.rs."""


def spoil_handle(message: bytes) -> bytes:
    """A block's handle begins with the owner's process and its descriptor of the file: another descriptor."""
    descriptor = message.index(struct.pack("<I", os.getpid()), PAYLOAD_OFFSET) + 4
    return message[:descriptor] + struct.pack("<i", 2) + message[descriptor + 4 :]


@pytest.mark.parametrize(("reader", "owner"), list(permutations(range(WORLD_SIZE), 2)))
def test_a_mapping_that_is_wrong_for_one_pair_is_an_error_on_every_rank(reader, owner):
    def create(me: Rank) -> None:
        steps = iter(range(100))

        def all_gather(message: bytes) -> list[bytes]:
            gathered = list(me.group(message))
            if me.rank == reader and next(steps) == 0:
                gathered[owner] = spoil_handle(gathered[owner])
            return gathered

        lamport_rs.LamportWorkspace(me.rank, me.world_size, 4096, all_gather, device="cpu")

    errors = errors_of(ThreadRanks(WORLD_SIZE, patience=10).try_run(create))
    assert all(isinstance(error, LamportError) for error in errors), errors
    assert len({str(error) for error in errors}) == 1
    assert f"rank {reader}: cannot map the memory of rank {owner}" in str(errors[0])
