"""The collectives as operators, `torch.ops.lamport_rs.*`: for torch.compile, and for stacks that call operators.

They take the workspace's table in the workspace's place, and allocate their outputs, which never require a gradient.
Where a tracer is at work the functions of `lamport_rs.operations` become these.

An operator without outputs that are written to looks pure to a compiler: it may leave a call out whose result is not
used, merge two that are alike, move one past another, or run one again in a backward pass. On one rank only, that pairs
different operations of the ranks, and sums are wrong without an error. So they are registered to have effects in order.

Compiled graphs outlive a version of this package in torch's caches, whose keys tell operators by their names only. So
each is defined under a name that says what a compiled graph may rely on (`ordered_all_reduce`), and has its public name
(`all_reduce`) beside it. A change of what graphs may rely on takes new names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from lamport_rs._core import LamportError
from lamport_rs.autograd import warn_of_lost_gradient
from lamport_rs.eager import (
    run_all_reduce,
    run_all_reduce_rms_norm,
    run_minimax_rms,
    run_minimax_rms_qk,
)
from lamport_rs.layout import empty_dense
from lamport_rs.quantised import QuantFormat, empty_results, run_all_reduce_rms_norm_quant
from lamport_rs.tracing import UNDER_TRANSFORMATION, must_dispatch, without_jit_tracer

_NAMESPACE, _PREFIX = "lamport_rs", "ordered_"
_library = torch.library.Library(_NAMESPACE, "DEF")


def _all_reduce_fake(
    input: torch.Tensor,  # noqa: A002
    workspace: torch.Tensor,
    algorithm: str = "auto",
) -> torch.Tensor:
    _prepare("all_reduce", input)
    return empty_dense(input)


def _all_reduce_rms_norm_fake(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: torch.Tensor,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    algorithm: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    _prepare("all_reduce_rms_norm", input, residual, weight)
    return empty_dense(input), empty_dense(input)


def _all_reduce_rms_norm_quant_fake(
    input: torch.Tensor,  # noqa: A002
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    workspace: torch.Tensor,
    quant_format: QuantFormat,
    scale: torch.Tensor | None = None,
    eps: float = 1e-6,
    weight_bias: float = 0.0,
    with_norm: bool = False,
    algorithm: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    _prepare("all_reduce_rms_norm_quant", input, residual, weight)
    return empty_results(input, quant_format, scale, with_norm)


def _minimax_allreduce_rms_fake(
    input: torch.Tensor,  # noqa: A002
    norm_weight: torch.Tensor,
    workspace: torch.Tensor,
    rank: int,
    nranks: int,
    eps: float,
) -> torch.Tensor:
    _prepare("minimax_allreduce_rms", input, norm_weight)
    return empty_dense(input)


def _minimax_allreduce_rms_qk_fake(
    qkv: torch.Tensor,
    norm_weight_q: torch.Tensor,
    norm_weight_k: torch.Tensor,
    workspace: torch.Tensor,
    q_size: int,
    kv_size: int,
    rank: int,
    nranks: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    _prepare("minimax_allreduce_rms_qk", qkv, norm_weight_q, norm_weight_k)
    rows = qkv.shape[:-1]
    return qkv.new_empty((*rows, q_size)), qkv.new_empty((*rows, kv_size))


def _prepare(operation: str, *inputs: torch.Tensor | None) -> None:
    """Do what is to be done once for a call that is traced, and not when the compiled code runs."""
    _keep_in_checkpoints()
    # Compiled code runs where gradients are not enabled any more: here is where they are.
    if torch.is_grad_enabled():
        warn_of_lost_gradient(operation, *inputs)


def _keep_in_checkpoints() -> None:
    """Have an activation checkpoint that is being compiled save the result, and not run the operation again.

    torch itself does so from some version on (2.15 does). Others would compute again whatever lies in a checkpoint, and
    fail, as there is no token of the order of effects in a backward pass. The tag is that of the node that is traced;
    torch's selective checkpoints set it likewise.
    """
    tags = torch.fx.traceback.current_meta
    if "recompute" in tags:
        from torch.utils.checkpoint import CheckpointPolicy

        tags["recompute"] = CheckpointPolicy.MUST_SAVE


def _refuse_transformation(*_arguments: Any, **_options: Any) -> NoReturn:
    raise LamportError(f"{UNDER_TRANSFORMATION}; call the operator outside it")


class _Operator(torch._ops.OpOverloadPacket):
    """An operator that is called without torch's dispatcher where nothing wants to see the call.

    The dispatcher takes longer than the rest of what the host does for an operation.
    """

    _eager: Callable[..., Any]

    def __call__(self, /, *arguments: Any, **options: Any) -> Any:
        if not arguments or must_dispatch(arguments[0]):
            # Not of this class: a tracer that calls again what it is given gets past this.
            return self.default(*arguments, **options)
        try:
            return self._eager(*arguments, **options)
        except LamportError:
            if not getattr(arguments[0], "is_meta", False):
                raise
        # Tensors without memory are asked for the shapes of results. That need not be quick.
        return self.default(*arguments, **options)


def _register_effect(operator: torch._ops.OpOverload) -> None:
    """Tell all compilers that calls are to be kept as they are, and in order."""
    try:
        from torch._higher_order_ops.effects import _EffectType, _register_effectful_op

        _register_effectful_op(operator, _EffectType.ORDERED)
        # What ends the order in a graph. torch 2.6 would leave it out, and with it all whose results are not used.
        torch.fx.node.has_side_effect(torch.ops.prims._sink_tokens.default)
    except (ImportError, AttributeError, TypeError) as error:
        raise ImportError(
            f"torch {torch.__version__} has no way known to lamport_rs of keeping torch.compile from reordering "
            "collectives, and wrong sums could follow; use a version from 2.6 to 2.15, or report this"
        ) from error


def _define(public: str, schema: str, eager: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = f"{_PREFIX}{public}"
    # TorchScript leaves out and merges what it takes for pure, unless it is told to infer nothing from the schema.
    _library.define(f"{name}{schema}", alias_analysis="CONSERVATIVE")
    kernel = without_jit_tracer(eager)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    # No gradient, like the functions: torch's default for operators without one is a result that requires it and warns.
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    _library.impl(name, _refuse_transformation, "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_library)
    namespace = getattr(torch.ops, _NAMESPACE)
    operator = getattr(namespace, name)
    _register_effect(operator.default)
    operator._eager = eager
    operator.__class__ = _Operator
    setattr(namespace, public, operator)


_define(
    "all_reduce",
    '(Tensor input, Tensor workspace, str algorithm="auto") -> Tensor',
    run_all_reduce,
    _all_reduce_fake,
)
_define(
    "all_reduce_rms_norm",
    "(Tensor input, Tensor? residual, Tensor weight, Tensor workspace, float eps=1e-06, float weight_bias=0.0,"
    ' str algorithm="auto") -> (Tensor, Tensor)',
    run_all_reduce_rms_norm,
    _all_reduce_rms_norm_fake,
)
_define(
    "all_reduce_rms_norm_quant",
    "(Tensor input, Tensor? residual, Tensor weight, Tensor workspace, str quant_format, Tensor? scale=None,"
    " float eps=1e-06, float weight_bias=0.0, bool with_norm=False,"
    ' str algorithm="auto") -> (Tensor, Tensor, Tensor, Tensor)',
    run_all_reduce_rms_norm_quant,
    _all_reduce_rms_norm_quant_fake,
)
_define(
    "minimax_allreduce_rms",
    "(Tensor input, Tensor norm_weight, Tensor workspace, int rank, int nranks, float eps) -> Tensor",
    run_minimax_rms,
    _minimax_allreduce_rms_fake,
)
_define(
    "minimax_allreduce_rms_qk",
    "(Tensor qkv, Tensor norm_weight_q, Tensor norm_weight_k, Tensor workspace, int q_size, int kv_size, int rank,"
    " int nranks, float eps) -> (Tensor, Tensor)",
    run_minimax_rms_qk,
    _minimax_allreduce_rms_qk_fake,
)
