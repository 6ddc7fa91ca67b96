"""Kernels of serving stacks read the pointer table: one such kernel runs on a workspace, unmodified."""

import random

import pytest
import torch
from foreign_cuda_kernel import ForeignSum
from minimax_rows import bits_of
from ranks import Rank
from worlds import WORLD_SIZES

COMM_SIZE = 1 << 20
VARIANTS = 8


def contribution(rank: int, elements: int, variant: int, device: torch.device) -> torch.Tensor:
    """Eighths, whose sums are exact; every zero is the sentinel."""
    index = torch.arange(elements, device=device)
    values = ((index * 7 + variant * 13 + rank * 5) % 101 - 50) / 8
    return values.float().masked_fill(values == 0, -0.0)


class Sums:
    """A few sizes, each with several contributions and what their sums must be."""

    def __init__(self, me: Rank) -> None:
        most = COMM_SIZE // me.world_size // 4
        self.sizes = [4, 8, 100, 1024, 10_000, most]
        self.outputs = {size: torch.empty(size, device=me.device) for size in self.sizes}
        self.inputs, self.expected = {}, {}
        for size in self.sizes:
            for variant in range(VARIANTS):
                every = [contribution(rank, size, variant, me.device) for rank in range(me.world_size)]
                self.inputs[size, variant] = every[me.rank]
                # +0.0 where all contributions are zero, as a scrubbed zero is positive.
                self.expected[size, variant] = sum(torch.where(each == 0, 0.0, each) for each in every)

    def step(self, kernel: ForeignSum, dice: random.Random) -> torch.Tensor:
        """One sum, and how many of its elements are wrong."""
        size, variant = dice.choice(self.sizes), dice.randrange(VARIANTS)
        output = self.outputs[size].fill_(torch.nan)
        kernel(self.inputs[size, variant], output, blocks=dice.choice([1, 2, 7, 32]))
        return (bits_of(output) != bits_of(self.expected[size, variant])).sum()


def run_foreign_kernel(me: Rank, eager: int, replays: int) -> None:
    workspace = me.workspace(COMM_SIZE)
    kernel = ForeignSum(workspace.workspace, me.rank, me.world_size)
    sums, dice, wrong = Sums(me), random.Random(0), []
    torch.cuda.synchronize()
    wrong += [sums.step(kernel, dice) for _ in range(eager)]
    total, graphs = torch.zeros((), dtype=torch.int64, device=me.device), []
    for _ in range(3):
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            for _ in range(20):
                total += sums.step(kernel, dice)
    for _ in range(replays):
        dice.choice(graphs).replay()
        wrong.append(sums.step(kernel, dice))
    bad = torch.stack(wrong).nonzero().flatten().tolist()
    assert not bad, f"{len(bad)} of {len(wrong)} eager sums are wrong; the first are {bad[:10]}"
    assert int(total) == 0, "a sum in a graph was wrong"


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_cuda_kernel_that_knows_only_the_table_works(ranks_of, world_size):
    ranks_of(world_size).run(run_foreign_kernel, 4000, 200)
