"""Stand-ins for the modules of vLLM that the plugin touches, with the signatures that `vllm_hooks.json` records.

`fake_vllm(release)` puts them in `sys.modules` for a while, and lets the files of `fake_vllm_package` be imported.
Their sums are gloo's, and they note in `calls` what they were asked to do. Which communicator
`CudaCommunicator.all_reduce` asks first is read from the record as well. `fake_flashinfer()`, around it, has FlashInfer
installed.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import engines
import pytest
import torch
import torch.distributed as dist
from engines import gloo_sum
from lamport_rs.vllm_plugin import agreement, fused_workspaces, group_workspace, imports, install
from ranks import Rank

TABLE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "vllm_hooks.json").read_text())
RELEASES = sorted(TABLE)
PACKAGE = "vllm.distributed.device_communicators"
MODULE = f"{PACKAGE}.custom_all_reduce"
PARALLEL_STATE = "vllm.distributed.parallel_state"
FILES = Path(__file__).parent / "fake_vllm_package"
MIB = 1 << 20
MAX_BYTES = MIB
"""Of the rows that vLLM's pass fuses."""
OWN_MAX_SIZES = {"9.0": {2: 64 * MIB, 8: MIB // 4}}
"""vLLM's bounds where torch's symmetric memory has what is larger, by capability and ranks; these are two of them."""


@contextmanager
def fake_vllm(release: str) -> Iterator[ModuleType]:
    """Stand-ins for a release; the block gets the module of `CustomAllreduce`."""
    packages = ["vllm", "vllm.distributed", PACKAGE]
    names = [*packages, MODULE, f"{PACKAGE}.cuda_communicator", PARALLEL_STATE, "vllm.envs", "vllm.platforms"]
    modules = {name: ModuleType(name) for name in names}
    for name in packages:
        modules[name].__path__ = [str(FILES.joinpath(*name.split(".")[1:]))]
    vars(modules[MODULE]).update(
        CustomAllreduce=class_of(MODULE, "CustomAllreduce", release, OwnAllreduce),
        CUSTOM_ALL_REDUCE_MAX_SIZES=OWN_MAX_SIZES,
        calls=[],
    )
    if TABLE[release]["batch_invariance"]["class_attribute"]:
        modules[MODULE].CustomAllreduce.batch_invariant = False
    modules[f"{PACKAGE}.cuda_communicator"].CudaCommunicator = cuda_communicator_of(release)
    modules[PARALLEL_STATE]._ENABLE_CUSTOM_ALL_REDUCE = True
    modules[PARALLEL_STATE].get_tp_group = lambda: modules[PARALLEL_STATE].coordinator
    modules["vllm.envs"].__getattr__ = from_the_environment
    modules["vllm.envs"].compile_factors = lambda: {"VLLM_USE_TRITON_AWQ": False}
    modules["vllm.platforms"].current_platform = Platform()
    vars(modules["vllm"]).update(envs=modules["vllm.envs"], release=release, record=TABLE[release])
    forget_vllm()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "vllm"}
    sys.modules.update(modules)
    flashinfer = importlib.import_module(f"{PACKAGE}.flashinfer_all_reduce")
    flashinfer.FlashInferAllReduce = flashinfer_of(release)
    try:
        yield modules[MODULE]
    finally:
        modules[PARALLEL_STATE].coordinator = None
        for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules.update(hidden)
        forget_vllm()


def configure(mode: str = "VLLM_COMPILE", is_on: bool = True, max_bytes: int | None = MAX_BYTES) -> None:
    """Have a configuration be current, as vLLM's workers do when they make groups."""
    passes = SimpleNamespace(fuse_allreduce_rms=is_on, flashinfer_max_size=lambda _size: max_bytes)
    compilation = SimpleNamespace(mode=SimpleNamespace(name=mode), pass_config=passes)
    importlib.import_module(fused_workspaces.CONFIGURATIONS).current = SimpleNamespace(compilation_config=compilation)


def forget_vllm() -> None:
    """Have the plugin know of no group and wait for no module."""
    imports._finder.waiting.clear()
    agreement._agreed.clear()
    agreement._served = True
    for group in {key[1] for key in group_workspace._made}:
        group_workspace.close_workspaces(group)


def from_the_environment(name: str) -> Any:
    """`vllm.envs`, as far as it is asked."""
    if name == "VLLM_BATCH_INVARIANT":
        return os.environ.get(name) == "1"
    raise AttributeError(name)


class Platform:
    """`vllm.platforms.current_platform`: a CPU, unless a test says something else."""

    cuda, fully_connected, capability = False, True, 90

    def is_cuda(self) -> bool:
        return self.cuda

    def has_device_capability(self, capability: int) -> bool:
        return self.capability >= capability

    def visible_device_id_to_physical_device_id(self, device_id: int) -> int:
        return 4 + device_id

    def is_fully_connected(self, physical_device_ids: list[int]) -> bool:
        note("platform", "is_fully_connected", *physical_device_ids)
        return self.fully_connected


@contextmanager
def flashinfer_if(is_installed: bool) -> Iterator[list[Any]]:
    """FlashInfer, if it is to be installed; the block gets what FlashInfer is asked to do."""
    if not is_installed:
        yield []
        return
    with fake_flashinfer() as comm:
        yield comm.calls


@contextmanager
def fake_flashinfer() -> Iterator[ModuleType]:
    """FlashInfer, installed; the block gets `flashinfer.comm`, which notes in `calls` what it was asked to do."""
    package, comm = ModuleType("flashinfer"), ModuleType("flashinfer.comm")
    package.__path__ = []
    package.__spec__ = ModuleSpec("flashinfer", None, is_package=True)
    package.comm, comm.calls = comm, []

    def allreduce_fusion(*, input: torch.Tensor, workspace: Any, pattern: int, **options: Any) -> Any:  # noqa: A002
        comm.calls.append((pattern, workspace.backend, options.get("quant_out") is not None))
        return gloo_sum(input, workspace.group)

    def create_allreduce_fusion_workspace(*, group: Any) -> Any:
        comm.calls.append("create_allreduce_fusion_workspace")
        return SimpleNamespace(backend="trtllm", group=group)

    numbers = {"kAllReduce": 0, "kARResidualRMSNorm": 1, "kARResidualRMSNormFP8Quant": 2}
    comm.AllReduceFusionPattern = SimpleNamespace(**numbers, kARResidualRMSNormFP4Quant=3)
    comm.QuantizationSFLayout = SimpleNamespace(SWIZZLED_128x4=0)
    comm.allreduce_fusion, comm.create_allreduce_fusion_workspace = allreduce_fusion, create_allreduce_fusion_workspace
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flashinfer", package)
        patch.setitem(sys.modules, "flashinfer.comm", comm)
        yield comm


def logged() -> AbstractContextManager[list[str]]:
    """The lines that the plugin writes to the engine's log, as `LEVEL text`."""
    return engines.logged("vllm")


def in_vllm(me: Rank, release: str, check: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Run `check(me, module, *arguments)` in a worker of that release that has loaded its plugins."""
    with pytest.MonkeyPatch.context() as patch, fake_vllm(release) as module:
        for name, value in environment.items():
            patch.setenv(name, value)
        install()
        return check(me, module, *arguments)


def cuda_communicator(me: Rank) -> Any:
    """What a worker's tensor-parallel group has, which is vLLM's from then on."""
    made = sys.modules[f"{PACKAGE}.cuda_communicator"].CudaCommunicator
    groups = {"cpu_group": dist.group.WORLD, "device_group": dist.new_group()}
    communicator = made(cpu_group=groups["cpu_group"], device=me.device, unique_name="tp:0")
    (which,) = TABLE[sys.modules["vllm"].release]["fused"]["groups"]
    sys.modules[PARALLEL_STATE].coordinator = SimpleNamespace(
        **groups,
        rank_in_group=me.rank,
        world_size=me.world_size,
        device_communicator=communicator,
        group_for_fusion=groups[which],
        notes=[],
    )
    return communicator


def calls_of(module: Any) -> list[tuple[str, str]]:
    """What vLLM's own communicators were asked since the last call."""
    calls, module.calls = module.calls, []
    return calls


def class_of(module: str, name: str, release: str, behaviour: type) -> type:
    """A class with the recorded methods and signatures, which do what `behaviour`'s method of the same name does."""
    signatures = TABLE[release]["signatures"][module]
    methods = {each.removeprefix(f"{name}."): text for each, text in signatures.items() if each.startswith(f"{name}.")}
    for method in filter(None, (signatures.get(name) or "").split(", ")):
        methods.setdefault(method, "self, *arguments")
    body = []
    for method, parameters in methods.items():
        if parameters is None:
            continue
        arguments = ast.parse(f"def _({parameters}): pass").body[0].args
        body += [f"{each.id} = 2048" for each in ast.walk(arguments) if isinstance(each, ast.Name)]
        is_static = not parameters.startswith("self")
        given = "{**locals()}"
        body += ["@staticmethod"] if is_static else []
        body += [f"def {method}({parameters}):", f"    return behave({name!r}, {method!r}, {given})"]
    namespace: dict[str, Any] = {"behave": lambda _name, method, given: getattr(behaviour, method)(**given)}
    namespace["__name__"] = module
    # The classes' own code refers to them by their names.
    body.append("SUPPORTED_WORLD_SIZES = range(1, 5)")
    exec("\n".join([f"class {name}:", *(f"    {line}" for line in body)]), namespace)
    return namespace[name]


def note(*what: Any) -> None:
    sys.modules[MODULE].calls.append(what)


class OwnAllreduce:
    """What vLLM's `CustomAllreduce` does."""

    def __init__(self: Any, group: Any, device: Any, max_size: int, **options: Any) -> None:
        assert dist.get_world_size(group) in sys.modules[MODULE].CustomAllreduce.SUPPORTED_WORLD_SIZES
        self.group, self.max_size, self.options = group, max_size, options
        self.disabled, self.fully_connected, self.mnnvl_lamport_ag_multicast_ptr = False, True, 4096
        self.batch_invariant = os.environ.get("VLLM_BATCH_INVARIANT") == "1"
        note("own", "__init__")

    def should_custom_ar(self: Any, inp: torch.Tensor) -> bool:
        return not self.disabled and inp.nbytes < self.max_size

    def custom_all_reduce(self: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (vLLM's name)
        note("own", "custom_all_reduce")
        return gloo_sum(input, self.group)

    def custom_all_gather(self: Any, inp: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(inp) for _ in range(dist.get_world_size(self.group))]
        dist.all_gather(parts, inp, group=self.group)
        return torch.cat(parts)

    def custom_reduce_scatter(self: Any, inp: torch.Tensor) -> torch.Tensor:
        return gloo_sum(inp, self.group).chunk(dist.get_world_size(self.group))[dist.get_rank(self.group)]

    @contextmanager
    def capture(self: Any) -> Iterator[None]:
        note("own", "capture")
        yield

    def close(self: Any) -> None:
        note("own", "close")

    @staticmethod
    def create_shared_buffer(size_in_bytes: int, **_options: Any) -> list[int]:
        return [size_in_bytes]


class FlashInfer:
    """What vLLM's `FlashInferAllReduce` does: it takes every matrix, if it gets a workspace."""

    def __init__(self: Any, group: Any, device: Any) -> None:
        self.group, self.disabled = group, False

    def should_use_fi_ar(self: Any, input_tensor: torch.Tensor) -> bool:
        module = sys.modules[f"{PACKAGE}.flashinfer_all_reduce"]
        if self.disabled or input_tensor.dim() != 2:
            return False
        ranks = dist.get_world_size(self.group), dist.get_rank(self.group)
        if module.fi_ar_available:
            self.workspace = module.get_fi_ar_workspace(*ranks, *input_tensor.shape, input_tensor.dtype, self.group)
            self.disabled = self.workspace is None
        return not self.disabled


def flashinfer_of(release: str) -> type:
    made = class_of(f"{PACKAGE}.flashinfer_all_reduce", "FlashInferAllReduce", release, FlashInfer)

    def all_reduce(self: Any, input_tensor: torch.Tensor) -> torch.Tensor:
        note("flashinfer", "all_reduce")
        module = sys.modules[f"{PACKAGE}.flashinfer_all_reduce"]
        if not module.fi_ar_available:
            return gloo_sum(input_tensor, self.group)
        return module.flashinfer_comm.allreduce_fusion(
            input=input_tensor,
            workspace=self.workspace,
            pattern=module.flashinfer_comm.AllReduceFusionPattern.kAllReduce,
            launch_with_pdl=True,
            trigger_completion_at_end=False,
        )

    made.all_reduce = all_reduce
    return made


class Nccl:
    def __init__(self, group: Any) -> None:
        self.group = group

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        note("nccl", "all_reduce")
        return gloo_sum(tensor, self.group)


def cuda_communicator_of(release: str) -> type:
    """`CudaCommunicator`: makes its communicators as the release does, and asks them in the release's order."""
    record = TABLE[release]
    (call,) = (each for each in record["construction"] if each.startswith("CustomAllreduce("))
    keywords = [keyword.arg for keyword in ast.parse(call.replace("=", "=0")).body[0].value.keywords]
    flashinfer = os.environ.get("VLLM_ALLREDUCE_USE_FLASHINFER")
    default = record["environment"]["VLLM_ALLREDUCE_USE_FLASHINFER"]

    class Behaviour:
        def __init__(self: Any, cpu_group: Any, device: Any, unique_name: str, **_options: Any) -> None:
            self.cpu_group = cpu_group
            values = {"group": cpu_group, "device": device, "symm_mem_enabled": False, "register_graph_buffers": True}
            use_flashinfer = default == "True" if flashinfer is None else flashinfer == "1"
            if use_flashinfer:
                module = sys.modules[f"{PACKAGE}.flashinfer_all_reduce"]
                self.fi_ar_comm = module.FlashInferAllReduce(cpu_group, device)
            disabled = from_the_environment("VLLM_BATCH_INVARIANT") and record["batch_invariance"]["disables"]
            disabled = disabled or not sys.modules[PARALLEL_STATE]._ENABLE_CUSTOM_ALL_REDUCE
            made = sys.modules[MODULE].CustomAllreduce
            self.device, self.ca_comm = device, None
            if unique_name.startswith("tp:") and not disabled:
                self.ca_comm = made(**{name: values[name] for name in keywords})
            self.pynccl_comm = Nccl(cpu_group)

        def all_reduce(self: Any, input_: torch.Tensor) -> torch.Tensor:
            order = [name.split(".") for name in record["dispatch"] if "_comm." in name]
            for field in dict.fromkeys(field for field, _method in order):
                methods = [method for each, method in order if each == field]
                communicator = getattr(self, field, None)
                if communicator is not None and (len(methods) == 1 or getattr(communicator, methods[0])(input_)):
                    return getattr(communicator, methods[-1])(input_)
            raise AssertionError("NCCL takes all that is left")

        def destroy(self: Any) -> None:
            self.ca_comm = None

        def suspend(self: Any) -> None:
            note("vllm", "suspend")

        def resume(self: Any) -> None:
            note("vllm", "resume")

        def checkpoint_prepare(self: Any) -> None:
            note("vllm", "checkpoint_prepare")

    return class_of(f"{PACKAGE}.cuda_communicator", "CudaCommunicator", release, Behaviour)
