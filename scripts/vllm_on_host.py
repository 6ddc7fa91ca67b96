"""Runs the communicators of unpacked releases of vLLM with the plugin, on the CPU: their own sources, not stand-ins.

    python scripts/vllm_on_host.py SOURCES...

Needs the package and torch, but neither vLLM's dependencies nor a GPU: of vLLM only `MODULES` are loaded, and whatever
else they import is a mock. Two ranks make a `CudaCommunicator`, as workers do for their tensor-parallel group, and sum.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from engine_on_host import WORLD_SIZE, expect, run_releases
from vllm_eager import batch_invariant
from vllm_mocks import load

PACKAGE = "vllm.distributed.device_communicators"
MODULES = {f"{PACKAGE}.cuda_communicator", f"{PACKAGE}.custom_all_reduce"}
SETTINGS: dict[str, dict[str, Any]] = {
    "vllm.envs": {
        "VLLM_BATCH_INVARIANT": False,
        "VLLM_ALLREDUCE_USE_SYMM_MEM": False,
        "VLLM_ALLREDUCE_USE_FLASHINFER": False,
        "VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC": False,
        "compile_factors": lambda: {"VLLM_BATCH_INVARIANT": False},
    },
    # As if groups were made outside a worker: the fusion pass is checked elsewhere.
    "vllm.config": {"get_current_vllm_config_or_none": lambda: None},
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


class DeviceCommunicatorBase:
    """What `CudaCommunicator` is derived from, as far as it is needed."""

    def __init__(self, cpu_group: Any, device: Any, device_group: Any, unique_name: str, *_: Any, **__: Any) -> None:
        self.cpu_group, self.device, self.device_group, self.unique_name = cpu_group, device, device_group, unique_name
        self.world_size, self.use_all2all, self.all2all_manager = WORLD_SIZE, False, None


SETTINGS[f"{PACKAGE}.base_device_communicator"] = {"DeviceCommunicatorBase": DeviceCommunicatorBase}


def main() -> int:
    """Run all releases; return the exit status."""
    return run_releases(run_rank, "the communicators sum with the plugin")


def run_rank(sources: Path, rank: int) -> None:
    """Make communicators, and ask of them what vLLM asks."""
    load(sources, MODULES, SETTINGS)
    import torch
    import torch.distributed as dist

    group: Any = dist.group.WORLD
    module = importlib.import_module(f"{PACKAGE}.cuda_communicator")
    communicator = module.CudaCommunicator(group, torch.device("cpu"), group, "tp:0")
    expect(type(communicator.ca_comm).__name__, "LamportAllreduce")
    key = importlib.import_module("vllm.envs").compile_factors()["lamport_rs"]
    *_, summed, fused, minimax, flashinfer = key.split()
    # Whether the pass gets a workspace is not known yet, so no other start has the same key.
    expect(
        (summed, fused[:6], fused in ("fused=None", "fused=True"), minimax, flashinfer[:11]),
        ("all_reduce=True", "fused=", False, "minimax=None", "flashinfer="),
    )
    mine = torch.full((4, 8), rank + 1.0)
    with communicator.ca_comm.capture():
        expect(communicator.all_reduce(mine).tolist(), torch.full((4, 8), 3.0).tolist())
    if hasattr(communicator, "custom_all_gather"):
        # vLLM's own object is disabled without a GPU, and says so.
        expect([communicator.custom_all_gather(mine), communicator.custom_reduce_scatter(mine)], [None, None])
        expect(communicator.ca_comm.fully_connected, False)
    communicator.destroy()
    # With batch invariance, in which some releases switch their own off in the configuration.
    state: Any = importlib.import_module("vllm.distributed.parallel_state")
    with batch_invariant():
        known = hasattr(sys.modules[f"{PACKAGE}.custom_all_reduce"].CustomAllreduce, "batch_invariant")
        state._ENABLE_CUSTOM_ALL_REDUCE = known
        communicator = module.CudaCommunicator(group, torch.device("cpu"), group, "tp:0")
        check_batch_invariance(communicator, rank)
        communicator.destroy()
    state._ENABLE_CUSTOM_ALL_REDUCE = True
    # Without a workspace on one rank, vLLM's own object is made on both.
    if rank == 1:
        os.environ["LAMPORT_RS_MAX_MEMORY"] = "0"
    own = module.CudaCommunicator(group, torch.device("cpu"), group, "tp:0").ca_comm
    expect((type(own).__name__, own.disabled), ("CustomAllreduce", True))


def check_batch_invariance(communicator: Any, rank: int) -> None:
    """A row's bits are the same in batches of all sizes, those that vLLM leaves to NCCL otherwise among them."""
    import torch

    rows = torch.randn(600, 4096, generator=torch.Generator().manual_seed(rank))
    whole = communicator.all_reduce(rows)
    for first, last in [(0, 1), (7, 24), (88, 600)]:
        expect(torch.equal(communicator.all_reduce(rows[first:last].clone()), whole[first:last]), True)


if __name__ == "__main__":
    sys.exit(main())
