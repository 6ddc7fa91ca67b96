"""The plugin's fused norms and MiniMax's norms in SGLang, with stand-ins for its modules and ranks as processes."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from fake_sglang import (
    COMM_FUSION,
    CUTEDSL,
    DP_ATTENTION,
    EPS,
    EXIT,
    MODEL_LOADER,
    ExpertsService,
    Norm,
    calls,
    in_sglang,
    logged,
    make_group,
    make_groups,
    parallel,
)
from moe_rows import Experts
from ranks import Rank
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    mean_of_squares,
    random_tensor,
    rms_norm,
    rms_norm_of_rows,
    rounded_sum_with,
)

WIDTH = 64


def prepare(width: int = WIDTH, dtype: torch.dtype = torch.bfloat16) -> None:
    """What SGLang does before it captures graphs, if all-reduces are to be fused."""
    sys.modules[COMM_FUSION].pre_initialize_workspaces(max_token_num=2048, hidden_dim=width, dtype=dtype)


def check_norm(me: Rank, norm: Norm, rows: int, dtype: torch.dtype, ranks: list[int], **options: bool) -> None:
    """One fused norm against the reference, by the ranks of a group."""
    inputs = [random_tensor((rows, WIDTH), dtype, rank) for rank in ranks]
    residual = random_tensor((rows, WIDTH), dtype, 99)
    given = residual.clone()
    mine = random_tensor((rows, WIDTH), dtype, me.rank)
    found, summed = norm.after_all_reduce(mine, residual, **options)
    assert calls.take() == []
    check_same_bits(summed, rounded_sum_with(residual, inputs))
    check_rounding(found, rms_norm_of_rows(summed, norm.weight, EPS))
    check_same_bits(residual, given)


def check_fused(me: Rank) -> list[str]:
    def check(me: Rank, modules: Any) -> None:
        make_groups(me)
        prepare()
        assert calls.take() == []  # FlashInfer was not asked to prepare anything.
        for dtype in DTYPES:
            for weight_dtype in {dtype, torch.float32}:
                norm = Norm(random_tensor((WIDTH,), weight_dtype, 5))
                for rows in (1, 7, 2048):
                    check_norm(me, norm, rows, dtype, list(range(me.world_size)))
        norm.after_all_reduce(torch.ones(2049, WIDTH), torch.ones(2049, WIDTH))
        assert calls.take()[0] == ("own", "unfused")
        modules[DP_ATTENTION].is_enabled = True
        norm.after_all_reduce(torch.ones(1, WIDTH), torch.ones(1, WIDTH))
        assert calls.take()[0] == ("own", "unfused")

    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="fused")
    return lines


def test_norms_are_fused_without_flashinfer(ranks_of):
    (line,), *others = ranks_of(2).run(check_fused)
    assert line.startswith("INFO lamport_rs ")
    assert "fuses all-reduces with residual and RMSNorm in the place of FlashInfer: groups tp:" in line
    assert f"up to 2048 rows of {WIDTH}" in line
    assert others == [[]]


def check_not_taken(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        prepare()
        for width, dtype, weight_dtype in [
            (WIDTH + 8, torch.bfloat16, torch.bfloat16),
            (WIDTH, torch.float64, torch.float64),
            (WIDTH, torch.bfloat16, torch.float16),
        ]:
            rows = torch.full((3, width), 1.0, dtype=dtype)
            found, summed = Norm(torch.ones(width, dtype=weight_dtype)).after_all_reduce(rows, rows)
            assert calls.take()[0] == ("own", "unfused")
            assert summed.unique().tolist() == [me.world_size + 1.0]
            assert found.float().allclose(torch.ones(3, width), atol=0.02)
        prepare(WIDTH + 8)  # A draft model is as wide as it likes.
        rows = torch.ones((3, WIDTH + 8), dtype=torch.bfloat16)
        Norm(rows[0].clone()).after_all_reduce(rows, rows)
        assert calls.take() == []

    in_sglang(me, check)


def test_what_the_workspace_does_not_take_is_summed_and_normalised_by_sglang(ranks_of):
    ranks_of(2).run(check_not_taken)


def check_without_fusion(me: Rank, case: str) -> list[str]:
    def check(me: Rank, modules: Any) -> None:
        make_groups(me)
        if case == "data-parallel attention":
            modules[DP_ATTENTION].is_enabled = True
        if case != "not asked for":
            prepare(width=12 if case == "rows that are no vectors" else WIDTH)
            assert calls.take() == [("flashinfer", "prepare")]
        norm, rows = Norm(torch.ones(WIDTH)), torch.ones(2, WIDTH)
        _found, summed = norm.after_all_reduce(rows, rows)
        assert calls.take()[0] == ("own", "unfused")
        assert summed.unique().tolist() == [me.world_size + 1.0]

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if case == "no workspace" and me.rank == 1 else {}
    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="fused", **limit)
    return lines


@pytest.mark.parametrize(
    "case", ["not asked for", "data-parallel attention", "rows that are no vectors", "no workspace"]
)
def test_sglangs_own_way_goes_on(ranks_of, case):
    first, second = ranks_of(2).run(check_without_fusion, case)
    assert second == []
    if case == "no workspace":
        (line,) = first
        assert line.startswith("WARNING SGLang's own path goes on for fused, because lamport_rs has no workspace: ")
    else:
        assert first == []


def check_subgroups(me: Rank, failing: int | None) -> None:
    def check(me: Rank, _modules: Any) -> None:
        pairs = [[0, 1], [2, 3]]
        make_group("world", [[0, 1, 2, 3]], use_custom_allreduce=False)
        parallel.tp_group = make_group("tp", [[0, 1, 2, 3]])
        parallel.attn_tp_group = make_group("attention_tp", pairs)
        parallel.moe_group = parallel.tp_group if failing is None else parallel.attn_tp_group
        calls.take()
        prepare()
        if failing is not None:
            # The other pair has a workspace, and must not use it: all four defer their sums alike.
            assert calls.take() == [("flashinfer", "prepare")]
            Norm(torch.ones(WIDTH)).after_all_reduce(torch.ones(2, WIDTH), torch.ones(2, WIDTH))
            assert calls.take()[0] == ("own", "unfused")
            return
        norm = Norm(random_tensor((WIDTH,), torch.bfloat16, 5))
        mine = [0, 1] if me.rank < 2 else [2, 3]
        check_norm(me, norm, 5, torch.bfloat16, mine, use_attn_tp_group=True)
        check_norm(me, norm, 5, torch.bfloat16, [0, 1, 2, 3], use_attn_tp_group=False)

    # Memory that this one pair has not: the workspaces of all-reduces do not fail, for they are not chosen.
    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == failing else {}
    in_sglang(me, check, LAMPORT_RS_SGLANG="fused", **limit)


@pytest.mark.parametrize("failing", [None, 3])
def test_attention_and_experts_are_fused_over_their_own_groups_or_not_at_all(ranks_of, failing):
    ranks_of(4).run(check_subgroups, failing)


def check_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        prepare()
        norm = Norm(random_tensor((WIDTH,), torch.bfloat16, 5))
        # SGLang chooses in what is compiled, too.
        fuse: Callable[..., Any] = sys.modules[COMM_FUSION].flashinfer_allreduce_residual_rmsnorm
        applies: Callable[..., bool] = sys.modules[EXIT].flashinfer_ar_fusion_applies

        def layer(x: torch.Tensor, residual: torch.Tensor) -> Any:
            return fuse(x + 1, residual, norm.weight, EPS, 2048) if applies(x.shape[0]) else None

        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for rows in (4, 9, 5):
            mine, residual = torch.full((rows, WIDTH), 1.0 + me.rank).bfloat16(), torch.ones(rows, WIDTH).bfloat16()
            found, summed = compiled(mine, residual)
            assert summed.unique().tolist() == [6.0]
            check_rounding(found, rms_norm_of_rows(summed, norm.weight, EPS))

    with torch.inference_mode():
        in_sglang(me, check)


def test_a_compiled_model_fuses_in_one_graph(ranks_of):
    ranks_of(2).run(check_compiled)


def prepared_experts(width: int = WIDTH) -> Any:
    """What SGLang prepares for sums of experts' rows, once it has chosen a model."""
    sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
    service = sys.modules[CUTEDSL].CuteDSLWorkspace(hidden_size=width, top_k=2, rms_epsilon=EPS)
    service.prepare(max_m=1 << 20)
    assert calls.take() == [("flashinfer", "prepare experts")]
    service.prepare(max_m=1)
    return service


