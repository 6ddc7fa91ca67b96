"""The custom all-reduce of vLLM 0.8.2, as FlashInfer 0.7.2.post1 has it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench import peers
from lamport_rs.command_line.bench.cases import Case, largest_message
from lamport_rs.command_line.bench.implementations.base import Call
from lamport_rs.command_line.bench.implementations.symmetric import OverSymmetricMemory, Symmetric
from lamport_rs.command_line.bench.member import Member
from lamport_rs.command_line.bench.problems import AllReduce, Problem

_BLOCKS = 36
"""As vLLM launches it."""
_ADDRESS_BYTES = 8 << 20
"""Where it keeps the addresses of what was registered."""


class VllmCustom(OverSymmetricMemory):
    """In one shot or in two, as it chooses; in CUDA graphs it reads the input where it is."""

    name = "vllm_custom"
    backend = "cuda"
    operations = frozenset({"all_reduce"})

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        super().__init__(member, cases)
        self._library = peers.library("flashinfer_vllm", member.world_size)
        self._largest = largest_message(cases)
        # Signals, followed by room for two-shot; and where eager calls copy their input.
        self._signals = Symmetric(member, int(self._library.meta_size()) + self._largest)
        self._staging = Symmetric(member, self._largest)
        self._addresses = torch.empty(_ADDRESS_BYTES, dtype=torch.uint8, device=member.device)
        self.settle()
        self._handle = self._library.init_custom_ar(self._signals.addresses, self._addresses, member.rank, True)
        self._library.register_buffer(self._handle, self._staging.addresses)

    def prepare(self, problem: Problem) -> Call:
        """Return the call, with the output allocated once."""
        assert isinstance(problem, AllReduce)
        tensor, out = problem.input, torch.full_like(problem.input, float("nan"))
        all_reduce, handle = self._library.all_reduce, self._handle
        staging = self._staging.own.data_ptr(), self._largest

        def run() -> tuple[torch.Tensor]:
            # Into what buffer of how many bytes the input is copied: none, where the graph's addresses are exchanged.
            copied = (0, 0) if torch.cuda.is_current_stream_capturing() else staging
            all_reduce(handle, tensor, out, *copied, _BLOCKS)
            return (out,)

        return Call(run)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Exchange the addresses that a graph uses, when it has been captured."""
        yield
        everybodys: list[tuple[list[int], list[int]] | None] = [None] * self.member.world_size
        handles, offsets = (list(map(int, each)) for each in self._library.get_graph_buffer_ipc_meta(self._handle))
        dist.all_gather_object(everybodys, (handles, offsets), group=self.member.host_group)
        all_handles, all_offsets = zip(*(each for each in everybodys if each is not None), strict=True)
        self._library.register_graph_buffers(self._handle, list(all_handles), list(all_offsets))

    def close(self) -> None:
        """Dispose of it, and give its memory up."""
        self.settle()
        self._library.dispose(self._handle)
        super().close()
