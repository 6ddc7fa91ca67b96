"""Norms that SGLang fuses by its own kernel (MiniMax-M3), with stand-ins for its modules and ranks as processes."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_sglang import (
    EPS,
    MIB,
    MODEL_LOADER,
    PUSH_FUSION,
    PUSH_KERNELS,
    PUSH_MEMORY,
    calls,
    in_sglang,
    logged,
    make_groups,
)
from ranks import Rank
from reference import check_rounding, check_same_bits, random_tensor, rms_norm_of_rows, rounded_sum_with

WIDTH = 64
MOST = MIB // (2 * WIDTH)
"""Rows of which SGLang prepares for."""


def prepare() -> None:
    """What SGLang does when it has chosen a model, made its layers, and loaded it."""
    sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
    for _ in range(2):  # For a draft model again.
        sys.modules[PUSH_MEMORY].register_fused_all_reduce_comm(max_push_size=MIB, max_push_blocks=512)
    assert calls.take() == [("own", "prepare push")] * 2


def norm(me: Rank, *operands: Any, **options: Any) -> Any:
    """As a layer of SGLang's calls it."""
    options = {"world_size": me.world_size, **options}
    return sys.modules[PUSH_FUSION].all_reduce_residual_norm(*operands, EPS, **options)


def check_served(me: Rank) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        prepare()
        for rows, weight_dtype in [(1, torch.bfloat16), (7, torch.float32), (MOST, torch.bfloat16)]:
            every = [random_tensor((rows, WIDTH), torch.bfloat16, rank) for rank in range(me.world_size)]
            residual, weight = random_tensor((rows, WIDTH), torch.bfloat16, 9), random_tensor((WIDTH,), weight_dtype, 8)
            total = rounded_sum_with(residual, every)
            given, place = residual.clone(), torch.empty_like(residual)
            found, summed = norm(me, every[me.rank].clone(), residual, weight, residual_out=place)
            check_rounding(found, rms_norm_of_rows(total, weight, EPS))
            assert summed.data_ptr() == place.data_ptr()
            check_same_bits(place, total)
            check_same_bits(residual, given)
            # Without a place the residual is it.
            again, summed = norm(me, every[me.rank].clone(), residual, weight)
            assert summed.data_ptr() == residual.data_ptr()
            check_same_bits(residual, total)
            check_same_bits(again, found)
        assert calls.take() == []

    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="fused")
    return lines


def test_norms_on_the_push_plane_are_the_packages(ranks_of):
    (line,), *others = ranks_of(2).run(check_served)
    assert "in the place of SGLang's kernel on CustomAllReduceV2: group tp:" in line
    assert "up to 1 MiB" in line
    assert others == [[]]


def check_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        prepare()
        run = sys.modules[PUSH_FUSION].all_reduce_residual_norm
        ones = torch.ones(3, WIDTH, dtype=torch.bfloat16)

        def layer(rows: torch.Tensor, residual: torch.Tensor) -> Any:
            place = torch.empty_like(residual)
            found, summed = run(rows, residual, ones[0], EPS, world_size=me.world_size, residual_out=place)
            return found + 1, summed, place

        with torch.no_grad():
            found, *sums = torch.compile(layer, backend="aot_eager", fullgraph=True)(ones * (me.rank + 1), ones)
        assert [each.unique().tolist() for each in (found, *sums)] == [[2.0], [4.0], [4.0]]
        assert calls.take() == []

    in_sglang(me, check)


def test_for_compilers_such_a_norm_is_one_operator(ranks_of):
    ranks_of(2).run(check_compiled)


def check_left(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        prepare()
        rows, weight = torch.ones(2, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
        short = torch.ones(2, 12).bfloat16()
        for operands, options in [
            ((rows, None, weight), {}),
            ((rows, rows, weight), {"gemma": True}),
            ((rows, rows, weight), {"world_size": 4}),
            ((rows.half(), rows.half(), weight), {}),
            ((rows, rows, weight.half()), {}),
            ((rows, rows[:1], weight), {}),
            ((short, short, short[0]), {}),
            ((rows[:0], rows[:0], weight), {}),
            ((rows[:1].repeat(MOST + 1, 1), rows[:1].repeat(MOST + 1, 1), weight), {}),
        ]:
            norm(me, *operands, residual_out=torch.empty_like(operands[0]), **options)
            assert calls.take() == [("own", "push norm")], (operands, options)

    in_sglang(me, check)


def test_what_the_workspace_does_not_take_is_sglangs(ranks_of):
    ranks_of(2).run(check_left)


def check_all_left(me: Rank, case: str) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        if case == "other kernels":
            del sys.modules[PUSH_FUSION]
        if case == "no preparation":
            del sys.modules[PUSH_MEMORY].register_fused_all_reduce_comm
        if case == "no hook":
            sys.modules[PUSH_KERNELS].all_reduce_residual_norm = lambda input, residual: None  # noqa: A006
        if case == "no plane":
            sys.modules[PUSH_KERNELS].get_registered_comm = lambda _size: None if me.rank else object()
        make_groups(me)
        sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
        if case != "no preparation":
            sys.modules[PUSH_MEMORY].register_fused_all_reduce_comm(max_push_size=MIB)
        calls.take()
        kept = sys.modules.get(PUSH_FUSION, SimpleNamespace(all_reduce_residual_norm=None)).all_reduce_residual_norm
        assert not hasattr(kept, "__wrapped__")

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if case == "no workspace" and me.rank == 1 else {}
    parts = "minimax" if case == "not chosen" and me.rank == 1 else "fused,minimax"
    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG=parts, **limit)
    return lines


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("other kernels", None),
        ("no plane", None),
        ("no preparation", "no hook for lamport_rs to replace fused norms on CustomAllReduceV2: there is no "),
        ("no hook", "no hook for lamport_rs to replace fused norms on CustomAllReduceV2: "),
        ("no workspace", "SGLang's own path goes on for fused, because lamport_rs has no workspace: "),
        ("not chosen", "the ranks have different values of LAMPORT_RS_SGLANG: ranks 0 choose more"),
    ],
)
def test_such_norms_are_sglangs_where_the_package_cannot_take_them(ranks_of, case, expected):
    first, second = ranks_of(2).run(check_all_left, case)
    assert second == []
    assert {expected in line for line in first} == ({True} if expected else set())
