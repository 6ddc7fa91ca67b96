"""Runs every kernel of the package once or twice on two GPUs (or one that the ranks may share), for NVIDIA's checkers:

    compute-sanitizer --tool memcheck --target-processes all python3 tests/gpu/sanitize.py

Also `--tool racecheck`, `initcheck` and `synccheck`. `minimax`, `sums` or `norms` behind it names what to run, instead
of all. Without a checker it takes some seconds. Results are compared with
references, so that it fails too where a checker changes what kernels do.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain, product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lamport_rs
import torch
import torch.distributed as dist
from minimax_rows import WEIGHTS, Operation
from ranks import SHARING, Rank, one_gpu_per_rank
from reductions import ALGORITHMS, NormedReduction, Reduction, comm_size_for
from reference import DTYPES, SENTINEL

WORLD_SIZE = 2
PATIENCE = 120
MOST_BYTES = 3 << 20
# Tokens, and vectors of a row: for each division of rows between threads that there is, and rows of any width.
DIVISIONS = [(2, 8), (140, 8), (270, 8), (540, 8), (2, 1025), (270, 768), (2, 2500)]
# Of a sum: part of a vector, of a warp and of a block; more than all blocks sum in one round.
SUM_BYTES = [2, 130, 5002, MOST_BYTES - 14]
# Tokens, and vectors of a row: held in registers or not; more than blocks that run at once.
ROWS = [(1, 8), (3, 200), (3, 1025), (140, 1000), (140, 1030)]


def run_all(rank: int, store: str, names: list[str]) -> None:
    patience = timedelta(seconds=5 * PATIENCE)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE, timeout=patience)
    me = Rank(rank, WORLD_SIZE, one_gpu_per_rank(rank))
    memory = torch.zeros(1001, dtype=torch.int32, device=me.device)
    lamport_rs.lamport_fill_neg_zero(memory.data_ptr() + 4, 3996)
    assert int((memory == SENTINEL).sum()) == 999
    workspace = me.workspace(comm_size_for(me, MOST_BYTES), timeout=PATIENCE)
    count = 0
    for operation in chain.from_iterable(OPERATIONS[name](me) for name in names):
        operation(workspace)
        workspace.synchronize()
        operation.check(f"rank {rank}")
        count += 1
    dist.barrier()
    workspace.cleanup()
    print(f"rank {rank}: {count} operations are right", flush=True)
    dist.destroy_process_group()


def minimax_operations(me: Rank) -> Iterator[Operation]:
    for tokens, vectors in DIVISIONS:
        for dtype, weight_dtype in WEIGHTS:
            elements = 16 // dtype.itemsize
            # Q and K: narrow enough for the same division.
            for widths in [(vectors * elements,), ((vectors - 1) * elements, 8)]:
                if any(width % 8 for width in widths):
                    widths = tuple(-(-width // 8) * 8 for width in widths)
                yield Operation.random(me, tokens, widths, dtype, weight_dtype)


def sums(me: Rank) -> Iterator[Reduction]:
    for size, dtype, algorithm in product(SUM_BYTES, DTYPES, ALGORITHMS):
        yield Reduction.random(me, -(-size // dtype.itemsize), algorithm, dtype)


def norms(me: Rank) -> Iterator[NormedReduction]:
    for (tokens, vectors), dtypes, algorithm in product(ROWS, WEIGHTS, ALGORITHMS):
        hidden = -(-vectors * 16 // dtypes[0].itemsize // 8) * 8
        yield NormedReduction.random(me, tokens, hidden, algorithm, *dtypes)


OPERATIONS = {"minimax": minimax_operations, "sums": sums, "norms": norms}


def main(names: list[str]) -> int:
    """Start the ranks; the exit status is theirs."""
    if unknown := [name for name in names if name not in OPERATIONS]:
        print(f"{unknown} cannot be run; there are {list(OPERATIONS)}")
        return 2
    gpus = torch.cuda.device_count()
    needed = 1 if SHARING else WORLD_SIZE
    if gpus < needed:
        print(f"needs {needed} CUDA GPUs, and there are {gpus}")
        return 2
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = f"file://{folder}/store", names or list(OPERATIONS)
        ranks = [context.Process(target=run_all, args=(rank, *arguments)) for rank in range(WORLD_SIZE)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(15 * 60)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
    print(f"exit codes: {codes}")
    return 0 if codes == [0] * WORLD_SIZE else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