def handoff_of(experts: Experts) -> SimpleNamespace:
    """What a layer of experts leaves to the next norm."""
    return SimpleNamespace(
        routed_output=experts.expert_rows,
        permuted_indices=experts.row_index,
        expert_weights=experts.expert_weights,
        gated_shared_output=experts.shared_rows,
    )


def check_experts(me: Rank) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        service = prepared_experts()
        assert calls.take() == []
        for seed, weight_dtype in enumerate((torch.bfloat16, torch.float32)):
            for rows in (1, 7):
                shape, dtypes = (rows, WIDTH), (torch.bfloat16, weight_dtype)
                of_ranks = [Experts.of_rank(rank, shape, 3, dtypes, seed) for rank in range(me.world_size)]
                finalised = [each.finalised().to(me.device) for each in of_ranks]
                residual = random_tensor(shape, torch.bfloat16, 99).to(me.device)
                gamma = random_tensor((WIDTH,), weight_dtype, 98).to(me.device)
                given, total = residual.clone(), rounded_sum_with(residual, finalised)
                found, summed = service.finalize(handoff_of(of_ranks[me.rank].to(me.device)), residual, gamma)
                check_same_bits(summed, total)
                check_rounding(found, rms_norm_of_rows(total, gamma, EPS))
                others = service.all_reduce_residual_rms_norm(finalised[me.rank], residual, gamma)
                check_same_bits(others[0], found)
                check_same_bits(others[1], total)
                check_same_bits(residual, given)
        assert [service.supports(rows) for rows in (0, 1, 1 << 20, (1 << 20) + 1)] == [False, True, True, False]
        assert calls.take() == []

    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="fused")
    return lines


