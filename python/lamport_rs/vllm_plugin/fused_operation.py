"""What vLLM asks of `flashinfer.comm`: all-reduces, alone, and fused with residual, RMSNorm and quantisation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from lamport_rs._core import LamportError
from lamport_rs.operations import QuantFormat, all_reduce, all_reduce_rms_norm, all_reduce_rms_norm_quant
from lamport_rs.operations.quant_formats import empty_quantised, quantise
from lamport_rs.plugin_communicator import DTYPES
from lamport_rs.plugin_groups import GroupWorkspace
from lamport_rs.single_rank import normalise_sum

SUM, NORM, NORM_TO_FP8, NORM_TO_FP4, NORM_AND_FP8, NORM_AND_FP4 = range(6)
"""The patterns that are served: with residual, and the last two with the rows as they are and quantised."""
NAMES = {
    "AllReduceFusionPattern": {
        "kAllReduce": SUM,
        "kARResidualRMSNorm": NORM,
        "kARResidualRMSNormFP8Quant": NORM_TO_FP8,
        "kARResidualRMSNormFP4Quant": NORM_TO_FP4,
        "kARResidualRMSNormOutFP8Quant": NORM_AND_FP8,
        "kARResidualRMSNormOutFP4Quant": NORM_AND_FP4,
    },
    "QuantizationSFLayout": {"SWIZZLED_128x4": 0, "SWIZZLED_8x4": 1, "LINEAR": 2},
}
"""FlashInfer's names and numbers. Plain integers: Inductor writes them into the code that it generates, and vLLM keeps
that code."""
_FP4_FORMATS: dict[int | None, QuantFormat] = {None: "nvfp4_swizzled", 0: "nvfp4_swizzled", 2: "nvfp4"}
"""By the layout of scales; without one it is the tiles that vLLM's products read."""


_COLUMN_MULTIPLE = 8
_TILE_COLUMNS = 64
"""Whose four scales lie together in a tile."""


def takes(dtype: torch.dtype, columns: int, quant_format: QuantFormat | None) -> bool:
    """Whether the package normalises such rows, and quantises them."""
    if quant_format is None:
        return dtype in DTYPES and columns % _COLUMN_MULTIPLE == 0
    multiple = _TILE_COLUMNS if quant_format == "nvfp4_swizzled" else _COLUMN_MULTIPLE
    return dtype in DTYPES - {torch.float32} and columns % multiple == 0


class FusedWorkspace:
    """What vLLM asks of a workspace of FlashInfer's."""

    backend = "lamport_rs"

    def __init__(self, held: GroupWorkspace) -> None:
        self._held = held

    def is_buffer_size_sufficient(self, *_arguments: Any, **_options: Any) -> bool:
        """Say yes: what is larger than a slot runs in chunks."""
        return True

    def run(
        self,
        input: torch.Tensor,  # noqa: A002  (FlashInfer's name)
        pattern: int,
        *,
        output: torch.Tensor | None = None,
        residual_in: torch.Tensor | None = None,
        residual_out: torch.Tensor | None = None,
        norm_out: torch.Tensor | None = None,
        rms_gamma: torch.Tensor | None = None,
        rms_eps: float = 1e-6,
        weight_bias: float = 0.0,
        quant_out: torch.Tensor | None = None,
        scale_out: torch.Tensor | None = None,
        scale_factor: torch.Tensor | None = None,
        layout_code: int | None = None,
        **_steering: Any,
    ) -> torch.Tensor:
        """Run an operation. What else is passed steers FlashInfer's kernels, not the result."""
        workspace = self._held.here()
        if pattern == SUM:
            return all_reduce(input, workspace, output)
        quant_format = _format_of(pattern, layout_code)
        if rms_gamma is None or (pattern != NORM and (quant_format is None or quant_out is None)):
            raise LamportError(
                f"lamport_rs serves FlashInfer's patterns {SUM} to {NORM_AND_FP4}, but was asked for {pattern} with "
                f"the layout of scales {layout_code}, with{'out' if rms_gamma is None else ''} weights and "
                f"with{'out' if quant_out is None else ''} a place for quantised rows"
            )
        # For the others vLLM passes its input.
        norm_out = norm_out if pattern in (NORM, NORM_AND_FP8, NORM_AND_FP4) else None
        if not takes(input.dtype, input.shape[-1], quant_format):
            total = all_reduce(input, workspace)
            rows = torch.empty_like(total) if norm_out is None else norm_out
            summed = torch.empty_like(total) if residual_out is None else residual_out
            normalise_sum(total, residual_in, rms_gamma, rms_eps, weight_bias, rows, summed)
            if quant_format is None or quant_out is None:
                return rows
            return _quantise(rows, quant_format, quant_out, scale_out, scale_factor)
        if quant_format is None or quant_out is None:
            out, _residual = all_reduce_rms_norm(
                input, residual_in, rms_gamma, workspace, rms_eps, weight_bias, out=norm_out, residual_out=residual_out
            )
            return out
        out, *_others = all_reduce_rms_norm_quant(
            input,
            residual_in,
            rms_gamma,
            workspace,
            quant_format,
            scale_factor,
            rms_eps,
            weight_bias,
            # vLLM makes a matrix of the operands, and leaves this as it was.
            out=quant_out.view(*input.shape[:-1], quant_out.shape[-1]),
            scale_out=scale_out,
            residual_out=residual_out,
            norm_out=norm_out,
        )
        return out


