"""Runs the communicators of unpacked releases of vLLM with the plugin, on the CPU: their own sources, not stand-ins.

    python scripts/vllm_on_host.py SOURCES...

Needs the package and torch, but neither vLLM's dependencies nor a GPU: of vLLM only `MODULES` are loaded, and whatever
else they import is a mock. Two ranks make a `CudaCommunicator`, as workers do for their tensor-parallel group, and sum.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import types
from collections.abc import Sequence
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

PACKAGE = "vllm.distributed.device_communicators"
MODULES = {f"{PACKAGE}.cuda_communicator", f"{PACKAGE}.custom_all_reduce"}
WORLD_SIZE = 2
SECONDS = 120.0
"""Most seconds that the ranks of one release may take."""
SETTINGS: dict[str, dict[str, Any]] = {
    "vllm.envs": {
        "VLLM_BATCH_INVARIANT": False,
        "VLLM_ALLREDUCE_USE_SYMM_MEM": False,
        "VLLM_ALLREDUCE_USE_FLASHINFER": False,
        "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC": False,
    },
    "vllm._aiter_ops": {"rocm_aiter_ops.is_custom_all_reduce_enabled": lambda: False},
    "vllm.platforms": {"current_platform.is_rocm": lambda: False, "current_platform.is_cuda": lambda: False},
    "vllm.distributed.parallel_state": {
        "_ENABLE_CUSTOM_ALL_REDUCE": True,
        # So that vLLM's own object, where it is kept, is made without a GPU: disabled.
        "in_the_same_node_as": lambda _group, source_rank=0: [False],
    },
    f"{PACKAGE}.all_reduce_utils": {
        "should_nccl_symm_mem_allreduce": lambda *_arguments: False,
        "NCCL_SYMM_MEM_ALL_REDUCE_CONFIG": {
            "min_world_size": 4,
            "custom_ar_preferred_ranges": {},
            "always_use_above_world_size": 8,
        },
    },
    f"{PACKAGE}.pynccl_allocator": {"is_symmetric_memory_enabled": lambda: False},
}
"""What the mocks must answer for a worker on NVIDIA GPUs with vLLM's defaults, but for what needs a GPU."""


class Mocks(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `MODULES` in the sources, and mocks for all else of vLLM."""

    def __init__(self, sources: Path) -> None:
        self._sources = sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of vLLM."""
        if fullname in MODULES:
            file = self._sources / Path(*fullname.split(".")).with_suffix(".py")
            return importlib.util.spec_from_file_location(fullname, file)
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] == "vllm" else None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        """Make a mock that answers as `SETTINGS` says, and else with mocks."""
        module = MockModule(spec.name)
        for name, value in SETTINGS.get(spec.name, {}).items():
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


class DeviceCommunicatorBase:
    """What `CudaCommunicator` is derived from, as far as it is needed."""

    def __init__(self, cpu_group: Any, device: Any, device_group: Any, unique_name: str, *_: Any, **__: Any) -> None:
        self.cpu_group, self.device, self.device_group, self.unique_name = cpu_group, device, device_group, unique_name
        self.world_size, self.use_all2all, self.all2all_manager = WORLD_SIZE, False, None


SETTINGS[f"{PACKAGE}.base_device_communicator"] = {"DeviceCommunicatorBase": DeviceCommunicatorBase}


def main() -> int:
    """Run all releases; return the exit status."""
    failed = 0
    for sources in map(Path, sys.argv[1:]):
        failures = run_release(sources)
        print(f"{sources}: {'the communicators sum with the plugin' if not failures else 'FAILED'}", flush=True)
        failed += failures
    return int(failed > 0)


def run_release(sources: Path) -> int:
    """Run the ranks of one release; return how many failed."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=run_rank, args=(sources, rank, f"{folder}/store")) for rank in range(WORLD_SIZE)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
            rank.kill()
            rank.join()
    return sum(rank.exitcode != 0 for rank in ranks)


def run_rank(sources: Path, rank: int, store: str) -> None:
    """Make a communicator, and ask of it what vLLM asks."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=SECONDS)
    )
    sys.meta_path.insert(0, Mocks(sources))
    from lamport_rs.vllm_plugin import install

    install()
    group: Any = dist.group.WORLD
    module = importlib.import_module(f"{PACKAGE}.cuda_communicator")
    communicator = module.CudaCommunicator(group, torch.device("cpu"), group, "tp:0")
    expect(type(communicator.ca_comm).__name__, "LamportAllreduce")
    mine = torch.full((4, 8), rank + 1.0)
    with communicator.ca_comm.capture():
        expect(communicator.all_reduce(mine).tolist(), torch.full((4, 8), 3.0).tolist())
    if hasattr(communicator, "custom_all_gather"):
        # vLLM's own object is disabled without a GPU, and says so.
        expect([communicator.custom_all_gather(mine), communicator.custom_reduce_scatter(mine)], [None, None])
        expect(communicator.ca_comm.fully_connected, False)
    communicator.destroy()
    # Without a workspace on one rank, vLLM's own object is made on both.
    if rank == 1:
        os.environ["LAMPORT_RS_MAX_MEMORY"] = "0"
    own = module.CudaCommunicator(group, torch.device("cpu"), group, "tp:0").ca_comm
    expect((type(own).__name__, own.disabled), ("CustomAllreduce", True))
    dist.destroy_process_group()


def expect(found: object, expected: object) -> None:
    """End this rank if something is not as it should be."""
    if found != expected:
        raise SystemExit(f"expected {expected}, found {found}")


if __name__ == "__main__":
    sys.exit(main())
