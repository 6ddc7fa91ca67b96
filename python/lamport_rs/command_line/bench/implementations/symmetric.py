"""Memory that every rank has mapped, for kernels of others that take its addresses."""

from __future__ import annotations

import torch
import torch.distributed as dist

from lamport_rs.command_line.bench.implementations.base import Implementation
from lamport_rs.command_line.bench.member import Member, UnavailableError

_ALIGNMENT = 1024


class Symmetric:
    """Zeroed bytes on every rank, by torch's symmetric memory; never with NVLink multicast. Made collectively."""

    def __init__(self, member: Member, size: int) -> None:
        """Make `size` bytes on every rank, or a few more."""
        from torch.distributed import _symmetric_memory

        group = dist.group.WORLD
        assert group is not None
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        memory = _symmetric_memory.empty(size, dtype=torch.uint8, device=member.device)
        self._handle = _symmetric_memory.rendezvous(memory, group.group_name)
        if int(self._handle.multicast_ptr) != 0:
            raise UnavailableError("symmetric memory has NVLink multicast: set TORCH_SYMM_MEM_DISABLE_MULTICAST=1")
        self.of_ranks = [self._handle.get_buffer(rank, (size,), torch.uint8) for rank in range(member.world_size)]
        """Every rank's bytes, as this rank sees them."""
        self.own = self.of_ranks[member.rank]
        self.own.zero_()

    @property
    def addresses(self) -> list[int]:
        """Where this rank sees every rank's bytes."""
        return [memory.data_ptr() for memory in self.of_ranks]

    def parts(self, shape: tuple[int, int]) -> list[torch.Tensor]:
        """Return the first bytes of every rank's memory in this shape."""
        return [memory[: shape[0] * shape[1]].view(shape) for memory in self.of_ranks]


class OverSymmetricMemory(Implementation):
    """An implementation whose kernels work in memory that peers have mapped."""

    def settle(self) -> None:
        """Wait until every rank has done what it enqueued. Collective."""
        self.member.synchronize()
        dist.barrier(self.member.host_group)

    def close(self) -> None:
        """Give its memory up, which no rank is using any more."""
        self.settle()
        for name in list(vars(self)):
            if name not in ("member", "cases"):
                delattr(self, name)
