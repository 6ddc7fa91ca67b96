"""A long run of one workspace: operations, shapes, dtypes, eager calls and graphs mixed, with ranks early and late.

Every result is compared, on the device, with the bits that the same rows gave the first time, and those with a
reference.
"""

import random
import time

import pytest
import torch
from minimax_rows import WEIGHTS, Operation
from ranks import SHARING, Rank
from reductions import ALGORITHMS, NormedReduction, Reduction, comm_size_for, repeat
from reference import digest
from worlds import GROUP_SIZES

OPERATIONS, BACK_TO_BACK = (1000, 1000) if SHARING else (100_000, 50_000)
GRAPHS, OPERATIONS_PER_GRAPH = 12, 16
VARIANTS = 3
MOST_BYTES = 1 << 20
MINIMAX = [
    *[(1, (3072,)), (4, (1536,)), (17, (64,)), (140, (1536,)), (300, (256,)), (600, (128,)), (2, (20_000,))],
    *[(1, (768, 128)), (8, (3072, 512)), (140, (1536, 256)), (1000, (128, 64)), (3, (8200, 520)), (33, (24, 8))],
]
SUMS = [
    *[(1, "auto"), (13, "two_shot"), (2048, "one_shot"), (3001, "two_shot"), (16_384, "auto"), (40_003, "two_shot")],
    *[(40_003, "one_shot"), (200_000, "auto"), (262_144, "one_shot"), (262_144, "two_shot")],
]
NORMS = [
    *[(1, 4096, "auto"), (1, 2048, "two_shot"), (7, 64, "one_shot"), (5, 8200, "one_shot"), (5, 8200, "two_shot")],
    *[(33, 1024, "two_shot"), (64, 2048, "auto"), (300, 256, "two_shot"), (1500, 128, "one_shot")],
]


def makers() -> list:
    """For each shape, what makes the operation from rank, dtypes and seed."""
    return [
        *(lambda me, dtypes, seed, shape=shape: Operation.random(me, *shape, *dtypes, seed=seed) for shape in MINIMAX),
        *(lambda me, dtypes, seed, shape=shape: Reduction.random(me, *shape, dtypes[0], seed=seed) for shape in SUMS),
        *(lambda me, dtypes, seed, shape=shape: NormedReduction.random(me, *shape, *dtypes, seed) for shape in NORMS),
    ]


class Case:
    """One operation with several sets of rows, and the bits that each gives."""

    def __init__(self, me: Rank, make, dtypes: tuple, seed: int, workspace) -> None:
        """The first set is the same on every rank, weights included; of the others each rank has its own."""
        impartial = Rank(0, me.world_size, me.device)
        members = [impartial] + [me] * (VARIANTS - 1)
        self.variants = [make(member, dtypes, 100 * seed + index) for index, member in enumerate(members)]
        self.expected = []
        for operation in self.variants:
            operation.me = me
            operation.poison()
            operation(workspace)
            operation.check("the first time")
            self.expected.append(operation.results())

    def run(self, workspace, dice: random.Random) -> torch.Tensor:
        """One operation, and how many elements came out as other bits."""
        variant = dice.randrange(VARIANTS)
        operation = self.variants[variant]
        operation.poison()
        operation(workspace)
        return operation.differences(self.expected[variant])


def dawdle(own_dice: random.Random) -> None:
    """Ranks come early and late, on the processor and on the GPU."""
    chance = own_dice.random()
    if chance < 0.001:
        time.sleep(own_dice.uniform(0, 0.003))
    elif chance < 0.003:
        torch.cuda._sleep(own_dice.randrange(1_000_000))


def mix_operations(me: Rank, count: int) -> tuple[str, float]:
    workspace = me.workspace(comm_size_for(me, MOST_BYTES))
    dice, own_dice = random.Random(0), random.Random(1000 + me.rank)
    cases = [
        Case(me, make, dtypes, len(WEIGHTS) * number + index, workspace)
        for number, make in enumerate(makers())
        for index, dtypes in enumerate(WEIGHTS)
        if (number + index) % 2 == 0
    ]
    impartial = [result.cpu() for case in cases for result in case.expected[0]]
    wrong, graphs = torch.zeros((), dtype=torch.int64, device=me.device), []
    for _ in range(GRAPHS):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(OPERATIONS_PER_GRAPH):
                wrong += dice.choice(cases).run(workspace, dice)
        graphs.append(graph)
    done, next_look, started = 0, 0, time.monotonic()
    while done < count:
        dawdle(own_dice)
        if dice.random() < 0.05:
            dice.choice(graphs).replay()
            done += OPERATIONS_PER_GRAPH
        else:
            wrong += dice.choice(cases).run(workspace, dice)
            done += 1
        if done >= next_look:
            next_look += 5000
            assert int(wrong) == 0, f"{int(wrong)} elements are other bits than the first time, after {done} operations"
            fresh = dice.choice(makers())(me, dice.choice(WEIGHTS), done)
            fresh(workspace)
            fresh.check(f"after {done} operations")
    workspace.synchronize()
    assert int(wrong) == 0, f"{int(wrong)} elements are other bits than the first time"
    return digest(*impartial), time.monotonic() - started


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_any_mix_of_operations_on_one_workspace_gives_the_same_bits(ranks_of, world_size, capsys):
    outcomes = ranks_of(world_size).run(mix_operations, OPERATIONS, timeout=200)
    assert len({found for found, _ in outcomes}) == 1, "the same rows gave other bits on other ranks"
    with capsys.disabled():
        print(f"\n{OPERATIONS} operations on {world_size} ranks: {max(seconds for _, seconds in outcomes):.1f} s")


def hurry(me: Rank, count: int) -> None:
    """Nothing but operations, so that fast ranks run ahead as far as the protocol lets them."""
    workspace = me.workspace(comm_size_for(me, 1 << 16))
    operations = [
        *(Operation.random(me, 1 + 9 * seed, (256, 64), seed=seed) for seed in range(4)),
        *(Reduction.random(me, 1 + 900 * seed, ALGORITHMS[seed % 2], seed=seed) for seed in range(4)),
        *(NormedReduction.random(me, 1 + seed, 512, ALGORITHMS[seed % 2], seed=seed) for seed in range(3)),
    ]
    repeat(operations, workspace, (index % len(operations) for index in range(count)), f"after {count} operations")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_operations_back_to_back_do_not_overtake_each_other(ranks_of, world_size):
    ranks_of(world_size).run(hurry, BACK_TO_BACK)
