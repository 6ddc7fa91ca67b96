"""The functions of SGLang that the plugin hooks or calls, and what they must take."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

REGISTRY = "sglang.srt.plugins.hook_registry"
PARALLEL_STATE = "sglang.srt.distributed.parallel_state"
COMM_FUSION = "sglang.srt.layers.flashinfer_comm_fusion"
ADD_NORM = "sglang.srt.layers.layer_boundary.residual.add_norm"
DP_ATTENTION = "sglang.srt.layers.dp_attention"
RUNTIME_CONTEXT = "sglang.srt.runtime_context"
MODEL_LOADER = "sglang.srt.model_loader.utils"
CUTEDSL = "sglang.srt.layers.layer_boundary.fusions.cutedsl"
MINIMAX = "sglang.srt.models.minimax_m2"
PUSH_FUSION = "sglang.srt.layers.layer_boundary.fusions.custom_all_reduce_fusion"
"""Which MiniMax-M3 imports where it fuses by its own kernel."""
PLUGIN_SOURCE = ("lamport_rs", "lamport-rs")
"""The plugin's names, of its entry point and of its distribution, for SGLang's log."""


@dataclass(frozen=True)
class Point:
    """A function or a method of SGLang."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    """Those that the plugin relies on."""

    @property
    def target(self) -> str:
        """The name that SGLang's registry knows it by."""
        return f"{self.module}.{self.name}"

    def find(self) -> Any:
        """Return the function, or None if this process has not loaded it."""
        found: Any = sys.modules.get(self.module)
        for part in self.name.split("."):
            found = getattr(found, part, None)
        return found

    def obstacle(self) -> str | None:
        """Say what keeps the plugin from relying on it; None if nothing does."""
        function = self.find()
        if not callable(function):
            return f"there is no {self.target}"
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # An operator of torch has no signature; its schema is not looked at.
            return None
        missing = [name for name in self.parameters if name not in parameters]
        return f"{self.target} takes no {', '.join(missing)}" if missing else None


GROUP = Point(
    PARALLEL_STATE,
    "GroupCoordinator.__init__",
    ("torch_distributed_backend", "use_custom_allreduce", "recovered_rank", "rank_offset"),
)
FLASHINFER_SUMS = Point(PARALLEL_STATE, "GroupCoordinator._can_use_flashinfer_allreduce", ("self", "input_"))
PREPARATION = Point(COMM_FUSION, "pre_initialize_workspaces", ("max_token_num", "hidden_dim", "dtype", "use_oneshot"))
FUSED_NORM = Point(
    COMM_FUSION,
    "flashinfer_allreduce_residual_rmsnorm",
    ("input_tensor", "residual", "weight", "eps", "max_token_num", "use_attn_tp_group"),
)
FUSION_GROUP = Point(COMM_FUSION, "resolve_fusion_group", ("use_attn_tp_group",))
FUSION_CHOICE = Point(ADD_NORM, "flashinfer_ar_fusion_applies", ("batch_size",))
DP_ATTENTION_ENABLED = Point(DP_ATTENTION, "is_dp_attention_enabled")
PARALLEL = Point(RUNTIME_CONTEXT, "get_parallel")
EXPERTS_PREPARATION = Point(CUTEDSL, "CuteDSLWorkspace.prepare", ("self", "max_m"))
PUSH_PREPARATION = Point(
    "sglang.srt.layers.quantization.mxfp4_flashinfer_trtllm_moe", "register_fused_all_reduce_comm", ("max_push_size",)
)
PUSH_NORM = Point(
    "sglang.kernels.ops.communication.all_reduce_fusion",
    "all_reduce_residual_norm",
    ("input", "residual", "norm_weight", "norm_eps", "world_size", "gemma", "residual_out"),
)
MODEL_CHOICE = Point(MODEL_LOADER, "get_model_architecture", ("model_config",))
MINIMAX_NORM = Point(MINIMAX, "MiniMaxM2QKRMSNorm.__init__", ("self", "q_norm", "k_norm"))
MINIMAX_FORWARD = Point(MINIMAX, "MiniMaxM2QKRMSNorm.forward", ("self", "q", "k"))


def first_obstacle(points: Iterable[Point]) -> str | None:
    """Say what keeps the plugin from relying on several functions; None if nothing does."""
    return next(filter(None, (point.obstacle() for point in points)), None)


def register(point: Point, hook: Callable[..., Any], kind: str) -> None:
    """Register a hook with SGLang's registry, which puts it in place with the next `apply`."""
    registry = sys.modules[REGISTRY]
    source = registry.HookSource(*PLUGIN_SOURCE)
    registry.HookRegistry.register(point.target, hook, registry.HookType[kind], source=source)


def apply() -> None:
    """Have SGLang's registry put in place what has been registered after it has put in place the rest."""
    sys.modules[REGISTRY].HookRegistry.apply_hooks()


def when_model_is_chosen(module: str, adjust: Callable[[], None]) -> None:
    """Call `adjust` once, when SGLang has chosen a model and so imported all that it has, if `module` is there then."""
    is_waiting = True

    def after_choice(_result: Any, *_arguments: Any, **_options: Any) -> None:
        nonlocal is_waiting
        if is_waiting and module in sys.modules:
            is_waiting = False
            adjust()

    register(MODEL_CHOICE, after_choice, "AFTER")
