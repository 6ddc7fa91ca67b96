"""A kernel that is not the package's: an all-reduce that knows nothing but the pointer table, in numpy.

It reads the table as the documentation describes it, and as the MiniMax kernels of vLLM and TensorRT-LLM do: slots,
slot index and clear extent. Unlike the package's operations, it also pushes to itself, as those kernels do.
"""

from __future__ import annotations

import ctypes
import time

import numpy as np
import torch

SENTINEL = np.uint32(0x80000000)
SLOTS = 3
PATIENCE = 30.0


def memory_at(address: int, count: int, dtype: type) -> np.ndarray:
    """The `count` elements at an address, not copied."""
    size = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype)


class Table:
    """The entries of a pointer table, by name."""

    def __init__(self, table: torch.Tensor, world_size: int) -> None:
        entries = table.tolist()
        assert len(entries) == 3 * world_size + 2
        self.reserved = entries[: 2 * world_size]
        self.slot_addresses = entries[2 * world_size : 3 * world_size]
        self.counters = memory_at(entries[3 * world_size], 3, np.int32)
        self.extents = memory_at(entries[3 * world_size + 1], 2, np.int64)

    @property
    def comm_size(self) -> int:
        return int(self.extents[1])

    def slot(self, rank: int, index: int) -> np.ndarray:
        """The words of one of a rank's slots."""
        return memory_at(self.slot_addresses[rank] + index * self.comm_size, self.comm_size // 4, np.uint32)


def lamport_all_reduce(table: Table, rank: int, message: np.ndarray) -> np.ndarray:
    """The sum of float32 messages, in rank order. Push, clear, poll, rotate."""
    world_size, words = len(table.slot_addresses), message.size
    slot = int(table.counters[2]) % SLOTS
    payload = message.view(np.uint32).copy()
    payload[payload == SENTINEL] = 0
    for peer in range(world_size):
        table.slot(peer, slot)[rank * words : (rank + 1) * words] = payload
    previous_words = int(table.extents[0]) // 4
    table.slot(rank, (slot - 1) % SLOTS)[:previous_words] = SENTINEL
    own, deadline = table.slot(rank, slot), time.monotonic() + PATIENCE
    while (own[: world_size * words] == SENTINEL).any():
        assert time.monotonic() < deadline, f"rank {rank}: a peer's data did not arrive"
        time.sleep(0)
    table.counters[2] = (slot + 1) % SLOTS
    table.extents[0] = world_size * words * 4
    total = own[:words].view(np.float32).copy()
    for peer in range(1, world_size):
        total += own[peer * words : (peer + 1) * words].view(np.float32)
    return total
