"""Operands that an operation on a GPU cannot take: an error that says why, and nothing has changed."""

import re

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, LamportSizeError, minimax_allreduce_rms, minimax_allreduce_rms_qk
from minimax_rows import Operation
from ranks import Rank
from reductions import ALGORITHMS, NormedReduction, Reduction, contributions, run_checked
from reference import DTYPES, check_same_bits, rounded_sum
from worlds import GROUP_SIZES, WORLD_SIZES

COMM_SIZE = 4096


def another_device(me: Rank) -> torch.device:
    return torch.device("cuda", (me.device.index + 1) % torch.cuda.device_count())


def ones(me: Rank, *shape: int, device: torch.device | str | None = None, dtype=torch.bfloat16) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device or me.device)


def one(me: Rank, workspace, rows, weight=None, **options) -> None:
    weight = ones(me, rows.shape[-1]) if weight is None else weight
    minimax_allreduce_rms(rows, weight, workspace, me.rank, me.world_size, 1e-6, **options)


def two(me: Rank, workspace, qkv, **options) -> None:
    weights = ones(me, 16), ones(me, 8)
    minimax_allreduce_rms_qk(qkv, *weights, workspace, 16, 8, me.rank, me.world_size, 1e-6, **options)


def total(me: Rank, workspace, rows, **options) -> None:
    lamport_rs.all_reduce(rows, workspace, **options)


def norm(me: Rank, workspace, **changes) -> None:
    operands = {"input": ones(me, 2, 16), "residual": ones(me, 2, 16), "weight": ones(me, 16), **changes}
    lamport_rs.all_reduce_rms_norm(workspace=workspace, **operands)


CASES = {
    # name: (call, what the error says)
    "an input on the CPU": (lambda me, w: one(me, w, ones(me, 2, 16, device="cpu")), "input is on cpu, but the"),
    "a qkv on the CPU": (
        lambda me, w: two(me, w, ones(me, 2, 24, device="cpu")),
        "qkv is on cpu, but the workspace is on cuda",
    ),
    "an input on another GPU": (
        lambda me, w: one(me, w, ones(me, 2, 16, device=another_device(me))),
        r"input is on cuda:\d, but the workspace is on cuda:\d",
    ),
    "a weight on the CPU": (
        lambda me, w: one(me, w, ones(me, 2, 16), ones(me, 16, device="cpu")),
        "norm_weight is on cpu",
    ),
    "an out on the CPU": (
        lambda me, w: one(me, w, ones(me, 2, 16), out=ones(me, 2, 16, device="cpu")),
        "out is on cpu",
    ),
    "a k_out on the CPU": (
        lambda me, w: two(me, w, ones(me, 2, 24), k_out=ones(me, 2, 8, device="cpu")),
        "k_out is on cpu",
    ),
    "float64": (lambda me, w: one(me, w, ones(me, 2, 16).double()), "input is torch.float64"),
    "a width of no vectors": (lambda me, w: one(me, w, ones(me, 2, 12)), "multiple of 8"),
    "too many tokens": (lambda me, w: one(me, w, ones(me, 5000, 8)), r"comm_size=\d+ or more"),
    "a copy of the table": (
        lambda me, w: one(me, w.workspace.clone(), ones(me, 2, 16)),
        "workspace must be a LamportWorkspace",
    ),
    "a sum of a tensor on the CPU": (
        lambda me, w: total(me, w, ones(me, 16, device="cpu")),
        "input is on cpu, but the workspace is on cuda",
    ),
    "a sum into another GPU": (
        lambda me, w: total(me, w, ones(me, 16), out=ones(me, 16, device=another_device(me))),
        r"out is on cuda:\d, but the workspace is on cuda:\d",
    ),
    "a sum over part of its input": (
        lambda me, w: (memory := ones(me, 32), total(me, w, memory[:16], out=memory[8:24])),
        "out overlaps input in part",
    ),
    "a sum by an algorithm that there is not": (
        lambda me, w: total(me, w, ones(me, 16), algorithm="three_shot"),
        'algorithm is "three_shot", but must be "auto" or one of "one_shot", "two_shot"',
    ),
    "a sum that is too large": (lambda me, w: total(me, w, ones(me, 5000)), r"comm_size=\d+ or more"),
    "a sum that is too large for two-shot": (
        lambda me, w: total(me, w, ones(me, 5000), algorithm="two_shot"),
        r"comm_size=\d+ or more",
    ),
    "a residual on the CPU": (lambda me, w: norm(me, w, residual=ones(me, 2, 16, device="cpu")), "residual is on cpu"),
    "a norm's weight on the CPU": (lambda me, w: norm(me, w, weight=ones(me, 16, device="cpu")), "weight is on cpu"),
    "a residual of another shape": (lambda me, w: norm(me, w, residual=ones(me, 3, 16)), "residual has shape"),
    "a weight_bias that is no number": (
        lambda me, w: norm(me, w, weight_bias=float("nan")),
        "weight_bias is NaN, but must be finite",
    ),
    "a norm by an algorithm that there is not": (lambda me, w: norm(me, w, algorithm="one"), 'algorithm is "one"'),
    "a norm of too many rows": (
        lambda me, w: norm(me, w, input=ones(me, 400, 16), residual=ones(me, 400, 16)),
        r"comm_size=\d+ or more",
    ),
}


