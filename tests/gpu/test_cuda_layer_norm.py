"""all_reduce_layer_norm on GPUs: the exact sum with the residual, and the layer norm of its rounded rows."""

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from layer_norm_rows import (
    DTYPES,
    EPS,
    leave_nan_after_a_fault,
    normalise_alone_and_in_a_batch,
    normalise_more_than_the_slots_hold,
    normalise_shapes,
    room,
)
from ranks import Rank
from reference import check_layer_norm, check_same_bits, random_tensor
from worlds import GROUP_SIZES, WORLD_SIZES

SHAPES = [(1, 8), (5, 1024), (2, 3, 384), (33, 4096), (128,), (0, 128), (9, 8192), (3, 16392), (300, 2048), (4500, 64)]
"""Rows that a block holds in registers, and rows that it does not."""
COMPILERS = {"inductor": {"backend": "inductor"}, "reduce-overhead": {"mode": "reduce-overhead"}}
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize(("dtype", "weight_dtype"), DTYPES, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_sum_is_exact_and_norm_is_within_the_dtypes_rounding(ranks_of, world_size, dtype, weight_dtype):
    digests = ranks_of(world_size).run(normalise_shapes, dtype, weight_dtype, SHAPES)
    assert all(each == digests[0] for each in digests)


@pytest.mark.parametrize("hidden", [128, 4096, 8320])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of, world_size, hidden):
    ranks_of(world_size).run(normalise_alone_and_in_a_batch, 300, hidden)


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_rows_may_be_more_than_the_slots_hold(ranks_of, world_size):
    ranks_of(world_size).run(normalise_more_than_the_slots_hold)


def capture_and_replay(me: Rank) -> None:
    """Replays on other rows, weights and biases give what eager calls give."""
    workspace = me.workspace(room(me))
    for tokens, hidden in ((1, 4096), (33, 8192), (7, 16384)):
        rows, residual = (torch.zeros(tokens, hidden, dtype=torch.bfloat16, device=me.device) for _ in range(2))
        weight, bias = (torch.zeros(hidden, dtype=torch.bfloat16, device=me.device) for _ in range(2))
        arguments = (rows, residual, weight, workspace, bias, EPS)
        lamport_rs.all_reduce_layer_norm(*arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = lamport_rs.all_reduce_layer_norm(*arguments)
        for seed in range(4):
            rows.copy_(random_tensor(rows.shape, torch.bfloat16, seed, me.rank))
            for at, each in enumerate((residual, weight, bias)):
                each.copy_(random_tensor(each.shape, torch.bfloat16, seed, 100 + at))
            torch.cuda.synchronize()
            graph.replay()
            what = f"{tokens} tokens of {hidden}, replay {seed}"
            check_layer_norm(found[0], found[1], weight, bias, EPS, what)
            eager = lamport_rs.all_reduce_layer_norm(*arguments)
            check_same_bits(found[0], eager[0], f"out, {what}")
            check_same_bits(found[1], eager[1], f"residual_out, {what}")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_replays_of_a_graph_give_the_bits_of_eager_calls(ranks_of, world_size):
    ranks_of(world_size).run(capture_and_replay)


def compile_it(me: Rank, compiler: str) -> None:
    workspace = me.workspace(1 << 20, timeout=120)
    torch._dynamo.reset()
    weight, bias = (random_tensor((256,), torch.bfloat16, 101 + at).to(me.device) for at in range(2))

    def step(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return lamport_rs.all_reduce_layer_norm(rows * 2, rows, weight, workspace.workspace, bias)

    compiled = torch.compile(step, **COMPILERS[compiler])
    with torch.inference_mode():
        for seed in range(4):
            rows = random_tensor((5, 256), torch.bfloat16, seed, 0).to(me.device)
            torch.compiler.cudagraph_mark_step_begin()
            out, summed = compiled(rows)
            expected = step(rows)
            check_same_bits(out, expected[0], f"out by {compiler}, step {seed}")
            check_same_bits(summed, expected[1], f"residual_out by {compiler}, step {seed}")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_compiled_code_gives_eager_results(ranks_of, world_size, compiler):
    ranks_of(world_size).run(compile_it, compiler, timeout=300)


@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_what_a_fault_leaves_is_nan(ranks_of, world_size):
    ranks_of(world_size).run(leave_nan_after_a_fault)


def prepare_it(me: Rank) -> None:
    workspace = me.workspace()
    for hidden in (384, 16384):
        rows = torch.ones(3, hidden, dtype=torch.float16, device=me.device)
        workspace.prepare(rows, "all_reduce_layer_norm")
        assert workspace.supports(rows, "all_reduce_layer_norm")
        assert not workspace.supports(rows.float(), "all_reduce_layer_norm")
    dist.barrier()  # No rank goes while another prepares.


@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_kernels_are_loaded_ahead(ranks_of, world_size):
    ranks_of(world_size).run(prepare_it)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.gpu(1))])
def test_a_group_of_one_normalises_with_torch(ranks_of, world_size):
    ranks_of(world_size).run(normalise_shapes, torch.bfloat16, torch.float32, SHAPES[:6])
