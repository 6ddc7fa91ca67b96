"""Kernels that read an operation's results right behind it.

The package's kernels let the next kernel in before their results are complete. What is launched in the usual way starts
when they are; what asks to be let in early must wait for the grid before it, and sees them then.
"""

import pytest
import torch
import torch.distributed as dist
from compiler import Kernel
from minimax_rows import Operation
from moe_reductions import FinalisedNorm, FinalisedReduction
from ranks import Rank
from reductions import NormedReduction, QuantisedReduction, QuantisedSum, Reduction
from soak_programs import POISON, outputs_of, with_outputs
from worlds import WORLD_SIZES

COMM_SIZE = 1 << 20
ROUNDS = 20
LATE_CYCLES = 2_000_000
"""About a millisecond: results of the other ranks are incomplete for so long."""
THREADS = 256

SOURCE = r"""
extern "C" __global__ void reader(const unsigned* source, unsigned* target, int count) {
#if WAITS && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    for (int at = threadIdx.x; at < count; at += blockDim.x) target[at] = source[at];
}
"""

OPERATIONS = {
    "sum in one shot": lambda me: Reduction.random(me, 3000, "one_shot"),
    "sum in two shots": lambda me: Reduction.random(me, 3000, "two_shot"),
    "norm in one shot": lambda me: NormedReduction.random(me, 8, 512, "one_shot"),
    "norm in two shots": lambda me: NormedReduction.random(me, 8, 512, "two_shot"),
    "quantised norm in one shot": lambda me: QuantisedReduction.random(me, 8, 512, "one_shot", "fp8_group"),
    "quantised norm in two shots": lambda me: QuantisedReduction.random(me, 8, 512, "two_shot"),
    "sum of experts' rows in one shot": lambda me: FinalisedReduction.random(me, 8, 512),
    "norm of experts' rows in one shot": lambda me: FinalisedNorm.random(me, 8, 512),
    "quantised sum in one shot": lambda me: QuantisedSum.random(me, 8, 512, "one_shot"),
    "quantised sum in two shots": lambda me: QuantisedSum.random(me, 8, 512, "two_shot", "fp8_group"),
    "MiniMax, one matrix": lambda me: Operation.random(me, 33, (512,)),
    "MiniMax, Q and K": lambda me: Operation.random(me, 33, (512, 64)),
    "MiniMax, wide rows": lambda me: Operation.random(me, 3, (20_000,)),
}
READERS = {
    # name: (has the attribute, waits)
    "in the usual way": (False, False),
    "early, waiting": (True, True),
    "early, not waiting": (True, False),
}


def read_results(me: Rank, name: str, way: str) -> int | None:
    """In how many rounds the reader found something else than the results; None where nothing starts early."""
    dependent, waits = READERS[way]
    if dependent and torch.cuda.get_device_capability(me.device) < (9, 0):
        return None
    workspace, step = me.workspace(COMM_SIZE), OPERATIONS[name](me)
    step(workspace)
    step.check("the calm run")
    # All outputs side by side, so that one reader reads them all.
    words = torch.full((sum(each.nbytes for each in step.results()) // 4,), POISON, dtype=torch.int32, device=me.device)
    pieces = words.split([each.nbytes // 4 for each in step.results()])
    views = [piece.view(like.dtype).view(like.shape) for piece, like in zip(pieces, outputs_of(step), strict=True)]
    expected = torch.cat([each.view(-1).view(torch.int32) for each in step.results()])
    step = with_outputs(step, views)
    seen, kernel = torch.empty_like(words), Kernel(f"#define WAITS {int(waits)}\n{SOURCE}", "reader")
    stale = 0
    for round_ in range(ROUNDS):
        words.fill_(POISON)
        seen.zero_()
        torch.cuda.synchronize()
        dist.barrier()
        if me.rank == round_ % me.world_size:
            torch.cuda._sleep(LATE_CYCLES)
        step(workspace)
        kernel(1, THREADS, words, seen, words.numel(), dependent=dependent)
        # A kernel that does not wait must have no other behind it that relies on it.
        torch.cuda.synchronize()
        assert torch.equal(words, expected), f"round {round_}: the results themselves are wrong"
        stale += not torch.equal(seen, expected)
    return stale


@pytest.mark.parametrize("way", ["in the usual way", "early, waiting"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_kernel_right_behind_an_operation_sees_its_results(ranks_of, world_size, name, way):
    stale = ranks_of(world_size).run(read_results, name, way)
    if None in stale:
        pytest.skip("before Hopper no kernel starts early")
    assert stale == [0] * world_size


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_kernel_that_does_not_wait_would_be_noticed(ranks_of, world_size, name):
    """The planted defect: a reader that is let in early and reads at once."""
    stale = ranks_of(world_size).run(read_results, name, "early, not waiting")
    if None in stale:
        pytest.skip("before Hopper no kernel starts early")
    assert sum(stale) > 0
