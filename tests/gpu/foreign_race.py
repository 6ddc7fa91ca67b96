"""How often a norm of a serving stack's shape races with the next of its kind, on two GPUs:

    python tests/gpu/foreign_race.py [replays]

It is no test: how often depends on the machine. Each graph has sixty calls back to back, each of which may start before
the one before has ended. The kernel that reads the control words and counts itself in after its wait is the comparison,
and must have no fault at all; the exit status says so. docs/foreign_kernels.md says what the faults are.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from foreign_norm_kernel import WIDTHS, ForeignNorm
from minimax_rows import Operation, bits_of, workspace_for
from ranks import ProcessRanks, Rank, one_gpu_per_rank

WORLD_SIZE = 2
TOKENS = [128, 512, 1024, 2048]
CALLS, REPLAYS = 60, 200
PATIENCE_MICROSECONDS = 2000
KINDS = {False: "before its wait", True: "after its wait"}


class Race:
    """A graph of calls on a workspace of its own: what a fault leaves behind is of no use to the next replay."""

    def __init__(self, me: Rank, tokens: int, control_after_wait: bool) -> None:
        self._workspace = workspace_for(me, tokens)
        operations = [Operation.random(me, tokens, WIDTHS, seed=seed) for seed in range(4)]
        self._inputs = [(each.rows, torch.cat(each.weights)) for each in operations]
        self._outputs = [torch.empty_like(operations[0].rows) for _ in range(CALLS)]
        self._kernel = ForeignNorm(
            self._workspace.workspace,
            me.rank,
            me.world_size,
            control_after_wait=control_after_wait,
            patience_microseconds=PATIENCE_MICROSECONDS,
        )
        self._run(dependent=False, synchronise=True)
        self._expected = [output.clone() for output in self._outputs]
        torch.cuda.synchronize()
        dist.barrier()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._run(dependent=True)

    def _run(self, *, dependent: bool, synchronise: bool = False) -> None:
        for index, output in enumerate(self._outputs):
            rows, weight = self._inputs[index % len(self._inputs)]
            self._kernel(rows, weight, output, dependent=dependent)
            if synchronise:
                torch.cuda.synchronize()

    def replay(self) -> tuple[int, int, int]:
        """On any rank: counts overtaken, data that did not come, and results that are wrong. A collective call."""
        for output in self._outputs:
            output.fill_(torch.nan)
        torch.cuda.synchronize()
        dist.barrier()
        self._graph.replay()
        pairs = zip(self._outputs, self._expected, strict=True)
        wrong = sum(int((bits_of(output) != bits_of(each)).any()) for output, each in pairs)
        faults = torch.tensor([*self._kernel.faults.tolist(), wrong])
        dist.all_reduce(faults)
        return tuple(faults.tolist())


def count_faults(me: Rank, tokens: int, control_after_wait: bool, replays: int) -> list[int]:
    """Replays in which a count was overtaken, in which data did not come, and in which results were wrong."""
    race, counts = None, [0, 0, 0]
    for _ in range(replays):
        race = race or Race(me, tokens, control_after_wait)
        faults = race.replay()
        counts = [count + (fault > 0) for count, fault in zip(counts, faults, strict=True)]
        if any(faults):
            race = None
    return counts


def main(arguments: list[str]) -> int:
    """Print a line for each size and kernel."""
    replays = int(arguments[0]) if arguments else REPLAYS
    if torch.cuda.device_count() < WORLD_SIZE:
        print(f"needs {WORLD_SIZE} CUDA GPUs, and there are {torch.cuda.device_count()}")
        return 2
    ranks, right = ProcessRanks(WORLD_SIZE, one_gpu_per_rank), True
    print(f"of {replays} replays of {CALLS} calls back to back: with a count overtaken, data missing, results wrong")
    for control_after_wait, kind in KINDS.items():
        for tokens in TOKENS:
            counts = ranks.run(count_faults, tokens, control_after_wait, replays, timeout=300)[0]
            right &= not (control_after_wait and any(counts))
            print(f"control words read {kind}, {tokens:4} tokens: {counts}", flush=True)
    ranks.kill()
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
