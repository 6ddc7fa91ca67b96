"""The kernels of SGLang 0.5.23 (kernels/jit/csrc/distributed), set up and chosen as SGLang does it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from lamport_rs.command_line.bench import peers
from lamport_rs.command_line.bench.cases import HIDDEN, KV_SIZE, Q_SIZE, Case, largest_message
from lamport_rs.command_line.bench.implementations.base import Call
from lamport_rs.command_line.bench.implementations.symmetric import OverSymmetricMemory, Symmetric
from lamport_rs.command_line.bench.member import Member, UnavailableError
from lamport_rs.command_line.bench.problems import EPSILON, AllReduce, AllReduceRmsNorm, MinimaxRmsQk, Problem
from lamport_rs.command_line.bench.sglang_choice import (
    ONE_SHOT_PULL,
    TWO_SHOT_PULL,
    chosen_algorithm,
    norm_in_two_shots,
    pull_blocks,
    push_algorithm,
    push_slot_bytes,
)

_SEMAPHORE_BYTES = 128
_NORM_SLOT_BYTES, _NORM_ROWS = 4 << 20, 512
"""What models/minimax_m3.py makes the fused norm's buffers for."""
_QK_ROWS = 16384
"""What models/minimax_m2.py makes its for, with SGLang's default of `max_prefill_tokens`."""


