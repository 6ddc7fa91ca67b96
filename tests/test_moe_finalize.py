"""Sums of rows that experts made, and their norms, on the host: what finalisation and the sum by themselves give."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from lamport_rs.single_rank import finalise
from moe_rows import (
    DTYPES,
    Experts,
    finalise_alone_and_in_a_batch,
    finalise_numbers_that_are_none,
    finalise_shapes,
    leave_nan_after_a_fault,
    room,
)
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor

SHAPES = [(1, 8), (5, 72), (3, 2, 40), (33, 512), (16,), (0, 8), (9, 1024), (2, 16448)]
by_name = {"ids": lambda value: str(value).replace("torch.", "")}


@pytest.mark.parametrize("dtypes", DTYPES, **by_name)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_sum_is_that_of_rows_that_were_finalised_before(ranks_of, world_size, dtypes):
    digests = ranks_of(world_size).run(finalise_shapes, dtypes, SHAPES)
    assert all(each == digests[0] for each in digests)


@pytest.mark.parametrize("dtypes", DTYPES, **by_name)
def test_a_group_of_one_on_a_gpu_has_the_rows_of_the_reference(dtypes):
    """What runs there runs here, too."""
    for seed, k in enumerate((1, 4, 10)):
        experts = Experts.of_rank(0, (9, 64), k, dtypes, seed)
        out = torch.empty(9, 64, dtype=dtypes[0])
        finalise(*experts.first(), experts.shared_rows, out)
        check_same_bits(out, experts.finalised())


@pytest.mark.parametrize("shape", [(2, 8), (1, 2, 8), (0, 8), (8,)])
def test_a_group_of_one_on_a_gpu_takes_no_number_for_a_row_that_is_none(shape):
    rows = torch.ones(shape, dtype=torch.bfloat16)
    count = rows.numel() // 8
    index = torch.tensor([[-1], [0], [count - 1], [count], [-2], [1 << 30]], dtype=torch.int32)
    out = torch.empty(6, 8, dtype=torch.bfloat16)
    finalise(rows, index, torch.full((6, 1), 2.0), None, out)
    there = 2.0 if count else torch.nan
    # Of no rows, the last has the number of none.
    expected = torch.tensor([0.0, there, there if count else 0.0, torch.nan, torch.nan, torch.nan])
    assert out.float().allclose(expected[:, None].expand(6, 8), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtypes", DTYPES, **by_name)
def test_the_reference_is_near_the_definition_in_float64(dtypes):
    """Rounded products and sums in float32, and one rounding."""
    for seed, k in enumerate((1, 4, 10)):
        experts = Experts.of_rank(0, (9, 64), k, dtypes, seed)
        terms = Experts(experts.expert_rows.abs(), experts.row_index, experts.expert_weights.abs(), None).exact()
        if experts.shared_rows is not None:
            terms += experts.shared_rows.double().abs()
        error = (experts.finalised().double() - experts.exact()).abs()
        bound = (
            torch.finfo(dtypes[0]).eps * experts.exact().abs() + 2 * (k + 1) * torch.finfo(torch.float32).eps * terms
        )
        assert bool((error <= bound + torch.finfo(dtypes[0]).tiny).all())


def test_a_rows_bits_do_not_depend_on_the_batch(ranks_of):
    ranks_of(2).run(finalise_alone_and_in_a_batch, 40, 384, 3)


def test_a_number_of_no_row_makes_nan_of_one_token(ranks_of):
    ranks_of(2).run(finalise_numbers_that_are_none)


def test_what_a_fault_leaves_is_nan():
    ThreadRanks(2).run(leave_nan_after_a_fault)


def agree_with_finalised_rows(me: Rank) -> None:
    """More than the slots hold: in pieces, and as operations on rows that were finalised before."""
    workspace = me.workspace(4096)
    own = Experts.of_rank(me.rank, (70, 640), 4, (torch.bfloat16, torch.bfloat16), 3)
    rows, weight = own.finalised(), random_tensor((640,), torch.float32, 4)
    experts = {"shared_rows": own.shared_rows}
    check_same_bits(
        lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, **experts), lamport_rs.all_reduce(rows, workspace)
    )
    found = lamport_rs.moe_finalize_all_reduce_rms_norm(*own.first(), None, weight, workspace, **experts)
    expected = lamport_rs.all_reduce_rms_norm(rows, None, weight, workspace)
    for each, other in zip(found, expected, strict=True):
        check_same_bits(each, other)


def test_rows_may_be_more_than_the_slots_hold(ranks_of):
    ranks_of(2).run(agree_with_finalised_rows)


def differ_in_what_is_their_own(me: Rank) -> None:
    """In the experts of a token, their number of rows, their weights' dtype, and whether there is a shared one."""
    workspace = me.workspace(room(me))
    dtypes = torch.bfloat16, (torch.float32, torch.bfloat16)[me.rank]
    own = Experts.of_rank(me.rank, (4, 64), 2 + 3 * me.rank, dtypes, 6)
    total = lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, own.shared_rows)
    check_same_bits(total, lamport_rs.all_reduce(own.finalised(), workspace))


def test_ranks_may_differ_in_what_is_their_own(ranks_of):
    ranks_of(2).run(differ_in_what_is_their_own)


