"""Runs modules of a serving engine's release on the CPU, with the plugin: its own sources, not stand-ins.

Needs the package and torch, but neither the engine's dependencies nor a GPU: only some of its modules are loaded, and
whatever else they import is a mock.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import multiprocessing
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import MagicMock

sys.path.append(str(Path(__file__).parent.parent / "tests"))
"""What results must be is defined there."""
WORLD_SIZE = 2
SECONDS = 120.0
"""Most seconds that the ranks of one release may take."""
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What mocks answer, by module and dotted name."""


class Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds some modules of an engine in its sources, and mocks for all else of it."""

    def __init__(self, sources: Path, engine: str, real: set[str], settings: Settings) -> None:
        """Name the engine's package, the modules that are to be its own, and what the mocks answer."""
        self._sources, self._engine, self._real, self._settings = sources, engine, real, settings

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the engine."""
        if fullname in self._real:
            place = self._sources.joinpath(*fullname.split("."))
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            folders = [str(place)] if place.is_dir() else None
            return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=folders)
        if fullname.split(".")[0] != self._engine:
            return None
        spec = ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = [str(self._sources.joinpath(*fullname.split(".")))]
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Make a mock that answers as the settings say, and else with mocks."""
        module = mock_module(spec.name)
        for name, value in self._settings.get(spec.name, {}).items():
            *owners, last = name.split(".")
            owner: Any = module
            for each in owners:
                owner = getattr(owner, each)
            setattr(owner, last, value)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: a mock has no code."""


def mock_module(name: str) -> types.ModuleType:
    """Return a module that has every name. It is a module like others, for compilers that read it."""
    module = types.ModuleType(name)

    def make(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        vars(module)[attribute] = MagicMock(name=f"{name}.{attribute}")
        return vars(module)[attribute]

    vars(module)["__getattr__"] = make
    return module


def register_operator(
    library: Any,
    op_name: str,
    op_func: Callable[..., Any],
    mutates_args: Sequence[str] | None = None,
    fake_impl: Callable[..., Any] | None = None,
    **_options: Any,
) -> None:
    """Register an operator in torch's library, as the engines' `direct_register_custom_op` does, but for the CPU."""
    import torch

    library.define(op_name + torch.library.infer_schema(op_func, mutates_args=mutates_args or []))
    library.impl(op_name, op_func, "CPU")
    library._register_fake(op_name, fake_impl or (lambda *_arguments, **_options: None))


def run_releases(run_rank: Callable[[Path, int], None], served: str) -> int:
    """Run the ranks of all releases that the command line names; return the exit status.

    Args:
        run_rank: Is given the folder of a release and the rank, in a process of its own with a process group of gloo.
            It raises if something is not as it should be.
        served: What the plugin serves, for the line that says so.
    """
    failed = 0
    for sources in map(Path, sys.argv[1:]):
        failures = run_release(sources, run_rank)
        print(f"{sources}: {served if not failures else 'FAILED'}", flush=True)
        failed += failures
    return int(failed > 0)


def run_release(sources: Path, run_rank: Callable[[Path, int], None]) -> int:
    """Run the ranks of one release; return how many failed."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_in_a_group, args=(run_rank, sources, rank, f"{folder}/store"))
            for rank in range(WORLD_SIZE)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
            rank.kill()
            rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


def _in_a_group(run_rank: Callable[[Path, int], None], sources: Path, rank: int, store: str) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=SECONDS)
    )
    run_rank(sources, rank)
    dist.destroy_process_group()


def expect(found: object, expected: object) -> None:
    """End this rank if something is not as it should be."""
    if found != expected:
        raise SystemExit(f"expected {expected}, found {found}")
