"""What a run found."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lamport_rs.command_line.bench.record import Row


@dataclass(frozen=True)
class Missing:
    """What could not be measured, and why; `size` where it was one of several."""

    what: str
    world_size: int
    reason: str
    size: str | None = None


@dataclass
class Findings:
    """Measurements, and what is missing among them."""

    rows: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Leave them for the process that launched the ranks, which may end this one at any time."""
        whole = path.with_suffix(".new")
        whole.write_text(json.dumps(asdict(self)))
        os.replace(whole, path)

    def take(self, path: Path) -> None:
        """Add what a rank left, if it did."""
        if path.exists():
            found = json.loads(path.read_text())
            self.rows += [Row(**row) for row in found["rows"]]
            self.missing += [Missing(**each) for each in found["missing"]]
