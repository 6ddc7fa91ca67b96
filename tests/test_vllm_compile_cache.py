"""vLLM's cache of compiled code: on no rank is code found that other ranks do not run, or that cannot run here."""

import sys
from typing import Any

import pytest
import torch
from fake_vllm import RELEASES, configure, cuda_communicator, fake_flashinfer, flashinfer_if, in_vllm, logged
from lamport_rs import LamportError
from lamport_rs.vllm_plugin import compile_cache, fused_workspaces, group_workspace
from ranks import Rank
from reference import check_same_bits, random_tensor, rounded_sum_with
from test_vllm_fused import HIDDEN, TOKENS, run_operator, the_pass

each_release = pytest.mark.parametrize("release", RELEASES)


def key() -> Any:
    """By what vLLM keeps compiled code."""
    return sys.modules["vllm.envs"].compile_factors()["lamport_rs"]


def of_fused() -> str:
    """The key's end."""
    return "fused=" + key().partition("fused=")[2]


def compiled(cache: dict[Any, str]) -> str:
    """The code that vLLM takes from a rank's cache, or compiles: fused or not."""
    if (kept := key()) not in cache:
        cache[kept] = "unfused" if the_pass().disabled else "fused"
    return cache[kept]


def run_code(me: Rank, code: str) -> None:
    """Run it: what is fused needs a workspace."""
    if code == "fused":
        inputs = [random_tensor((3, HIDDEN), torch.bfloat16, 1, rank) for rank in range(me.world_size)]
        residual, weight = random_tensor((3, HIDDEN), torch.bfloat16, 2), torch.ones(HIDDEN, dtype=torch.bfloat16)
        check_same_bits(run_operator(me, inputs, residual, weight)[1], rounded_sum_with(residual, inputs))


def start(
    me: Rank, release: str, cache: dict[Any, str], text: str, has_links: bool = True, has_flashinfer: bool = False
) -> tuple[str, list[str]]:
    """Start vLLM with a cache; the code that runs, and the log. What FlashInfer's stand-in fuses is not run."""

    def check(me: Rank, _module: Any) -> str:
        configure()
        cuda_communicator(me)
        code = compiled(cache)
        if not has_flashinfer:
            run_code(me, code)
        return code

    def check_links(_gpus: list[int]) -> None:
        if not has_links:
            raise LamportError("NVLink does not join all of them")

    with pytest.MonkeyPatch.context() as patch, logged() as lines, flashinfer_if(has_flashinfer):
        patch.setattr(group_workspace, "check_links", check_links)
        return in_vllm(me, release, check, LAMPORT_RS_VLLM=text), lines


def check_choices(me: Rank, release: str) -> list[str]:
    cache: dict[Any, str] = {}
    first, _lines = start(me, release, cache, "all_reduce" if me.rank else "all_reduce,fused,minimax")
    if me.rank:
        cache.clear()
    # Rank 0 must not take the code of the first start for that of the second.
    return [first, start(me, release, cache, "all_reduce,fused,minimax")[0]]


@each_release
def test_what_ranks_compile_without_agreeing_on_a_part_is_not_used_once_they_agree(ranks_of, release):
    assert ranks_of(2).run(check_choices, release) == [["unfused", "fused"]] * 2


def check_workspaces(me: Rank, release: str, links: list[bool]) -> Any:
    cache: dict[Any, str] = {}
    started = []
    for index, has_links in enumerate(links):
        if index == 2 and me.rank:
            # Another rank may have lost what it kept.
            cache.clear()
        started.append(start(me, release, cache, "fused", has_links or me.rank == 0))
    return [code for code, _lines in started], len(cache), [line for _code, lines in started for line in lines]


@each_release
def test_code_that_was_fused_is_not_used_where_there_is_no_workspace_and_the_other_way_round(ranks_of, release):
    (codes, kept, lines), (others, _, _) = ranks_of(2).run(check_workspaces, release, [True, False, True, False])
    assert codes == others == ["fused", "unfused", "fused", "unfused"]
    assert kept == 2
    assert ["no workspace: rank 1: " in line for line in lines] == [False, True, False, True]


def check_flashinfer(me: Rank, release: str) -> list[str]:
    cache: dict[Any, str] = {}
    return [start(me, release, cache, "fused", False, has_flashinfer)[0] for has_flashinfer in (True, False)]


@each_release
def test_code_that_flashinfer_runs_is_not_used_where_there_is_none_any_more(ranks_of, release):
    """Neither start has a workspace of the package's."""
    assert ranks_of(2).run(check_flashinfer, release) == [["fused", "unfused"]] * 2


def check_early(me: Rank, release: str, options: dict[str, Any], environment: dict[str, str]) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        if options:
            configure(**options)
        communicator = cuda_communicator(me)
        made = group_workspace.workspaces_of(communicator.cpu_group)
        # Nothing is imported for a pass that is not made.
        assert (fused_workspaces.FUSION_PASS in sys.modules) == ("fused" in made)
        # Not by a configuration: no other start has this key.
        assert (of_fused() == f"fused={compile_cache._START} flashinfer=False") == (not options)
        the_pass(max_token_num=TOKENS)
        return made, of_fused()

    return in_vllm(me, release, check, **{"LAMPORT_RS_VLLM": "fused", **environment})


@each_release
@pytest.mark.parametrize(
    ("options", "environment", "made", "last"),
    [
        ({"max_bytes": 4096}, {}, {"fused": True}, "fused=True"),
        # Made by the pass, after the first question.
        ({}, {}, {}, "fused=True"),
        ({"mode": "NONE"}, {}, {}, "fused=True"),
        ({"is_on": False}, {}, {}, "fused=True"),
        ({"max_bytes": None}, {}, {}, "fused=True"),
        ({"max_bytes": 4096}, {"VLLM_BATCH_INVARIANT": "1"}, {}, "fused=None flashinfer=False"),
        ({"max_bytes": 4096}, {"LAMPORT_RS_MAX_MEMORY": "much"}, {"fused": False}, "fused=False flashinfer=False"),
    ],
)
def test_the_workspace_is_made_with_the_group_if_the_pass_will_ask_for_it(
    ranks_of, release, options, environment, made, last
):
    assert ranks_of(2).run(check_early, release, options, environment) == [(made, last)] * 2


def check_key(me: Rank, release: str, text: str) -> Any:
    def check(me: Rank, _module: Any) -> Any:
        before = key()
        configure()
        cuda_communicator(me)
        return before.split()[1:], key().split()[1:]

    with fake_flashinfer():
        return in_vllm(me, release, check, LAMPORT_RS_VLLM=text)


@each_release
def test_without_groups_code_is_kept_apart_by_the_choice_and_then_by_what_ranks_agree_on(ranks_of, release):
    found = ranks_of(2).run(check_key, release, "fused,all_reduce")
    assert found == [(["all_reduce", "fused"], ["all_reduce=True", "fused=True"])] * 2
    assert ranks_of(2).run(check_key, release, "0") == [([], [])] * 2
