"""Stand-ins for the modules of SGLang that the plugin touches, with the signatures that `sglang_hooks.json` records.

`fake_sglang()` puts them in `sys.modules` for a while, as a rank's process has them when it loads its plugins. Their
sums are gloo's, and they note in `calls` what they were asked to do. The plugin is imported anew each time, as it is in
a process.
"""

from __future__ import annotations

import ast
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import engines
import pytest
import torch
import torch.distributed as dist
from engines import gloo_sum
from ranks import Rank

TABLE: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "sglang_hooks.json").read_text())
RELEASE = max(TABLE)
SIGNATURES = TABLE[RELEASE]["signatures"]
PLUGIN = "lamport_rs.sglang_plugin"
PARALLEL_STATE = "sglang.srt.distributed.parallel_state"
V2 = "sglang.srt.distributed.device_communicators.custom_all_reduce_v2"
COMM_FUSION = "sglang.srt.layers.flashinfer_comm_fusion"
ADD_NORM = "sglang.srt.layers.layer_boundary.residual.add_norm"
EXIT = "sglang.srt.layers.layer_boundary.exit"
DP_ATTENTION = "sglang.srt.layers.dp_attention"
MODEL_LOADER = "sglang.srt.model_loader.utils"
CUTEDSL = "sglang.srt.layers.layer_boundary.fusions.cutedsl"
MINIMAX = "sglang.srt.models.minimax_m2"
PUSH_FUSION = "sglang.srt.layers.layer_boundary.fusions.custom_all_reduce_fusion"
PUSH_KERNELS = "sglang.kernels.ops.communication.all_reduce_fusion"
PUSH_MEMORY = "sglang.srt.layers.quantization.mxfp4_flashinfer_trtllm_moe"
MIB = 1 << 20
OWN_MAX_SIZE = 16 * MIB
EPS = 1e-6


class Calls:
    """What SGLang's own functions were asked."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, ...]] = []

    def note(self, *what: str) -> None:
        self.noted.append(what)

    def take(self) -> list[tuple[str, ...]]:
        """What was asked since the last time."""
        taken, self.noted = self.noted, []
        return taken


calls = Calls()


class HookKind(Enum):
    BEFORE, AFTER, AROUND, REPLACE = range(4)


class HookSource(NamedTuple):
    plugin_name: str
    dist_name: str | None


def registry() -> ModuleType:
    """A registry of hooks with what SGLang's does: it wraps functions, also where they were imported by name."""
    waiting: list[tuple[str, Callable[..., Any], HookKind, HookSource]] = []
    applied: set[str] = set()

    class HookRegistry:
        @classmethod
        def register(
            cls, target: str, hook: Any, hook_type: HookKind = HookKind.AFTER, *, source: HookSource | None = None
        ) -> None:
            assert source == HookSource("lamport_rs", "lamport-rs")
            waiting.append((target, hook, hook_type, source))

        @classmethod
        def apply_hooks(cls) -> None:
            fresh = [each for each in waiting if each[0] not in applied]
            for target, hook, kind, _source in fresh:
                applied.add(target)
                place(target, hook, kind)

    module = ModuleType("sglang.srt.plugins.hook_registry")
    module.HookRegistry, module.HookType, module.HookSource = HookRegistry, HookKind, HookSource
    return module


def place(target: str, hook: Callable[..., Any], kind: HookKind) -> None:
    name = max((name for name in sys.modules if target.startswith(f"{name}.")), key=len)
    *owners, last = target.removeprefix(f"{name}.").split(".")
    owner: Any = sys.modules[name]
    for each in owners:
        owner = getattr(owner, each)
    original = getattr(owner, last)

    def hooked(*arguments: Any, **options: Any) -> Any:
        if kind is HookKind.AROUND:
            return hook(original, *arguments, **options)
        assert kind is HookKind.AFTER
        result = original(*arguments, **options)
        changed = hook(result, *arguments, **options)
        return result if changed is None else changed

    hooked.__wrapped__ = original
    setattr(owner, last, hooked)
    for module in [module for name, module in sys.modules.items() if name.startswith("sglang")]:
        for each, value in list(vars(module).items()):
            if value is original:
                setattr(module, each, hooked)