def test_experts_rows_are_put_together_in_the_norms_all_reduce(ranks_of):
    (line,), *others = ranks_of(2).run(check_experts)
    assert "finalises experts' rows with all-reduce, residual and RMSNorm in the place of FlashInfer: group tp:" in line
    assert (
        f"up to {(1 << 20) // (2 * WIDTH)} tokens of {WIDTH} ({(8 << 20) // (2 * WIDTH)} where no experts are)" in line
    )
    assert others == [[]]


def check_experts_not_taken(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        service = prepared_experts()
        for rows, dtype, gamma_dtype in [
            ((8 << 20) // (2 * WIDTH) + 1, torch.bfloat16, torch.bfloat16),
            (2, torch.float16, torch.float16),
            (2, torch.bfloat16, torch.float16),
        ]:
            row, gamma = torch.ones(rows, WIDTH, dtype=dtype), torch.ones(WIDTH, dtype=gamma_dtype)
            experts = Experts(row, torch.zeros(rows, 1, dtype=torch.int32), torch.ones(rows, 1), None)
            service.finalize(handoff_of(experts), row, gamma)
            service.all_reduce_residual_rms_norm(row, row, gamma)
            assert calls.take() == [("flashinfer", "experts"), ("flashinfer", "norm")]

        # A residual of more tokens than the experts have had, as of a batch that is filled up.
        row, gamma = torch.ones(4, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
        for tokens, shared in ((3, None), (3, row[:3]), (4, row[:3])):
            experts = Experts(row, torch.zeros(tokens, 1, dtype=torch.int32), torch.ones(tokens, 1), shared)
            service.finalize(handoff_of(experts), row, gamma)
            assert calls.take() == [("flashinfer", "experts")]
        service.all_reduce_residual_rms_norm(row[:3], row, gamma)
        assert calls.take() == [("flashinfer", "norm")]

        # More tokens than are worth one shot, where two take what experts have not made.
        rows = (1 << 20) // (2 * WIDTH) + 1
        row, gamma = torch.ones(rows, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
        experts = Experts(row, torch.zeros(rows, 1, dtype=torch.int32), torch.ones(rows, 1), None)
        service.finalize(handoff_of(experts), row, gamma)
        service.all_reduce_residual_rms_norm(row, row, gamma)
        assert calls.take() == [("flashinfer", "experts")]

    in_sglang(me, check)


def test_experts_rows_that_the_workspace_does_not_take_are_flashinfers(ranks_of):
    ranks_of(2).run(check_experts_not_taken)


def check_experts_left(me: Rank, case: str) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        if case == "no hook":
            module = sys.modules[CUTEDSL] = ModuleType(CUTEDSL)
            own = ("__init__", "supports", "finalize", "all_reduce_residual_rms_norm")
            methods = {name: vars(ExpertsService)[name] for name in own}
            module.CuteDSLWorkspace = type("", (), {**methods, "prepare": lambda self: ExpertsService.prepare(self, 9)})
        make_groups(me)
        if case == "no hook":
            sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
            service = sys.modules[CUTEDSL].CuteDSLWorkspace(hidden_size=WIDTH, top_k=2, rms_epsilon=EPS)
            service.prepare()
            calls.take()
        else:
            service = prepared_experts(width=12 if case == "rows that are no vectors" else WIDTH)
        rows = torch.ones(2, service.hidden_size).bfloat16()
        service.all_reduce_residual_rms_norm(rows, rows, rows[0])
        assert calls.take() == [("flashinfer", "norm")]

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if case == "no workspace" and me.rank == 1 else {}
    parts = "minimax" if case == "not chosen" and me.rank == 1 else "fused,minimax"
    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG=parts, **limit)
    return lines


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no hook", "no hook for lamport_rs to replace fused sums of experts' rows: "),
        ("no workspace", "SGLang's own path goes on for fused, because lamport_rs has no workspace: "),
        ("not chosen", "the ranks have different values of LAMPORT_RS_SGLANG: ranks 0 choose more"),
        ("rows that are no vectors", None),
    ],
)
def test_experts_rows_are_flashinfers_where_the_package_cannot_take_them(ranks_of, case, expected):
    first, second = ranks_of(2).run(check_experts_left, case)
    assert second == []
    if expected is None:
        assert first == []
    else:
        assert any(expected in line for line in first)


def check_experts_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        service = prepared_experts()
        index, weights = torch.tensor([[0, -1], [1, 0]], dtype=torch.int32), torch.ones(2, 2)

        def layer(rows: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor) -> Any:
            experts = {"routed_output": rows * 2, "expert_weights": weights, "permuted_indices": index}
            return service._workspace.moe_finalize_all_reduce_rms_norm(
                **experts, gated_shared_output=None, residual=residual, gamma=gamma
            )

        residual, gamma = torch.ones(2, WIDTH).bfloat16(), torch.ones(WIDTH).bfloat16()
        _found, summed = torch.compile(layer, backend="aot_eager", fullgraph=True)(residual, residual, gamma)
        assert summed[:, 0].tolist() == [1 + 2 * me.world_size, 1 + 4 * me.world_size]

    with torch.inference_mode():
        in_sglang(me, check)


def test_experts_rows_are_one_operator_for_compilers(ranks_of):
    ranks_of(2).run(check_experts_compiled)


def minimax_norm(q_width: int, k_width: int, dtype: torch.dtype) -> tuple[Any, Norm, Norm]:
    made, _architecture = sys.modules[MODEL_LOADER].get_model_architecture(model_config=None)
    q_norm, k_norm = Norm(torch.ones(q_width, dtype=dtype)), Norm(torch.ones(k_width, dtype=dtype))
    norm = made(q_norm, k_norm)
    # SGLang loads the weights after it has made the model.
    q_norm.weight, k_norm.weight = random_tensor((q_width,), dtype, 1), random_tensor((k_width,), dtype, 2)
    return norm, q_norm, k_norm


def check_minimax(me: Rank) -> list[str]:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        for dtype in DTYPES:
            norm, q_norm, k_norm = minimax_norm(48, 16, dtype)
            for rows in (1, 5):
                all_qkv = [random_tensor((rows, 80), dtype, rank) for rank in range(me.world_size)]
                q, k, _v = all_qkv[me.rank].split([48, 16, 16], dim=-1)
                other_k, other_q = torch.cat([k, q], dim=-1).split([16, 48], dim=-1)
                # As they lie in a projection's output, apart, and in another order.
                pairs = [(q, k), (q.clone(), k.clone()), (other_q, other_k)]
                for found in [norm.forward(*pair) for pair in pairs]:
                    for result, mine, columns, weight in [
                        (found[0], q, slice(0, 48), q_norm.weight),
                        (found[1], k, slice(48, 64), k_norm.weight),
                    ]:
                        squares = mean_of_squares([each[:, columns] for each in all_qkv])
                        check_rounding(result, rms_norm(mine, squares, weight, EPS))
        assert calls.take() == []
        # What the workspace does not take is the norm's own business.
        norm.forward(q.double(), k.double())
        norm, *_ = minimax_norm(12, 4, torch.bfloat16)
        norm.forward(q, k)
        assert calls.take() == [("own", "qk_norm")] * 2

    with logged() as lines:
        in_sglang(me, check, LAMPORT_RS_SGLANG="minimax")
    return lines


def test_minimax_norms_are_taken_over_the_ranks(ranks_of):
    (line,), *others = ranks_of(2).run(check_minimax)
    assert "normalises MiniMax's Q and K: group tp:" in line
    assert others == [[]]


def check_minimax_without_workspace(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        norm, *_ = minimax_norm(48, 16, torch.bfloat16)
        norm.forward(torch.ones(2, 48), torch.ones(2, 16))
        assert calls.take() == [("own", "qk_norm")]

    in_sglang(me, check, **({"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == 1 else {}))


def test_minimax_norms_without_a_workspace_are_sglangs(ranks_of):
    ranks_of(2).run(check_minimax_without_workspace)


def check_minimax_compiled(me: Rank) -> None:
    def check(me: Rank, _modules: Any) -> None:
        make_groups(me)
        norm, q_norm, _k_norm = minimax_norm(48, 16, torch.float32)
        compiled = torch.compile(lambda q, k: norm.forward(q * 2, k * 2), backend="aot_eager", fullgraph=True)
        for rows in (3, 6, 4):
            q, k = compiled(torch.ones(rows, 48), torch.ones(rows, 16))
            check_rounding(q, rms_norm(torch.full((rows, 48), 2.0), torch.full((rows,), 4.0), q_norm.weight, EPS))
            assert k.shape == (rows, 16)

    with torch.inference_mode():
        in_sglang(me, check)


def test_minimax_norms_are_one_operator_for_compilers(ranks_of):
    ranks_of(2).run(check_minimax_compiled)
