"""Kernels of other projects, where they are installed.

Written against the documented interfaces of FlashInfer (`flashinfer.comm`, 0.2.7 and later; run with 0.5.3) and vLLM
(`vllm.distributed.device_communicators.custom_all_reduce`; NOT YET RUN). Neither is installed where this project is
tested. What they raise makes them unavailable, with that reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench.cases import HIDDEN, Case, message_bytes
from lamport_rs.command_line.bench.implementations.base import Call, Implementation
from lamport_rs.command_line.bench.member import Member, UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, AllReduce, AllReduceRmsNorm, Problem


class FlashInfer(Implementation):
    """FlashInfer's port of TensorRT-LLM's fused kernels, with programmatic dependent launch."""

    options: ClassVar[dict[str, Any]]
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._comm = _import("flashinfer", "flashinfer.comm")
        sizes = [message_bytes(case) or 0 for case in cases]
        rows = -(-max(sizes) // (HIDDEN * 2))
        # Without `use_symm_dev_mem`, whose memory was made for multicast in some versions.
        self._handles, self._workspace = self._comm.trtllm_create_ipc_workspace_for_all_reduce_fusion(
            member.rank, member.world_size, rows, HIDDEN, group=dist.group.WORLD
        )[:2]

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with outputs allocated once."""
        patterns = self._comm.AllReduceFusionPattern
        if isinstance(problem, AllReduce):
            rows = _as_rows(problem.input)
            out = torch.empty_like(rows)
            arguments = self._arguments(rows, patterns.kAllReduce, allreduce_out=out)
            outputs: tuple[torch.Tensor, ...] = (out.view(problem.input.shape),)
        else:
            assert isinstance(problem, AllReduceRmsNorm)
            outputs = torch.empty_like(problem.input), torch.empty_like(problem.input)
            arguments = self._arguments(
                problem.input,
                patterns.kARResidualRMSNorm,
                residual_in=problem.residual,
                residual_out=outputs[1],
                norm_out=outputs[0],
                rms_gamma=problem.weight,
                rms_eps=EPSILON,
            )

        def run() -> tuple[torch.Tensor, ...]:
            self._comm.trtllm_allreduce_fusion(**arguments)
            return outputs

        return Call(run)

    def _arguments(self, rows: torch.Tensor, pattern: Any, **operands: Any) -> dict[str, Any]:
        optional = (
            "allreduce_out residual_in residual_out norm_out quant_out scale_out rms_gamma rms_eps scale_factor "
            "layout_code"
        )
        return {
            **dict.fromkeys(optional.split()),
            "allreduce_in": rows,
            "world_size": self.member.world_size,
            "world_rank": self.member.rank,
            "token_num": rows.shape[0],
            "hidden_dim": rows.shape[1],
            "workspace_ptrs": self._workspace,
            "launch_with_pdl": True,
            "fp32_acc": True,
            "pattern_code": pattern,
            **self.options,
            **operands,
        }

    def close(self) -> None:
        """Free FlashInfer's workspace."""
        self._comm.trtllm_destroy_ipc_workspace_for_all_reduce_fusion(self._handles, group=dist.group.WORLD)


class FlashInferOneShot(FlashInfer):
    """As vLLM and SGLang call it: completed early, the next kernel may read stale data."""

    name = "flashinfer_one_shot"
    options: ClassVar[dict[str, Any]] = {"use_oneshot": True, "trigger_completion_at_end": True}


class FlashInferOneShotEarly(FlashInfer):
    """The same kernel, completed early: what follows may not read its results, so this is a bound of its speed."""

    name = "flashinfer_one_shot_early"
    options: ClassVar[dict[str, Any]] = {"use_oneshot": True, "trigger_completion_at_end": False}


class FlashInferTwoShot(FlashInfer):
    """Reduce-scatter and all-gather, with barriers."""

    name = "flashinfer_two_shot"
    options: ClassVar[dict[str, Any]] = {"use_oneshot": False, "trigger_completion_at_end": True}


class VllmCustom(Implementation):
    """vLLM's custom all-reduce; in CUDA graphs it reads the input where it is."""

    name = "vllm_custom"
    backend = "cuda"
    operations = frozenset({"all_reduce"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        # Its own check needs vLLM's process groups; the workspace's creation has verified peer access.
        os.environ.setdefault("VLLM_SKIP_P2P_CHECK", "1")
        module = _import("vllm", "vllm.distributed.device_communicators.custom_all_reduce")
        # It serves sizes below its limit.
        limit = 2 * max(case.bytes or 0 for case in cases)
        self._communicator = module.CustomAllreduce(member.host_group, member.device, max_size=limit)
        if hasattr(self._communicator, "finalize_p2p"):
            self._communicator.finalize_p2p()
        if self._communicator.disabled:
            raise UnavailableError("vLLM disabled its custom all-reduce here; its log says why")

    def prepare(self, problem: Problem) -> Call:
        """Return the call, which allocates its output."""
        assert isinstance(problem, AllReduce)
        tensor = problem.input
        if not self._communicator.should_custom_ar(tensor):
            raise UnavailableError("vLLM's custom all-reduce does not serve this size")

        def run() -> tuple[torch.Tensor]:
            return (self._communicator.custom_all_reduce(tensor),)

        return Call(run)

    def capturing(self) -> AbstractContextManager[object]:
        """Return the context in which vLLM collects the addresses that graphs use."""
        context: AbstractContextManager[object] = self._communicator.capture()
        return context

    def close(self) -> None:
        """Free vLLM's buffers."""
        self._communicator.close()


def _import(package: str, module: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed")
    return importlib.import_module(module)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The vector as rows of at most 4096 elements, as FlashInfer takes it."""
    if tensor.numel() > HIDDEN and tensor.numel() % HIDDEN != 0:
        raise UnavailableError(f"FlashInfer takes rows, and {tensor.numel()} elements are no rows of {HIDDEN}")
    return tensor.view(-1, min(HIDDEN, tensor.numel()))