def function_of(module: str, name: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """A function with the recorded parameters, which does what `behaviour` does with them as keywords."""
    text = SIGNATURES[module][name].replace("timedelta(seconds=120 * 60)", "None")
    parsed = ast.parse(f"def _({text}): pass").body[0].args
    constants = {each.id: 2048 for each in ast.walk(parsed) if isinstance(each, ast.Name)}
    given = ", ".join(f"{each.arg}={each.arg}" for each in [*parsed.args, *parsed.kwonlyargs])
    namespace: dict[str, Any] = {"behave": behaviour, **constants}
    exec(f"def function({text}):\n    return behave({given})", namespace)
    function = namespace["function"]
    function.__name__, function.__module__ = name.split(".")[-1], module
    return function


def class_of(module: str, name: str, behaviour: type) -> type:
    """A class with the recorded methods, and all others of `behaviour`."""
    methods = {each: getattr(behaviour, each) for each in vars(behaviour) if callable(getattr(behaviour, each))}
    for each in SIGNATURES[module]:
        owner, _, method = each.rpartition(".")
        if owner == name and method in methods:
            methods[method] = function_of(module, each, methods[method])
    body = {each: value for each, value in vars(behaviour).items() if each not in ("__dict__", "__weakref__")}
    return type(name, (), {**body, **methods, "__module__": module})


class OwnAllreduce:
    """What SGLang's `CustomAllReduceV2` does."""

    def __init__(self: Any, group: Any, device: Any, **_options: Any) -> None:
        self.disabled, self.group, self.max_size = False, group, OWN_MAX_SIZE
        self.obj, self.max_push_size = "handle of its memory", MIB
        calls.note("own", "__init__")

    def should_custom_ar(self: Any, inp: torch.Tensor) -> bool:
        return not self.disabled and inp.nbytes % 16 == 0 and inp.nbytes <= self.max_size and inp.is_contiguous()

    def custom_all_reduce(self: Any, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (SGLang's name)
        calls.note("own", "custom_all_reduce")
        return gloo_sum(input, self.group)

    @contextmanager
    def capture(self: Any) -> Iterator[None]:
        calls.note("own", "capture")
        yield

    def supports_push(self: Any, nbytes: int) -> bool:
        return nbytes <= self.max_push_size

    def close(self: Any) -> None:
        calls.note("own", "close")


class Group:
    """What SGLang's `GroupCoordinator` does with a custom all-reduce; a rank is in one of its `group_ranks`."""

    made = 0

    def __init__(self: Any, group_ranks: list[list[int]], use_custom_allreduce: bool, **options: Any) -> None:
        name = options["group_name"] or "anonymous"
        self.unique_name, Group.made = f"{name}:{Group.made}", Group.made + 1
        for ranks in group_ranks:
            made = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                self.cpu_group = self.device_group = made
                self.world_size, self.rank_in_group = len(ranks), ranks.index(dist.get_rank())
        device = sys.modules[PARALLEL_STATE].device
        self.device, self.use_custom_allreduce, self.ca_comm = device, use_custom_allreduce, None
        self.flashinfer_is_ready = False
        if use_custom_allreduce and self.world_size > 1:
            try:
                self.ca_comm = sys.modules[V2].CustomAllReduceV2(group=self.cpu_group, device=self.device)
            except RuntimeError as error:
                calls.note("own", str(error))

    def _can_use_flashinfer_allreduce(self: Any, input_: torch.Tensor) -> bool:
        return self.flashinfer_is_ready and input_.ndim == 2

    def _all_reduce_out_place(self: Any, input_: torch.Tensor, outplace_all_reduce_method: str) -> torch.Tensor:
        assert outplace_all_reduce_method == "ca"
        return self.ca_comm.custom_all_reduce(input_)

    def all_reduce(self: Any, input_: torch.Tensor) -> torch.Tensor:
        if self._can_use_flashinfer_allreduce(input_):
            calls.note("flashinfer", "all_reduce")
        elif self.ca_comm is not None and not self.ca_comm.disabled and self.ca_comm.should_custom_ar(input_):
            return self._all_reduce_out_place(input_, outplace_all_reduce_method="ca")
        else:
            calls.note("nccl", "all_reduce")
        return gloo_sum(input_, self.cpu_group)

    @contextmanager
    def graph_capture(self: Any, **_options: Any) -> Iterator[None]:
        with self.ca_comm.capture():
            yield

    def destroy(self: Any) -> None:
        dist.destroy_process_group(self.cpu_group)
        self.cpu_group = self.device_group = self.ca_comm = None


class Norm:
    """A RMSNorm: SGLang fuses it with the all-reduce before it, or does one after the other."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight, self.variance_epsilon = weight, EPS

    def after_all_reduce(
        self, x: torch.Tensor, residual: torch.Tensor, use_attn_tp_group: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if sys.modules[EXIT].flashinfer_ar_fusion_applies(x.shape[0]):
            fused = sys.modules[COMM_FUSION].flashinfer_allreduce_residual_rmsnorm(
                input_tensor=x,
                residual=residual,
                weight=self.weight,
                eps=self.variance_epsilon,
                max_token_num=max(x.shape[0], 2048),
                use_attn_tp_group=use_attn_tp_group,
            )
            if fused[0] is not None:
                return fused
        calls.note("own", "unfused")
        group = parallel.attn_tp_group if use_attn_tp_group else parallel.moe_group
        total = group.all_reduce(x).float() + residual.float()
        scale = (total.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return (total * scale * self.weight.float()).to(x.dtype), total.to(x.dtype)


class OwnExperts:
    """What SGLang's object for FlashInfer's CuTe DSL kernels does."""

    def __init__(self, max_m: int) -> None:
        self.max_m = max_m
        calls.note("flashinfer", "prepare experts")

    def supports(self, m: int) -> bool:
        return 0 < m <= self.max_m

    def moe_finalize_all_reduce_rms_norm(
        self, *, routed_output: Any, expert_weights: Any, permuted_indices: Any, gated_shared_output: Any,
        residual: Any, gamma: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        calls.note("flashinfer", "experts")
        return routed_output, residual

    def all_reduce_residual_rms_norm(self, *, local_contribution: Any, residual: Any, gamma: Any) -> tuple[Any, Any]:
        calls.note("flashinfer", "norm")
        return local_contribution, residual


class ExpertsService:
    """What `CuteDSLWorkspace` does: it prepares that object, once, and asks it."""

    def __init__(self: Any, hidden_size: int, top_k: int, rms_epsilon: float, **_options: Any) -> None:
        self.hidden_size, self.rms_epsilon, self._workspace = hidden_size, rms_epsilon, None

    def prepare(self: Any, max_m: int) -> None:
        if self._workspace is None:
            self._workspace = OwnExperts(max_m)
            self.max_m = self._workspace.max_m

    def supports(self: Any, m: int) -> bool:
        return self._workspace is not None and self._workspace.supports(m)

    def finalize(self: Any, handoff: Any, residual: torch.Tensor, gamma: torch.Tensor) -> Any:
        experts = {name: getattr(handoff, name) for name in ("routed_output", "expert_weights", "permuted_indices")}
        return self._workspace.moe_finalize_all_reduce_rms_norm(
            **experts, gated_shared_output=handoff.gated_shared_output, residual=residual, gamma=gamma
        )

    def all_reduce_residual_rms_norm(
        self: Any, local_contribution: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor
    ) -> Any:
        return self._workspace.all_reduce_residual_rms_norm(
            local_contribution=local_contribution, residual=residual, gamma=gamma
        )


class QKNorm:
    """What `MiniMaxM2QKRMSNorm` does."""

    def __init__(self: Any, q_norm: Norm, k_norm: Norm) -> None:
        self.norms = q_norm, k_norm

    def forward(self: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.note("own", "qk_norm")
        return q, k

    def _forward_naive(self: Any, q: torch.Tensor, k: torch.Tensor) -> None: ...

    def _forward_fused(self: Any, q: torch.Tensor, k: torch.Tensor) -> None: ...


parallel = SimpleNamespace()
"""What SGLang's `get_parallel()` returns: its groups, which a test makes."""


def modules_of_sglang(device: torch.device) -> dict[str, ModuleType]:
    names = ["sglang.srt.plugins", *SIGNATURES, EXIT]
    parents = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    modules = {name: ModuleType(name) for name in sorted({*names, *parents})}
    modules["sglang.srt.plugins.hook_registry"] = registry()
    modules[PARALLEL_STATE].GroupCoordinator = class_of(PARALLEL_STATE, "GroupCoordinator", Group)
    modules[PARALLEL_STATE].device = device
    modules[V2].CustomAllReduceV2 = class_of(V2, "CustomAllReduceV2", OwnAllreduce)
    modules["sglang.srt.runtime_context"].get_parallel = lambda: parallel
    modules[DP_ATTENTION].is_enabled = False
    functions: dict[tuple[str, str], Callable[..., Any]] = {
        (DP_ATTENTION, "is_dp_attention_enabled"): lambda: modules[DP_ATTENTION].is_enabled,
        (COMM_FUSION, "pre_initialize_workspaces"): lambda **_: calls.note("flashinfer", "prepare"),
        (COMM_FUSION, "flashinfer_allreduce_residual_rmsnorm"): lambda **_: (None, None),
        (COMM_FUSION, "resolve_fusion_group"): resolve_fusion_group,
        (ADD_NORM, "flashinfer_ar_fusion_applies"): lambda batch_size: False,
        (MODEL_LOADER, "get_model_architecture"): lambda **_: choose_model(),
        (PUSH_MEMORY, "register_fused_all_reduce_comm"): lambda **_: calls.note("own", "prepare push"),
        (PUSH_KERNELS, "all_reduce_residual_norm"): own_push_norm,
    }
    for (module, name), behaviour in functions.items():
        setattr(modules[module], name, function_of(module, name, behaviour))
    modules[EXIT].flashinfer_ar_fusion_applies = modules[ADD_NORM].flashinfer_ar_fusion_applies
    modules[PUSH_FUSION].all_reduce_residual_norm = modules[PUSH_KERNELS].all_reduce_residual_norm
    del modules[MINIMAX]  # SGLang imports its models when it has chosen one.
    return modules


def own_push_norm(input: torch.Tensor, residual: Any, residual_out: Any, **_options: Any) -> tuple[Any, Any]:  # noqa: A002
    calls.note("own", "push norm")
    return input, residual_out if residual is None else residual


def resolve_fusion_group(use_attn_tp_group: bool) -> tuple[int, int, Any]:
    group = parallel.attn_tp_group if use_attn_tp_group else parallel.moe_group
    return group.world_size, group.rank_in_group, group


def choose_model() -> tuple[type, str]:
    module = sys.modules.setdefault(MINIMAX, ModuleType(MINIMAX))
    if not hasattr(module, "MiniMaxM2QKRMSNorm"):
        module.MiniMaxM2QKRMSNorm = class_of(MINIMAX, "MiniMaxM2QKRMSNorm", QKNorm)
    experts = sys.modules.setdefault(CUTEDSL, ModuleType(CUTEDSL))
    if not hasattr(experts, "CuteDSLWorkspace"):
        experts.CuteDSLWorkspace = class_of(CUTEDSL, "CuteDSLWorkspace", ExpertsService)
    return module.MiniMaxM2QKRMSNorm, "MiniMaxM2ForCausalLM"


@contextmanager
def fake_sglang(device: torch.device | str = "cpu") -> Iterator[dict[str, ModuleType]]:
    """Stand-ins for a process of SGLang, which does not know the plugin yet; the block gets its modules."""
    forget_plugin()
    parallel.__dict__.clear()
    calls.take()
    modules = modules_of_sglang(torch.device(device))
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "sglang"}
    sys.modules.update(modules)
    importlib.import_module(f"{PLUGIN}.groups").SERVED_DEVICES.add("cpu")
    try:
        yield modules
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
            del sys.modules[name]
        sys.modules.update(hidden)
        forget_plugin()


def forget_plugin() -> None:
    """Have the plugin imported anew, but for its operators, which torch has for good."""
    operators = sys.modules.get(f"{PLUGIN}.operators")
    for name in [name for name in sys.modules if name.startswith(PLUGIN)]:
        del sys.modules[name]
    if operators is not None:
        operators.norm_workspaces.clear()
        operators.minimax_workspaces.clear()
        sys.modules[f"{PLUGIN}.operators"] = operators


def load_plugins() -> None:
    """What SGLang does when a process starts."""
    importlib.import_module(PLUGIN).install()
    sys.modules["sglang.srt.plugins.hook_registry"].HookRegistry.apply_hooks()


def in_sglang(me: Rank, check: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Run `check(me, modules, *arguments)` in a rank of SGLang that has loaded its plugins."""
    with pytest.MonkeyPatch.context() as patch, fake_sglang(me.device) as modules:
        for name, value in environment.items():
            patch.setenv(name, value)
        load_plugins()
        return check(me, modules, *arguments)


def make_group(name: str, group_ranks: list[list[int]], use_custom_allreduce: bool = True, **options: Any) -> Any:
    """A group as SGLang makes it."""
    options = {"torch_distributed_backend": "nccl", "group_name": name, **options}
    names = ("use_pynccl", "use_mscclpp", "use_torch_symm_mem_all_reduce", "use_hpu_communicator")
    options.update(dict.fromkeys((*names, "use_xpu_communicator"), False))
    made = sys.modules[PARALLEL_STATE].GroupCoordinator
    return made(group_ranks=group_ranks, local_rank=0, use_custom_allreduce=use_custom_allreduce, **options)


def make_groups(me: Rank, **options: Any) -> Any:
    """The groups of tensor parallelism over all ranks."""
    everybody = [list(range(me.world_size))]
    make_group("world", everybody, use_custom_allreduce=False)
    parallel.tp_group = parallel.attn_tp_group = parallel.moe_group = make_group("tp", everybody, **options)
    calls.take()
    return parallel.tp_group


def logged() -> AbstractContextManager[list[str]]:
    """The lines that the plugin writes to the engine's log, as `LEVEL text`."""
    return engines.logged("sglang")
