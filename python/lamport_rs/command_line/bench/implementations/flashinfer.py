"""The all-reduces of FlashInfer 0.7.2.post1, called with the arguments that its Python gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lamport_rs.command_line.bench import peers
from lamport_rs.command_line.bench.cases import HIDDEN, Case, largest_message
from lamport_rs.command_line.bench.implementations.base import Call, Outputs
from lamport_rs.command_line.bench.implementations.symmetric import OverSymmetricMemory, Symmetric
from lamport_rs.command_line.bench.member import Member, UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, AllReduce, AllReduceRmsNorm, Problem

ALL_REDUCE, RMS_NORM = 0, 1
"""Its patterns kAllReduce and kARResidualRMSNorm."""
TRTLLM_ONE_SHOT_MIB = {2: 512, 4: 64, 8: 42}
"""`_use_oneshot_heuristics` of comm/trtllm_ar.py: what a rank receives, counted twice, in MiB."""
MNNVL_ONE_SHOT_BYTES = 1 << 20
"""`MNNVL_ONE_SHOT_THRESHOLD` of comm/trtllm_mnnvl_ar.py: what a rank receives."""
_BARRIER_FLAGS = 256
_SLOTS = 3


class FlashInferTrtllm(OverSymmetricMemory):
    """Its port of TensorRT-LLM's fused kernels: in one shot, or in two where its heuristic takes them.

    With programmatic dependent launch, and the completion triggered at the end, as its `allreduce_fusion` does.
    """

    name = "flashinfer_trtllm"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._fusion = peers.library("flashinfer_trtllm", member.world_size).trtllm_allreduce_fusion
        rows = -(-largest_message(cases) // (HIDDEN * 2))
        received = member.world_size * rows * HIDDEN * 2
        sizes = received, member.world_size * _BARRIER_FLAGS * 4, _SLOTS * received
        self._buffers = [Symmetric(member, size) for size in sizes]
        self._buffers[2].own.view(torch.int16).fill_(-0x8000)  # negative zero, which nobody sends
        self._flags = torch.tensor([0, 0, 0, received, 0], dtype=torch.int32, device=member.device)
        addresses = [address for buffer in self._buffers for address in buffer.addresses]
        table = [*addresses, self._flags.data_ptr()]
        self._workspace = torch.tensor(table, dtype=torch.int64, device=member.device)
        self.settle()

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with outputs allocated once."""
        rows, norm = _rows_of(problem), isinstance(problem, AllReduceRmsNorm)
        tokens, hidden = rows.shape
        ranks = self.member.world_size
        one_shot = trtllm_in_one_shot(rows.nbytes, ranks)
        if not one_shot and tokens <= ranks:
            raise UnavailableError(f"FlashInfer's two-shot takes more rows than ranks, and there are {tokens}")
        results, outputs = _outputs_of(problem, rows)
        residual = weight = residual_out = norm_out = all_reduce_out = None
        if isinstance(problem, AllReduceRmsNorm):
            residual, weight, norm_out, residual_out = problem.residual, problem.weight, *results
        else:
            (all_reduce_out,) = results
        launch = True, one_shot, True, True  # dependent launch, …, triggered at the end, summed in float32
        where = ranks, self.member.rank, tokens, hidden, self._workspace
        outs = all_reduce_out, residual, residual_out, norm_out
        unquantised = None, None  # quant_out, scale_out
        scaling = None, None, None  # scale_factor, layout_code, block_quant_group_size
        operands = rows, *where, *launch, RMS_NORM if norm else ALL_REDUCE, *outs, *unquantised
        return _call(self._fusion, (*operands, weight, EPSILON if norm else None, *scaling, None), outputs)