def refuse_and_carry_on(me: Rank, name: str) -> None:
    """The bad call comes between good ones, on every rank or on one of them only."""
    call, text = CASES[name]
    workspace, everybody = me.workspace(COMM_SIZE, timeout=10), list(range(me.world_size))
    for offenders in (everybody, [0], [me.world_size - 1]):
        if me.rank in offenders:
            with pytest.raises(LamportError, match=text):
                call(me, workspace)
        operation = Operation.random(me, 33, (64, 8))
        operation(workspace)
        operation.check("the next operation")
    workspace.synchronize()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.own_gpus) if "another GPU" in name else name for name in CASES]
)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_refuses_and_changes_nothing(ranks_of, world_size, name):
    ranks_of(world_size).run(refuse_and_carry_on, name)


def advised_size(call) -> int:
    """What the refusal of an operation that is too large says."""
    with pytest.raises(LamportSizeError, match=r"create the workspace with comm_size=\d+ or more") as caught:
        call()
    return int(re.search(r"comm_size=(\d+) or more", str(caught.value))[1])


def use_the_advised_size(me: Rank) -> None:
    for algorithm in ("auto", *ALGORITHMS):
        for operation in (
            Reduction.random(me, 1, algorithm),
            Reduction.random(me, 4099, algorithm),
            Reduction.random(me, 1_500_000, algorithm),
            NormedReduction.random(me, 1, 4096, algorithm),
            NormedReduction.random(me, 7, 8200, algorithm),
        ):
            with me.workspace(16) as smallest:
                advised = advised_size(lambda: operation(smallest))  # noqa: B023
            with me.workspace(advised - 16) as workspace:
                assert advised_size(lambda: operation(workspace)) == advised  # noqa: B023
            with me.workspace(advised, timeout=10) as workspace:
                operation.poison()
                operation(workspace)
                operation.check("with the advised size")
                workspace.synchronize()
            dist.barrier()


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_the_size_that_a_refusal_advises_is_the_smallest_that_works(ranks_of, world_size):
    ranks_of(world_size).run(use_the_advised_size)


def do_by_what_fits(me: Rank, operation: Reduction | NormedReduction, comm_size: int, too_large: str) -> None:
    """`too_large` does not fit; "auto" does, whichever is faster."""
    with me.workspace(comm_size, timeout=10) as workspace:
        operation.algorithm = too_large
        assert advised_size(lambda: operation(workspace)) > comm_size
        operation.algorithm = "auto"
        operation.poison()
        operation(workspace)
        operation.check(f"{too_large} does not fit")
        workspace.synchronize()
    dist.barrier()


def choose_what_fits(me: Rank) -> None:
    # Of a vector, a shard is a vector too: two-shot takes more. So it does of shards that are not even.
    do_by_what_fits(me, Reduction.random(me, 8, "auto"), 16 * me.world_size, "two_shot")
    if me.world_size == 2:
        large = 8 * ((5 << 20) // 16 + 1)
        do_by_what_fits(me, Reduction.random(me, large, "auto"), 2 * large * me.world_size, "two_shot")
        do_by_what_fits(me, NormedReduction.random(me, 3, 64, "auto"), 3 * 128 * me.world_size, "two_shot")
    else:
        # Small enough for one-shot to be the faster one.
        vectors = 8 * me.world_size
        do_by_what_fits(me, Reduction.random(me, 8 * vectors, "auto"), 2 * 16 * vectors, "one_shot")
        rows = NormedReduction.random(me, 2 * me.world_size, 64, "auto")
        do_by_what_fits(me, rows, 2 * 2 * me.world_size * 128, "one_shot")


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_where_only_one_algorithm_fits_it_is_chosen(ranks_of, world_size):
    ranks_of(world_size).run(choose_what_fits)


def ask_for_two_shots_of_few_rows(me: Rank) -> None:
    """With a slot that has room for one shot, and not for two of one row."""
    for tokens in range(1, me.world_size):
        with me.workspace(tokens * 128 * me.world_size, timeout=10) as workspace:
            run_checked(NormedReduction.random(me, tokens, 64, "two_shot"), workspace, "fewer rows than ranks")
            workspace.synchronize()
        dist.barrier()


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_fewer_rows_than_ranks_are_summed_in_one_shot(ranks_of, world_size):
    ranks_of(world_size).run(ask_for_two_shots_of_few_rows)


def fall_back(me: Rank) -> None:
    """Sums of small integers are exact in any order and however often they are rounded."""
    nccl, workspace = dist.new_group(backend="nccl"), me.workspace(COMM_SIZE, timeout=10)
    for dtype in DTYPES:
        large = torch.full((5000,), me.rank + 1.0, dtype=dtype, device=me.device)
        before, expected = large.clone(), torch.full_like(large, sum(range(1, me.world_size + 1)))
        assert advised_size(lambda: lamport_rs.all_reduce(large, workspace)) > COMM_SIZE  # noqa: B023
        check_same_bits(lamport_rs.all_reduce(large, workspace, fallback=nccl), expected, "allocated")
        out = torch.full_like(large, torch.nan)
        assert lamport_rs.all_reduce(large, workspace, out, fallback=nccl) is out
        check_same_bits(out, expected, "into out")
        check_same_bits(large, before, "the input")
        lamport_rs.all_reduce(large, workspace, out=large, fallback=nccl)
        check_same_bits(large, expected, "in place")
        inputs = contributions(me, (100,), dtype, 1)
        total = lamport_rs.all_reduce(inputs[me.rank], workspace, fallback=nccl)
        check_same_bits(total, rounded_sum(inputs), "what fits")
    workspace.synchronize()
    dist.destroy_process_group(nccl)


@pytest.mark.own_gpus
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_tensor_too_large_for_the_workspace_goes_to_the_fallback(new_gpu_ranks, world_size):
    new_gpu_ranks(world_size).run(fall_back)
