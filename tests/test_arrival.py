"""A message whose words arrive one by one, in any order and with pauses: it is taken when it is whole, and not before.

Rank 0 runs an operation; rank 1 does not, but stores the words that it would have pushed, which it has read where it
pushed them in an operation on the same inputs.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.distributed as dist
from foreign_kernel import memory_at
from lamport_rs import LamportTimeoutError
from minimax_rows import Operation
from moe_reductions import FinalisedNorm
from ranks import SHARING, Rank
from reductions import NormedReduction, QuantisedReduction, QuantisedSum, Reduction
from reference import SENTINEL

COMM_SIZE = 1 << 16
HEADER_BYTES = 64
TIMEOUT = 15.0 if SHARING else 1.5
HEAD_START = 0.02
"""Seconds that rank 0 has to come to its wait."""
LEFT_OUT = 1
"""A word that is not the first of its vector."""

OPERATIONS = {
    "sum in one shot": lambda me: Reduction.random(me, 250, "one_shot"),
    "sum in two shots": lambda me: Reduction.random(me, 250, "two_shot"),
    "norm in one shot": lambda me: NormedReduction.random(me, 3, 128, "one_shot"),
    "quantised norm in one shot": lambda me: QuantisedReduction.random(me, 3, 128, "one_shot", "fp8_group"),
    "norm of experts' rows in one shot": lambda me: FinalisedNorm.random(me, 3, 128),
    "quantised sum in one shot": lambda me: QuantisedSum.random(me, 3, 128, "one_shot"),
    "MiniMax, one matrix": lambda me: Operation.random(me, 150, (64,)),
    "MiniMax, Q and K": lambda me: Operation.random(me, 70, (64, 16)),
    "MiniMax, wide rows": lambda me: Operation.random(me, 6, (20_000,)),
}


def read_words(address: int, count: int) -> torch.Tensor:
    """Int32 words of shared memory. On GPUs tests read and write through the driver instead."""
    return torch.from_numpy(memory_at(address, count, np.int32).copy())


def write_words(address: int, words: list[int]) -> None:
    memory_at(address, len(words), np.int32)[:] = words


def region_of_rank_1(me: Rank, workspace, read: Callable) -> tuple[int, int]:
    """Where rank 1 pushes to rank 0 in the first slot, and how many words the last operation's regions had."""
    entries = workspace.workspace.tolist()
    extent = int(read(entries[3 * me.world_size + 1], 2).view(torch.int64))
    region_bytes = extent // me.world_size
    return entries[2 * me.world_size] + region_bytes, region_bytes // 4


def header_of_rank_1(me: Rank, workspace, slot: int) -> int:
    """Where rank 1 tells rank 0 what operation it runs: behind the slots, a line for each slot and rank."""
    base = workspace.workspace.tolist()[2 * me.world_size]
    return base + 3 * COMM_SIZE + (slot * me.world_size + 1) * HEADER_BYTES


def trickle(words: dict[int, int], dice: random.Random, write: Callable) -> None:
    """Store words, by address, in random order, some at once and some after a pause."""
    order = [address for address, word in words.items() if word != SENTINEL]
    dice.shuffle(order)
    for address in order:
        write(address, [words[address]])
        if dice.random() < 0.1:
            time.sleep(dice.uniform(0, 0.002))


def receive_word_by_word(me: Rank, make: Callable, left_out: bool, read=read_words, write=write_words) -> str:
    workspace, step = me.workspace(COMM_SIZE, timeout=TIMEOUT), make(me)
    step(workspace)
    step.check("pushed by an operation")
    expected = step.results()
    address, count = region_of_rank_1(me, workspace, read)
    words = read(address, count).tolist()
    number, *rest = read(header_of_rank_1(me, workspace, 0), 4).tolist()
    step.poison()
    dist.barrier()
    if me.rank == 0:
        outcome = receive(step, workspace, expected)
    else:
        assert words[LEFT_OUT] != SENTINEL
        if left_out:
            words[LEFT_OUT] = SENTINEL
        time.sleep(HEAD_START)
        # The next operation, of the next number, in the next slot.
        begin = header_of_rank_1(me, workspace, 1)
        told = {begin + 4 * index: word for index, word in enumerate([number + 1, *rest])}
        pushed = {address + COMM_SIZE + 4 * index: word for index, word in enumerate(words)}
        trickle({**told, **pushed}, random.Random(0), write)
        outcome = "sent"
    dist.barrier()  # Rank 0 may push to rank 1 until it has ended.
    return outcome


def receive(step: Reduction | NormedReduction | Operation, workspace, expected: list[torch.Tensor]) -> str:
    try:
        step(workspace)
        workspace.synchronize()
    except LamportTimeoutError as error:
        return f"missed {error.missing_ranks}"
    step.check_against(expected, "word by word")
    return "right"


def by_name(me: Rank, name: str, left_out: bool) -> str:
    return receive_word_by_word(me, OPERATIONS[name], left_out)


@pytest.mark.parametrize("name", OPERATIONS)
def test_words_may_arrive_in_any_order_and_at_any_time(ranks_of, name):
    assert ranks_of(2).run(by_name, name, False) == ["right", "sent"]


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_message_is_not_taken_before_its_last_word(ranks_of, name):
    """The planted defect: one word in the middle of a vector never comes."""
    assert ranks_of(2).run(by_name, name, True) == ["missed (1,)", "sent"]
