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

from lamport_rs._core import LamportError, note_refusal, refusals_noted
from lamport_rs.autograd import warn_of_lost_gradient
from lamport_rs.operations import COLLECTIVES
from lamport_rs.operations.collective import Collective, refuse_shared_memory
from lamport_rs.operations.refusals import count_refusal, fits, refusal_counted
from lamport_rs.tracing import UNDER_TRANSFORMATION, must_dispatch, without_jit_tracer

_NAMESPACE, _PREFIX = "lamport_rs", "ordered_"
_library = torch.library.Library(_NAMESPACE, "DEF")
_KEYS = ("CPU", "CUDA", "SparseCPU", "SparseCUDA", "SparseCsrCPU", "SparseCsrCUDA")
"""Of tensors that the functions see. They refuse sparse ones, and count that, where torch would not."""


def _fake_of(collective: Collective) -> Callable[..., Any]:
    def fake(*arguments: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        with refusal_counted(arguments):
            _prepare(collective.name, *collective.inputs(arguments))
            results = collective.allocate(*arguments)
        return results[0] if len(results) == 1 else results

    return fake


def _refuse_shared_memory_of_fakes(
    outputs: list[torch.Tensor], names: list[str], workspace: torch.Tensor
) -> torch.Tensor:
    with refusal_counted([workspace]):
        return refuse_shared_memory(outputs, names, workspace)


def _refuse_call(named: list[torch.Tensor], reason: str) -> NoReturn:
    count_refusal(named)
    raise LamportError(reason)


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


def _refuse_under_transformations(*arguments: Any, **options: Any) -> NoReturn:
    note_refusal(*arguments, *options.values())
    raise LamportError(f"{UNDER_TRANSFORMATION}; call the operator outside it")


class _Operator(torch._ops.OpOverloadPacket):
    """An operator that is called without torch's dispatcher where nothing wants to see the call.

    The dispatcher takes longer than the rest of what the host does for an operation.
    """

    _eager: Callable[..., Any]

    def __call__(self, /, *arguments: Any, **options: Any) -> Any:
        # Tensors without memory are asked for the shapes of results.
        if arguments and not must_dispatch(arguments[0]) and not getattr(arguments[0], "is_meta", False):
            try:
                return self._eager(*arguments, **options)
            except TypeError:
                # What has come to it was counted.
                if not fits(self._eager, arguments, options):
                    count_refusal([*arguments, *options.values()])
                raise
        # Not of this class: a tracer that calls again what it is given gets past this.
        return self.default(*arguments, **options)


class _Overload(torch._ops.OpOverload):
    """An operator's only overload, which has torch's dispatcher see the call."""

    def __call__(self, /, *arguments: Any, **options: Any) -> Any:
        noted = refusals_noted()
        try:
            return self._op(*arguments, **options)
        except BaseException:
            # torch refuses what does not fit the schema, or has no kernel; the kernels count what they refuse.
            if refusals_noted() == noted:
                count_refusal([*arguments, *options.values()])
            raise


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


def _define(collective: Collective, eager: Callable[..., Any]) -> None:
    name = f"{_PREFIX}{collective.name}"
    # TorchScript leaves out and merges what it takes for pure, unless it is told to infer nothing from the schema.
    _library.define(f"{name}{collective.schema}", alias_analysis="CONSERVATIVE")
    kernel = without_jit_tracer(eager)
    for key in _KEYS:
        _library.impl(name, kernel, key)
    # No gradient, like the functions: torch's default for operators without one is a result that requires it and warns.
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    _library.impl(name, _refuse_under_transformations, "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", _fake_of(collective), lib=_library)
    namespace = getattr(torch.ops, _NAMESPACE)
    operator = getattr(namespace, name)
    _register_effect(operator.default)
    # Where a function that is compiled calls it: passes may leave out what nobody uses and what has no known effect.
    torch.fx.node.has_side_effect(operator)
    torch.fx.node.has_side_effect(operator.default)
    operator._eager = eager
    operator.__class__, operator.default.__class__ = _Operator, _Overload
    setattr(namespace, collective.name, operator)


for _collective, _eager in COLLECTIVES:
    _define(_collective, _eager)

# For calls that are compiled and do not fit a function's parameters.
_library.define("refuse_call(Tensor[] named, str reason) -> ()")
_library.impl("refuse_call", _refuse_call, "CompositeExplicitAutograd")
torch.library.register_fake(f"{_NAMESPACE}::refuse_call", _refuse_call, lib=_library)

# It is pure: compilers run it while they trace, and leave it out.
_library.define("check_apart(Tensor[] outputs, str[] names, Tensor workspace) -> Tensor")
_library.impl("check_apart", refuse_shared_memory, "CompositeExplicitAutograd")
_library.impl("check_apart", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake(f"{_NAMESPACE}::check_apart", _refuse_shared_memory_of_fakes, lib=_library)
