"""Modules are adjusted when they are imported, once, and their import never fails for the plugin."""

import copy
import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

import pytest
from fake_vllm import fake_vllm, logged
from lamport_rs.vllm_plugin import imports
from lamport_rs.vllm_plugin.wrapping import is_wrapped, obstacle_of, own_of, wrap

SOURCE = "ANSWER = 41\n\n\ndef answer():\n    return ANSWER\n"


@pytest.fixture
def module_name(monkeypatch, tmp_path) -> Any:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_engine.py").write_text(SOURCE)
    yield "some_engine"
    sys.modules.pop("some_engine", None)
    imports._finder.waiting.clear()


def raise_the_answer(module: Any) -> None:
    module.ANSWER += 1


def fail(module: Any) -> None:
    raise KeyError(module.__name__)


def test_a_module_is_adjusted_after_its_own_code_and_once(module_name):
    imports.when_imported(module_name, raise_the_answer)
    imports.when_imported(module_name, raise_the_answer)
    assert module_name not in sys.modules
    module = importlib.import_module(module_name)
    assert module.answer() == 42
    assert importlib.import_module(module_name).answer() == 42


def test_a_module_that_is_there_is_adjusted_at_once(module_name):
    module = importlib.import_module(module_name)
    imports.when_imported(module_name, raise_the_answer)
    assert module.answer() == 42


def test_to_look_for_a_module_is_not_to_import_it(module_name):
    imports.when_imported(module_name, raise_the_answer)
    spec = importlib.util.find_spec(module_name)
    assert module_name not in sys.modules
    assert spec.loader.get_source(module_name) == SOURCE
    copy.copy(spec.loader)
    assert importlib.import_module(module_name).answer() == 42


def test_an_adjusted_module_has_its_own_loader_and_source(module_name):
    imports.when_imported(module_name, raise_the_answer)
    module = importlib.import_module(module_name)
    assert module.__spec__.loader is module.__loader__
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert inspect.getsource(module.answer) == SOURCE.partition("\n\n\n")[2]


def test_an_adjustment_that_fails_is_a_warning(module_name):
    imports.when_imported(module_name, fail)
    imports.when_imported(module_name, raise_the_answer)
    with logged() as lines:
        module = importlib.import_module(module_name)
    assert module.answer() == 42
    (line,) = lines
    assert line.startswith("WARNING lamport_rs does not know some_engine of this release of vLLM")
    assert "KeyError('some_engine')" in line


def test_a_module_that_fails_is_adjusted_when_it_succeeds(module_name, tmp_path):
    file = tmp_path / "some_engine.py"
    file.write_text("raise ImportError('not yet')")
    imports.when_imported(module_name, raise_the_answer)
    with pytest.raises(ImportError, match="not yet"):
        importlib.import_module(module_name)
    file.write_text(SOURCE + "# Longer than before, so that it is read anew.\n")
    importlib.invalidate_caches()
    assert importlib.import_module(module_name).answer() == 42


def test_modules_are_looked_for_without_importing_them():
    with fake_vllm("0.33.0"):
        assert imports.has_module("vllm.config.vllm")
        assert imports.has_module("vllm.model_executor.layers.minimax_rms_norm")
        assert not imports.has_module("vllm.config.elsewhere")
        assert "vllm.config.vllm" not in sys.modules
    assert not imports.has_module("not_installed.anywhere")


def test_a_function_is_wrapped_once_however_often():
    module = ModuleType("some")
    module.double = lambda number: 2 * number
    own = module.double
    for _ in range(3):
        wrap(module, "double", lambda own: lambda number: own(number) + 1)
        assert module.double(4) == 9
    assert is_wrapped(module.double)
    assert own_of(module.double) is own is own_of(own)
    assert obstacle_of(module, "double", "number") is None
    assert obstacle_of(module, "double", "text").startswith("some.double takes other arguments: ")
    assert obstacle_of(module, "half", "number") == "some has no half"
