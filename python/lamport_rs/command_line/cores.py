"""The cores that ranks can have: each wants one for itself."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from lamport_rs import _core

_STAT = Path("/proc/stat")
_SAMPLE_SECONDS = 0.3
_IDLE, _IOWAIT, _GUEST = 3, 4, 8
"""Fields of a core's line; guests' time is in that of users too."""
_TOLERANCE = 0.3
"""Of a core, that whatever runs now and then may take."""


@dataclass(frozen=True)
class Cores:
    """What this process may use."""

    affinity: int
    """Cores that it may run on."""
    quota: float | None
    """Cores' time that its container may use; None for no limit."""
    busy: float
    """How many of them were at work, over a moment before the ranks started."""

    @property
    def most(self) -> float:
        """Cores that it may use at once."""
        return self.affinity if self.quota is None else min(self.affinity, self.quota)

    @property
    def free(self) -> float:
        """Of these, as many as others leave."""
        return max(0.0, min(self.most, self.affinity - self.busy))

    def shortage(self, ranks: int) -> str | None:
        """Return what is short for so many ranks, and what to do; None if each has a core."""
        if self.most < ranks:
            plural = "" if self.affinity == 1 else "s"
            quota = "" if self.quota is None else f", a quota of {self.quota:g}"
            return (
                f"{ranks} ranks on {self.affinity} core{plural}{quota}: ranks wait for the scheduler, and latencies "
                f"are its; allow {ranks} cores, or take fewer ranks"
            )
        if self.free < ranks - _TOLERANCE:
            return (
                f"{self.busy:.1f} of {self.affinity} cores are busy, and {ranks} ranks want one each: latencies will "
                "be too high; stop what else runs, or wait for it"
            )
        return None


def cores_here() -> Cores:
    """Return what this process may use; takes 0.3 s, in which it is idle itself."""
    allowed = os.sched_getaffinity(0)
    before = _times()
    time.sleep(_SAMPLE_SECONDS)
    return Cores(len(allowed), _core.cpu_quota(), busy_cores(before, _times(), allowed))


def busy_cores(before: dict[int, list[int]], after: dict[int, list[int]], allowed: set[int]) -> float:
    """Return how many of the `allowed` cores were busy between two readings of `/proc/stat`, parsed by `parse_stat`."""
    busy = 0.0
    for core in allowed & before.keys() & after.keys():
        spent = [now - then for then, now in zip(before[core], after[core], strict=True)][:_GUEST]
        if sum(spent) > 0:
            busy += 1 - (spent[_IDLE] + spent[_IOWAIT]) / sum(spent)
    return busy


def parse_stat(text: str) -> dict[int, list[int]]:
    """Return the counters of each core in the text of `/proc/stat`."""
    lines = [line.split() for line in text.splitlines()]
    return {
        int(words[0][3:]): list(map(int, words[1:]))
        for words in lines
        if words and words[0].startswith("cpu") and words[0][3:].isdecimal()
    }


def _times() -> dict[int, list[int]]:
    try:
        return parse_stat(_STAT.read_text())
    except OSError:
        return {}