class FlashInferMnnvl(OverSymmetricMemory):
    """Its kernels for multicast, in one shot, without multicast, and so between two ranks only.

    The kernel stores a row once, at the multicast address, and takes its own part from registers: with two ranks the
    peer's own address will do. Its two-shot polls what it has sent itself, which takes multicast.
    """

    name = "flashinfer_mnnvl"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        if member.world_size != 2:
            raise UnavailableError("it takes NVLink multicast: without it the one store reaches one peer, so two ranks")
        self._fusion = peers.library("flashinfer_mnnvl", member.world_size).trtllm_mnnvl_allreduce_fusion
        slot = -(-2 * largest_message(cases) // 1024) * 1024
        self._memory = Symmetric(member, _SLOTS * slot)
        self._memory.own.view(torch.int32).fill_(-0x80000000)  # float32's negative zero
        self._addresses = torch.tensor(self._memory.addresses, dtype=torch.int64, device=member.device)
        # The current slot, the one to be cleared, bytes of a slot; then what the kernels keep.
        self._flags = torch.tensor([0, 2, slot, *[0] * 6], dtype=torch.uint32, device=member.device)
        self.settle()

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with outputs allocated once."""
        rows, norm = _rows_of(problem), isinstance(problem, AllReduceRmsNorm)
        if not mnnvl_in_one_shot(rows.nbytes, self.member.world_size):
            raise UnavailableError(f"FlashInfer sums {rows.nbytes} bytes in two shots, which take NVLink multicast")
        results, outputs = _outputs_of(problem, rows)
        rank, addresses = self.member.rank, self._memory.addresses
        memory = addresses[1 - rank], self._addresses.data_ptr(), addresses[rank], self._flags
        launch = norm, True, True  # …, dependent launch, one shot
        fused: tuple[Any, ...] = None, None, None, None
        if isinstance(problem, AllReduceRmsNorm):
            fused = results[1], problem.residual, problem.weight, EPSILON
        # weight_bias, quant_type, quant_out, sf_out, output_scale, layout_code
        plain = None, 0, None, None, None, None
        operands = rows, *memory, self.member.world_size, rank, *launch, results[0], *fused, *plain
        return _call(self._fusion, operands, outputs)


def trtllm_in_one_shot(size: int, world_size: int) -> bool:
    """Whether FlashInfer sums `size` bytes of bfloat16 in one shot, by its heuristic."""
    if world_size not in TRTLLM_ONE_SHOT_MIB:
        known = ", ".join(map(str, TRTLLM_ONE_SHOT_MIB))
        raise UnavailableError(f"FlashInfer chooses for {known} ranks, and there are {world_size}")
    return size * 2 * world_size <= TRTLLM_ONE_SHOT_MIB[world_size] << 20


def mnnvl_in_one_shot(size: int, world_size: int) -> bool:
    """Whether its kernels for multicast sum `size` bytes in one shot, by its threshold."""
    return size * world_size <= MNNVL_ONE_SHOT_BYTES


def _rows_of(problem: Problem) -> torch.Tensor:
    """The input as rows, of at most 4096 elements where it is a vector."""
    assert isinstance(problem, AllReduce | AllReduceRmsNorm)
    tensor = problem.input
    if isinstance(problem, AllReduceRmsNorm):
        return tensor
    if tensor.numel() > HIDDEN and tensor.numel() % HIDDEN != 0:
        raise UnavailableError(f"FlashInfer takes rows, and {tensor.numel()} elements are no rows of {HIDDEN}")
    return tensor.view(-1, min(HIDDEN, tensor.numel()))


def _outputs_of(problem: Problem, rows: torch.Tensor) -> tuple[Outputs, Outputs]:
    """Tensors for the results, of NaNs, as rows; and in the problem's shape. Of a norm: the rows, and the sum."""
    count = len(problem.expected)
    results = tuple(torch.full_like(rows, float("nan")) for _ in range(count))
    return results, tuple(each.view(problem.expected[0].values.shape) for each in results)


def _call(function: Any, operands: tuple[Any, ...], outputs: Outputs) -> Call:
    def run() -> Outputs:
        function(*operands)
        return outputs

    return Call(run)
