"""Loads some modules of an unpacked vLLM, with mocks for whatever else they import of it; and ranks that run them."""

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

WORLD_SIZE = 2
SECONDS = 120.0
"""Most seconds that the ranks of one release may take."""
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What mocks must answer, by module and dotted name."""


class Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds some modules in the sources, and mocks for all else of vLLM."""

    def __init__(self, sources: Path, modules: set[str], settings: Settings) -> None:
        self._sources, self._modules, self._settings = sources, modules, settings

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of vLLM."""
        if fullname.split(".")[0] != "vllm":
            return None
        place = self._sources / Path(*fullname.split("."))
        if fullname in self._modules:
            is_package = place.is_dir()
            file = place / "__init__.py" if is_package else place.with_suffix(".py")
            folders = [str(place)] if is_package else None
            return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=folders)
        spec = ModuleSpec(fullname, self, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Make a mock that answers as the settings say, and else with mocks."""
        module = MockModule(spec.name)
        for name, value in self._settings.get(spec.name, {}).items():
            *owners, last = name.split(".")
            owner: Any = module
            for each in owners:
                owner = getattr(owner, each)
            setattr(owner, last, value)
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: a mock has no code."""


class MockModule(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        vars(self)[name] = MagicMock(name=f"{self.__name__}.{name}")
        return vars(self)[name]


def run_release(sources: Path, job: Callable[[Path, int], None]) -> int:
    """Run `job(sources, rank)` on the ranks of one release, which are processes; return how many failed."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_run_rank, args=(job, sources, rank, f"{folder}/store"))
            for rank in range(WORLD_SIZE)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
            rank.kill()
            rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


def _run_rank(job: Callable[[Path, int], None], sources: Path, rank: int, store: str) -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=SECONDS)
    )
    job(sources, rank)
    dist.destroy_process_group()


def load(sources: Path, modules: set[str], settings: Settings) -> None:
    """Have this process find vLLM in the sources, and its plugin installed, as vLLM's processes do."""
    sys.meta_path.insert(0, Mocks(sources, modules, settings))
    importlib.import_module("vllm")
    from lamport_rs.vllm_plugin import install

    install()


def expect(found: object, expected: object) -> None:
    """End this rank if something is not as it should be."""
    if found != expected:
        raise SystemExit(f"expected {expected}, found {found}")
