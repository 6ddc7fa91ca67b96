"""The plugin's part `fused`: vLLM's fusion pass and eager helper, with stand-ins for vLLM and FlashInfer."""

import importlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_vllm import (
    PACKAGE,
    RELEASES,
    TABLE,
    configure,
    cuda_communicator,
    fake_flashinfer,
    fake_vllm,
    flashinfer_if,
    in_vllm,
    logged,
)
from lamport_rs import LamportError
from lamport_rs.vllm_plugin import fused, fused_workspaces, install
from lamport_rs.vllm_plugin.fused_operation import NAMES, stand_in
from quantised_rows import check_quantised
from ranks import Rank
from reference import (
    DTYPES,
    check_rounding,
    check_same_bits,
    random_tensor,
    rms_norm_of_rows,
    rounded_sum,
    rounded_sum_with,
)

each_release = pytest.mark.parametrize("release", RELEASES)
HIDDEN, TOKENS, EPS = 64, 4096, 1e-5


def the_pass(**changes: Any) -> Any:
    """vLLM's pass, made as a worker makes it."""
    config = {"max_token_num": TOKENS, "hidden_size": HIDDEN, "dtype": torch.bfloat16, **changes}
    return importlib.import_module(fused_workspaces.FUSION_PASS).AllReduceFusionPass(SimpleNamespace(**config))


def run_operator(me: Rank, inputs: list[torch.Tensor], residual: torch.Tensor, weight: torch.Tensor, **options: Any):
    """vLLM's operator on this rank's input; the tensors as it leaves them."""
    module = importlib.import_module(fused_workspaces.FUSION_PASS)
    mine, held = inputs[me.rank].clone(), residual.clone()
    arguments = {"rms_eps": EPS, "launch_with_pdl": True, "fp32_acc": True, "max_token_num": TOKENS}
    arguments |= {"world_size": me.world_size, "pattern_code": 1, **options}
    module.flashinfer_trtllm_fused_allreduce_norm(mine, held, weight, **arguments)
    return mine, held


def check_operator(me: Rank, release: str) -> list[str]:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        assert not the_pass().disabled
        for seed, dtype in enumerate(DTYPES):
            for rows, bias in [(1, 0.0), (37, 0.0), (5, 1.0)]:
                inputs = [random_tensor((rows, HIDDEN), dtype, seed, rank) for rank in range(me.world_size)]
                residual = random_tensor((rows, HIDDEN), dtype, seed, 99)
                weight = random_tensor((HIDDEN,), dtype, seed, 98)
                total = rounded_sum_with(residual, inputs)
                normed, held = run_operator(me, inputs, residual, weight, weight_bias=bias)
                check_same_bits(held, total)
                check_rounding(normed, rms_norm_of_rows(total, weight, EPS, bias))
                norm_out = torch.empty_like(residual)
                summed, held = run_operator(me, inputs, residual, weight, weight_bias=bias, norm_out=norm_out)
                check_same_bits(summed, total)
                check_same_bits(norm_out, normed)
                check_same_bits(held, residual)

    with logged() as lines:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")
    return lines


@each_release
@pytest.mark.parametrize("world_size", [2, 3])
def test_without_flashinfer_the_operator_sums_in_rank_order(ranks_of, release, world_size):
    (line,), *others = ranks_of(world_size).run(check_operator, release)
    assert line.startswith(f"INFO lamport_rs serves fused: {world_size} ranks, ")
    assert others == [[]] * (world_size - 1)


def helpers_of(release: str) -> list[tuple[str, str, float]]:
    """The helpers of eager models: module, function, and what is added to weights."""
    recorded = TABLE[release]["signatures"]
    others = [module for module in fused.HELPER_USERS if recorded[module]["fused_allreduce_rms_norm"] is not None]
    return [
        (fused.HELPER, "fused_allreduce_gemma_rms_norm", 1.0),
        *((module, "fused_allreduce_rms_norm", 0.0) for module in others),
    ]


