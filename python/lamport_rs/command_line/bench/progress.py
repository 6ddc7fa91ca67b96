"""How far a run is, on the standard error output."""

from __future__ import annotations

import sys
from typing import TextIO


class Progress:
    """A line per step, or on a terminal one line that changes. Only rank 0 speaks."""

    def __init__(self, title: str, steps: int, speaks: bool, stream: TextIO | None = None) -> None:
        self._title, self._steps, self._speaks = title, steps, speaks
        self._stream = stream or sys.stderr
        self._done = 0

    def doing(self, what: str) -> None:
        """Say what the present step is at; seen on terminals only."""
        if self._speaks and self._stream.isatty():
            print(f"\r\x1b[2K{self._place(self._done + 1)} {what}", end="", file=self._stream, flush=True)

    def done(self, what: str) -> None:
        """Say what the present step found, and go on to the next."""
        self._done += 1
        if self._speaks:
            start, end = ("\r\x1b[2K", "") if self._stream.isatty() else ("", "\n")
            print(f"{start}{self._place(self._done)} {what}", end=end, file=self._stream, flush=True)

    def close(self) -> None:
        """Clear the line that changes."""
        if self._speaks and self._stream.isatty():
            print("\r\x1b[2K", end="", file=self._stream, flush=True)

    def _place(self, step: int) -> str:
        return f"[{self._title}, {step}/{self._steps}]"