class SglangPush(OverSymmetricMemory):
    """Its Lamport kernels: a sum in one shot or in two, and the fused sum, residual and norm.

    Sums are in one shot where SGLang's dispatch takes that, and in two shots where it takes anything else, which on
    Hopper is never its two-shot push: what it takes there is `sglang_pull`.
    """

    name = "sglang_push"
    backend = "cuda"
    operations = frozenset({"all_reduce", "all_reduce_rms_norm"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        if cases[0].op == "all_reduce":
            self._library = peers.library("sglang_all_reduce", member.world_size)
            needed = [push_slot_bytes(size, member.world_size, self._algorithm(size)) for size in _sizes(cases)]
            # Its grid has a block, and so a counter, for each multiprocessor.
            slot, blocks = max(needed), _multiprocessors(member)
        else:
            self._library = peers.library("sglang_norm", member.world_size)
            slot = max(_NORM_SLOT_BYTES, largest_message(cases))
            blocks = max(_NORM_ROWS, *(case.tokens or 0 for case in cases))
        self._communicator, self._kept = push_communicator(member, slot, blocks)
        self.settle()

    def prepare(self, problem: Problem) -> Call:
        """Return the call."""
        if isinstance(problem, AllReduceRmsNorm):
            return self._rms_norm(problem)
        assert isinstance(problem, AllReduce)
        return self._all_reduce(problem)

    def _algorithm(self, size: int) -> str:
        return push_algorithm(size, self.member.world_size, _capability(self.member))

    def _all_reduce(self, problem: AllReduce) -> Call:
        """A call that allocates its output, as SGLang's does."""
        tensor, algorithm = problem.input, self._algorithm(problem.input.nbytes)
        communicator, all_reduce = self._communicator, self._library.all_reduce
        # The allocator hands this very block out next: what is not written does not pass for right.
        torch.full_like(tensor, float("nan"))

        def run() -> tuple[torch.Tensor]:
            return (_tensor(all_reduce(communicator, tensor, algorithm, None, False)),)

        return Call(run)

    def _rms_norm(self, problem: AllReduceRmsNorm) -> Call:
        rows, hidden = problem.input.shape
        if hidden != HIDDEN:
            raise UnavailableError(f"SGLang's fused norm is compiled for rows of {HIDDEN}, and these have {hidden}")
        out, residual_out = (torch.full_like(problem.input, float("nan")) for _ in range(2))
        tensor, residual, weight = problem.input, problem.residual, problem.weight
        communicator, run_plain = self._communicator, self._library.run_plain
        # The weight is no distance from 1; one vector a thread.
        how = 0.0, norm_in_two_shots(rows, self.member.world_size), 1

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            run_plain(communicator, out, tensor, weight, EPSILON, residual, residual_out, *how)
            return out, residual_out

        return Call(run)


class SglangPull(OverSymmetricMemory):
    """What its dispatch takes where it does not push: kernels that load the input of a graph from where peers have it.

    The input is in symmetric memory from the start, where SGLang exchanges the addresses of a graph's inputs.
    """

    name = "sglang_pull"
    backend = "cuda"
    operations = frozenset({"all_reduce"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        if not any(self._pulls(size) for size in _sizes(cases)):
            raise UnavailableError("SGLang pulls none of these sizes here: it pushes, or takes NCCL")
        self._library = peers.library("sglang_all_reduce", member.world_size)
        blocks = pull_blocks(member.world_size, _capability(member), _multiprocessors(member))
        self._semaphores = Symmetric(member, blocks * _SEMAPHORE_BYTES)
        self._memory = Symmetric(member, largest_message(cases))
        nothing = torch.empty(0, dtype=torch.uint8, device=member.device)
        semaphores = self._semaphores.parts((blocks, _SEMAPHORE_BYTES))
        classes = _classes(member.world_size)
        pull = classes.PullPlane(member.rank, member.world_size, [nothing] * member.world_size, semaphores, 0, 0)
        self._communicator = classes.Communicator(None, pull)
        self._kept = nothing, semaphores, pull
        row = torch.tensor(self._memory.addresses, dtype=torch.int64).view(torch.uint64)
        self._addresses = row.to(member.device)
        self.settle()

    def prepare(self, problem: Problem) -> Call:
        """Return the call on the mapped input; in two shots the sum takes its place."""
        assert isinstance(problem, AllReduce)
        size = problem.input.nbytes
        if not self._pulls(size):
            raise UnavailableError(f"SGLang does not pull {size} bytes here: it pushes, or takes NCCL")
        algorithm = self._algorithm(size)
        self.settle()  # A peer may still be reading the input of the case before.
        buffer = self._memory.own[:size].view(problem.input.dtype)
        buffer.copy_(problem.input)
        self.settle()
        communicator, addresses, all_reduce = self._communicator, self._addresses, self._library.all_reduce

        def run() -> tuple[torch.Tensor]:
            return (_tensor(all_reduce(communicator, buffer, algorithm, addresses, False)),)

        return Call(run, in_place=buffer if algorithm == TWO_SHOT_PULL else None)

    def _algorithm(self, size: int) -> str | None:
        return chosen_algorithm(size, self.member.world_size, _capability(self.member))

    def _pulls(self, size: int) -> bool:
        return self._algorithm(size) in (ONE_SHOT_PULL, TWO_SHOT_PULL)


class SglangQkNorm(OverSymmetricMemory):
    """Its norms of Q and K over the whole rows, in place on views of the fused Q, K and V, as in its MiniMax model."""

    name = "sglang_qknorm"
    backend = "cuda"
    operations = frozenset({"minimax_allreduce_rms_qk"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._library = peers.library("sglang_qknorm", member.world_size)
        # A row takes two floats of every rank, in one slot for each of two calls in turn. (SGLang's own check counts
        # those of one rank.)
        rows = max(_QK_ROWS, *(member.world_size * (case.tokens or 0) for case in cases))
        blocks = _multiprocessors(member) * int(self._library.get_max_occupancy())
        self._communicator, self._kept = push_communicator(member, -(-8 * rows // 512) * 512, blocks)
        self.settle()

    def prepare(self, problem: Problem) -> Call:
        """Return the call on a copy of Q, K and V."""
        assert isinstance(problem, MinimaxRmsQk)
        ranks = self.member.world_size
        if (problem.q_size * ranks, problem.kv_size * ranks) != (Q_SIZE, KV_SIZE):
            raise UnavailableError(f"SGLang's norm is compiled for {Q_SIZE} + {KV_SIZE} columns over all ranks")
        qkv = problem.qkv.clone()
        q, k, _ = qkv.split([problem.q_size, problem.kv_size, problem.kv_size], dim=-1)
        operands = self._communicator, q, k, problem.q_weight, problem.k_weight, EPSILON
        run_fused = self._library.fused_parallel_qknorm

        def run() -> tuple[torch.Tensor, torch.Tensor]:
            run_fused(*operands)
            return q, k

        return Call(run, in_place=qkv)


def push_communicator(member: Member, slot_bytes: int, blocks: int) -> tuple[Any, tuple[Any, ...]]:
    """Return what its push kernels take, and what must live as long: two phases of a slot per rank. Collective."""
    classes = _classes(member.world_size)
    slot_bytes = -(-slot_bytes // 1024) * 1024
    slots = 2 * member.world_size
    memory = Symmetric(member, slots * slot_bytes)
    counters = torch.zeros((blocks,), dtype=torch.uint32, device=member.device)
    as_bytes = counters.view(-1, 1).view(torch.uint8)
    plane = classes.PushPlane(member.rank, member.world_size, memory.parts((slots, slot_bytes)), as_bytes, 0)
    return classes.Communicator(plane, None), (memory, counters, plane)


@functools.cache
def _classes(world_size: int) -> SimpleNamespace:
    """Its C++ classes, with constructors that take what theirs take. The last of a plane's arguments are multicast."""
    ffi = peers.tvm_ffi()
    peers.library("sglang_registry", world_size).register_communicator()

    def register(name: str) -> Any:
        def create(self: Any, *arguments: Any) -> None:
            self.__ffi_init__(*arguments)

        return ffi.register_object(f"sgl.distributed.{name}")(type(name, (ffi.Object,), {"__init__": create}))

    return SimpleNamespace(**{name: register(name) for name in ("PushPlane", "PullPlane", "Communicator")})


def _sizes(cases: Sequence[Case]) -> list[int]:
    return [case.bytes or 0 for case in cases]


def _capability(member: Member) -> tuple[int, int]:
    return torch.cuda.get_device_capability(member.device)


def _multiprocessors(member: Member) -> int:
    return torch.cuda.get_device_properties(member.device).multi_processor_count


def _tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else torch.utils.dlpack.from_dlpack(result)
