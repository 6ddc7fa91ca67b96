"""What this installation can do here."""

from __future__ import annotations

import os
import platform

import torch

import lamport_rs
from lamport_rs.backends import backend_status


def run() -> int:
    """Print versions and the state of each backend; return 0."""
    print(f"lamport_rs {lamport_rs.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores")
    for name, status in backend_status().items():
        print(f"  {name:5} {status}")
    return 0
