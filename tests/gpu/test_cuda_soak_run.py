"""The long soak on GPUs, in short: it runs, and one wrong bit in one result of a graph does not escape it."""

import pytest
import soak_gpu
from ranks import SHARING, Rank
from soak_programs import Program
from soak_report import Outcome
from test_soak_run import disturb

OPERATIONS = 1000 if SHARING else 50_000
MINUTES = 3.0
TIMEOUT = 280


@pytest.mark.gpu(2)
def test_a_short_run_finds_every_result_right(ranks_of):
    outcomes = ranks_of(2).run(soak_gpu.run, OPERATIONS, MINUTES, timeout=TIMEOUT)
    assert [(each.mismatches, each.first_mismatch) for each in outcomes] == [(0, None)] * 2
    assert all(each.operations >= OPERATIONS for each in outcomes)
    assert outcomes[0].digest == outcomes[1].digest
    assert outcomes[0].loads > 0


def run_with_a_wrong_bit(me: Rank) -> Outcome:
    """On rank 1, in every program."""
    make = soak_gpu.make_programs

    def make_disturbed(*arguments) -> list[Program]:
        programs = make(*arguments)
        for program in programs if me.rank == 1 else []:
            disturb(program, "result")
        return programs

    soak_gpu.make_programs = make_disturbed
    try:
        return soak_gpu.run(me, 2 * soak_gpu.LENGTH, MINUTES)
    finally:
        soak_gpu.make_programs = make


@pytest.mark.gpu(2)
def test_one_wrong_bit_in_a_graph_is_found_and_told_where(ranks_of):
    right, wrong = ranks_of(2).run(run_with_a_wrong_bit, timeout=TIMEOUT)
    assert (right.mismatches, right.first_mismatch) == (0, None)
    # A program that is captured is run once by each replay.
    assert wrong.mismatches == 2, "one in each replay"
    assert wrong.first_mismatch.startswith("operation ")
