"""Recorded runs: what every claim of the documentation rests on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement: microseconds per operation."""

    op: str
    impl: str
    world_size: int
    dtype: str
    median_us: float
    min_us: float
    max_us: float
    bytes: int | None = None
    tokens: int | None = None
    hidden: str | None = None


def record(rows: list[Row], method: str, gpus: int = 0) -> Path:
    """Write a run to `results/<date>-<machine>-x<count>.json` and return the path.

    `LAMPORT_RS_COMMIT` names the commit where the run is not made in a checkout.
    """
    name = torch.cuda.get_device_name(0) if gpus else None
    run: dict[str, Any] = {
        "schema": 1,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("LAMPORT_RS_COMMIT") or _output("git", "rev-parse", "HEAD"),
        "gpu": name,
        "gpus": gpus,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if gpus else None,
        "cpu": _cpu(),
        "python": platform.python_version(),
        "method": method,
        "rows": [{key: value for key, value in asdict(row).items() if value is not None} for row in rows],
    }
    count = gpus or max(row.world_size for row in rows)
    machine = (name or "cpu").lower().replace("nvidia ", "").replace(" ", "-")
    path = RESULTS / f"{run['date'][:10]}-{machine}-x{count}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
