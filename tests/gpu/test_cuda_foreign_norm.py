"""Kernels of the shape of a serving stack's fused norm on a workspace's table: what they need to be right.

docs/foreign_kernels.md says why; tests/gpu/foreign_race.py shows what the first of them does without a kernel between.
"""

import random

import pytest
import torch
from foreign_norm_kernel import WIDTHS, Between, ForeignNorm
from minimax_rows import Operation, bits_of, workspace_for
from ranks import SHARING, Rank
from worlds import WORLD_SIZES

TOKENS = [1, 3, 8, 64, 128, 512, 1024, 2048]
VARIANTS, CALLS = 2, 40
GRAPHS, REPLAYS = (1, 2) if SHARING else (6, 20)

WAYS = {
    "with a kernel between": {"control_after_wait": False, "between": True, "dependent": True},
    "without the attribute": {"control_after_wait": False, "between": False, "dependent": False},
    "back to back, if it reads and counts after its wait": {
        "control_after_wait": True,
        "between": False,
        "dependent": True,
    },
}


class Norms:
    """Rows of several numbers of tokens, what must come of them, and sequences of calls on them."""

    def __init__(self, me: Rank, kernel: ForeignNorm, between: Between | None, dependent: bool) -> None:
        self._kernel, self._between, self._dependent = kernel, between, dependent
        self._wrong = torch.zeros((), dtype=torch.int64, device=me.device)
        self.cases = []
        for seed, tokens in enumerate(TOKENS * VARIANTS):
            operation = Operation.random(me, tokens, WIDTHS, seed=seed)
            weight, output = torch.cat(operation.weights), torch.full_like(operation.rows, torch.nan)
            kernel(operation.rows, weight, output, dependent=False)
            torch.cuda.synchronize()
            operation.outs = list(output.split(WIDTHS, -1))
            operation.check("the calm run")
            self.cases.append((operation.rows, weight, output))

    def sequence(self, dice: random.Random) -> list[tuple]:
        """Calls in random order, each with an output of its own."""
        return [(*case, torch.empty_like(case[0])) for case in dice.choices(self.cases, k=CALLS)]

    def run(self, sequence: list[tuple]) -> None:
        """The calls, with nothing between them but what was asked for."""
        for rows, weight, _, output in sequence:
            self._kernel(rows, weight, output, dependent=self._dependent)
            if self._between:
                self._between()

    def poison(self, sequence: list[tuple]) -> None:
        for *_, output in sequence:
            output.fill_(torch.nan)

    def compare(self, sequence: list[tuple]) -> None:
        """Count on the device what is not the same bits as in the calm run."""
        for *_, expected, output in sequence:
            self._wrong += (bits_of(output) != bits_of(expected)).sum()

    def check(self, what: str) -> None:
        overtaken, missing = self._kernel.faults.tolist()
        assert (int(self._wrong), overtaken, missing) == (0, 0, 0), what


def run_norms(me: Rank, way: str) -> None:
    workspace, settings = workspace_for(me, TOKENS[-1]), WAYS[way]
    kernel = ForeignNorm(workspace.workspace, me.rank, me.world_size, control_after_wait=settings["control_after_wait"])
    between = Between(me.device) if settings["between"] else None
    norms = Norms(me, kernel, between, settings["dependent"])
    dice, own_dice = random.Random(0), random.Random(me.rank)
    for round_ in range(GRAPHS):
        sequence, graph = norms.sequence(dice), torch.cuda.CUDAGraph()
        norms.poison(sequence)
        norms.run(sequence)
        norms.compare(sequence)
        norms.check(f"eager calls of round {round_}")
        with torch.cuda.graph(graph):
            norms.run(sequence)
        for _ in range(REPLAYS):
            norms.poison(sequence)
            if own_dice.random() < 0.2:
                torch.cuda._sleep(own_dice.randrange(1_000_000))
            graph.replay()
            norms.compare(sequence)
        norms.check(f"graph of round {round_}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_norm_of_a_serving_stacks_shape_is_right(ranks_of, world_size, way):
    ranks_of(world_size).run(run_norms, way, timeout=200)
