"""What SGLang 0.5.23 chooses by size: the limits of its dispatch in CUDA graphs, as recorded from that release.

They are those of srt/distributed/device_communicators/configs/custom_all_reduce_v2.py for all-reduces, without NVLink
multicast, and of kernels/ops/communication/all_reduce_fusion.py for the fused norm.
"""

from __future__ import annotations

from dataclasses import dataclass

from lamport_rs.command_line.bench.member import UnavailableError

_KIB, _MIB = 1 << 10, 1 << 20
ONE_SHOT_PUSH, TWO_SHOT_PUSH = "1shot_push", "2shot_push"
ONE_SHOT_PULL, TWO_SHOT_PULL = "1shot_pull", "2shot_pull"
"""As its kernels call them."""
MOST_BYTES = 16 * _MIB
"""What its buffers are made for, whatever the limits: beyond, it takes NCCL."""


@dataclass(frozen=True)
class Limits:
    """The most bytes that each algorithm is taken for, in this order."""

    one_shot_push: int
    one_shot_pull: int
    two_shot_pull: int
    two_shot_push: int = 0


_HOPPER = {
    2: Limits(16 * _MIB, 128 * _MIB, 128 * _MIB),
    3: Limits(1280 * _KIB, 1280 * _KIB, 128 * _MIB),
    4: Limits(384 * _KIB, 384 * _KIB, 128 * _MIB),
    5: Limits(192 * _KIB, 192 * _KIB, 32 * _MIB),
    6: Limits(128 * _KIB, 128 * _KIB, 32 * _MIB),
    7: Limits(128 * _KIB, 128 * _KIB, 32 * _MIB),
    8: Limits(128 * _KIB, 128 * _KIB, 32 * _MIB),
}
_BLACKWELL = {
    2: Limits(8 * _MIB, 32 * _MIB, 128 * _MIB),
    3: Limits(4 * _MIB, 4 * _MIB, 128 * _MIB),
    4: Limits(640 * _KIB, 640 * _KIB, 128 * _MIB, two_shot_push=8 * _MIB),
    5: Limits(1536 * _KIB, 1536 * _KIB, 128 * _MIB),
    6: Limits(1 * _MIB, 1 * _MIB, 128 * _MIB),
    7: Limits(640 * _KIB, 640 * _KIB, 128 * _MIB),
    8: Limits(256 * _KIB, 256 * _KIB, 128 * _MIB, two_shot_push=8 * _MIB),
}
_LIMITS = {9: _HOPPER, 10: _BLACKWELL}
"""By the GPU's major compute capability."""
_NORM_TWO_SHOT_FROM = {4: 48, 8: 8}
"""Rows; 48 for others."""


def chosen_algorithm(size: int, world_size: int, capability: tuple[int, int]) -> str | None:
    """Return what SGLang sums `size` bytes by in a graph; None where it takes NCCL.

    Raise `UnavailableError` for GPUs and groups whose limits are not recorded here.
    """
    limits = _LIMITS.get(capability[0], {}).get(world_size)
    if limits is None or capability > (10, 6):
        major, minor = capability
        raise UnavailableError(
            "what SGLang chooses is recorded for 2 to 8 GPUs of compute capability 9.0 to 10.6, and these are "
            f"{world_size} of {major}.{minor}"
        )
    if size > MOST_BYTES:
        return None
    for algorithm, most in (
        (ONE_SHOT_PUSH, limits.one_shot_push),
        (TWO_SHOT_PUSH, limits.two_shot_push),
        (ONE_SHOT_PULL, limits.one_shot_pull),
        (TWO_SHOT_PULL, limits.two_shot_pull),
    ):
        if size <= most:
            return algorithm
    return None


def push_algorithm(size: int, world_size: int, capability: tuple[int, int]) -> str:
    """Return by which of its push kernels `size` bytes are measured: in two shots where it would not push in one."""
    one_shot = chosen_algorithm(size, world_size, capability) == ONE_SHOT_PUSH
    return ONE_SHOT_PUSH if one_shot else TWO_SHOT_PUSH


def push_slot_bytes(size: int, world_size: int, algorithm: str) -> int:
    """Return the bytes of a slot that an algorithm needs: a message, or two halves of a rank's part of it."""
    return size if algorithm == ONE_SHOT_PUSH else 32 * -(-size // (16 * world_size))


def pull_blocks(world_size: int, capability: tuple[int, int], multiprocessors: int) -> int:
    """Return the blocks of its pull kernels, each of which has semaphores."""
    if capability[0] == 9:
        return 64
    return multiprocessors if world_size == 2 else 96


def norm_in_two_shots(rows: int, world_size: int) -> bool:
    """Whether the fused norm takes two shots."""
    return rows >= _NORM_TWO_SHOT_FROM.get(world_size, 48)
