"""How long ranks wait for each other."""

from __future__ import annotations

import math
import os

from lamport_rs._core import LamportError
from lamport_rs.arguments import as_seconds

DEFAULT = 300.0
"""Seconds: long enough for a first pass in which one of the ranks compiles."""
VARIABLE = "LAMPORT_RS_TIMEOUT"


def default_timeout(otherwise: float = DEFAULT) -> float:
    """Return the seconds that ranks wait where none were given: `LAMPORT_RS_TIMEOUT`, or `otherwise`. 0: no limit.

    Raises:
        LamportError: If the variable is not a number.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return otherwise
    try:
        return float(text)
    except ValueError:
        raise LamportError(f"{VARIABLE} is {text!r}, but must be a number of seconds (0 for no limit)") from None


def limit_of(timeout: object, otherwise: float = DEFAULT) -> float:
    """Return the seconds after which a wait ends, infinite for never, of a `timeout` that may be None.

    A timeout that is none is treated as if nobody had given one: whoever is given it says so, on all ranks.
    """
    try:
        seconds = default_timeout(otherwise) if timeout is None else as_seconds("timeout", timeout)
    except LamportError:
        return otherwise
    return seconds if seconds > 0 else math.inf if seconds == 0 else otherwise