def _quantise(
    rows: torch.Tensor,
    quant_format: QuantFormat,
    out: torch.Tensor,
    scale_out: torch.Tensor | None,
    scale: torch.Tensor | None,
) -> torch.Tensor:
    """Quantise rows that the package does not, by torch."""
    # vLLM's places for scales are whole tiles; those of columns that do not exist are 0.
    padding = -rows.shape[-1] % _TILE_COLUMNS if quant_format == "nvfp4_swizzled" else 0
    wide = torch.nn.functional.pad(rows, (0, padding))
    codes, scales = empty_quantised(wide, quant_format, scale, None, scale_out)
    quantise(wide, quant_format, codes, scale, scales)
    return out.copy_(codes[..., : out.shape[-1]].reshape(out.shape))


def _format_of(pattern: int, layout_code: int | None) -> QuantFormat | None:
    if pattern in (NORM_TO_FP8, NORM_AND_FP8):
        return "fp8_static"
    return _FP4_FORMATS.get(layout_code) if pattern in (NORM_TO_FP4, NORM_AND_FP4) else None


def dispatching(allreduce_fusion: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap FlashInfer's function, which goes on with FlashInfer's workspaces."""

    def adjusted(*arguments: Any, **options: Any) -> Any:
        # vLLM passes all by keyword.
        if not isinstance(options.get("workspace"), FusedWorkspace):
            return allreduce_fusion(*arguments, **options)
        return options.pop("workspace").run(**options)

    return adjusted


@dispatching
def _without_flashinfer(*_arguments: Any, **_options: Any) -> Any:
    raise LamportError("this workspace is not lamport_rs's, and FlashInfer is not installed")


def _create_workspace(**_options: Any) -> None:
    # What vLLM looks for, and does not call: its function that would is replaced.
    raise LamportError("lamport_rs makes its own workspaces")


def stand_in() -> ModuleType:
    """Return a module with the names of `flashinfer.comm` that vLLM uses."""
    module = ModuleType("flashinfer.comm", "lamport_rs's stand-in for FlashInfer, in vLLM's modules.")
    vars(module).update(
        **{name: SimpleNamespace(**numbers) for name, numbers in NAMES.items()},
        allreduce_fusion=_without_flashinfer,
        create_allreduce_fusion_workspace=_create_workspace,
    )
    return module


def run_again_with_the_stand_in(module: Any) -> None:
    """Run a module's code once more, which then finds FlashInfer.

    The first time it has imported all that it imports. So nothing else is imported meanwhile, that would remember
    FlashInfer as installed.
    """
    with _visible(stand_in()):
        module.__spec__.loader.exec_module(module)


@contextmanager
def _visible(comm: ModuleType) -> Iterator[None]:
    package = ModuleType("flashinfer")
    package.__path__ = []
    package.__spec__ = ModuleSpec("flashinfer", None, is_package=True)
    vars(package)["comm"] = comm
    names = {"flashinfer": package, "flashinfer.comm": comm}
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(names)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(hidden)
