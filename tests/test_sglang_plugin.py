"""When the plugin for SGLang is loaded, what the environment chooses, and releases that it does not know."""

import functools
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_sglang import (
    ADD_NORM,
    COMM_FUSION,
    MINIMAX,
    MODEL_LOADER,
    PARALLEL_STATE,
    TABLE,
    calls,
    fake_sglang,
    in_sglang,
    load_plugins,
    logged,
    make_groups,
)
from lamport_rs.sglang_plugin import PARTS, SWITCH
from ranks import Rank

PROJECT = Path(__file__).parent.parent


def test_sglang_finds_the_plugin_by_its_entry_point():
    text = (PROJECT / "pyproject.toml").read_text()
    group = re.search(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "(lamport_rs\.sglang_plugin):(\w+)"\n', text)
    assert group is not None
    group_name, name, module, function = group.groups()
    assert {repr(group_name)} == {record["entry_points"] for record in TABLE.values()}
    assert name == "lamport_rs"
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.long
@pytest.mark.parametrize("first", ["lamport_rs", "torch"])
def test_without_sglang_nothing_of_the_plugin_is_imported(first):
    code = (
        f"import {first}, sys, torch, lamport_rs; lamport_rs.all_reduce; print([m for m in sys.modules if 'sgl' in m])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_the_parts_are_those_of_the_documentation():
    line = next(line for line in (PROJECT / "docs" / "environment.md").read_text().splitlines() if "RS_SGLANG`" in line)
    assert re.findall(r"`(\w+)`", line.split("|")[2]) == ["0", *PARTS]


def served_parts(me: Rank, modules: Any) -> set[str]:
    """The parts that serve a group of all ranks."""
    group = make_groups(me)
    modules[COMM_FUSION].pre_initialize_workspaces(max_token_num=2048, hidden_dim=64, dtype=torch.float32)
    norm_class, _ = modules[MODEL_LOADER].get_model_architecture(model_config=None)
    weight = type("Weight", (), {"weight": torch.ones(16), "variance_epsilon": 1e-6})
    norm_class(weight, weight)
    norm = norm_class(weight, weight)
    parts = {"all_reduce": type(group.ca_comm).__name__ == "LamportAllreduce"}
    parts["fused"] = modules[ADD_NORM].flashinfer_ar_fusion_applies(5)
    norm.forward(torch.ones(2, 16), torch.ones(2, 16))
    parts["minimax"] = ("own", "qk_norm") not in calls.take()
    return {part for part, is_served in parts.items() if is_served}


def parts_of(me: Rank, values: list[str | None]) -> tuple[set[str], list[str]]:
    value = values[me.rank]
    environment = {} if value is None else {SWITCH.variable: value}
    with logged() as lines:
        return in_sglang(me, served_parts, **environment), lines


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([None, None], set(PARTS)),
        (["0", "0"], set()),
        (["all_reduce", "all_reduce"], {"all_reduce"}),
        ([" minimax , fused", "fused,minimax"], {"fused", "minimax"}),
        ([None, "0"], set()),
        (["0", None], set()),
        (["fused,all_reduce", "minimax,fused"], {"fused"}),
        ([None, "wrong"], set()),
    ],
)
def test_the_environment_chooses_and_ranks_agree(ranks_of, values, expected):
    (first, lines), (second, others) = ranks_of(2).run(parts_of, values)
    assert first == second == expected
    differs = [line for line in lines if "the ranks have different values of LAMPORT_RS_SGLANG" in line]
    assert bool(differs) == (values[0] != values[1] and "minimax , fused" not in str(values[0]))
    errors = [line for line in [*lines, *others] if line.startswith("ERROR")]
    assert len(errors) == values.count("wrong")
    for line in errors:
        assert "lamport_rs replaces nothing in SGLang: LAMPORT_RS_SGLANG is 'wrong', but must be 0, or a list" in line


def test_a_process_without_ranks_does_not_import_torch_for_the_plugin():
    code = "import sys, lamport_rs.sglang_plugin as plugin; plugin.install(); print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr) == ("False\n", "")


def test_a_process_without_ranks_is_left_alone():
    with fake_sglang() as modules, logged() as lines:
        # A server's first process has not loaded what ranks need when it loads plugins.
        del sys.modules[PARALLEL_STATE]
        before = set(sys.modules)
        load_plugins()
        assert {name for name in set(sys.modules) - before if name.startswith("sglang")} == set()
        assert not hasattr(modules[PARALLEL_STATE].GroupCoordinator.__init__, "__wrapped__")
    assert lines == []


def test_the_plugin_may_be_loaded_again():
    with fake_sglang() as modules:
        load_plugins()
        first = modules[PARALLEL_STATE].GroupCoordinator.__init__
        load_plugins()
        assert modules[PARALLEL_STATE].GroupCoordinator.__init__ is first
        assert not hasattr(first.__wrapped__, "__wrapped__")


