"""World sizes and placements of GPU tests."""

import os

import pytest
import torch
from ranks import one_gpu_per_rank

WORLD_SIZES = [pytest.param(size, marks=pytest.mark.gpu(size)) for size in (2, 4)]
"""For `parametrize`: the group sizes that there are GPUs for; the others are skipped, with the reason."""

GROUP_SIZES = [pytest.param(size, marks=pytest.mark.gpu(size)) for size in (2, 3, 4)]
"""Likewise, with one that is no power of two: shards are uneven, and kernels have room for a rank that is not there."""

LARGE_GROUP_SIZES = [pytest.param(size, marks=pytest.mark.gpu(size)) for size in (5, 8, 9, 16)]
"""Likewise, beyond what a kernel for four ranks can do: the fewest and the most of each kernel."""


def only_its_own_gpu(rank: int) -> torch.device:
    """Every rank sees one GPU, another one each, and calls it cuda:0."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    mine = visible.split(",")[rank] if visible else str(rank)
    os.environ["CUDA_VISIBLE_DEVICES"] = mine
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def all_on_the_first_gpu(_rank: int) -> torch.device:
    """What a launcher does that forgets to set the device."""
    os.environ.pop("LAMPORT_RS_SHARE_GPU", None)
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def without_setting_the_device(rank: int) -> torch.device:
    """A program that names its devices, and leaves the current one as it is."""
    return torch.device("cuda", rank)


def without_a_compilation_cache(rank: int) -> torch.device:
    """As on a machine that runs the package for the first time. The driver reads the variable when it starts."""
    os.environ["CUDA_CACHE_DISABLE"] = "1"
    return one_gpu_per_rank(rank)
