"""What the package has to know of torch's tracers, the compiler among them.

A tracer runs a function in order to record what torch does in it. It does not see the calls of the Rust core, which
would run once, on the tracer's own tensors, and be missing from what was recorded. So where one is at work, the
functions call the operators, which all tracers record.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _is_tracing as is_tracing_jit
from torch._C import _len_torch_dispatch_stack as count_dispatch_modes
from torch._C import _len_torch_function_stack as count_function_modes
from torch._C._functorch import maybe_current_level as functorch_level
from torch._ops import _len_torch_dispatch_stack_pre_dispatch as count_pre_dispatch_modes
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

UNDER_TRANSFORMATION = (
    "a transformation of functions (torch.vmap, torch.func.grad and the like) is active, and a collective has no "
    "batching rule and no gradient"
)
"""Why an operation is refused there."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def is_recording() -> bool:
    """Whether a tracer, or another mode that sees every operator, is at work in this thread."""
    # The compiler evaluates the first call itself, and looks no further. The others take 10 to 30 ns each, and are part
    # of every operation's latency. Tracers that come before dispatch are function modes too; few others are.
    return (
        is_dynamo_compiling()
        or is_tracing_jit()
        or count_dispatch_modes() > 0
        or (count_function_modes() > 0 and count_pre_dispatch_modes() > 0)
    )


def must_dispatch(value: object) -> bool:
    """Whether an operation on `value` goes through torch, as a tracer is at work or has made `value`."""
    # As `is_recording`, without the call.
    if (
        is_dynamo_compiling()
        or is_tracing_jit()
        or count_dispatch_modes()
        or (count_function_modes() and count_pre_dispatch_modes())
    ):
        return True
    kind = type(value)
    if kind is Tensor or kind is Parameter:
        return False
    # The core says best what is wrong with a nested tensor, or with what is no tensor at all.
    return hasattr(kind, "__torch_function__") and getattr(value, "is_nested", False) is not True


def is_faked(arguments: Sequence[Any]) -> bool:
    """Whether an operation with these arguments computes nothing: it is only asked for the shapes of its results."""
    tensors = [each for each in arguments if isinstance(each, torch.Tensor)]
    return any(each.is_meta for each in tensors) or torch._guards.detect_fake_mode(tensors) is not None


def find_traced(fake: Any) -> torch.Tensor | None:
    """Return the tensor that `fake` stands for in a function that is being compiled, if that can be told.

    Compilers remember which they have made for which, but there is no public way of asking.
    """
    if torch._guards.TracingContext.try_get() is None:
        return None
    try:
        remembered = fake.fake_mode.fake_tensor_converter.meta_converter
        for tensor, number in remembered.describer.lookup_tensor.items():
            if remembered.tensor_memo.get(number) is fake:
                found: torch.Tensor = tensor
                return found
    except AttributeError:
        pass
    return None


def functorch_is_active() -> bool:
    """Whether the caller runs in `torch.vmap`, `torch.func.grad` or the like."""
    return functorch_level() is not None


def without_jit_tracer(kernel: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Keep torch.jit.trace from recording what an operator does within, beside the operator itself."""

    @functools.wraps(kernel)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if not is_tracing_jit():
            return kernel(*args, **kwargs)
        internals: Any = torch._C
        state = internals._get_tracing_state()
        internals._set_tracing_state(None)
        try:
            return kernel(*args, **kwargs)
        finally:
            internals._set_tracing_state(state)

    return call


def never_compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have torch.compile break its graph at calls of `function`, and leave alone what it calls.

    `torch.compiler.disable` does that, but imports the compiler, which takes a second. Here it is imported by others,
    or not needed.
    """
    disabled: list[Callable[Parameters, Result]] = []

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    marked: Any = call
    marked._torchdynamo_disable = True
    return call
