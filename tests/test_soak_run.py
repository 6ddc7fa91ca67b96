"""The long soak, in short: it runs, and one wrong bit in one result does not escape it."""

import pytest
import soak_host
from lamport_rs import _core
from ranks import Rank
from soak_host import LENGTH
from soak_programs import LINE_WORDS, Program
from soak_report import Outcome

pytestmark = pytest.mark.long
OPERATIONS = 3000
STEP = 7


def test_a_short_run_finds_every_result_right(ranks_of):
    outcomes = ranks_of(2).run(soak_host.run, OPERATIONS, 2.0, timeout=150)
    assert [(each.mismatches, each.first_mismatch) for each in outcomes] == [(0, None)] * 2
    assert all(each.operations >= OPERATIONS for each in outcomes)
    assert outcomes[0].digest == outcomes[1].digest
    assert outcomes[0].kinds == outcomes[1].kinds
    kinds = {kind.split(",")[0] for kind in outcomes[0].kinds}
    quantised = {
        f"{name} to {quant_format}"
        for name in ("all_reduce_quant", "all_reduce_rms_norm_quant")
        for quant_format in ("fp8_token", "fp8_group", "mxfp8", "nvfp4")
    }
    others = {name for name, *_ in _core.collectives() if not name.endswith("_quant")}
    assert kinds == others | quantised


def disturb(program: Program, where: str) -> None:
    """One operation of a program changes a bit of its own result, or one before it, once it is done."""
    # One that has a result, as sums of nothing have none.
    number = next(n for n in range(STEP, len(program.steps)) if program.starts[n + 1] - program.starts[n] > LINE_WORDS)
    word = program.starts[number] - (where == "before")
    step = program.steps[number]
    kind = type(step)

    class Disturbed(kind):
        def __call__(self, workspace):
            kind.__call__(self, workspace)
            program.words[word] ^= 1

    step.__class__ = Disturbed


def run_with_a_wrong_bit(me: Rank, where: str) -> Outcome:
    """On rank 1, in every program."""
    make = soak_host.make_programs

    def make_disturbed(*arguments) -> list[Program]:
        programs = make(*arguments)
        for program in programs if me.rank == 1 else []:
            disturb(program, where)
        return programs

    soak_host.make_programs = make_disturbed
    try:
        return soak_host.run(me, 2 * LENGTH, 2.0)
    finally:
        soak_host.make_programs = make


@pytest.mark.parametrize("where", ["result", "before"])
def test_one_wrong_bit_is_found_and_told_where(ranks_of, where):
    right, wrong = ranks_of(2).run(run_with_a_wrong_bit, where, timeout=150)
    assert (right.mismatches, right.first_mismatch) == (0, None)
    assert wrong.mismatches == 2, "one in each program that was run"
    first = int(wrong.first_mismatch.split()[1])
    assert first >= STEP - (where == "before")
