"""Operations on several streams, several workspaces in one process, and operations that feed each other."""

import random
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reference import check_same_bits
from worlds import WORLD_SIZES

SHAPES = [(1, (3072, 512)), (33, (1536,)), (140, (256, 64)), (600, (128,)), (2, (20_000,)), (8, (6144, 1024))]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SLEEP = 2_000_000
"""Cycles of a GPU: some 1 ms, in which operations that nothing orders would overtake."""


def random_operations(me: Rank, count: int, seed: int = 0) -> list[Operation]:
    shapes = [SHAPES[index % len(SHAPES)] for index in range(count)]
    return [Operation.random(me, *shape, DTYPES[index % 3], seed=seed + index) for index, shape in enumerate(shapes)]


def run_in_turn(workspace, operations: list[Operation]) -> list[list[torch.Tensor]]:
    """What they give on one stream, each waited for."""
    expected = []
    for index, operation in enumerate(operations):
        operation(workspace)
        torch.cuda.synchronize()
        operation.check(f"operation {index}")
        expected.append(operation.results())
        operation.poison()
    return expected


def hop_between_streams(me: Rank, hops: int) -> None:
    workspace, operations = workspace_for(me, 1024), random_operations(me, 30)
    expected = run_in_turn(workspace, operations)
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    own_dice = random.Random(me.rank)
    for start in range(0, hops, len(operations)):
        torch.cuda.synchronize()
        for index, operation in enumerate(operations):
            with torch.cuda.stream(streams[(index + start // 7) % 3]):
                if own_dice.random() < 0.3:
                    torch.cuda._sleep(SLEEP)
                operation(workspace)
        torch.cuda.synchronize()
        for index, operation in enumerate(operations):
            operation.check_against(expected[index], f"hop {start + index}")
            operation.poison()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_operations_on_alternating_streams_need_no_synchronisation(ranks_of, world_size):
    ranks_of(world_size).run(hop_between_streams, 600)


def read_what_the_one_before_wrote(me: Rank, rounds: int) -> None:
    """A chain in which each operation's input is the last one's output, without a pause and with one after each."""
    workspace = workspace_for(me, 1024)
    for tokens, width in [(1, 3072), (33, 1536), (140, 1024), (600, 128), (3, 20_000)]:
        links = [Operation.random(me, tokens, (width,), torch.float32, seed=index) for index in range(8)]
        for first, second in pairwise(links):
            second.rows = first.outs[0]
        for link in links:
            link(workspace)
            torch.cuda.synchronize()
        links[0].check("the first link")
        links[-1].check("the last link")
        expected = [link.results() for link in links]
        for round_ in range(rounds):
            for link in links:
                link.poison()
            for link in links:
                link(workspace)
            # A reader that is not ours, straight after.
            copies = [link.results() for link in links]
            torch.cuda.synchronize()
            for index, link in enumerate(links):
                link.check_against(expected[index], f"round {round_}, link {index}")
                check_same_bits(copies[index][0], expected[index][0], f"round {round_}, copy of link {index}")


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_sees_what_the_one_before_it_wrote(ranks_of, world_size):
    ranks_of(world_size).run(read_what_the_one_before_wrote, 20)


def groups_of(me: Rank) -> list[Rank]:
    """This rank's part in two groups of all ranks, and in one of two neighbours."""
    members = []
    for _ in range(2):
        members.append(Rank(me.rank, me.world_size, me.device, dist.new_group()))
    for first in range(0, me.world_size, 2):
        group = dist.new_group([first, first + 1])
        if first == me.rank // 2 * 2:
            members.append(Rank(me.rank - first, 2, me.device, group))
    return members


def interleave_workspaces(me: Rank, rounds: int) -> None:
    members = groups_of(me)
    workspaces = [workspace_for(member, 1024) for member in members]
    operations = [random_operations(member, 12, 100 * which) for which, member in enumerate(members)]
    expected = [run_in_turn(*pair) for pair in zip(workspaces, operations, strict=True)]
    streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
    dice = random.Random(1)
    for round_ in range(rounds):
        torch.cuda.synchronize()
        for index in range(12):
            for which in dice.sample(range(3), 3):
                # One stream for all workspaces in even rounds, and one each in odd ones.
                with torch.cuda.stream(streams[which if round_ % 2 else 0]):
                    operations[which][index](workspaces[which])
        torch.cuda.synchronize()
        for which in range(3):
            for index, operation in enumerate(operations[which]):
                operation.check_against(expected[which][index], f"round {round_}, workspace {which}")
                operation.poison()
    for member in members:
        dist.destroy_process_group(member.group)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_workspaces_of_several_groups_do_not_disturb_each_other(ranks_of, world_size):
    ranks_of(world_size).run(interleave_workspaces, 30)
