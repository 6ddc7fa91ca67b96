"""Operands that an operation on a GPU cannot take: an error that says why, and nothing has changed."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError, minimax_allreduce_rms, minimax_allreduce_rms_qk
from minimax_rows import Operation
from ranks import Rank
from worlds import WORLD_SIZES

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
    "a misaligned input": (lambda me, w: one(me, w, ones(me, 33)[1:].view(2, 16)), "input is not aligned to 16 bytes"),
    "misaligned rows": (lambda me, w: one(me, w, ones(me, 2, 17)[:, :16]), "must start at a multiple of 16"),
    "float64": (lambda me, w: one(me, w, ones(me, 2, 16).double()), "input is torch.float64"),
    "a width of no vectors": (lambda me, w: one(me, w, ones(me, 2, 12)), "multiple of 8"),
    "too many tokens": (lambda me, w: one(me, w, ones(me, 5000, 8)), r"comm_size=\d+ or more"),
    "a copy of the table": (
        lambda me, w: one(me, w.workspace.clone(), ones(me, 2, 16)),
        "workspace must be a LamportWorkspace",
    ),
    "all_reduce": (
        lambda me, w: lamport_rs.all_reduce(ones(me, 16), w),
        "all_reduce has no CUDA kernel in this version; use torch.distributed",
    ),
    "all_reduce_rms_norm": (
        lambda me, w: lamport_rs.all_reduce_rms_norm(ones(me, 2, 16), ones(me, 2, 16), ones(me, 16), w),
        "all_reduce_rms_norm has no CUDA kernel in this version",
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


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_an_operation_refuses_and_changes_nothing(ranks_of, world_size, name):
    ranks_of(world_size).run(refuse_and_carry_on, name)
