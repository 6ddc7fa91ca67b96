"""The arguments of collective calls: a wrong one on any rank is the same error on all of them."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, SupportsFloat, SupportsIndex

from lamport_rs import _core
from lamport_rs._core import LamportError

if TYPE_CHECKING:
    from lamport_rs.rendezvous import AllGather

_UNKNOWN = -1


@contextmanager
def refused_on_all_ranks(rank: object, world_size: object, all_gather: AllGather | None) -> Iterator[None]:
    """Check and convert arguments in the body: whatever it raises reaches all ranks, which would wait for this one.

    Its errors come out as the `LamportError` that every rank raises; without `all_gather`, where no rank waits, that
    this one raises. `rank` and `world_size` are as the caller got them, checked or not.
    """
    try:
        yield
    except Exception as error:
        # Not only what is foreseen: an argument of any type may raise anything, and the peers are waiting.
        reason = str(error) if isinstance(error, LamportError) else f"{type(error).__name__}: {error}"
        readable = as_text(reason)
        if all_gather is None:
            raise LamportError(readable) from error
        _core.refuse(_known(rank), _known(world_size), readable, all_gather)


def as_text(value: object) -> str:
    """Return `value` as a text that other ranks can be told: its own `str`, with escapes for what is no UTF-8."""
    try:
        text = str(value)
    except Exception:
        text = f"{type(value).__name__}, which has no text"
    return text.encode("utf-8", "backslashreplace").decode()


def as_integer(name: str, value: object) -> int:
    """Return the argument `name` as an int: whatever is an integer to Python (NumPy's, too), but no bool.

    Raises:
        LamportError: If it is none, or has more than 64 bits.
    """
    # `type` first: to ask for a protocol takes microseconds, and cached workspaces are asked for again and again.
    if type(value) is int or (isinstance(value, SupportsIndex) and not isinstance(value, bool)):
        try:
            integer = operator.index(value)
        except (TypeError, ValueError, RuntimeError):  # An array or a tensor of several elements, say.
            pass
        else:
            if -(2**63) <= integer < 2**63:
                return integer
    raise LamportError(f"{name} is {value!r}, but must be an integer of at most 64 bits")


def as_seconds(name: str, value: object) -> float:
    """Return the argument `name` as a float: any number, but no bool, and no text that happens to read as one.

    Raises:
        LamportError: If it is none.
    """
    if isinstance(value, SupportsFloat | SupportsIndex) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise LamportError(f"{name} is {value!r}, but must be a number of seconds (0 for no limit)")


def _known(value: object) -> int:
    try:
        return as_integer("", value)
    except Exception:
        return _UNKNOWN
