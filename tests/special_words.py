"""Words that look like the sentinel, or that compare oddly, and contributions made of them."""

import numpy as np
import torch
from reference import random_tensor

# Bit patterns of one 32-bit word. As float32, and as two 16-bit values, lower half first.
WORDS = {
    "sentinel: -0.0, or the pair (+0, -0)": 0x80000000,
    "+0.0": 0x00000000,
    "the pair (-0, +0)": 0x00008000,
    "the pair (-0, -0)": 0x80008000,
    "smallest subnormal": 0x00000001,
    "smallest negative subnormal": 0x80000001,
    "the pair of negative subnormals": 0x80018001,
    "largest negative subnormal": 0x807FFFFF,
    "smallest negative normal": 0x80800000,
    "float32 infinity": 0x7F800000,
    "float32 -infinity": 0xFF800000,
    "float16 infinities": 0xFC007C00,
    "bfloat16 infinities": 0xFF807F80,
    "quiet NaN": 0x7FC00000,
    "quiet NaN with payload": 0x7FC12345,
    "negative quiet NaN with payload": 0xFFD54321,
    "signalling NaN": 0x7F800001,
    "float16 NaNs": 0xFE017E55,
    "all bits set": 0xFFFFFFFF,
    "largest": 0x7F7FFFFF,
}


def words(values: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.uint32).view(np.int32)).view(dtype)


def contributions_of(pattern: int, dtype: torch.dtype, world_size: int) -> list[list[torch.Tensor]]:
    """The pattern from one rank, from all, in one word of a vector, and everywhere in a long tensor."""
    special, plain = words([pattern], dtype), random_tensor((4 // dtype.itemsize,), dtype, 5)
    everywhere = special.repeat(5000)
    among_others = torch.cat([plain, plain, special, plain, special])
    alone = [[special if rank == owner else plain for rank in range(world_size)] for owner in range(world_size)]
    return [*alone, [special] * world_size, [everywhere] * world_size, [among_others] * world_size]


def contributions_to_the_sentinel(dtype: torch.dtype, world_size: int) -> list[torch.Tensor]:
    """Pairs of 16-bit values, none of them a sentinel, whose sum is the pair (+0, -0): a sentinel."""
    lower = [1.0, -1.0, *[-0.0] * (world_size - 2)]
    return [torch.tensor([value, -0.0], dtype=dtype).repeat(2500) for value in lower]
