"""all_reduce_rms_norm_quant on GPUs: bit for bit what the formats' definitions make of the normalised rows."""

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from quantised_outputs import WAYS, refuse_what_shares_memory
from quantised_rows import (
    EPS,
    FORMATS,
    check_quantised,
    check_same_scales,
    leave_nan_after_a_fault,
    quantise_alone_and_in_a_batch,
    quantise_shapes,
    scale_for,
    scales_in_memory,
)
from ranks import Rank
from reductions import ALGORITHMS, comm_size_for
from reference import check_same_bits, random_tensor
from worlds import GROUP_SIZES, WORLD_SIZES

SHAPES = [(1, 128), (5, 1024), (2, 3, 384), (33, 4096), (128,), (0, 128), (9, 16384), (300, 8192)]
"""Rows that a block holds in registers, and rows that it does not."""
COMPILERS = {"inductor": {"backend": "inductor"}, "reduce-overhead": {"mode": "reduce-overhead"}}
OTHER_LAYOUTS = ["fp8_group_column_major", "mxfp8_swizzled", "nvfp4_swizzled"]
"""They differ from another format in where the scales go, and in nothing else."""
DTYPES_AND_FORMATS = [
    (dtype, quant_format)
    for quant_format in FORMATS
    for dtype in (torch.float16, torch.bfloat16)
    if dtype == torch.bfloat16 or quant_format not in OTHER_LAYOUTS
]
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize(("dtype", "quant_format"), DTYPES_AND_FORMATS, **by_name)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_rows_are_quantised_as_the_format_is_defined(ranks_of, world_size, dtype, quant_format):
    results = ranks_of(world_size).run(quantise_shapes, quant_format, dtype, SHAPES, ("auto", *ALGORITHMS))
    assert all(each == results[0] for each in results)


def capture_and_replay(me: Rank, quant_format: str) -> None:
    """Replays on other rows give what eager calls give, and the tensors' one scale is read anew."""
    workspace = me.workspace(comm_size_for(me, 1 << 20))
    for tokens, hidden, algorithm in ((1, 4096, "one_shot"), (33, 8192, "two_shot"), (7, 16384, "auto")):
        rows, residual = (torch.empty(tokens, hidden, dtype=torch.bfloat16, device=me.device) for _ in range(2))
        weight = random_tensor((hidden,), torch.bfloat16, 101).to(me.device)
        scale = scale_for(me, quant_format)
        arguments = (rows, residual, weight, workspace, quant_format, scale, EPS)
        rows.zero_()
        residual.zero_()
        lamport_rs.all_reduce_rms_norm_quant(*arguments, with_norm=True, algorithm=algorithm)
        graph, without = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = lamport_rs.all_reduce_rms_norm_quant(*arguments, with_norm=True, algorithm=algorithm)
        with torch.cuda.graph(without):
            plain = lamport_rs.all_reduce_rms_norm_quant(*arguments, algorithm=algorithm)
        for seed in range(4):
            rows.copy_(random_tensor(rows.shape, torch.bfloat16, seed, me.rank))
            residual.copy_(random_tensor(rows.shape, torch.bfloat16, seed, 100))
            if scale is not None:
                scale.fill_(FORMATS[quant_format].given * (1 + seed))
            torch.cuda.synchronize()
            graph.replay()
            without.replay()
            what = f"{quant_format}, {tokens} tokens of {hidden}, {algorithm}, replay {seed}"
            check_quantised(found[0], found[1], found[3], quant_format, what, scale)
            eager = lamport_rs.all_reduce_rms_norm_quant(*arguments, with_norm=True, algorithm=algorithm)
            assert torch.equal(eager[0].view(torch.uint8), found[0].view(torch.uint8)), what
            check_same_bits(found[2], eager[2], what)
            check_same_bits(found[3], eager[3], what)
            assert torch.equal(plain[0].view(torch.uint8), found[0].view(torch.uint8)), f"{what}, without the norm"
            if FORMATS[quant_format].group is not None:
                its, own = (scales_in_memory(each[1], quant_format, tuple(rows.shape)) for each in (plain, found))
                check_same_scales(its, own, f"{what}, without the norm")


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_replays_of_a_graph_give_the_bits_of_eager_calls(ranks_of, world_size, quant_format):
    ranks_of(world_size).run(capture_and_replay, quant_format)


def compile_it(me: Rank, quant_format: str, compiler: str) -> None:
    workspace = me.workspace(1 << 20, timeout=120)
    torch._dynamo.reset()
    weight, scale = random_tensor((256,), torch.bfloat16, 101).to(me.device), scale_for(me, quant_format)

    def step(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arguments = (rows * 2, rows, weight, workspace.workspace, quant_format, scale, EPS)
        out, scales, summed, normalised = lamport_rs.all_reduce_rms_norm_quant(*arguments, with_norm=True)
        return out, scales, summed * 2, normalised

    compiled = torch.compile(step, **COMPILERS[compiler])
    with torch.inference_mode():
        for seed in range(4):
            rows = random_tensor((5, 256), torch.bfloat16, seed, 0).to(me.device)
            torch.compiler.cudagraph_mark_step_begin()
            out, scales, _, normalised = compiled(rows)
            what = f"{quant_format} by {compiler}, step {seed}"
            check_quantised(
                out, scale if FORMATS[quant_format].group is None else scales, normalised, quant_format, what, scale
            )
            expected = step(rows)
            assert torch.equal(out.view(torch.uint8), expected[0].view(torch.uint8))
            assert scales.stride() == expected[1].stride(), "the fake implementation has other strides"


@pytest.mark.parametrize(
    ("compiler", "quant_format"),
    [("inductor", quant_format) for quant_format in FORMATS]
    + [("reduce-overhead", quant_format) for quant_format in FORMATS if quant_format not in OTHER_LAYOUTS],
)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_compiled_code_gives_eager_results(ranks_of, world_size, quant_format, compiler):
    ranks_of(world_size).run(compile_it, quant_format, compiler, timeout=300)


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("hidden", [128, 4096, 8320])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of, world_size, hidden, quant_format):
    ranks_of(world_size).run(quantise_alone_and_in_a_batch, quant_format, 300, hidden, ("auto", *ALGORITHMS))


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_what_a_fault_leaves_is_nan(ranks_of, world_size, quant_format):
    ranks_of(world_size).run(leave_nan_after_a_fault, quant_format)


def prepare_it(me: Rank, quant_format: str) -> None:
    workspace = me.workspace()
    rows = torch.ones(3, 384, dtype=torch.float16, device=me.device)
    workspace.prepare(rows, "all_reduce_rms_norm_quant", quant_format=quant_format)
    assert workspace.supports(rows, "all_reduce_rms_norm_quant", quant_format=quant_format)
    assert not workspace.supports(rows.float(), "all_reduce_rms_norm_quant", quant_format=quant_format)
    dist.barrier()  # No rank goes while another prepares.


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_kernels_are_loaded_ahead(ranks_of, world_size, quant_format):
    ranks_of(world_size).run(prepare_it, quant_format)


@pytest.mark.parametrize("quant_format", FORMATS)
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=pytest.mark.gpu(1))])
def test_a_group_of_one_quantises_with_torch(ranks_of, world_size, quant_format):
    ranks_of(world_size).run(quantise_shapes, quant_format, torch.bfloat16, SHAPES[:6])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[:1])
def test_outputs_that_share_memory_are_refused_however_they_lie(ranks_of, world_size, way):
    ranks_of(world_size).run(refuse_what_shares_memory, "all_reduce_rms_norm_quant", way)
