"""Kernels of other projects, where FlashInfer is installed: its own, and what it made of vLLM's.

Written against `flashinfer.comm` and run with 0.5.3. What they raise makes them unavailable, with that reason.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench.cases import HIDDEN, Case, largest_message
from lamport_rs.command_line.bench.implementations.base import Call, Implementation
from lamport_rs.command_line.bench.member import Member, UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, AllReduce, AllReduceRmsNorm, Problem

_VLLM_BLOCKS = 36
"""As vLLM launches it."""


class FlashInferOneShot(Implementation):
    """FlashInfer's port of TensorRT-LLM's fused kernels, one-shot, with programmatic dependent launch.

    (Its two-shot took 15 us and more at all sizes on two GPUs, and did not return at 8 MiB.)
    """

    name = "flashinfer_one_shot"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._comm = _import("flashinfer", "flashinfer.comm")
        rows = -(-largest_message(cases) // (HIDDEN * 2))
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
            # As vLLM calls it: completed early, the next kernel may read stale data. (Early it was slower by up to 5 %,
            # and faster by 2 % at 2 MiB.)
            "trigger_completion_at_end": True,
            "fp32_acc": True,
            "pattern_code": pattern,
            "use_oneshot": True,
            **operands,
        }

    def close(self) -> None:
        """Free FlashInfer's workspace."""
        self._comm.trtllm_destroy_ipc_workspace_for_all_reduce_fusion(self._handles, group=dist.group.WORLD)


class VllmCustom(Implementation):
    """vLLM 0.8.2's custom all-reduce, as FlashInfer adapted it; in CUDA graphs it reads the input where it is."""

    name = "vllm_custom"
    backend = "cuda"
    operations = frozenset({"all_reduce"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._comm = _import("flashinfer", "flashinfer.comm")
        self._largest = max(case.bytes or 0 for case in cases)
        # Signals, followed by room for two-shot; and where eager calls copy their input.
        self._signals = self._zeroed(self._comm.vllm_meta_size() + self._largest)
        self._staging = self._zeroed(self._largest)
        # Where it keeps the addresses of what was registered.
        self._addresses = torch.empty(8 << 20, dtype=torch.uint8, device=member.device)
        self._handle = self._comm.vllm_init_custom_ar(self._signals, self._addresses, member.rank, True)
        self._comm.vllm_register_buffer(self._handle, self._staging)

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with the output allocated once."""
        assert isinstance(problem, AllReduce)
        tensor, out, staging = problem.input, torch.empty_like(problem.input), self._staging[self.member.rank]

        def run() -> tuple[torch.Tensor]:
            # Into what buffer of how many bytes the input is copied: none, where the graph's addresses are exchanged.
            copied = (0, 0) if torch.cuda.is_current_stream_capturing() else (staging, self._largest)
            self._comm.vllm_all_reduce(self._handle, tensor, out, *copied, _VLLM_BLOCKS)
            return (out,)

        return Call(run)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Exchange the addresses that a graph uses, when it has been captured."""
        yield
        everybodys: list[tuple[list[int], list[int]] | None] = [None] * self.member.world_size
        own = self._comm.vllm_get_graph_buffer_ipc_meta(self._handle)
        dist.all_gather_object(everybodys, tuple(map(list, own)), group=self.member.host_group)
        handles, offsets = zip(*(each for each in everybodys if each is not None), strict=True)
        self._comm.vllm_register_graph_buffers(self._handle, list(handles), list(offsets))

    def close(self) -> None:
        """Free its buffers."""
        self._comm.vllm_dispose(self._handle)
        for pointers in (self._signals, self._staging):
            self._comm.cuda_ipc.free_shared_buffer(pointers, self.member.host_group)

    def _zeroed(self, size: int) -> list[int]:
        """Every rank's buffer of `size` bytes, as this rank maps it, once all are zeroed. Collective."""
        pointers: list[int] = self._comm.cuda_ipc.create_shared_buffer(size, self.member.host_group)
        self._comm.cuda_ipc.cudart.cudaMemset(pointers[self.member.rank], 0, size)
        torch.cuda.synchronize(self.member.device)
        dist.barrier(self.member.host_group)
        return pointers


def _import(package: str, module: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise UnavailableError(f"{package} is not installed")
    return importlib.import_module(module)


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The vector as rows of at most 4096 elements, as FlashInfer takes it."""
    if tensor.numel() > HIDDEN and tensor.numel() % HIDDEN != 0:
        raise UnavailableError(f"FlashInfer takes rows, and {tensor.numel()} elements are no rows of {HIDDEN}")
    return tensor.view(-1, min(HIDDEN, tensor.numel()))
