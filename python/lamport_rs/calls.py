"""Calls before they are made: whether a workspace will serve them, and what they take."""

from __future__ import annotations

import torch

from lamport_rs import _core
from lamport_rs._core import LamportError
from lamport_rs.lifecycle import WorkspaceLifecycle
from lamport_rs.tracing import never_compiled


class WorkspaceCalls(WorkspaceLifecycle):
    """What a workspace may be asked ahead of a call."""

    _device: torch.device

    @never_compiled
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
    ) -> bool:
        """Whether a working workspace will serve a call: the same on every rank for tensors of one shape and dtype.

        Args:
            input: The operation's first tensor, of any layout. Only its shape, dtype and device are looked at, so
                that a meta tensor or a fake one does.
            operation: The name of one of the package's collectives.
            algorithm: As for the operation.
            weight_dtype: The dtype of the weights, for norms; None for that of `input`.
            quant_format: As for the operation, if it quantises.
            q_size: As for `minimax_allreduce_rms_qk`.
            kv_size: As for `minimax_allreduce_rms_qk`.

        Raises:
            LamportError: If there is no such operation or algorithm, or the workspace was cleaned up.
        """
        call = _call_of(input, operation, algorithm, weight_dtype, quant_format, q_size, kv_size)
        obstacle = _core.obstacle(self._usable_core(), call)
        return obstacle is None and _is_dense(input) and input.device in (self._device, torch.device("meta"))

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

        Raises:
            LamportError: If the workspace would not serve the call, or the driver does not load the kernels.
        """
        if not _is_dense(input):
            raise LamportError(f"{operation} takes dense tensors, not one of layout {input.layout}")
        call = _call_of(input, operation, algorithm, weight_dtype, quant_format, q_size, kv_size)
        _core.prepare(self._usable_core(), call)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor has a shape and strides."""
    return tensor.layout is torch.strided and not tensor.is_nested


def _call_of(
    tensor: torch.Tensor,
    operation: str,
    algorithm: str,
    weight_dtype: torch.dtype | None,
    quant_format: str,
    q_size: int,
    kv_size: int,
) -> tuple[str, list[int], str, str, str, str, int, int]:
    """Return what the core is asked about."""
    # A nested tensor has no shape.
    shape = list(tensor.shape) if _is_dense(tensor) else []
    dtype, weight = (str(each).removeprefix("torch.") for each in (tensor.dtype, weight_dtype or tensor.dtype))
    return operation, shape, dtype, weight, algorithm, quant_format, q_size, kv_size
