"""Operands that an operation on a GPU cannot take: an error that says why, and no wrong number after it."""

from itertools import product

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import (
    LamportError,
    LamportMismatchError,
    LamportSizeError,
    minimax_allreduce_rms,
    minimax_allreduce_rms_qk,
)
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
    "a residual on the CPU": (lambda me, w: norm(me, w, residual=ones(me, 2, 16, device="cpu")), "residual is on cpu"),
    "a norm's weight on the CPU": (lambda me, w: norm(me, w, weight=ones(me, 16, device="cpu")), "weight is on cpu"),
    "a residual of another shape": (lambda me, w: norm(me, w, residual=ones(me, 3, 16)), "residual has shape"),
    "a weight_bias that is no number": (
        lambda me, w: norm(me, w, weight_bias=float("nan")),
        "weight_bias is NaN, but must be finite",
    ),
    "a norm by an algorithm that there is not": (lambda me, w: norm(me, w, algorithm="one"), 'algorithm is "one"'),
}


NAMES_NO_WORKSPACE = "a copy of the table"
"""Of those, a call that no workspace hears of, and so none counts."""


def call_and_synchronize(operation: Operation, workspace: lamport_rs.LamportWorkspace) -> None:
    """Raise what ranks that are apart hear: the call does if another rank has told by then."""
    operation(workspace)
    workspace.synchronize()


def refuse_and_carry_on(me: Rank, name: str) -> None:
    """Refused on every rank, the call changes nothing; on one only, the ranks are apart, and each hears of it."""
    call, text = CASES[name]
    everybody = list(range(me.world_size))
    for offenders in (everybody, [0], [me.world_size - 1]):
        workspace = me.workspace(COMM_SIZE, timeout=10)
        if me.rank in offenders:
            with pytest.raises(LamportError, match=text):
                call(me, workspace)
        operation = Operation.random(me, 33, (64, 8))
        if offenders == everybody or name == NAMES_NO_WORKSPACE:
            operation(workspace)
            operation.check("the next operation")
            workspace.synchronize()
            continue
        operation.poison()
        with pytest.raises(LamportMismatchError, match="the ranks differ"):
            call_and_synchronize(operation, workspace)
        assert all(bool(out.isnan().all()) for out in operation.outs), f"{name}: a number after ranks differed"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.own_gpus) if "another GPU" in name else name for name in CASES]
)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_refused_operation_is_followed_by_no_wrong_number(ranks_of, world_size, name):
    ranks_of(world_size).run(refuse_and_carry_on, name)


def run_in_chunks(me: Rank, captured: bool) -> None:
    """Tensors that are longer than the slots, from a little to many times."""
    for algorithm in ("auto", *ALGORITHMS):
        for operation, smallest in (
            (Reduction.random(me, 4099, algorithm), 32 * me.world_size),
            (Reduction.random(me, 1_500_000, algorithm), 4096 * me.world_size),
            (NormedReduction.random(me, 7, 8200, algorithm), 2 * 4 * 8200 * me.world_size),
            (NormedReduction.random(me, 2 * me.world_size + 1, 64, algorithm), 2 * 4 * 64 * me.world_size),
            # In two shots the last rows are fewer than the ranks, and as many as a slot has no room for.
            (NormedReduction.random(me, 2 * me.world_size - 1, 64, algorithm), 2 * 4 * 64 * me.world_size),
            (Operation.random(me, 1001, (64, 8)), 64 * me.world_size),
        ):
            for comm_size in (smallest, 3 * smallest + 16):
                with me.workspace(comm_size, timeout=10) as workspace:
                    operation.poison()
                    if captured:
                        operation(workspace)
                        torch.cuda.synchronize()
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph):
                            operation(workspace)
                        operation.poison()
                        graph.replay()
                    else:
                        operation(workspace)
                    torch.cuda.synchronize()
                    operation.check(f"in slots of {comm_size} bytes")
                    workspace.synchronize()
                dist.barrier()


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_what_is_longer_than_the_slots_runs_in_chunks(ranks_of, world_size, captured):
    ranks_of(world_size).run(run_in_chunks, captured)


def ask_for_a_row_that_is_too_long(me: Rank) -> None:
    with me.workspace(1024 * me.world_size, timeout=10) as workspace:
        rows = torch.ones(4, 520, dtype=torch.bfloat16, device=me.device)
        with pytest.raises(LamportSizeError, match=rf"comm_size={1040 * me.world_size} or more"):
            lamport_rs.all_reduce_rms_norm(rows, None, rows[0], workspace, algorithm="one_shot")
        assert not workspace.supports(rows, "all_reduce_rms_norm", algorithm="one_shot")
        assert workspace.supports(rows[:, :512], "all_reduce_rms_norm", algorithm="one_shot")
        total = lamport_rs.all_reduce(rows, workspace)
        check_same_bits(total, rows * me.world_size, "the next sum")
        workspace.synchronize()


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_slot_without_room_for_a_row_is_refused_and_changes_nothing(ranks_of, world_size):
    ranks_of(world_size).run(ask_for_a_row_that_is_too_long)


def norm_without_a_residual(me: Rank) -> None:
    with me.workspace(1 << 20, timeout=10) as workspace:
        for dtype, tokens, algorithm in product(DTYPES, (1, 3 * me.world_size), ALGORITHMS):
            inputs = contributions(me, (tokens, 1024), dtype, 1)
            weight = torch.rand(1024, device=me.device).to(dtype)
            zeros = torch.zeros(tokens, 1024, dtype=dtype, device=me.device)
            norm = lamport_rs.all_reduce_rms_norm
            found = norm(inputs[me.rank], None, weight, workspace, algorithm=algorithm)
            expected = norm(inputs[me.rank], zeros, weight, workspace, algorithm=algorithm)
            check_same_bits(found[1], rounded_sum(inputs), "the sum")
            assert torch.equal(found[0], expected[0])
        workspace.synchronize()


@pytest.mark.parametrize("world_size", GROUP_SIZES)
def test_a_norm_needs_no_residual(ranks_of, world_size):
    ranks_of(world_size).run(norm_without_a_residual)


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
