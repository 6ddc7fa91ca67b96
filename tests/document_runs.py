"""Runs of the Python blocks of pages, on two ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from documents import ROOT, Block
from torchrun import said_by, torchrun

NEEDS_GPUS = {"docs/graphs.md": "torch.cuda.CUDAGraph"}
"""Blocks that cannot run on the host, by what is in them: they capture a CUDA graph."""


def needs_gpus(block: Block) -> bool:
    return NEEDS_GPUS.get(block.page, "\0") in block.text


def run(found: list[Block], folder: Path, **environment: str) -> None:
    """Run blocks, and see that each rank has come to the end of each."""
    names = [each.name for each in found]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": path, "STORES": str(folder), **environment}.items():
            patch.setenv(name, value)
        output, _ = torchrun("tests/document_program.py", *names)
    for rank in range(2):
        said = [line for line in said_by(rank, output) if line.endswith(" ran")]
        assert said == [f"{name} ran" for name in names], output
