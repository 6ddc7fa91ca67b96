"""Operands that an operation cannot take: a LamportError that says why, and nothing has changed."""

import gc
import warnings

import lamport_rs
import numpy as np
import pytest
import torch
from lamport_rs import (
    LamportError,
    LamportMismatchError,
    LamportWorkspace,
    all_reduce,
    all_reduce_rms_norm,
    minimax_allreduce_rms,
    minimax_allreduce_rms_qk,
)
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor, rounded_sum

COMM_SIZE = 4096
COLUMNS = 16
X = torch.ones(2, COLUMNS)
W = torch.ones(COLUMNS)
INTEGERS = X.int()
META = torch.ones(2, COLUMNS, device="meta")
NARROW = torch.ones(2, 12)
MEMORY = torch.ones(8, COLUMNS)
PACKED = torch.ones(2, 3 * COLUMNS)
FREED = torch.ones(2, COLUMNS)
FREED.untyped_storage().resize_(0)  # as frameworks do with shards they gather again
ARRAY = np.ones((2, COLUMNS), np.float32)
ONEDNN = X.to_mkldnn()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that nested tensors are a prototype
    PARTS = [torch.ones(2, COLUMNS), torch.ones(3, COLUMNS)]
    NESTED = torch.nested.nested_tensor(PARTS)
    JAGGED = torch.nested.nested_tensor(PARTS, layout=torch.jagged)


class Pretender:
    """No tensor, but with torch's way of describing one."""

    __dlpack_c_exchange_api__ = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


def reduce_with(**changes):
    operands = {"input": X, "out": torch.empty_like(X), **changes}
    return lambda workspace: all_reduce(operands["input"], workspace, out=operands["out"])


def norm_with(**changes):
    fresh = {"out": torch.empty_like(X), "residual_out": torch.empty_like(X)}
    operands = {"input": X, "residual": X, "weight": W, **fresh, **changes}
    return lambda workspace: all_reduce_rms_norm(workspace=workspace, **operands)


def minimax_with(**changes):
    operands = {"input": X, "norm_weight": W, "rank": None, "nranks": 2, "eps": 1e-6, **changes}
    return lambda workspace: minimax_allreduce_rms(workspace=workspace, **with_rank(operands, workspace))


def qk_with(**changes):
    weights = {"norm_weight_q": W[:8], "norm_weight_k": W[8:]}
    operands = {"qkv": X, **weights, "q_size": 8, "kv_size": 8, "rank": None, "nranks": 2, "eps": 1e-6, **changes}
    return lambda workspace: minimax_allreduce_rms_qk(workspace=workspace, **with_rank(operands, workspace))


def with_rank(operands, workspace):
    return {**operands, "rank": workspace.rank if operands["rank"] is None else operands["rank"]}


