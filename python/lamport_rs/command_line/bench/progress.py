"""How far a run is, on the standard error output."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from lamport_rs.command_line.launch import ended_without_reader

_COLUMNS = 80
"""Of a terminal that does not say."""


class Progress:
    """A line per step, or on a terminal one line that changes. Only rank 0 speaks."""

    def __init__(self, title: str, steps: int, speaks: bool, stream: TextIO | None = None) -> None:
        self._title, self._steps, self._speaks = title, steps, speaks
        self._stream = stream or sys.stderr
        self._done = 0

    def doing(self, what: str) -> None:
        """Say what the present step is at; seen on terminals only."""
        if self._speaks and self._stream.isatty():
            self._replace(f"{self._place(self._done + 1)} {what}")

    def done(self, what: str) -> None:
        """Say what the present step found, and go on to the next."""
        self._done += 1
        text = f"{self._place(self._done)} {what}"
        if self._speaks and self._stream.isatty():
            self._replace(text)
        elif self._speaks:
            self._print(f"{text}\n")

    def close(self) -> None:
        """Clear the line that changes."""
        if self._speaks and self._stream.isatty():
            self._replace("")

    def _replace(self, text: str) -> None:
        # A line that wraps could not be replaced.
        columns = os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        self._print(f"\r\x1b[2K{text[: columns - 1]}")

    def _print(self, text: str) -> None:
        with ended_without_reader():
            print(text, end="", file=self._stream, flush=True)

    def _place(self, step: int) -> str:
        return f"[{self._title}, {step}/{self._steps}]"
