"""What a step takes without its communication."""

from __future__ import annotations

from functools import partial

from lamport_rs.command_line.bench.arguments import NO_COMMUNICATION, STEPS
from lamport_rs.command_line.bench.decode_step import DecodeStep
from lamport_rs.command_line.bench.decoder import Communication, add_rms_norm
from lamport_rs.command_line.bench.implementations.base import Call, Implementation
from lamport_rs.command_line.bench.problems import Problem


class NoCommunication(Implementation):
    """Every rank takes its partial sums for the sums."""

    name = NO_COMMUNICATION
    backend = "any"
    operations = frozenset(STEPS)
    solves = False

    def prepare(self, problem: Problem) -> Call:
        """Return the step."""
        assert isinstance(problem, DecodeStep)
        return Call(partial(problem.run, Communication(add_rms_norm)))
