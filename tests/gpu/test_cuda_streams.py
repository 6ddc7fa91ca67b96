"""Operations on several streams, several workspaces in one process, and operations that feed each other."""

import random
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from minimax_rows import Operation, workspace_for
from ranks import Rank
from reductions import NormedReduction, QuantisedReduction, QuantisedSum, Reduction, comm_size_for
from reference import check_same_bits
from worlds import WORLD_SIZES

SHAPES = [(1, (3072, 512)), (33, (1536,)), (140, (256, 64)), (600, (128,)), (2, (20_000,)), (8, (6144, 1024))]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MOST_BYTES = 2 << 20
SLEEP = 2_000_000
"""Cycles of a GPU: some 1 ms, in which operations that nothing orders would overtake."""


def random_operations(me: Rank, count: int, seed: int = 0) -> list[Operation]:
    shapes = [SHAPES[index % len(SHAPES)] for index in range(count)]
    return [Operation.random(me, *shape, DTYPES[index % 3], seed=seed + index) for index, shape in enumerate(shapes)]


def random_reductions(me: Rank, count: int) -> list[Reduction | NormedReduction]:
    """Sums and norms of few bytes and of many, some quantised, each in one shot and in two."""
    operations = []
    for seed in range(count):
        algorithm, dtype = ("one_shot", "two_shot")[seed // 2 % 2], DTYPES[seed % 3]
        if seed % 6 in (4, 5):
            kind = (QuantisedReduction, QuantisedSum)[seed % 2]
            operations.append(kind.random(me, 2 + 7 * seed, 1024, algorithm, seed=seed))
        elif seed % 2:
            operations.append(NormedReduction.random(me, 2 + 7 * seed, 1024, algorithm, dtype, seed=seed))
        else:
            operations.append(Reduction.random(me, 8 + 9001 * seed, algorithm, dtype, seed=seed))
    return operations


def run_in_turn(workspace, operations: list[Operation | Reduction | NormedReduction]) -> list[list[torch.Tensor]]:
    """What they give on one stream, each waited for."""
    expected = []
    for index, operation in enumerate(operations):
        operation(workspace)
        torch.cuda.synchronize()
        operation.check(f"operation {index}")
        expected.append(operation.results())
        operation.poison()
    return expected


def hop_between_streams(me: Rank, make_operations, hops: int) -> None:
    workspace, operations = me.workspace(comm_size_for(me, MOST_BYTES)), make_operations(me, 30)
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


@pytest.mark.parametrize("make_operations", [random_operations, random_reductions])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_operations_on_alternating_streams_need_no_synchronisation(ranks_of, world_size, make_operations):
    ranks_of(world_size).run(hop_between_streams, make_operations, 600)


def capture_between_two_streams(me: Rank, rounds: int) -> None:
    """An operation on one stream, one that is captured, and one on another stream, which the ranks reach in turn first:
    nothing but the library keeps each from starting with the operation that the other starts with last.
    """
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    first, captured, last = operations = [Reduction.random(me, 3000, "one_shot", seed=seed) for seed in range(3)]
    expected = run_in_turn(workspace, operations)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for round_ in range(rounds):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(streams[0]):
            if me.rank == round_ % me.world_size:
                torch.cuda._sleep(SLEEP)
            first(workspace)
        with torch.cuda.stream(streams[1]):
            # Unlike torch.cuda.graph, it does not wait for the device.
            graph.capture_begin(capture_error_mode="thread_local")
            captured(workspace)
            graph.capture_end()
        with torch.cuda.stream(streams[2]):
            last(workspace)
        torch.cuda.synchronize()
        for operation, results in zip((first, last), (expected[0], expected[2]), strict=True):
            operation.check_against(results, f"round {round_}")
            operation.poison()
        graph.replay()
        captured.check_against(expected[1], f"the graph of round {round_}")
        captured.poison()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_capture_does_not_part_the_operations_around_it(ranks_of, world_size):
    ranks_of(world_size).run(capture_between_two_streams, 6)


def leave_a_stream_that_is_being_captured(me: Rank) -> bool:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    operation, stream = Reduction.random(me, 3000, "one_shot"), torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        operation(workspace)
        torch.cuda.synchronize()  # All have come: none hears of a refusal in this one.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            # A rank that comes later hears of a peer's refusal instead.
            with (
                torch.cuda.stream(torch.cuda.Stream()),
                pytest.raises(LamportError, match="cannot follow it from another stream") as refusal,
            ):
                operation(workspace)
        finally:
            graph.capture_end()
    torch.cuda.synchronize()
    with pytest.raises(LamportError, match=r"failed earlier|cannot follow it from another stream"):
        operation(workspace)
    return "next time end the capture first" in str(refusal.value)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_that_cannot_follow_the_last_one_is_refused(ranks_of, world_size):
    assert any(ranks_of(world_size).run(leave_a_stream_that_is_being_captured))


def repeat_links(links: list[Operation | Reduction | NormedReduction], workspace, rounds: int) -> None:
    """Operations that were done once, each with the results of the one before, with nothing between them."""
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
        repeat_links(links, workspace, rounds)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_sees_what_the_one_before_it_wrote(ranks_of, world_size):
    ranks_of(world_size).run(read_what_the_one_before_wrote, 20)


def reduce_what_was_reduced_before(me: Rank, algorithm: str, rounds: int) -> None:
    """Sums and norms that are each other's input, with nothing between; a norm's rows stay of one size."""
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    for tokens, hidden in [(1, 1024), (3, 4096), (40, 2048), (130, 1024), (64, 8192)]:
        links: list[Reduction | NormedReduction] = []
        for index in range(9):
            if index % 3 == 1:
                links.append(Reduction.random(me, tokens * hidden, algorithm, torch.float32, seed=index))
            else:
                links.append(NormedReduction.random(me, tokens, hidden, algorithm, torch.float32, seed=index))
        for first, second in pairwise(links):
            second.rows = first.out.view(second.rows.shape)
        for link in links:
            link(workspace)
            torch.cuda.synchronize()
            link.check("a link")
        repeat_links(links, workspace, rounds)


@pytest.mark.parametrize("algorithm", ["one_shot", "two_shot"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_reduction_sees_what_the_one_before_it_wrote(ranks_of, world_size, algorithm):
    ranks_of(world_size).run(reduce_what_was_reduced_before, algorithm, 20)


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