def check_helpers(me: Rank, release: str, weight_dtype: torch.dtype, imported_early: bool) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        helpers = helpers_of(release)
        assert len(helpers) == 2
        for name, function, bias in helpers:
            norm = SimpleNamespace(weight=random_tensor((HIDDEN,), weight_dtype, 4), variance_epsilon=EPS)
            inputs = [random_tensor((3, HIDDEN), torch.bfloat16, 5, rank) for rank in range(me.world_size)]
            residual = random_tensor((3, HIDDEN), torch.bfloat16, 6)
            run = getattr(importlib.import_module(name), function)
            normed, total = run(inputs[me.rank].clone(), residual, norm)
            check_same_bits(total, rounded_sum_with(residual, inputs))
            check_rounding(normed, rms_norm_of_rows(total, norm.weight, EPS, bias))

    with pytest.MonkeyPatch.context() as patch:
        if imported_early:
            patch.setattr(
                "fake_vllm.install",
                lambda: ([importlib.import_module(name) for name, *_ in helpers_of(release)], install()),
            )
        in_vllm(me, release, check)


@each_release
@pytest.mark.parametrize("imported_early", [False, True])
@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_eager_models_have_the_helpers_fused(ranks_of, release, weight_dtype, imported_early):
    ranks_of(2).run(check_helpers, release, weight_dtype, imported_early)


@each_release
def test_nothing_of_vllm_is_imported_by_the_plugin_and_nothing_else_sees_flashinfer(release):
    with fake_vllm(release):
        install()
        names = [fused_workspaces.FUSION_PASS, fused.HELPER, fused.CONFIGURATION, fused.HAS_FLASHINFER[0]]
        assert [name for name in names if name in sys.modules] == []
        assert "vllm.model_executor.layers.minimax_rms_norm.rms_norm_tp" not in sys.modules
        module = importlib.import_module(fused_workspaces.FUSION_PASS)
        assert module.flashinfer_comm.AllReduceFusionPattern.kARResidualRMSNorm == 1
        assert module.knew_of_flashinfer is False
        assert sys.modules[fused.HAS_FLASHINFER[0]].has_flashinfer() is False
        assert "flashinfer" not in sys.modules
        assert "flashinfer.comm" not in sys.modules
        assert module.__spec__.loader is module.__loader__
        assert "lamport_rs" not in type(module.__loader__).__module__


@each_release
def test_modules_that_were_imported_before_the_plugin_are_adjusted_too(release):
    with fake_vllm(release):
        helper, module = importlib.import_module(fused.HELPER), importlib.import_module(fused_workspaces.FUSION_PASS)
        assert helper.flashinfer_trtllm_fused_allreduce_norm is module.flashinfer_comm is None
        install()
        assert helper._AR_RESIDUAL_RMS_NORM == 1
        assert helper.flashinfer_trtllm_fused_allreduce_norm is module.flashinfer_trtllm_fused_allreduce_norm


def test_what_inductor_writes_down_are_integers_with_flashinfers_names():
    comm = stand_in()
    for name, numbers in NAMES.items():
        for each, number in numbers.items():
            assert type(getattr(getattr(comm, name), each)) is int
            assert getattr(getattr(comm, name), each) == number


@each_release
@pytest.mark.parametrize("text", ["0", "all_reduce", "all_reduce,minimax"])
def test_without_the_part_the_pass_is_as_it_was(monkeypatch, release, text):
    monkeypatch.setenv("LAMPORT_RS_VLLM", text)
    with fake_vllm(release):
        install()
        assert importlib.import_module(fused_workspaces.FUSION_PASS).flashinfer_comm is None
        assert importlib.import_module(fused.HELPER)._AR_RESIDUAL_RMS_NORM is None


@each_release
@pytest.mark.parametrize("installed", [False, True])
def test_the_fusion_is_switched_on_by_vllms_rule_but_for_flashinfer(monkeypatch, release, installed):
    def cfg(size: int) -> Any:
        return SimpleNamespace(tensor_parallel_size=size)

    with flashinfer_if(installed), fake_vllm(release):
        install()
        module = importlib.import_module(fused.CONFIGURATION)
        platform = sys.modules["vllm.platforms"].current_platform
        levels = [level["compilation_config"]["pass_config"]["fuse_allreduce_rms"] for level in module.LEVELS.values()]
        assert levels == [False, module.enable_allreduce_rms_fusion]
        rule = levels[1]
        assert rule(cfg(2)) is False
        platform.cuda = True
        assert rule(cfg(2)) is True
        assert rule(cfg(1)) is False
        monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
        assert rule(cfg(2)) is False
        assert sys.modules[fused.HAS_FLASHINFER[0]].has_flashinfer() is installed


