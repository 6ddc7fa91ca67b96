"""Runs every kernel of the package once or twice on two GPUs, for NVIDIA's checkers:

    compute-sanitizer --tool memcheck --target-processes all python3 tests/gpu/sanitize.py

Also `--tool racecheck`, `initcheck` and `synccheck`. Without a checker it takes some seconds. Results are compared with
float64, so that it fails too where a checker changes what kernels do.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import lamport_rs
import torch
import torch.distributed as dist
from minimax_rows import WEIGHTS, Operation, workspace_for
from ranks import Rank
from reference import SENTINEL

WORLD_SIZE = 2
PATIENCE = 120
# Tokens, and vectors of a row: for each division of rows between threads that there is, and rows of any width.
DIVISIONS = [(2, 8), (140, 8), (270, 8), (540, 8), (2, 1025), (270, 768), (2, 2500)]


def run_all(rank: int, store: str) -> None:
    patience = timedelta(seconds=5 * PATIENCE)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD_SIZE, timeout=patience)
    torch.cuda.set_device(rank)
    me = Rank(rank, WORLD_SIZE, torch.device("cuda", rank))
    memory = torch.zeros(1001, dtype=torch.int32, device=me.device)
    lamport_rs.lamport_fill_neg_zero(memory.data_ptr() + 4, 3996)
    assert int((memory == SENTINEL).sum()) == 999
    workspace = workspace_for(me, 1024, timeout=PATIENCE)
    for tokens, vectors in DIVISIONS:
        for dtype, weight_dtype in WEIGHTS:
            elements = 16 // dtype.itemsize
            # Q and K: narrow enough for the same division.
            for widths in [(vectors * elements,), ((vectors - 1) * elements, 8)]:
                if any(width % 8 for width in widths):
                    widths = tuple(-(-width // 8) * 8 for width in widths)
                operation = Operation.random(me, tokens, widths, dtype, weight_dtype)
                operation(workspace)
                workspace.synchronize()
                operation.check(f"rank {rank}")
    dist.barrier()
    workspace.cleanup()
    print(f"rank {rank}: {2 * len(DIVISIONS) * len(WEIGHTS)} operations are right", flush=True)
    dist.destroy_process_group()


def main() -> int:
    """Start the ranks; the exit status is theirs."""
    if torch.cuda.device_count() < WORLD_SIZE:
        print(f"needs {WORLD_SIZE} CUDA GPUs, and there are {torch.cuda.device_count()}")
        return 2
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=run_all, args=(rank, f"file://{folder}/store")) for rank in range(WORLD_SIZE)]
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
    sys.exit(main())