def without_registry(_modules: Any) -> None:
    del sys.modules["sglang.srt.plugins.hook_registry"]


def with_other_groups(modules: Any) -> None:
    modules[PARALLEL_STATE].GroupCoordinator.__init__ = lambda self, ranks, backend: None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_registry, "there is no sglang.srt.plugins.hook_registry"),
        (with_other_groups, f"{PARALLEL_STATE}.GroupCoordinator.__init__ takes no torch_distributed_backend"),
    ],
)
def test_a_release_without_hooks_at_all_goes_on_with_one_warning(change, reason):
    with fake_sglang() as modules, logged() as lines:
        change(modules)
        importlib.import_module("lamport_rs.sglang_plugin").install()
    (line,) = lines
    assert line.startswith("WARNING this release of SGLang has no hook for lamport_rs to replace anything: ")
    assert reason in line


def without_names(modules: Any) -> None:
    made = modules[PARALLEL_STATE].GroupCoordinator
    make = made.__init__

    @functools.wraps(make)
    def make_without(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        del self.unique_name

    made.__init__ = make_without


def test_groups_that_differ_are_left_alone_with_one_warning(ranks_of):
    (kind, lines), (other_kind, others) = ranks_of(2).run(group_of_changed_release)
    assert kind == other_kind == "CustomAllReduceV2"
    (line,) = lines
    assert "to replace anything: a group has no unique_name" in line
    assert others == []


def group_of_changed_release(me: Rank) -> tuple[str, list[str]]:
    with logged() as lines, fake_sglang(me.device) as modules:
        without_names(modules)
        load_plugins()
        return type(make_groups(me).ca_comm).__name__, lines


def without_groups(modules: Any) -> None:
    modules["sglang.srt.runtime_context"].get_parallel = lambda: None


def test_norms_whose_groups_are_not_found_are_left_alone(ranks_of):
    (first, lines), (second, others) = ranks_of(2).run(parts_of_changed_release, without_groups)
    assert first == second == {"all_reduce"}
    assert [line.split("replace ")[1].split(":")[0] for line in lines if "WARNING" in line] == ["fused", "minimax"]
    assert not [line for line in others if "WARNING" in line]


def without_flashinfers_sums(modules: Any) -> None:
    del modules[PARALLEL_STATE].GroupCoordinator._can_use_flashinfer_allreduce


def with_other_norms(modules: Any) -> None:
    modules[COMM_FUSION].flashinfer_allreduce_residual_rmsnorm = lambda x, residual, weight: (None, None)


def without_choice(modules: Any) -> None:
    del modules[MODEL_LOADER].get_model_architecture


def with_other_minimax(modules: Any) -> None:
    def choose(model_config: Any) -> tuple[type, str]:
        chosen = original(model_config=model_config)
        sys.modules[MINIMAX].MiniMaxM2QKRMSNorm.__init__ = lambda self, norm, other: None
        return chosen

    original = modules[MODEL_LOADER].get_model_architecture
    modules[MODEL_LOADER].get_model_architecture = choose


def parts_of_changed_release(me: Rank, change: Any) -> tuple[set[str], list[str]]:
    with logged() as lines, fake_sglang(me.device) as modules:
        change(modules)
        load_plugins()
        return served_parts(me, modules), lines


@pytest.mark.parametrize(
    ("change", "part", "reason"),
    [
        (without_flashinfers_sums, "all_reduce", "there is no"),
        (with_other_norms, "fused", "takes no input_tensor, eps, max_token_num, use_attn_tp_group"),
        (without_choice, "minimax", "there is no"),
        (with_other_minimax, "minimax", "MiniMaxM2QKRMSNorm.__init__ takes no q_norm, k_norm"),
    ],
)
def test_a_part_without_its_hooks_is_left_to_sglang_and_the_others_serve(ranks_of, change, part, reason):
    if change is without_choice:
        results = ranks_of(2).run(parts_without_choice)
    else:
        results = ranks_of(2).run(parts_of_changed_release, change)
    (first, lines), (second, others) = results
    assert first == second == set(PARTS) - {part}
    (warning,) = [line for line in lines if line.startswith("WARNING")]
    assert f"no hook for lamport_rs to replace {part}: " in warning
    assert reason in warning
    assert not [line for line in others if line.startswith("WARNING")]


def parts_without_choice(me: Rank) -> tuple[set[str], list[str]]:
    with logged() as lines, fake_sglang(me.device) as modules:
        choose = modules[MODEL_LOADER].get_model_architecture
        without_choice(modules)
        load_plugins()
        make_groups(me)
        modules[MODEL_LOADER].get_model_architecture = choose
        return served_parts(me, modules), lines
