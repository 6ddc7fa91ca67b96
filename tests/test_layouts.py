"""Operands that the kernels cannot take as they lie in memory are copied, and the results are those of dense ones."""

from collections.abc import Callable

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor

EPS = 1e-6
ROWS, COLUMNS = 6, 16


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return memory[1:].view(tensor.shape).copy_(tensor)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape[::-1], dtype=tensor.dtype).permute(*reversed(range(tensor.dim()))).copy_(tensor)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(*tensor.shape, 3, dtype=tensor.dtype)[..., 1].copy_(tensor)


def sliced(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)[..., 2:-1].copy_(tensor)


def negated(tensor: torch.Tensor) -> torch.Tensor:
    return torch._neg_view(-tensor)


LAYOUTS = [misaligned, transposed, spread, sliced, negated]


def operations(me: Rank, workspace) -> dict[str, tuple[Callable, dict[str, torch.Tensor], list[str]]]:
    """Each as a function of operands by name, with dense ones, and the names of its outputs."""
    settings = me.rank, me.world_size, EPS
    rows = random_tensor((ROWS, COLUMNS), torch.float32, me.rank)
    residual, weight = random_tensor((ROWS, COLUMNS), torch.float32, 7), random_tensor((COLUMNS,), torch.float32, 8)
    qkv = random_tensor((ROWS, 32), torch.float32, me.rank, 9)
    weights = {"norm_weight_q": weight, "norm_weight_k": weight[:8].clone()}

    def total(**operands):
        return (lamport_rs.all_reduce(workspace=workspace, **operands),)

    def norm(**operands):
        return lamport_rs.all_reduce_rms_norm(workspace=workspace, **operands)

    def minimax(**operands):
        return (lamport_rs.minimax_allreduce_rms(workspace=workspace, rank=me.rank, nranks=2, eps=EPS, **operands),)

    def qk(qkv, norm_weight_q, norm_weight_k, **outputs):
        return lamport_rs.minimax_allreduce_rms_qk(
            qkv, norm_weight_q, norm_weight_k, workspace, 16, 8, *settings, **outputs
        )

    return {
        "all_reduce": (total, {"input": rows}, ["out"]),
        "the norm": (norm, {"input": rows, "residual": residual, "weight": weight}, ["out", "residual_out"]),
        "minimax": (minimax, {"input": rows, "norm_weight": weight}, ["out"]),
        "minimax of Q and K": (qk, {"qkv": qkv, **weights}, ["q_out", "k_out"]),
    }


def lay_out_otherwise(me: Rank, layout) -> None:
    workspace = me.workspace(1 << 16, timeout=10)
    for name, (call, inputs, outputs) in operations(me, workspace).items():
        expected = call(**inputs)
        changes = [{each: layout(inputs[each])} for each in inputs]
        changes.append({each: layout(tensor) for each, tensor in inputs.items()})
        into = {each: layout(torch.zeros_like(result)) for each, result in zip(outputs, expected, strict=True)}
        changes += [{each: out} for each, out in into.items()]
        changes.append({**changes[len(inputs)], **into})
        for change in changes:
            before = {each: tensor.resolve_neg().clone() for each, tensor in change.items() if each in inputs}
            found = call(**{**inputs, **change})
            for result, wanted in zip(found, expected, strict=True):
                check_same_bits(
                    result.resolve_neg().contiguous(), wanted, f"{name} with {sorted(change)} {layout.__name__}"
                )
            for index, each in enumerate(outputs):
                assert each not in change or found[index] is change[each]
            for each, tensor in before.items():
                check_same_bits(change[each].resolve_neg().clone(), tensor, f"{each} of {name} afterwards")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_operand_may_lie_in_memory_as_it_likes(layout):
    ThreadRanks(2).run(lay_out_otherwise, layout)


def use_the_operand_itself(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=10)
    for layout in LAYOUTS:
        rows = layout(torch.full((ROWS, COLUMNS), 1.0 + me.rank))
        assert lamport_rs.all_reduce(rows, workspace, out=rows) is rows
        check_same_bits(
            rows.resolve_neg().contiguous(), torch.full((ROWS, COLUMNS), 3.0), f"in place, {layout.__name__}"
        )
    packed = torch.full((ROWS, 24), 2.0)
    q, k = packed[:, :16], packed[:, 16:]
    lamport_rs.minimax_allreduce_rms_qk(
        packed, torch.ones(16), torch.ones(8), workspace, 16, 8, me.rank, 2, 0.0, q_out=q, k_out=k
    )
    check_same_bits(packed, torch.ones(ROWS, 24), "Q and K in place of themselves")
    memory = torch.zeros(COLUMNS, requires_grad=True)
    lamport_rs.all_reduce(torch.ones(COLUMNS - 1), workspace, out=memory.detach()[1:])
    check_same_bits(memory.detach()[1:].clone(), torch.full((COLUMNS - 1,), 2.0))


def test_outputs_of_other_layouts_may_be_inputs_and_lie_beside_each_other():
    ThreadRanks(2).run(use_the_operand_itself)


def refuse_outputs_that_overlap(me: Rank) -> None:
    workspace, x = me.workspace(1 << 16, timeout=10), torch.ones(ROWS, COLUMNS)
    memory = torch.zeros(ROWS, 2 * COLUMNS)
    norm = lamport_rs.all_reduce_rms_norm
    with pytest.raises(LamportError, match="out overlaps residual_out; they must be separate"):
        norm(x, x, x[0], workspace, out=memory[:, :16], residual_out=memory[:, 15:31])
    with pytest.raises(LamportError, match="elements that share memory"):
        norm(x, x, x[0], workspace, out=torch.zeros(COLUMNS).expand(ROWS, -1))
    assert not memory.any()
    _, residual = norm(x, x, x[0], workspace, out=memory[:, :16], residual_out=memory[:, 16:])
    check_same_bits(residual.contiguous(), torch.full((ROWS, COLUMNS), 3.0))
    check_same_bits(lamport_rs.all_reduce(x, workspace), x * 2, "the next sum")


def test_outputs_that_share_elements_are_refused_before_anything_is_sent():
    ThreadRanks(2).run(refuse_outputs_that_overlap)


def compile_views(me: Rank) -> None:
    workspace = me.workspace(1 << 16, timeout=60)

    def work(x, memory):
        total = lamport_rs.all_reduce(x[1:].clone(), workspace)
        strided = lamport_rs.all_reduce(x.view(3, 11).t(), workspace)
        lamport_rs.all_reduce(x, workspace, out=memory[:, 1])
        return total, strided, memory.sum(0)

    x, memories = torch.arange(33.0), [torch.zeros(33, 3) for _ in range(2)]
    expected = work(x, memories[0])
    # The clone is dropped by inductor; views of inputs are what it is given under aot_eager, too.
    found = torch.compile(work, backend="aot_eager", fullgraph=True)(x, memories[1])
    for one, other in zip((*found, memories[1]), (*expected, memories[0]), strict=True):
        check_same_bits(one.contiguous(), other.contiguous(), "a view, compiled")


def test_views_may_be_compiled(ranks_of):
    ranks_of(2).run(compile_views, timeout=120)
