"""Calls before they are made: whether a workspace will serve them, and what they take."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch.compiler import is_dynamo_compiling

from lamport_rs import _core
from lamport_rs._core import MAX_WORLD_SIZE, LamportError
from lamport_rs.layout import check_tensor, is_strided
from lamport_rs.lifecycle import WorkspaceLifecycle
from lamport_rs.tracing import never_compiled

Settings: TypeAlias = tuple[str, str, str, int, int]
"""Of a call: operation, algorithm, quantised format, columns of Q and of K."""
Answer: TypeAlias = Callable[[Settings, tuple[int, ...], torch.dtype, tuple[torch.dtype, ...], tuple[str, ...]], bool]
"""Whether a workspace serves a call, by the shape and dtype of its first tensor, the weights' dtypes, the options."""

_OPTIONS = {
    name: {*(argument for _, argument, _ in arguments[1:]), *outputs} - {"workspace"}
    for name, arguments, outputs in _core.collectives()
}
"""What each operation takes besides its first tensor and the workspace."""
_SPANS = ((0, 0), (1, MAX_WORLD_SIZE - 1), (MAX_WORLD_SIZE, 2**31 - 1))
"""Counts of rows, or of elements of a sum, within which an answer that both ends have is that of all."""


class WorkspaceCalls(WorkspaceLifecycle):
    """What a workspace may be asked ahead of a call."""

    _device: torch.device
    _answer: Answer

    def supports(
        self,
        input: torch.Tensor,  # noqa: A002  (torch's name)
        operation: str = "all_reduce",
        *,
        algorithm: str = "auto",
        weight_dtype: torch.dtype | None = None,
        quant_format: str = "",
        q_size: int = 0,
        kv_size: int = 0,
        **options: object,
    ) -> bool:
        """Whether a working workspace will serve a call: the same on every rank for tensors of one shape and dtype.

        In what torch.compile compiles it is a constant: code with dynamic shapes serves all that have the same answer.

        Args:
            input: The operation's first tensor, of any layout. Only its shape, dtype and device are looked at, so
                that a meta tensor or a fake one does.
            operation: The name of one of the package's collectives.
            algorithm: As for the operation.
            weight_dtype: The dtype of the weights, for norms; None for that of `input`.
            quant_format: As for the operation, if it quantises.
            q_size: As for `minimax_allreduce_rms_qk`.
            kv_size: As for `minimax_allreduce_rms_qk`.
            options: Whatever else the operation takes, by its name there. Of weights the dtype is looked at, and of all
                others nothing.

        Raises:
            LamportError: If there is no such operation or algorithm, `input` is no tensor, or the workspace was cleaned
                up.
            TypeError: If the operation takes no such option.
        """
        check_tensor("input", input)
        self._usable_core()
        settings = operation, algorithm, quant_format, q_size, kv_size
        served = self._serves(settings, input, _weights_of(input, weight_dtype, options), tuple(options))
        return served and is_strided(input) and input.device in (self._device, torch.device("meta"))

    def _serves(
        self, settings: Settings, tensor: torch.Tensor, weights: tuple[torch.dtype, ...], options: tuple[str, ...]
    ) -> bool:
        """Whether the core serves such a call, if the tensor is dense and where it has to be."""
        answer, dtype = self._answer, tensor.dtype
        # A nested tensor has no shape.
        shape = tuple(tensor.shape) if is_strided(tensor) else ()
        # Of sums only the number of elements matters, of others the columns and the number of rows.
        kept = 0 if settings[0] == "all_reduce" else 1
        if not is_dynamo_compiling() or len(shape) <= kept:
            return answer(settings, shape, dtype, weights, options)
        count = 1
        for size in shape[: len(shape) - kept]:
            count *= size
        ones = (1,) * (len(shape) - kept - 1)
        # A range has a length that is no symbol.
        columns = tuple(len(range(size)) for size in shape[len(shape) - kept :])
        for least, most in _SPANS:
            if least <= count <= most:
                first = answer(settings, (*ones, least, *columns), dtype, weights, options)
                if first == answer(settings, (*ones, most, *columns), dtype, weights, options):
                    return first
        return answer(settings, (*ones, len(range(count)), *columns), dtype, weights, options)

    @never_compiled
    def prepare(
        self,
        input: torch.Tensor,  # noqa: A002  (torch's name)
        operation: str = "all_reduce",
        *,
        algorithm: str = "auto",
        weight_dtype: torch.dtype | None = None,
        quant_format: str = "",
        q_size: int = 0,
        kv_size: int = 0,
        **options: object,
    ) -> None:
        """Load the kernels that a call takes, ahead of the first one. Not collective; on the host there are none.

        The driver loads a kernel when it is first launched, and waits for kernels that run before it does. If one of
        them waits for a peer that this rank has yet to send something to, both wait until the timeout. So prepare what
        is first called while other operations are under way.

        Args:
            input: As for `supports`, like all other arguments.
            operation: As for `supports`.
            algorithm: As for `supports`.
            weight_dtype: As for `supports`.
            quant_format: As for `supports`.
            q_size: As for `supports`.
            kv_size: As for `supports`.
            options: As for `supports`.

        Raises:
            LamportError: If the workspace would not serve the call, or the driver does not load the kernels.
            TypeError: If the operation takes no such option.
        """
        check_tensor("input", input)
        if not is_strided(input):
            raise LamportError(f"{operation} takes dense tensors, not one of layout {input.layout}")
        settings = operation, algorithm, quant_format, q_size, kv_size
        weights = _weights_of(input, weight_dtype, options)
        for call in _calls_of(settings, tuple(input.shape), input.dtype, weights, tuple(options)):
            _core.prepare(self._usable_core(), call)


def answers_of(workspace: WorkspaceCalls) -> Answer:
    """Return the function that tells what the workspace serves, whose results compilers take for constants."""
    found = weakref.ref(workspace)

    def answer(
        settings: Settings,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        weights: tuple[torch.dtype, ...],
        options: tuple[str, ...],
    ) -> bool:
        asked = found()
        assert asked is not None
        calls = _calls_of(settings, shape, dtype, weights, options)
        return all(_core.obstacle(asked._usable_core(), call) is None for call in calls)

    # What `torch.compiler.assume_constant_result` does, which imports the compiler.
    marked: Any = answer
    marked._dynamo_marked_constant = True
    return answer


def _weights_of(
    tensor: torch.Tensor, weight_dtype: torch.dtype | None, options: Mapping[str, object]
) -> tuple[torch.dtype, ...]:
    """The dtypes of a norm's weights."""
    if weight_dtype is not None:
        return (weight_dtype,)
    given = tuple(
        value.dtype
        for name, value in options.items()
        if name.startswith(("weight", "norm_weight")) and isinstance(value, torch.Tensor)
    )
    return given or (tensor.dtype,)


def _calls_of(
    settings: Settings,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    weights: tuple[torch.dtype, ...],
    options: tuple[str, ...],
) -> list[tuple[str, list[int], str, str, str, str, int, int]]:
    """What the core is asked about: a call for each dtype of the weights."""
    operation, algorithm, quant_format, q_size, kv_size = settings
    for name in options:
        if name not in _OPTIONS.get(operation, options):
            raise TypeError(f"{operation} takes no {name}")
    names = [str(each).removeprefix("torch.") for each in (dtype, *weights)]
    sizes = list(shape)
    return [(operation, sizes, names[0], weight, algorithm, quant_format, q_size, kv_size) for weight in names[1:]]
