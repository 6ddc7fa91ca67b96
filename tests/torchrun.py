"""Programs of several ranks, started as users start them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECONDS = 240.0
"""Most seconds that a program may take."""
SECONDS_TO_END = 40.0
"""How long it then has to end what it has started: torchrun kills ranks after 30."""


def run_to_its_end(command: Sequence[str], seconds: float, **options: Any) -> tuple[str, str]:
    """Run a command, which must succeed; return its output and log. Whatever ends the wait ends what was started."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options)
    try:
        output, log = process.communicate(timeout=seconds)
    except BaseException as error:
        # torchrun ends its ranks, which are in sessions of their own; one that is killed cannot.
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            output, log = process.communicate()
            raise AssertionError(f"no end within {seconds} s: {command}\n{output}{log}") from error
        raise
    assert process.returncode == 0, output + log
    return output, log


def torchrun(*arguments: str | Path, ranks: int = 2) -> tuple[str, str]:
    """Run `torchrun --standalone --nproc-per-node <ranks> <arguments>` in the repository; return its output and log.

    As torchrun does by default, each rank has one thread.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return run_to_its_end([*torchrun, *map(str, arguments)], SECONDS, cwd=ROOT)


def said_by(rank: int, output: str) -> list[str]:
    """Return what a rank printed in lines that begin with `rank <rank>: `."""
    return [line.removeprefix(f"rank {rank}: ") for line in output.splitlines() if line.startswith(f"rank {rank}: ")]
