"""What an implementation is: a name, what it serves, and how it is called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

from lamport_rs.command_line.bench.cases import Case
from lamport_rs.command_line.bench.member import Member
from lamport_rs.command_line.bench.problems import Problem

Outputs: TypeAlias = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Call:
    """An operation with its operands, to be called as often as one likes. Collective."""

    run: Callable[[], Outputs]
    """Runs the operation and returns where its results are."""
    in_place: torch.Tensor | None = None
    """What every run overwrites with its sum, if anything: only the first run sees the problem's input there."""


class Implementation(ABC):
    """One implementation of some operations, set up for the cases to come. Every method is collective.

    Set-up and `prepare` raise, on all ranks, what keeps the implementation from working here.
    """

    name: ClassVar[str]
    backend: ClassVar[str]
    """`"cuda"`, `"host"` or `"any"`."""
    operations: ClassVar[frozenset[str]]
    rounds_once: ClassVar[bool] = False
    """Whether sums are made in float32, in rank order, and rounded once."""
    solves: ClassVar[bool] = True
    """Whether it returns the result; what does not is a floor for the others."""

    def __init__(self, member: Member, cases: Sequence[Case]) -> None:
        self.member = member
        self.cases = cases

    @abstractmethod
    def prepare(self, problem: Problem) -> Call:
        """Return the call that solves the problem."""

    def capturing(self) -> AbstractContextManager[object]:
        """Return what a CUDA graph with the call is captured in."""
        return nullcontext()

    def close(self) -> None:  # noqa: B027  (most have nothing to give up)
        """Give up what set-up took."""

    @classmethod
    def serves(cls, operation: str, backend: str) -> bool:
        """Whether it implements the operation for tensors of this backend."""
        return operation in cls.operations and cls.backend in (backend, "any")