CASES = {
    # name: (call, what the error says)
    "an integer input": (reduce_with(input=INTEGERS, out=INTEGERS), "input is int32, but must be float32"),
    "a float64 input": (reduce_with(input=X.double(), out=X.double()), "input is torch.float64"),
    "an out of another dtype": (reduce_with(out=X.half()), "out is float16, but must be float32"),
    "an out of another shape": (reduce_with(out=torch.ones(2, 8)), r"out has shape \[2, 8\], but must have \[2, 16\]"),
    "an out of one more dimension": (reduce_with(out=X[None].clone()), "out has shape"),
    "an input without memory": (reduce_with(input=META), "input is on meta"),
    "an out without memory": (reduce_with(out=META), "out is on meta"),
    "an input whose memory is freed": (reduce_with(input=FREED), "input has no memory of its own"),
    "an out whose memory is freed": (reduce_with(out=FREED), "out has no memory of its own"),
    "an input that is no tensor": (lambda w: all_reduce([1.0], w), "input must be a torch.Tensor, not list"),
    "an expanded out": (reduce_with(out=torch.ones(COLUMNS).expand(2, -1)), "out has elements that share memory"),
    "an out that overlaps in part": (reduce_with(input=MEMORY[:2], out=MEMORY[1:3]), "out overlaps input in part"),
    "a list as input": (reduce_with(input=[1.0]), "input must be a torch.Tensor, not list"),
    "a number as out": (reduce_with(out=1.0), "out must be a torch.Tensor, not float"),
    "a sparse input": (reduce_with(input=X.to_sparse()), "input"),
    "a sparse input alone": (lambda w: all_reduce(X.to_sparse(), w), "has no memory of its own"),
    "an object as out that describes itself as tensors do": (
        reduce_with(out=Pretender()),
        "out must be a torch.Tensor",
    ),
    "a sparse qkv": (qk_with(qkv=X.to_sparse()), "qkv"),
    "an array as input": (reduce_with(input=ARRAY), "input must be a torch.Tensor, not ndarray"),
    "an array as out": (reduce_with(out=ARRAY), "out must be a torch.Tensor, not ndarray"),
    "an array as a norm's residual_out": (norm_with(residual_out=ARRAY), "residual_out must be a torch.Tensor"),
    "an array as a weight": (minimax_with(norm_weight=ARRAY), "norm_weight must be a torch.Tensor, not ndarray"),
    "a nested input": (lambda w: all_reduce(NESTED, w), "input is nested, but must be a dense tensor"),
    "a nested out": (reduce_with(out=NESTED), "out is nested, but must be a dense tensor"),
    "a nested qkv": (qk_with(qkv=NESTED), "qkv is nested, but must be a dense tensor"),
    "a jagged input": (lambda w: all_reduce(JAGGED, w), "input is nested, but must be a dense tensor"),
    "a jagged out": (reduce_with(out=JAGGED), "out is nested, but must be a dense tensor"),
    "an input in oneDNN's layout": (lambda w: all_reduce(ONEDNN, w), "input is torch._mkldnn, but must be a dense"),
    "an out in oneDNN's layout": (reduce_with(out=ONEDNN), "out has no memory of its own"),
    "minimax of oneDNN's layout": (lambda w: minimax_with(input=ONEDNN)(w), "must be a dense tensor|no memory"),
    "nine dimensions": (reduce_with(input=X.view(*[1] * 7, 2, 16), out=X.view(*[1] * 7, 2, 16)), "more than 8 dim"),
    "an algorithm that there is not": (
        lambda w: all_reduce(X, w, algorithm="three_shot"),
        'algorithm is "three_shot", but must be "auto" or one of "one_shot", "two_shot"',
    ),
    "a norm by an algorithm that there is not": (norm_with(algorithm=""), 'algorithm is "", but must be "auto"'),
    "a norm in two shots on the host": (
        norm_with(algorithm="two_shot"),
        'all_reduce_rms_norm is one-shot only; pass algorithm="auto" or "one_shot"',
    ),
    "a weight_bias that is no number": (norm_with(weight_bias=float("nan")), "weight_bias is NaN, but must be finite"),
    "an infinite weight_bias": (norm_with(weight_bias=float("-inf")), "weight_bias is -inf"),
    "a residual of another shape": (norm_with(residual=torch.ones(3, COLUMNS)), "residual has shape"),
    "a residual of another dtype": (norm_with(residual=X.bfloat16()), "residual is bfloat16, but must be float32"),
    "a weight of another width": (norm_with(weight=torch.ones(8)), r"weight has shape \[8\], but must have \[16\]"),
    "a weight of two dimensions": (norm_with(weight=W[None]), "weight has shape"),
    "a 16-bit weight for float32": (norm_with(weight=W.half()), "weight is float16, but must be float32"),
    "a width that is no multiple of 8": (
        norm_with(input=NARROW, residual=NARROW, weight=torch.ones(12), out=NARROW, residual_out=NARROW),
        "last dimension must be a positive multiple of 8",
    ),
    "a negative eps": (norm_with(eps=-1e-6), "eps is -.*, but must be finite and not negative"),
    "an eps that is no number": (norm_with(eps=float("nan")), "eps is NaN"),
    "an infinite eps": (norm_with(eps=float("inf")), "eps is inf"),
    "the same tensor for both outputs": (
        norm_with(out=MEMORY[:2], residual_out=MEMORY[:2]),
        "out overlaps residual_out",
    ),
    "an out over the weight": (norm_with(weight=MEMORY[0], out=MEMORY[:2]), "out overlaps weight"),
    "a residual_out over part of the input": (norm_with(input=MEMORY[:2], residual_out=MEMORY[1:3]), "overlaps input"),
    "a norm of a scalar": (
        norm_with(input=torch.tensor(1.0), residual=torch.tensor(1.0), weight=torch.ones(1)),
        "last dimension must be",
    ),
    "minimax with another rank": (minimax_with(rank=5), "rank 5 of 2 was asked for, but the workspace is that of rank"),
    "minimax with another group size": (minimax_with(nranks=3), "of 3 was asked for"),
    "minimax with a negative eps": (minimax_with(eps=-1.0), "eps is -1"),
    "minimax with an integer input": (minimax_with(input=INTEGERS), "input is int32"),
    "minimax with a weight of another width": (minimax_with(norm_weight=W[:8]), "norm_weight has shape"),
    "qk with sizes beyond the row": (qk_with(q_size=16), r"must hold q_size \+ kv_size = 16 \+ 8"),
    "qk with a size of no vectors": (qk_with(q_size=4), "q_size is 4 elements, but must be a positive multiple of 8"),
    "qk with a negative size": (qk_with(kv_size=-8), "kv_size is -8 elements"),
    "qk with no size": (qk_with(q_size=0), "q_size is 0 elements"),
    "qk with another rank": (qk_with(rank=-1), "rank -1 of 2 was asked for"),
    "qk with the same tensor for both outputs": (
        qk_with(q_out=MEMORY[0].view(2, 8), k_out=MEMORY[0].view(2, 8)),
        "q_out overlaps k_out",
    ),
    "qk with a k_out over the columns of Q": (
        qk_with(qkv=MEMORY[:1], k_out=MEMORY[:1, :8]),
        "k_out overlaps the columns of Q in qkv; they must be separate",
    ),
    "qk with a q_out over the columns of K": (
        qk_with(qkv=MEMORY[:1], q_out=MEMORY[:1, 8:]),
        "q_out overlaps the columns of K in qkv",
    ),
    "qk with a k_out over the columns of Q in the next row": (
        qk_with(qkv=PACKED, k_out=PACKED.view(-1)[40:56].view(2, 8)),
        "k_out overlaps the columns of Q in qkv",
    ),
    "qk with a q_out over its own columns in part": (
        qk_with(qkv=PACKED, q_out=PACKED.view(-1)[40:56].view(2, 8)),
        "q_out overlaps qkv in part",
    ),
    "qk with a q_out over K's weight": (
        qk_with(norm_weight_k=MEMORY[0, :8], q_out=MEMORY[0].view(2, 8)),
        "q_out overlaps norm_weight_k",
    ),
    "qk with a k_out over Q's weight": (
        qk_with(norm_weight_q=MEMORY[0, 8:], k_out=MEMORY[0].view(2, 8)),
        "k_out overlaps norm_weight_q",
    ),
    "qk with a weight of another dtype": (qk_with(norm_weight_k=W[:8].half()), "norm_weight_k is float16"),
    "qk with a scalar": (qk_with(qkv=torch.tensor(1.0)), "qkv has shape"),
}


