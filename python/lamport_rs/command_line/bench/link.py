"""What the link between the GPUs allows."""

from __future__ import annotations

import re
import subprocess


def link_bandwidth() -> float | None:
    """Return what NVLink moves out of GPU 0, in GB/s, as its label says; None where there is no NVLink."""
    status = output_of("nvidia-smi", "nvlink", "-s", "-i", "0")
    return None if status is None else sum_of_links(status)


def output_of(*command: str) -> str | None:
    """Return what a command prints; None if there is none of this name, or it fails, or takes more than 20 seconds."""
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def sum_of_links(status: str) -> float | None:
    """Return the sum of the links' bandwidths in what `nvidia-smi nvlink -s` says of one GPU; None if there is none."""
    links = re.findall(r"^\s*Link \d+: ([\d.]+) GB/s", status, re.MULTILINE)
    return round(sum(map(float, links)), 3) or None


def floor_us(message_bytes: float, world_size: int, link_gb_per_s: float) -> float:
    """Return the microseconds that it takes to push what an all-reduce must push out of each GPU.

    One-shot pushes the message to every peer, two-shot the N-th part of it twice; the lesser of the two.
    """
    peers = world_size - 1
    one_shot, two_shot = peers * message_bytes, 2 * peers / world_size * message_bytes
    return min(one_shot, two_shot) / (link_gb_per_s * 1e3)
