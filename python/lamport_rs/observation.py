"""What the package tells of itself: the log, and ranges in a profile.

The log is Python's, under the name `lamport_rs`: a line for each workspace at level INFO, one for each fault at level
ERROR, and warnings of what the package leaves to others, or will notice late. `LAMPORT_RS_NVTX=1` has every eager
operation push an NVTX range of its name.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from lamport_rs._core import LamportAbortedError, LamportMismatchError, LamportTimeoutError

logger = logging.getLogger("lamport_rs")

NVTX_VARIABLE = "LAMPORT_RS_NVTX"

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def log_fault(error: BaseException) -> None:
    """Tell the log if `error` is one after which the workspace cannot be used any more."""
    is_fault = isinstance(error, LamportTimeoutError | LamportMismatchError | LamportAbortedError)
    # It is raised, too: where nobody configures a log, Python would print it besides, as it prints warnings.
    if is_fault and logger.hasHandlers():
        # The text: a handler may keep what it is given, and the error has the operation's frames.
        logger.error("%s", str(error))


@functools.cache
def warn_of_unwatched_peers(reason: str) -> None:
    """Tell the log, once for each reason, that the end of a peer's process may be noticed late."""
    logger.warning("that a peer's process has ended may be noticed by the timeout only: pidfd_open failed: %s", reason)


def with_range(name: str, operation: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`operation`, in an NVTX range called `lamport_rs.<name>` if the environment asks for ranges."""
    if os.environ.get(NVTX_VARIABLE) != "1":
        return operation
    try:
        torch.cuda.nvtx.range_push(name)
        torch.cuda.nvtx.range_pop()
    except RuntimeError as error:
        logger.warning("%s=1 has no effect on %s: %s", NVTX_VARIABLE, name, error)
        return operation

    @functools.wraps(operation)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        torch.cuda.nvtx.range_push(f"lamport_rs.{name}")
        try:
            return operation(*args, **kwargs)
        finally:
            torch.cuda.nvtx.range_pop()

    return call