def compile_it(me: Rank) -> None:
    workspace = me.workspace(room(me))
    weight = torch.ones(64, dtype=torch.float16)

    def step(experts: Experts) -> tuple[torch.Tensor, ...]:
        table, shared = workspace.workspace, experts.shared_rows
        total = lamport_rs.moe_finalize_all_reduce(*experts.first(), table, shared)
        return total, *lamport_rs.moe_finalize_all_reduce_rms_norm(*experts.first(), total, weight, table, shared, 1e-5)

    compiled = torch.compile(step, backend="aot_eager")
    for tokens in (3, 7):
        own = Experts.of_rank(me.rank, (tokens, 64), 2, (torch.float16, torch.float32), tokens)
        for found, expected in zip(compiled(own), step(own), strict=True):
            check_same_bits(found, expected, "compiled")


def test_they_compile(ranks_of):
    ranks_of(2).run(compile_it)


def finalise_what_lies_otherwise(me: Rank) -> None:
    """Not contiguous, or not aligned: copies take their place."""
    workspace = me.workspace(room(me))
    own = Experts.of_rank(me.rank, (6, 64), 3, (torch.float16, torch.float16), 5)
    expected = lamport_rs.moe_finalize_all_reduce(*own.first(), workspace, own.shared_rows)
    rows = torch.zeros(len(own.expert_rows), 80).half()[:, 3:67].copy_(own.expert_rows)
    index = own.row_index.T.contiguous().T
    weights = torch.empty(own.expert_weights.numel() + 1).half()[1:].view(index.shape).copy_(own.expert_weights)
    out = torch.empty(64, 6).half().T
    found = lamport_rs.moe_finalize_all_reduce(rows, index, weights, workspace, own.shared_rows, out=out)
    assert found is out
    check_same_bits(out, expected)
    weight = torch.ones(128)[::2]
    norm = lamport_rs.moe_finalize_all_reduce_rms_norm(rows, index, weights, None, weight, workspace, own.shared_rows)
    check_same_bits(norm[1], expected)


def test_operands_may_lie_otherwise(ranks_of):
    ranks_of(2).run(finalise_what_lies_otherwise)


def refuse(me: Rank) -> None:
    workspace = me.workspace()
    rows, weight = torch.ones(4, 64).half(), torch.ones(64)
    index, weights = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    memory = torch.ones(8, 64).half()
    refused = [
        ((rows.int(), index, weights), {}, "expert_rows is int32"),
        ((rows[:, :60], index, weights), {}, "expert_rows has shape .* multiple of 8"),
        (
            (rows, index.long(), weights),
            {},
            "row_index is torch.int64, which no operand may be: .* and indices torch.int32",
        ),
        ((rows, weights, weights), {}, "row_index is float32, but must be int32"),
        ((rows, index[:, :0], weights[:, :0]), {}, "row_index has shape .* multiple of 1"),
        ((rows, index[0, 0], weights[0, 0]), {}, "row_index has shape"),
        ((rows, index, weights[:2]), {}, "expert_weights has shape"),
        ((rows, index, weights.bfloat16()), {}, "expert_weights is bfloat16, but must be float16 or float32"),
        ((rows.float(), index, weights), {}, "expert_rows is float32, but must be float16 or bfloat16"),
        ((rows, index, weights), {"shared_rows": torch.ones(3, 64)}, "shared_rows is float32"),
        ((rows, index, weights), {"shared_rows": rows}, "shared_rows has shape"),
        ((rows, index, weights), {"out": torch.ones(3, 64)}, "out is float32"),
        ((rows, index, weights), {"out": rows}, "out has shape"),
        ((memory[:4], index, weights), {"out": memory[1:4]}, "out overlaps expert_rows"),
        ((rows, index, weights), {"shared_rows": memory[:3], "out": memory[:3]}, "out overlaps shared_rows"),
        ((None, index, weights), {}, "expert_rows must be a torch.Tensor"),
        ((rows, None, weights), {}, "row_index must be a torch.Tensor"),
    ]
    for arguments, options, text in refused:
        with pytest.raises(LamportError, match=text):
            lamport_rs.moe_finalize_all_reduce(*arguments, workspace, **options)
        options = dict(options)
        shared = options.pop("shared_rows", None)
        with pytest.raises(LamportError, match=text):
            lamport_rs.moe_finalize_all_reduce_rms_norm(*arguments, None, weight, workspace, shared, **options)
    refused_norms = [
        (rows[:3], weight[:8], {}, "weight has shape"),
        (rows, weight, {}, "residual has shape"),
        (memory[:3], weight, {"out": memory[:3]}, "out overlaps residual"),
        (memory[:3], weight, {"residual_out": memory[1:4]}, "residual_out overlaps residual in part"),
        (None, weight, {"out": memory[:3], "residual_out": memory[:3]}, "out overlaps residual_out"),
        (None, weight, {"eps": -1.0}, "eps is -1"),
    ]
    for residual, its_weight, options, text in refused_norms:
        with pytest.raises(LamportError, match=text):
            lamport_rs.moe_finalize_all_reduce_rms_norm(
                rows, index, weights, residual, its_weight, workspace, **options
            )
    for name in ("moe_finalize_all_reduce", "moe_finalize_all_reduce_rms_norm"):
        assert workspace.supports(rows, name)
        assert not workspace.supports(rows[:, :60], name)
        workspace.prepare(rows, name)
        assert name not in workspace.status().operations
    lamport_rs.moe_finalize_all_reduce(rows, index, weights, workspace)
    lamport_rs.moe_finalize_all_reduce_rms_norm(rows, index, weights, None, weight, workspace)
    operations = workspace.status().operations
    assert [operations[name] for name in ("moe_finalize_all_reduce", "moe_finalize_all_reduce_rms_norm")] == [1, 1]


def test_what_cannot_be_taken_is_refused_and_says_why(ranks_of):
    ranks_of(2).run(refuse)
