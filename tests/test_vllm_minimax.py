"""The plugin's part `minimax`: vLLM's layer that normalises Q and K, with stand-ins for vLLM's modules."""

import importlib
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_vllm import PARALLEL_STATE, RELEASES, cuda_communicator, fake_vllm, in_vllm, logged
from lamport_rs import LamportError
from lamport_rs.vllm_plugin import install, minimax
from minimax_rows import EPS, WEIGHTS, expected_rows, random_rows
from ranks import Rank
from reference import check_rounding

each_release = pytest.mark.parametrize("release", RELEASES)
Q, KV = 48, 16


def norms_of(me: Rank, q_size: int = Q, kv_size: int = KV, weight_dtype: torch.dtype = torch.float32) -> list[Any]:
    """The norms of Q and K in a worker."""
    made = importlib.import_module(minimax.NORM).MiniMaxText01RMSNormTP
    norms = [made(size * me.world_size, EPS) for size in (q_size, kv_size)]
    for seed, norm in enumerate(norms):
        norm.weight = random_rows(me, norm.weight.shape, weight_dtype, seed, me.rank)
    return norms


def notes() -> list[str]:
    """Which of vLLM's own functions ran."""
    group = sys.modules[PARALLEL_STATE].get_tp_group()
    noted, group.notes = group.notes, []
    return noted


def check_rows(me: Rank, norms: list[Any], tokens: int, dtype: torch.dtype, q_size: int = Q, kv_size: int = KV) -> None:
    qkv = random_rows(me, (tokens, q_size + 2 * kv_size), dtype, tokens, me.rank)
    found = type(norms[0]).forward_qkv(*norms, qkv, q_size, kv_size)
    assert torch.equal(found[2], qkv[:, q_size + kv_size :])
    for each, rows, norm in zip(found, qkv.split([q_size, kv_size, kv_size], -1), norms, strict=False):
        check_rounding(each, expected_rows(me, rows, norm.weight, EPS))


def check_layer(me: Rank, release: str) -> list[str]:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        for dtype, weight_dtype in WEIGHTS:
            norms = norms_of(me, weight_dtype=weight_dtype)
            assert norms[0].workspace is norms[1].workspace is norms_of(me)[0].workspace
            for tokens in (1, 37, 2048):
                check_rows(me, norms, tokens, dtype)
            assert notes() == []
        check_rows(me, norms, 2049, dtype)
        assert notes() == ["fallback"]

    with logged() as lines:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="minimax")
    return lines


@each_release
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_layer_is_served_by_one_workspace(ranks_of, release, world_size):
    (line,), *others = ranks_of(world_size).run(check_layer, release)
    assert line.startswith(f"INFO lamport_rs serves minimax: {world_size} ranks, ")
    assert others == [[]] * (world_size - 1)


