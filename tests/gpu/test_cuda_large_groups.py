"""Groups of more ranks than a test machine has GPUs: the kernels that are compiled for 8 and 16 ranks.

On a machine with fewer GPUs they run where the ranks may share one (`LAMPORT_RS_SHARE_GPU=1`).
"""

from itertools import product

import pytest
from minimax_rows import WEIGHTS, Operation, workspace_for
from ranks import Rank
from reductions import ALGORITHMS, NormedReduction, Reduction, comm_size_for, repeat, run_checked
from reference import DTYPES
from worlds import LARGE_GROUP_SIZES

VECTOR_BYTES = 16


def sum_everything(me: Rank, dtype) -> None:
    """Fewer vectors than ranks, as many, one more, and several blocks; with and without a partial vector."""
    vectors = (1, me.world_size - 1, me.world_size, me.world_size + 1, 1000, 20_000)
    workspace = me.workspace(comm_size_for(me, (vectors[-1] + 1) * VECTOR_BYTES))
    for count, partial, algorithm in product(vectors, (0, 1), ALGORITHMS):
        elements = count * VECTOR_BYTES // dtype.itemsize + partial
        run_checked(Reduction.random(me, elements, algorithm, dtype, seed=count), workspace, "a large group")
    workspace.synchronize()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", LARGE_GROUP_SIZES)
def test_large_groups_sum_in_rank_order(ranks_of, world_size, dtype):
    ranks_of(world_size).run(sum_everything, dtype)


def normalise_everything(me: Rank) -> None:
    """Fewer tokens than ranks and more; rows that threads keep, a vector or several, and wider ones."""
    for hidden, (dtype, weight_dtype) in product((1032, 7168, 8200, 16_392), WEIGHTS):
        counts = (1, me.world_size + 1, 40)
        workspace = me.workspace(comm_size_for(me, counts[-1] * hidden * dtype.itemsize))
        for tokens, algorithm in product(counts, ALGORITHMS):
            operation = NormedReduction.random(me, tokens, hidden, algorithm, dtype, weight_dtype, seed=tokens)
            run_checked(operation, workspace, "a large group")
        workspace.synchronize()


@pytest.mark.parametrize("world_size", LARGE_GROUP_SIZES)
def test_large_groups_normalise_rows(ranks_of, world_size):
    ranks_of(world_size).run(normalise_everything)


def run_minimax(me: Rank) -> None:
    """One matrix and two; a token a block and several."""
    workspace = workspace_for(me, 600)
    for widths, tokens, (dtype, weight_dtype) in product(((384,), (384, 64)), (1, 7, 600), WEIGHTS):
        operation = Operation.random(me, tokens, widths, dtype, weight_dtype, seed=tokens)
        run_checked(operation, workspace, "a large group")
    workspace.synchronize()


@pytest.mark.parametrize("world_size", LARGE_GROUP_SIZES)
def test_large_groups_run_the_minimax_operations(ranks_of, world_size):
    ranks_of(world_size).run(run_minimax)


def mix(me: Rank, count: int) -> None:
    """Every operation after every other, small after large and large after small, on one workspace."""
    workspace = me.workspace(comm_size_for(me, 1 << 20))
    operations = [
        *(Reduction.random(me, 1 + 70_000 * seed, ALGORITHMS[seed % 2], seed=seed) for seed in range(4)),
        *(NormedReduction.random(me, 1 + 5 * seed, 512, ALGORITHMS[seed % 2], seed=seed) for seed in range(4)),
        *(Operation.random(me, 1 + 9 * seed, (256, 64), seed=seed) for seed in range(3)),
    ]
    number = len(operations)
    assert number == 11, "a prime: then steps of each length go through all"
    order = (index * (1 + index // number % (number - 1)) % number for index in range(count))
    repeat(operations, workspace, order, f"after {count} operations")
    workspace.synchronize()


@pytest.mark.parametrize("world_size", LARGE_GROUP_SIZES)
def test_large_groups_mix_operations(ranks_of, world_size):
    ranks_of(world_size).run(mix, 1000)
