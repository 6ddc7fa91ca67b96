"""Programs of several ranks, started as users start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 240.0
"""Most seconds that a program may take."""


def torchrun(*arguments: str | Path, ranks: int = 2) -> tuple[str, str]:
    """Run `torchrun --standalone --nproc-per-node <ranks> <arguments>` in the repository; return its output and log.

    As torchrun does by default, each rank has one thread.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*torchrun, *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, log = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()  # It ends its ranks, which a killed one cannot.
            process.wait()
    assert process.returncode == 0, output + log
    return output, log


def said_by(rank: int, output: str) -> list[str]:
    """Return what a rank printed in lines that begin with `rank <rank>: `."""
    return [line.removeprefix(f"rank {rank}: ") for line in output.splitlines() if line.startswith(f"rank {rank}: ")]