def check_odd_widths(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        norms = norms_of(me, 12, 4)
        check_rows(me, norms, 3, torch.float32, 12, 4)
        assert notes() == ["fallback"]

    in_vllm(me, release, check)


@each_release
def test_widths_that_the_kernel_does_not_take_go_by_parts(ranks_of, release):
    ranks_of(2).run(check_odd_widths, release)


def check_fallback(me: Rank, release: str) -> list[str]:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        norms = norms_of(me)
        for _ in range(2):
            check_rows(me, norms, 3, torch.bfloat16)
        assert notes() == ["operator"] * 2
        norms_of(me)

    limit = {"LAMPORT_RS_MAX_MEMORY": "much"} if me.rank == 1 else {}
    with logged() as lines:
        in_vllm(me, release, check, LAMPORT_RS_VLLM="minimax", **limit)
    return lines


@each_release
def test_without_a_workspace_on_one_rank_all_have_vllms_operator(ranks_of, release):
    (line,), others = ranks_of(2).run(check_fallback, release)
    assert line.startswith("WARNING vLLM's own path goes on for minimax, because lamport_rs has no workspace: ")
    assert others == []


def check_different(me: Rank, release: str) -> list[str]:
    def check(me: Rank, _module: Any) -> list[str]:
        cuda_communicator(me)
        check_rows(me, norms_of(me), 3, torch.bfloat16)
        return notes()

    return in_vllm(me, release, check, LAMPORT_RS_VLLM="minimax" if me.rank else "all_reduce")


def test_ranks_that_choose_differently_have_vllms_operator(ranks_of):
    assert ranks_of(2).run(check_different, RELEASES[0]) == [["operator"]] * 2


def check_tables(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        communicator = cuda_communicator(me)
        norms = norms_of(me)
        workspaces = importlib.import_module(minimax.WORKSPACES)
        # A table of vLLM's own is for vLLM's operator.
        norms[0].workspace = workspaces.get_allreduce_workspace(me.rank, me.world_size)
        check_rows(me, norms, 3, torch.bfloat16)
        assert notes() == ["operator"]
        with pytest.raises(LamportError, match="cannot be checkpointed"):
            communicator.checkpoint_prepare()
        kept = norms[1].workspace
        communicator.destroy()
        communicator.checkpoint_prepare()
        norms[0].workspace = kept
        check_rows(me, norms, 3, torch.bfloat16)
        assert notes() == ["operator"]

    in_vllm(me, release, check)


def test_other_tables_are_vllms_and_a_workspace_lasts_as_long_as_its_group(ranks_of):
    ranks_of(2).run(check_tables, "0.33.0")


def check_earlier(me: Rank, release: str) -> None:
    def check(me: Rank, _module: Any) -> None:
        cuda_communicator(me)
        get = importlib.import_module(minimax.EARLIER_WORKSPACES).get_allreduce_workspace
        group = dist.group.WORLD
        table = get(me.rank, me.world_size, max_tokens=64, process_group=group)
        qkv = random_rows(me, (5, Q + 2 * KV), torch.bfloat16, me.rank)
        weights = [random_rows(me, (size,), torch.bfloat16, size, me.rank) for size in (Q, KV)]
        sizes = Q, KV, me.rank, me.world_size, EPS
        found = torch.ops._C.minimax_allreduce_rms_qk(qkv, *weights, table, *sizes)
        for each, rows, weight in zip(found, qkv.split([Q, KV, KV], -1), weights, strict=False):
            check_rounding(each, expected_rows(me, rows, weight, EPS))
        other = get(me.rank, me.world_size)
        assert torch.ops._C.minimax_allreduce_rms_qk(qkv, *weights, other, *sizes) == "vLLM's"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops._C, minimax.TORCH_OPERATOR, lambda *_arguments: "vLLM's", raising=False)
        patch.setattr(minimax, "NORM", "vllm.model_executor.layers.elsewhere")
        in_vllm(me, release, check, LAMPORT_RS_VLLM="minimax")


def test_earlier_releases_are_served_where_they_have_it(ranks_of):
    ranks_of(2).run(check_earlier, RELEASES[0])


def test_a_build_without_the_operator_makes_no_workspace():
    with fake_vllm(RELEASES[0]):
        module = importlib.import_module(minimax.NORM)
        module._MINIMAX_FUSED_AR_RMS_QK = None
        install()
        assert module._MINIMAX_FUSED_AR_RMS_QK is None


def of_other_arguments(norm: Any, workspaces: Any) -> None:
    workspaces.get_allreduce_workspace = lambda group: None


def without_fallback(norm: Any, workspaces: Any) -> None:
    del norm._minimax_qk_norm_tp_fallback


@each_release
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_other_arguments, "get_allreduce_workspace takes other arguments: "),
        (without_fallback, "has no _minimax_qk_norm_tp_fallback"),
    ],
)
def test_a_release_with_another_layer_goes_on_with_its_own(monkeypatch, release, change, reason):
    monkeypatch.setenv("LAMPORT_RS_VLLM", "minimax")
    with fake_vllm(release):
        norm, workspaces = importlib.import_module(minimax.NORM), importlib.import_module(minimax.WORKSPACES)
        change(norm, workspaces)
        own = norm._MINIMAX_FUSED_AR_RMS_QK
        with logged() as lines:
            install()
        (line,) = lines
        assert line.startswith("WARNING this release of vLLM has no hook for lamport_rs's minimax: ")
        assert reason in line
        if change is without_fallback:
            assert norm._MINIMAX_FUSED_AR_RMS_QK is own
            # So its table is not the package's either.
            assert workspaces.get_allreduce_workspace(0, 2, process_group="never asked").tolist() == [0] * 8


def test_a_release_without_the_layer_goes_on_as_it_is(monkeypatch):
    monkeypatch.setenv("LAMPORT_RS_VLLM", "minimax")
    for name in ("NORM", "EARLIER_WORKSPACES"):
        monkeypatch.setattr(minimax, name, "vllm.elsewhere")
    with fake_vllm(RELEASES[0]), logged() as lines:
        install()
    (line,) = lines
    assert f"there is neither {minimax.WORKSPACES} nor vllm.elsewhere" in line
