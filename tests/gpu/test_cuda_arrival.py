"""A message whose words arrive one by one, in any order and with pauses: lanes of a warp find theirs at other times.

Rank 0 runs an operation; rank 1 does not, but stores the words that it would have pushed, which it has read where it
pushed them in an operation on the same inputs.
"""

import random
import time

import driver
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportTimeoutError
from minimax_rows import Operation
from ranks import Rank
from reductions import NormedReduction, Reduction
from reference import SENTINEL

COMM_SIZE = 1 << 16
TIMEOUT = 3.0
LEFT_OUT = 1
"""A word that is not the first of its vector."""

OPERATIONS = {
    "sum in one shot": lambda me: Reduction.random(me, 250, "one_shot"),
    "sum in two shots": lambda me: Reduction.random(me, 250, "two_shot"),
    "norm in one shot": lambda me: NormedReduction.random(me, 3, 128, "one_shot"),
    "norm in two shots": lambda me: NormedReduction.random(me, 4, 128, "two_shot"),
    "MiniMax, one matrix": lambda me: Operation.random(me, 150, (64,)),
    "MiniMax, Q and K": lambda me: Operation.random(me, 70, (64, 16)),
    "MiniMax, wide rows": lambda me: Operation.random(me, 6, (20_000,)),
}


def region_of_rank_1(me: Rank, workspace) -> tuple[int, int]:
    """Where rank 1 pushes to rank 0 in the first slot, and how many words the last operation's regions had."""
    entries = workspace.workspace.tolist()
    extent = int(driver.read_words(entries[3 * me.world_size + 1], 2).view(torch.int64))
    region_bytes = extent // me.world_size
    return entries[2 * me.world_size] + region_bytes, region_bytes // 4


def trickle(address: int, words: list[int], own_dice: random.Random) -> None:
    """Store words in random order, some at once and some after a pause."""
    order = [index for index, word in enumerate(words) if word != SENTINEL]
    own_dice.shuffle(order)
    for index in order:
        driver.write_words(address + 4 * index, [words[index]])
        if own_dice.random() < 0.1:
            time.sleep(own_dice.uniform(0, 0.002))


def receive_word_by_word(me: Rank, name: str, left_out: bool) -> str:
    workspace, step = me.workspace(COMM_SIZE, timeout=TIMEOUT), OPERATIONS[name](me)
    step(workspace)
    step.check("pushed by a kernel")
    expected = step.results()
    address, count = region_of_rank_1(me, workspace)
    words = driver.read_words(address, count).tolist()
    dist.barrier()
    if me.rank == 0:
        step.poison()
        torch.cuda.synchronize()
        dist.barrier()
        step(workspace)
        dist.barrier()
        try:
            workspace.synchronize()
        except LamportTimeoutError as error:
            return f"missed {error.missing_ranks}"
        step.check_against(expected, "word by word")
        return "right"
    dist.barrier()
    assert words[LEFT_OUT] != SENTINEL
    if left_out:
        words[LEFT_OUT] = SENTINEL
    trickle(address + COMM_SIZE, words, random.Random(name))
    dist.barrier()
    return "sent"


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.gpu(2)
def test_words_may_arrive_in_any_order_and_at_any_time(ranks_of, name):
    assert ranks_of(2).run(receive_word_by_word, name, False) == ["right", "sent"]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.gpu(2)
def test_a_message_is_not_taken_before_its_last_word(ranks_of, name):
    """The planted defect: one word in the middle of a vector never comes."""
    assert ranks_of(2).run(receive_word_by_word, name, True) == ["missed (1,)", "sent"]