def refuse_and_carry_on(me: Rank, call, text: str) -> None:
    """Refused on every rank, the call changes nothing; on one only, the ranks are apart, and each hears of it."""
    inputs = [random_tensor((100,), torch.float16, rank) for rank in range(me.world_size)]
    for offenders in ([0, 1], [1], [0]):
        workspace = me.workspace(COMM_SIZE, timeout=10)
        if me.rank in offenders:
            with pytest.raises(LamportError, match=text):
                call(workspace)
        if len(offenders) == me.world_size:
            check_same_bits(all_reduce(inputs[me.rank], workspace), rounded_sum(inputs), "the next sum")
        else:
            with pytest.raises(LamportMismatchError, match="the ranks differ"):
                all_reduce(inputs[me.rank], workspace)


@pytest.mark.parametrize("name", CASES)
def test_a_refused_operation_is_followed_by_no_wrong_sum(name):
    ThreadRanks(2).run(refuse_and_carry_on, *CASES[name])


WRONG_TYPES = {
    # name: (call, what the error says)
    "an eps in words": (norm_with(eps="x"), "must be real number, not str"),
    "no eps": (minimax_with(eps=None), "must be real number, not NoneType"),
    "no algorithm": (lambda w: all_reduce(X, w, algorithm=None), "'None' is not an instance of 'str'"),
    "no rank": (lambda w: minimax_allreduce_rms(X, W, w, None, 2, 1e-6), "'NoneType' object cannot be interpreted"),
    "no size of Q": (qk_with(q_size=None), "argument 'q_size': must be an integer, not NoneType"),
    "a size of K in fractions": (qk_with(kv_size=8.0), "argument 'kv_size': must be an integer, not float"),
}