def operands(me: Rank, dtype: torch.dtype, *shape: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The inputs of all ranks, residual and weight."""
    inputs = [random_tensor(shape, dtype, 1, rank).to(me.device) for rank in range(me.world_size)]
    residual, weight = (random_tensor(each, dtype, 2).to(me.device) for each in (shape, shape[-1:]))
    return inputs, residual, weight


def places_for(me: Rank, pattern: int, *shape: int) -> tuple[str, dict[str, torch.Tensor]]:
    """The format of a pattern, and what vLLM passes for it."""
    if pattern == 2:
        out, scale = torch.empty(shape, dtype=torch.float8_e4m3fn), torch.tensor([[0.01]])
        return "fp8_static", {"quant_out": out.to(me.device), "scale_factor": scale.to(me.device)}
    rows = torch.Size(shape[:-1]).numel()
    # vLLM keeps four scales in an int32, and has them seen as they are for FlashInfer.
    scales = torch.zeros((rows + 127) // 128 * 128, -(-shape[-1] // 64), dtype=torch.int32, device=me.device)
    return "nvfp4_swizzled", {
        "quant_out": torch.empty(rows, shape[-1] // 2, dtype=torch.uint8, device=me.device),
        "scale_out": scales.view(torch.float8_e4m3fn),
        "scale_factor": torch.tensor([[150.0]], device=me.device),
    }


def check_quantised_patterns(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        made = the_pass()
        assert (made.disabled, made.supports_quant_fusion) == (False, True)
        for dtype in (torch.float16, torch.bfloat16):
            for shape in [(1, HIDDEN), (37, 4 * HIDDEN), (1, 5, HIDDEN)]:
                inputs, residual, weight = operands(me, dtype, *shape)
                normed, total = run_operator(me, inputs, residual, weight)
                for pattern in (2, 3):
                    quant_format, places = places_for(me, pattern, *shape)
                    _unused, held = run_operator(me, inputs, residual, weight, pattern_code=pattern, **places)
                    check_same_bits(held, total)
                    check_places(places, normed, quant_format)
                    # Without a residual vLLM passes one of zeros, and takes the sum from the input.
                    places = places_for(me, pattern, *shape)[1]
                    norm_out = torch.empty_like(residual)
                    options = {"pattern_code": pattern, "norm_out": norm_out, **places}
                    summed, _zeros = run_operator(me, inputs, torch.zeros_like(residual), weight, **options)
                    check_same_bits(summed, rounded_sum(inputs))
                    alone, _zeros = run_operator(me, inputs, torch.zeros_like(residual), weight)
                    check_places(places, alone, quant_format)

    in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


def check_places(places: dict[str, torch.Tensor], rows: torch.Tensor, quant_format: str) -> None:
    rows, scale = rows.view(-1, rows.shape[-1]), places["scale_factor"]
    out = places["quant_out"].view(rows.shape[0], -1)
    check_quantised(out, places.get("scale_out", scale), rows, quant_format, quant_format, scale)


@each_release
def test_without_flashinfer_quantised_patterns_are_what_vllms_quantisers_make_of_the_norm(ranks_of, release):
    ranks_of(2).run(check_quantised_patterns, release)


def check_with_flashinfer(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        made = the_pass()
        assert (made.disabled, made.supports_quant_fusion, comm.calls) == (False, True, [])
        inputs, residual, weight = operands(me, torch.bfloat16, 3, HIDDEN)
        normed, total = run_operator(me, inputs, residual, weight)
        check_same_bits(total, rounded_sum_with(residual, inputs))
        quant_format, places = places_for(me, 2, 3, HIDDEN)
        run_operator(me, inputs, residual, weight, pattern_code=2, **places)
        check_places(places, normed, quant_format)
        assert comm.calls == []
        # Others' workspaces are FlashInfer's.
        options = {"workspace": SimpleNamespace(backend="mnnvl", group=None), "pattern": 0}
        comm.allreduce_fusion(input=torch.ones(2), **options)
        assert comm.calls == [(0, "mnnvl", False)]

    with fake_flashinfer() as comm:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


@each_release
def test_with_flashinfer_too_the_package_quantises(ranks_of, release):
    ranks_of(2).run(check_with_flashinfer, release)


def set_capability(capability: int) -> None:
    """Have vLLM's platform be a GPU of that compute capability: NVFP4 is formed from 10.0 on."""
    sys.modules["vllm.platforms"].current_platform.capability = capability


def check_unquantised(me: Rank, release: str, installed: bool, hidden: int, dtype: torch.dtype) -> None:
    def check(me: Rank, _module: Any) -> None:
        set_capability(100)
        cuda_communicator(me)
        made = the_pass(hidden_size=hidden, dtype=dtype)
        assert (made.disabled, made.supports_quant_fusion) == (False, False)
        inputs, residual, weight = operands(me, dtype, 3, hidden)
        check_same_bits(run_operator(me, inputs, residual, weight)[1], rounded_sum_with(residual, inputs))
        assert calls == []

    with flashinfer_if(installed) as calls:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


@each_release
@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize(("hidden", "dtype"), [(40, torch.bfloat16), (HIDDEN, torch.float32)])
def test_rows_that_the_package_does_not_quantise_are_not_quantised_in_the_fusion(
    ranks_of, release, installed, hidden, dtype
):
    ranks_of(2).run(check_unquantised, release, installed, hidden, dtype)


def check_short_fp8(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        assert [the_pass(hidden_size=hidden).supports_quant_fusion for hidden in (40, 44)] == [True, False]
        inputs, residual, weight = operands(me, torch.bfloat16, 3, 40)
        normed, _total = run_operator(me, inputs, residual, weight)
        quant_format, places = places_for(me, 2, 3, 40)
        run_operator(me, inputs, residual, weight, pattern_code=2, **places)
        check_places(places, normed, quant_format)

    in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


@each_release
def test_where_nvfp4_is_not_formed_rows_need_not_be_whole_tiles_of_its_scales(ranks_of, release):
    ranks_of(2).run(check_short_fp8, release)


def check_draft(me: Rank, release: str, hidden: int, installed: set[int], cached: set[int]) -> None:
    """The pass is made for rows of one length, and forms the same for a draft model, whose rows have another.

    `installed`: the ranks that have FlashInfer. `cached`: those that find compiled code on disk, and make no pass.
    """

    def check(me: Rank, _module: Any) -> None:
        set_capability(100)
        if cached:
            # Code is shared with starts that make their workspace before vLLM looks for it.
            configure()
        cuda_communicator(me)
        assert me.rank in cached or the_pass().supports_quant_fusion
        inputs, residual, weight = operands(me, torch.bfloat16, 3, hidden)
        by_parts = rounded_sum_with(residual, [rounded_sum(inputs)])
        for pattern in (1, 2, 3):
            quant_format, places = places_for(me, pattern, 3, hidden) if pattern > 1 else (None, {})
            is_taken = hidden % (64 if pattern == 3 else 8) == 0
            total = rounded_sum_with(residual, inputs) if is_taken else by_parts
            rows, held = run_operator(me, inputs, residual, weight, pattern_code=pattern, weight_bias=1.0, **places)
            check_same_bits(held, total)
            if quant_format is None:
                check_rounding(rows, rms_norm_of_rows(total, weight, EPS, 1.0))
                continue
            if is_taken:
                rows = run_operator(me, inputs, residual, weight, weight_bias=1.0)[0]
            else:
                wide = torch.nn.functional.rms_norm(total.float(), [hidden], weight.float() + 1.0, EPS)
                rows = wide.to(total.dtype)
            tiles = -hidden % 64 if pattern == 3 else 0
            places["quant_out"] = torch.nn.functional.pad(places["quant_out"].view(torch.uint8), (0, tiles // 2)).view(
                places["quant_out"].dtype
            )
            check_places(places, torch.nn.functional.pad(rows, (0, tiles)), quant_format)
        # Without a residual the input gets the sum.
        norm_out = torch.empty_like(residual)
        summed, _zeros = run_operator(me, inputs, torch.zeros_like(residual), weight, norm_out=norm_out)
        check_same_bits(summed, rounded_sum(inputs))
        check_rounding(norm_out, rms_norm_of_rows(summed, weight, EPS))
        assert calls == []

    with flashinfer_if(me.rank in installed) as calls:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


SOME_RANKS = pytest.mark.parametrize("installed", [set(), {0, 1}, {1}], ids=["none", "all", "one"])


@each_release
@pytest.mark.parametrize("hidden", [4 * HIDDEN, 48, 44])
@pytest.mark.parametrize("cached", [set(), {0, 1}, {0}], ids=["none found", "all found", "one found"])
@SOME_RANKS
def test_what_the_pass_has_formed_runs_for_rows_of_any_length(ranks_of, release, hidden, installed, cached):
    ranks_of(2).run(check_draft, release, hidden, installed, cached)


def check_untaken_rows(me: Rank, release: str, installed: set[int]) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        configure()
        cuda_communicator(me)
        return the_pass(hidden_size=12).disabled, calls

    with flashinfer_if(me.rank in installed) as calls:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


@each_release
@SOME_RANKS
def test_rows_that_the_package_does_not_take_are_fused_by_nobody_where_there_is_its_workspace(
    ranks_of, release, installed
):
    assert ranks_of(2).run(check_untaken_rows, release, installed) == [(True, [])] * 2


def check_unknown_pattern(me: Rank, release: str, installed: bool) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        cuda_communicator(me)
        module = importlib.import_module(fused_workspaces.FUSION_PASS)
        module.AllReduceFusedRMSNormGroupQuantFP8Pattern = type("", (), {})
        with logged() as lines:
            install()
        made = the_pass()
        return made.disabled, made.supports_quant_fusion, lines, calls

    with flashinfer_if(installed) as calls:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


@each_release
@pytest.mark.parametrize("installed", [False, True])
def test_in_a_release_with_another_quantised_pattern_none_is_formed(ranks_of, release, installed):
    for disabled, quantises, (line,), calls in ranks_of(2).run(check_unknown_pattern, release, installed):
        assert (disabled, quantises, calls) == (False, False, [])
        assert line.startswith("WARNING this release of vLLM fuses all-reduces with quantisation in ways that ")
        assert "(AllReduceFusedRMSNormGroupQuantFP8Pattern)" in line


def check_without_compiler(me: Rank, release: str, served: bool) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        cuda_communicator(me)
        made = the_pass()
        return made.disabled, made.supports_quant_fusion, comm.calls

    limit = {} if served else {"LAMPORT_RS_MAX_MEMORY": "much"}
    with fake_flashinfer() as comm:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused", FAKE_COMPILER="0", **limit)


@each_release
@pytest.mark.parametrize("served", [True, False])
def test_flashinfer_that_vllm_takes_for_unusable_is_not_used(ranks_of, release, served):
    assert ranks_of(2).run(check_without_compiler, release, served) == [(not served, served, [])] * 2


def check_disagreement(me: Rank, release: str) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        cuda_communicator(me)
        made = the_pass()
        return made.disabled, made.supports_quant_fusion, comm.calls

    with fake_flashinfer() as comm:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused" if me.rank else "0", FAKE_COMPILER="0")


@each_release
def test_ranks_that_do_not_agree_do_as_those_without_the_plugin(ranks_of, release):
    asked = ["create_allreduce_fusion_workspace"] * 2
    assert ranks_of(2).run(check_disagreement, release) == [(False, True, asked)] * 2


def check_plain(me: Rank, release: str, asked_for: bool) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        communicator = cuda_communicator(me)
        inputs = [random_tensor((3, HIDDEN), torch.float32, rank) for rank in range(me.world_size)]
        check_same_bits(communicator.all_reduce(inputs[me.rank]), rounded_sum(inputs))
        return comm.calls

    with fake_flashinfer() as comm, pytest.MonkeyPatch.context() as patch:
        if asked_for:
            patch.setenv("VLLM_ALLREDUCE_USE_FLASHINFER", "1")
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


def test_flashinfers_plain_sums_are_the_packages_unless_the_user_asks_for_flashinfer(ranks_of):
    assert ranks_of(2).run(check_plain, "0.33.0", False) == [[], []]
    asked = ["create_allreduce_fusion_workspace", (0, "trtllm", False)]
    for release in RELEASES:
        assert ranks_of(2).run(check_plain, release, True) == [asked] * 2


def check_fallback(me: Rank, release: str, installed: bool) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        cuda_communicator(me)
        made = the_pass()
        helper = importlib.import_module(fused.HELPER)
        norm = SimpleNamespace(weight=torch.ones(HIDDEN), variance_epsilon=EPS)
        norm = type("Norm", (), {**vars(norm), "__call__": lambda _self, total, _residual: ("by parts", total)})()
        ones = torch.ones(2, HIDDEN, dtype=torch.bfloat16)
        answer = helper.fused_allreduce_gemma_rms_norm(ones, ones, norm)
        return made.disabled, answer[0] if isinstance(answer[0], str) else "fused", calls

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == 1 else {}
    with flashinfer_if(installed) as calls, logged() as lines:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM="fused", **limit), lines


@each_release
@pytest.mark.parametrize("installed", [False, True])
def test_without_a_workspace_on_one_rank_all_take_vllms_own_path(ranks_of, release, installed):
    (first, lines), (second, others) = ranks_of(2).run(check_fallback, release, installed)
    assert first[:2] == second[:2] == ((False, "fused") if installed else (True, "by parts"))
    assert ((1, "trtllm", False) in first[2]) is installed
    (line,) = lines
    assert line.startswith("WARNING vLLM's own path goes on for fused, because lamport_rs has no workspace: ")
    assert "LAMPORT_RS_MAX_MEMORY is 'much'" in line
    assert others == []


def check_batch_invariance(me: Rank, release: str, part: str) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        cuda_communicator(me)
        ones = torch.ones(2, HIDDEN, dtype=torch.bfloat16)
        norm = SimpleNamespace(weight=torch.ones(HIDDEN), variance_epsilon=EPS)
        norm = type("Norm", (), {**vars(norm), "__call__": lambda _self, *_operands: ("by parts", None)})()
        helper = importlib.import_module(fused.HELPER)
        return the_pass().disabled, helper.fused_allreduce_gemma_rms_norm(ones, ones, norm)[0] == "by parts", comm.calls

    with fake_flashinfer() as comm:
        return in_vllm(me, release, check, LAMPORT_RS_VLLM=part, VLLM_BATCH_INVARIANT="1")


@each_release
def test_in_batch_invariant_mode_nothing_is_fused(ranks_of, release):
    assert ranks_of(2).run(check_batch_invariance, release, "fused") == [(True, True, [])] * 2
    # Without the part, FlashInfer is vLLM's own business.
    for disabled, by_parts, calls in ranks_of(2).run(check_batch_invariance, release, "all_reduce"):
        assert (disabled, by_parts, len(calls) > 0) == (False, False, True)


def check_unfit(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        assert the_pass(hidden_size=12).disabled
        assert the_pass(dtype=torch.float64).disabled
        assert not the_pass().disabled

    in_vllm(me, release, check)


@each_release
def test_rows_and_dtypes_that_a_workspace_does_not_take_are_not_fused(ranks_of, release):
    ranks_of(2).run(check_unfit, release)


def check_teardown(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        the_pass()
        with pytest.raises(LamportError, match="cannot be checkpointed"):
            communicator.checkpoint_prepare()
        workspace = fused_workspaces.fused_workspace(HIDDEN * TOKENS * 2, communicator.cpu_group)
        assert workspace.is_buffer_size_sufficient(tp_size=2, num_tokens=1 << 20, hidden_dim=HIDDEN, dtype=torch.half)
        held = workspace._held.here()
        communicator.destroy()
        with pytest.raises(LamportError, match="cleaned up"):
            held.synchronize()
        communicator.checkpoint_prepare()

    in_vllm(me, release, check, LAMPORT_RS_VLLM="fused")


def test_a_workspace_lasts_as_long_as_its_group_and_keeps_it_from_checkpoints(ranks_of):
    ranks_of(2).run(check_teardown, "0.33.0")


def check_unserved(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        the_pass()
        comm = importlib.import_module(fused_workspaces.FUSION_PASS).flashinfer_comm
        ones = torch.ones(1, HIDDEN, dtype=torch.bfloat16)
        options = {"input": ones, "residual_in": ones, "rms_gamma": ones[0], "pattern": 1}
        group = sys.modules[fused_workspaces.PARALLEL_STATE].get_tp_group().cpu_group
        workspace = fused_workspaces.fused_workspace(HIDDEN * TOKENS * 2, group)
        _format, places = places_for(me, 3, 1, HIDDEN)
        layouts = comm.QuantizationSFLayout
        for change, asked in [
            ({"pattern": 6, **places}, "asked for 6 with the layout of scales None, with weights and with a place"),
            ({"rms_gamma": None}, "asked for 1 with the layout of scales None, without weights"),
            ({"pattern": 3}, "asked for 3 .* without a place for quantised rows"),
            ({"pattern": 3, "layout_code": layouts.SWIZZLED_8x4, **places}, "asked for 3 with the layout of scales 1"),
        ]:
            with pytest.raises(LamportError, match=asked):
                comm.allreduce_fusion(workspace=workspace, **{**options, **change})
        with pytest.raises(LamportError, match="FlashInfer is not installed"):
            comm.allreduce_fusion(workspace=None, **options)

    in_vllm(me, release, check)


def test_what_is_not_served_is_an_error(ranks_of):
    ranks_of(2).run(check_unserved, RELEASES[-1])


def check_other_patterns(me: Rank, release: str) -> None:
    """Those of FlashInfer that vLLM has names for, and does not use: with the rows as they are, and row by row."""

    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        the_pass()
        comm = importlib.import_module(fused_workspaces.FUSION_PASS).flashinfer_comm
        workspace = fused_workspaces.fused_workspace(
            HIDDEN * TOKENS * 2, sys.modules[fused_workspaces.PARALLEL_STATE].get_tp_group().cpu_group
        )
        inputs, residual, weight = operands(me, torch.bfloat16, 5, HIDDEN)
        normed, _total = run_operator(me, inputs, residual, weight)
        given, linear = torch.tensor([150.0]), comm.QuantizationSFLayout.LINEAR
        scales = torch.empty(5, HIDDEN // 16, dtype=torch.float8_e4m3fn)
        for pattern, options in [
            (comm.AllReduceFusionPattern.kARResidualRMSNormOutFP8Quant, {"scale_factor": given / 1e4}),
            (
                comm.AllReduceFusionPattern.kARResidualRMSNormOutFP4Quant,
                {"scale_factor": given, "scale_out": scales, "layout_code": linear},
            ),
        ]:
            is_fp8 = "scale_out" not in options
            out = torch.empty(
                5, HIDDEN if is_fp8 else HIDDEN // 2, dtype=torch.float8_e4m3fn if is_fp8 else torch.uint8
            )
            norm_out = torch.empty_like(normed)
            operand = {"input": inputs[me.rank], "residual_in": residual, "rms_gamma": weight, "rms_eps": EPS}
            operand |= {"quant_out": out, "norm_out": norm_out, **options}
            comm.allreduce_fusion(workspace=workspace, pattern=pattern, **operand)
            check_same_bits(norm_out, normed)
            scale = options["scale_factor"]
            name = "fp8_static" if is_fp8 else "nvfp4"
            check_quantised(out, options.get("scale_out", scale), normed, name, name, scale)

    in_vllm(me, release, check)


def test_flashinfers_other_patterns_are_served(ranks_of):
    ranks_of(2).run(check_other_patterns, RELEASES[-1])


def of_other_arguments(module: Any) -> None:
    module.get_fi_ar_workspace = lambda group: None


def without_the_flag(module: Any) -> None:
    del module.fi_ar_available


def without_quantised(module: Any) -> None:
    del module.get_fi_ar_quant_workspace


@each_release
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_other_arguments, "get_fi_ar_workspace takes other arguments: "),
        (without_the_flag, "does not say whether FlashInfer is available"),
        (without_quantised, "has no get_fi_ar_quant_workspace"),
    ],
)
def test_a_release_with_other_workspaces_goes_on_with_its_own(monkeypatch, release, change, reason):
    monkeypatch.setenv("LAMPORT_RS_VLLM", "fused")
    with fake_vllm(release):
        change(sys.modules[f"{PACKAGE}.flashinfer_all_reduce"])
        with logged() as lines:
            install()
            assert importlib.import_module(fused_workspaces.FUSION_PASS).flashinfer_comm is None
        (line,) = lines
        assert line.startswith("WARNING this release of vLLM has no hook for lamport_rs's fused: ")
        assert reason in line


def test_a_release_without_the_pass_goes_on_with_its_own(monkeypatch):
    monkeypatch.setenv("LAMPORT_RS_VLLM", "fused")
    monkeypatch.setattr(fused, "FUSION_PASS", "vllm.compilation.passes.fusion.elsewhere")
    with fake_vllm(RELEASES[-1]), logged() as lines:
        install()
    (line,) = lines
    assert "there is no vllm.compilation.passes.fusion.elsewhere" in line
