"""How large a workspace is where nobody says it."""

from __future__ import annotations

import os

from lamport_rs import _core
from lamport_rs._core import LamportError

MEMORY_VARIABLE = "LAMPORT_RS_MAX_MEMORY"
DEFAULT_MEMORY = 64 << 20
"""Most bytes of a workspace that is made without a size, if the environment does not say another number."""
DEFAULT_MAX_BYTES = 8 << 20
"""Bytes of the largest tensor that such a workspace takes at once, if the memory allows."""
ALONE_MAX_BYTES = 64 << 10
"""Likewise for a single rank, which sends nothing."""
_ALLOCATION = 2 << 20
"""Blocks are multiples of this."""
_SLOTS, _HEADER_BYTES, _VECTOR_BYTES = 3, 64, 16


def default_comm_size(world_size: int) -> int:
    """Return the bytes of a slot for a group of so many ranks.

    Raises:
        LamportError: If the environment variable is no number of bytes, or too small a one.
    """
    memory = memory_limit()
    # Three slots, and a header of each rank in each of them, in whole blocks.
    available = memory // _ALLOCATION * _ALLOCATION - _SLOTS * world_size * _HEADER_BYTES
    bound = available // _SLOTS // _VECTOR_BYTES * _VECTOR_BYTES
    wanted = _core.all_reduce_comm_size(ALONE_MAX_BYTES if world_size == 1 else DEFAULT_MAX_BYTES, world_size)
    return min(bound, wanted)


def memory_limit() -> int:
    """Return the bytes that a workspace may take which is made without a size."""
    text = os.environ.get(MEMORY_VARIABLE)
    if text is None:
        return DEFAULT_MEMORY
    try:
        memory = int(text)
    except ValueError:
        memory = -1
    if not _ALLOCATION <= memory < 2**60:
        raise LamportError(
            f"{MEMORY_VARIABLE} is {text!r}, but must be a number of bytes, {_ALLOCATION} (2 MiB) or more"
        )
    return memory
