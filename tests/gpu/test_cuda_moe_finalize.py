"""Sums of rows that experts made, and their norms, on GPUs: what finalisation and the sum by themselves give."""

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from moe_reductions import FinalisedNorm, FinalisedReduction
from moe_rows import (
    DTYPES,
    Experts,
    finalise_alone_and_in_a_batch,
    finalise_numbers_that_are_none,
    finalise_shapes,
    leave_nan_after_a_fault,
    room,
)
from ranks import Rank
from reference import check_same_bits, random_tensor
from worlds import GROUP_SIZES, WORLD_SIZES

SHAPES = [(1, 8), (5, 1024), (3, 2, 40), (33, 4096), (16,), (0, 8), (9, 4104), (5, 7168), (9, 8200), (150, 512)]
"""Rows that a block holds in registers, and rows that it does not."""
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize("dtypes", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_the_sum_is_that_of_rows_that_were_finalised_before(ranks_of, world_size, dtypes):
    digests = ranks_of(world_size).run(finalise_shapes, dtypes, SHAPES)
    assert all(each == digests[0] for each in digests)


@pytest.mark.parametrize("k", [1, 8, 11])
@pytest.mark.parametrize("hidden", [128, 4096, 8320])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of, world_size, hidden, k):
    ranks_of(world_size).run(finalise_alone_and_in_a_batch, 150, hidden, k)


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_number_of_no_row_makes_nan_of_one_token(ranks_of, world_size):
    ranks_of(world_size).run(finalise_numbers_that_are_none)


@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_what_a_fault_leaves_is_nan(ranks_of, world_size):
    ranks_of(world_size).run(leave_nan_after_a_fault)


def capture_and_replay(me: Rank) -> None:
    """Replays on other rows, other numbers and other weights give what eager calls give."""
    workspace = me.workspace(room(me, 1 << 20))
    for tokens, hidden, k in ((1, 4096, 8), (33, 2880, 4), (7, 7168, 8)):
        dtypes = torch.bfloat16, torch.float32
        own = Experts.of_rank(0, (tokens, hidden), k, dtypes, 0).to(me.device)
        weight = torch.ones(hidden, dtype=torch.bfloat16, device=me.device)
        residual = random_tensor((tokens, hidden), torch.bfloat16, 1).to(me.device)

        def step(experts: Experts, *norm: torch.Tensor) -> tuple[torch.Tensor, ...]:
            total = lamport_rs.moe_finalize_all_reduce(*experts.first(), workspace, experts.shared_rows)
            return total, *lamport_rs.moe_finalize_all_reduce_rms_norm(
                *experts.first(), *norm, workspace, experts.shared_rows
            )

        step(own, residual, weight)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step(own, residual, weight)
        for seed in range(1, 4):
            # As many rows as rank 0 has.
            other = Experts.of_rank(0, (tokens, hidden), k, dtypes, 10 * me.rank + seed).to(me.device)
            for place, value in zip((*own.first(), own.shared_rows), (*other.first(), other.shared_rows), strict=True):
                place.copy_(value)
            torch.cuda.synchronize()
            graph.replay()
            for each, expected in zip(found, step(own, residual, weight), strict=True):
                check_same_bits(each, expected, f"{tokens} tokens of {hidden}, replay {seed}")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_replays_of_a_graph_give_the_bits_of_eager_calls(ranks_of, world_size):
    ranks_of(world_size).run(capture_and_replay)


def finalise_behind_what_makes_the_rows(me: Rank) -> None:
    """Kernels just before write the rows, the numbers and the weights: nothing of them is read early."""
    workspace = me.workspace(room(me, 1 << 20))
    for kind in (FinalisedReduction, FinalisedNorm):
        operation = kind.random(me, 33, 4096)
        experts = operation.experts
        rows, index, weights = (each.clone() for each in experts.first())
        for _ in range(20):
            experts.expert_rows.fill_(torch.nan)
            experts.row_index.fill_(-1)
            experts.expert_weights.fill_(torch.nan)
            operation.poison()
            experts.expert_rows.copy_(rows)
            experts.row_index.copy_(index)
            experts.expert_weights.copy_(weights)
            operation(workspace)
            operation.check("behind what makes its rows")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_rows_may_be_made_by_the_kernel_just_before(ranks_of, world_size):
    ranks_of(world_size).run(finalise_behind_what_makes_the_rows)


def prepare_them(me: Rank) -> None:
    workspace = me.workspace()
    for name in ("moe_finalize_all_reduce", "moe_finalize_all_reduce_rms_norm"):
        for hidden in (384, 16384):
            rows = torch.ones(3, hidden, dtype=torch.float16, device=me.device)
            workspace.prepare(rows, name)
            assert workspace.supports(rows, name)
            assert not workspace.supports(rows.float(), name)
    dist.barrier()  # No rank goes while another prepares.


@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_kernels_are_loaded_ahead(ranks_of, world_size):
    ranks_of(world_size).run(prepare_them)


@pytest.mark.parametrize("dtypes", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.gpu(1))])
def test_a_group_of_one_finalises_with_torch(ranks_of, world_size, dtypes):
    ranks_of(world_size).run(finalise_shapes, dtypes, SHAPES)
