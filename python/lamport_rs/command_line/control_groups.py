"""What the control groups (cgroups) of this process allow: in a container, less than the machine has.

A limit of any group above counts as well. Both versions of control groups are read; a machine may mix them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def cpu_quota(root: Path = ROOT, own: Path = OWN) -> float | None:
    """Return how many cores' time the process may use; None for no limit."""
    quotas = [
        quota
        for folder in _folders("cpu", root, own)
        for quota in (_ratio(folder / "cpu.max"), _ratio(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"))
        if quota is not None
    ]
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT, own: Path = OWN) -> tuple[int, int] | None:
    """Return the limit that leaves the least memory, and what is used of it, in bytes; None for no limit."""
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    limits = []
    for folder in _folders("memory", root, own):
        for limit_name, used_name in names:
            limit, used = _integers(folder / limit_name), _integers(folder / used_name)
            # Version 1 says "no limit" by a number near 2**63.
            if limit and used and limit[0] < 1 << 60:
                limits.append((limit[0], used[0]))
    return min(limits, key=lambda each: each[0] - each[1], default=None)


def _folders(controller: str, root: Path, own: Path) -> Iterator[Path]:
    """The folders of the process's groups for the controller, and of the groups above them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            homes = [root, root / "unified"]
        elif controller in controllers.split(","):
            homes = [root / controllers, root / controller]
        else:
            continue
        for home in homes:
            # In a container the path may be one that only the host has; then the home is the group's.
            group = home / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each.is_relative_to(home) and each.is_dir())


def _ratio(quota: Path, period: Path | None = None) -> float | None:
    numbers = _integers(quota) + (_integers(period) if period else [])
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else None


def _integers(path: Path) -> list[int]:
    """The numbers in the file; none if it does not exist, or says `max`."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
