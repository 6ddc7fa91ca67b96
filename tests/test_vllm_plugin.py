"""When the plugin for vLLM is loaded, what the environment chooses, and releases that it does not know."""

import importlib
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import MODULE, RELEASES, fake_vllm, logged
from lamport_rs import LamportError
from lamport_rs.vllm_plugin import RELEASES as SERVED_RELEASES
from lamport_rs.vllm_plugin import SWITCH, install

PROJECT = Path(__file__).parent.parent
each_release = pytest.mark.parametrize("release", RELEASES)


def test_vllm_finds_the_plugin_by_its_entry_point():
    text = (PROJECT / "pyproject.toml").read_text()
    group = re.search(r'\[project\.entry-points\."vllm\.general_plugins"\]\n(\w+) = "([\w.]+):(\w+)"\n', text)
    assert group is not None
    name, module, function = group.groups()
    assert name == "lamport_rs"
    assert getattr(importlib.import_module(module), function) is install


@pytest.mark.long
@pytest.mark.parametrize("first", ["lamport_rs", "torch"])
def test_without_vllm_nothing_of_the_plugin_is_imported(first):
    code = (
        f"import {first}, sys, torch, lamport_rs; lamport_rs.all_reduce; print([m for m in sys.modules if 'vllm' in m])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def is_replaced(module: Any) -> bool:
    return module.CustomAllreduce.__new__ is not object.__new__


@each_release
@pytest.mark.parametrize(
    ("text", "replaced"),
    [
        (None, True),
        ("", True),
        ("0", False),
        (" 0 ", False),
        ("all_reduce", True),
        ("fused,all_reduce", True),
        (" minimax , all_reduce", True),
        ("fused", False),
        ("minimax,fused", False),
    ],
)
def test_the_environment_chooses(monkeypatch, release, text, replaced):
    if text is None:
        monkeypatch.delenv("LAMPORT_RS_VLLM", raising=False)
    else:
        monkeypatch.setenv("LAMPORT_RS_VLLM", text)
    with fake_vllm(release) as module, logged() as lines:
        install()
        assert is_replaced(module) is replaced
    assert lines == []


@pytest.mark.parametrize("text", ["1", "off", "all_reduce;fused", "all_reduce,", "0,fused", "ALL_REDUCE"])
def test_a_part_that_there_is_not_is_an_error(monkeypatch, text):
    monkeypatch.setenv("LAMPORT_RS_VLLM", text)
    with fake_vllm(RELEASES[0]) as module:
        with pytest.raises(LamportError, match=re.escape(f"LAMPORT_RS_VLLM is {text!r}, but must be 0, or a list of ")):
            install()
        assert not is_replaced(module)


def test_the_parts_are_those_of_the_documentation():
    line = next(line for line in (PROJECT / "docs" / "environment.md").read_text().splitlines() if "RS_VLLM`" in line)
    assert re.findall(r"`(\w+)`", line.split("|")[2]) == ["0", *SWITCH.parts]


@each_release
def test_a_class_that_is_derived_from_vllms_is_left_alone(release):
    with fake_vllm(release) as module:
        install()

        class Derived(module.CustomAllreduce):
            def __init__(self) -> None:
                self.name = "derived"

        assert Derived().name == "derived"


@each_release
def test_the_plugin_may_be_loaded_again(release):
    with fake_vllm(release) as module:
        install()
        first = module.CustomAllreduce.__new__
        with logged() as lines:
            install()
        assert module.CustomAllreduce.__new__ is first
        assert lines == []


def test_the_releases_it_was_written_for_are_those_on_record():
    assert sorted(SERVED_RELEASES) == RELEASES


@contextmanager
def expected_to_be_left(reason: str, module: Any = None) -> Any:
    before = getattr(module, "CustomAllreduce", None)
    with logged() as lines:
        yield
    (line,) = lines
    assert line.startswith("WARNING this release of vLLM has no hook for lamport_rs's all_reduce: ")
    assert reason in line
    assert getattr(module, "CustomAllreduce", None) is before
    if isinstance(before, type):
        assert getattr(before.__new__, "__module__", None) != "lamport_rs.vllm_plugin.all_reduce"


def test_a_release_without_the_module_goes_on_with_its_own():
    with fake_vllm(RELEASES[0]):
        hidden = sys.modules.pop(MODULE)
        with expected_to_be_left(f"there is no {MODULE}"):
            install()
        sys.modules[MODULE] = hidden


def without_class(module: Any) -> None:
    del module.CustomAllreduce


def a_function(module: Any) -> None:
    module.CustomAllreduce = lambda group, device, max_size: None


def without_group(module: Any) -> None:
    module.CustomAllreduce.__init__ = lambda self, ranks, device, max_size=8 << 20: None


def without_a_method(module: Any) -> None:
    del module.CustomAllreduce.should_custom_ar


def with_an_argument_more(module: Any) -> None:
    module.CustomAllreduce.custom_all_reduce = lambda self, tensor, stream: None


def with_a_new_of_its_own(module: Any) -> None:
    module.CustomAllreduce.__new__ = lambda cls, *arguments: object.__new__(cls)


@each_release
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_class, f"{MODULE} has no CustomAllreduce"),
        (a_function, "CustomAllreduce is no class"),
        (without_group, "CustomAllreduce takes no group"),
        (with_a_new_of_its_own, "CustomAllreduce has a __new__ of its own"),
        (without_a_method, "CustomAllreduce has no should_custom_ar"),
        (with_an_argument_more, "CustomAllreduce.custom_all_reduce takes other arguments: missing"),
    ],
)
def test_a_release_with_another_class_goes_on_with_its_own(release, change, reason):
    with fake_vllm(release) as module:
        change(module)
        with expected_to_be_left(reason, module):
            install()


@each_release
def test_compiled_code_is_kept_apart_by_what_was_replaced(monkeypatch, release):
    kept = set()
    for parts, memory in [("0", ""), ("fused", ""), ("fused,minimax", ""), ("fused", "1000000")]:
        monkeypatch.setenv("LAMPORT_RS_VLLM", parts)
        monkeypatch.setenv("LAMPORT_RS_MAX_MEMORY", memory)
        with fake_vllm(release):
            install()
            install()
            factors = sys.modules["vllm.envs"].compile_factors()
        assert factors.pop("VLLM_USE_TRITON_AWQ") is False
        assert list(factors) == ["lamport_rs"]
        kept.add(factors["lamport_rs"])
    assert len(kept) == 4


def test_a_release_without_such_factors_is_left_as_it_is():
    with fake_vllm(RELEASES[0]), logged() as lines:
        del sys.modules["vllm.envs"].compile_factors
        sys.modules["vllm.envs"].__getattr__ = lambda name: (_ for _ in ()).throw(AttributeError(name))
        install()
        assert not hasattr(sys.modules["vllm.envs"], "compile_factors")
    assert lines == []