def pass_wrong_type(me: Rank, call, text: str) -> None:
    workspace = me.workspace(COMM_SIZE, timeout=10)
    with pytest.raises(TypeError, match=text):
        call(workspace)
    check_same_bits(all_reduce(X, workspace), X * me.world_size, "the next sum")


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_a_plain_argument_of_a_wrong_type_is_a_type_error_and_changes_nothing(name):
    ThreadRanks(2).run(pass_wrong_type, *WRONG_TYPES[name])


def pass_foreign_tables(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE, timeout=10)
    table = workspace.workspace
    changed = table.clone()
    changed[-1] += 16
    foreign = [changed, table[1:], torch.zeros_like(table), torch.empty(0, dtype=torch.int64), None, "table", 5]
    for each in foreign:
        with pytest.raises(LamportError, match="workspace must be a LamportWorkspace, or the tensor"):
            all_reduce(X, each)
    for same in (table, table.clone(), table.view(-1)):
        check_same_bits(all_reduce(X, same), X * me.world_size)


def test_only_what_a_table_says_stands_for_its_workspace():
    ThreadRanks(2).run(pass_foreign_tables)


def use_after_cleanup(me: Rank) -> None:
    workspace = me.workspace(COMM_SIZE)
    table = workspace.workspace
    workspace.cleanup()
    workspace.cleanup()
    calls = [
        lambda: workspace.workspace,
        lambda: all_reduce(X, workspace),
        lambda: all_reduce(X, table),
        lambda: all_reduce(torch.empty(0), table),
        lambda: torch.ops.lamport_rs.all_reduce(X, table),
        lambda: all_reduce_rms_norm(X, X, W, table),
        lambda: minimax_allreduce_rms(X, W, table, me.rank, me.world_size, 1e-6),
        lambda: minimax_allreduce_rms_qk(X, W[:8], W[8:], table, 8, 8, me.rank, me.world_size, 1e-6),
    ]
    for call in calls:
        with pytest.raises(LamportError, match="was cleaned up; create a new one on every rank"):
            call()
    assert "cleaned up" in repr(workspace)
    with me.workspace(COMM_SIZE) as other:
        pass
    with pytest.raises(LamportError, match="cleaned up"):
        all_reduce(X, other)


def test_a_cleaned_up_workspace_refuses_all_use():
    ThreadRanks(2).run(use_after_cleanup)


def keep_the_address_of_a_table(me: Rank) -> None:
    table = me.workspace(COMM_SIZE).workspace
    address = table.data_ptr()
    del table
    gc.collect()
    with pytest.raises(LamportError):
        lamport_rs._core.all_reduce(X, type("Table", (), {"data_ptr": lambda _: address})(), "auto", X)


def test_a_table_that_is_gone_is_not_found_by_its_old_address():
    ThreadRanks(2).run(keep_the_address_of_a_table)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 4), "max_tokens is 0, but must be positive"),
        ((-1, 4), "max_tokens is -1"),
        ((16384, 0), "world_size is 0, but must be between 1 and 16"),
        ((16384, 17), "world_size is 17"),
        ((2**62, 16), "more than this machine can address"),
    ],
)
def test_sizes_are_computed_for_possible_groups_only(arguments, text):
    with pytest.raises(LamportError, match=text):
        LamportWorkspace.compute_comm_size_for_minimax(*arguments)
    if "max_tokens" not in text:
        with pytest.raises(LamportError, match=text):
            LamportWorkspace.compute_comm_size_for_all_reduce(*arguments)
