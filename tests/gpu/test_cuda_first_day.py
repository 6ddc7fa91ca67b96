"""The first lines of the pages on two GPUs, in a new environment; those of engines need the engines."""

from __future__ import annotations

import os

import pytest
from first_day import NEEDS_GPUS, Newcomer, checked
from lamport_rs import operations

pytestmark = [pytest.mark.gpu(2), pytest.mark.own_gpus, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory) -> Newcomer:
    """Who has installed the package, and sees two GPUs."""
    # Of those that this run may use.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[:2]
    newcomer = Newcomer.arrive(tmp_path_factory.mktemp("first_day"), CUDA_VISIBLE_DEVICES=",".join(visible))
    newcomer.run(["git clone https://github.com/lamport-rs/lamport-rs", "cd lamport-rs", "pip install ."])
    return newcomer


def test_the_doctor_has_nothing_against_the_gpus(newcomer):
    newcomer.run(["lamport-rs doctor --backend cuda"])


def test_the_demo_takes_both_gpus_and_checks_on_them(newcomer):
    printed = newcomer.run(["lamport-rs demo"])
    assert ": 2 GPUs\n" in printed
    assert checked(printed) == sorted(operations.__all__)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("quick_start.py", "sum 3.0, with residual 4.0, norm 0.5"),
        ("process_group.py", "parallelize_module agrees with the whole model"),
    ],
)
def test_a_program_of_the_pages_says_the_same_on_gpus(program, said, newcomer):
    printed = newcomer.run([f"torchrun --standalone --nproc-per-node 2 examples/{program}"], "lamport-rs")
    assert [f"rank {rank}: {said}" in printed for rank in range(2)] == [True, True], printed


@pytest.mark.parametrize("line", sorted(NEEDS_GPUS))
def test_a_line_that_needs_gpus_runs(line, newcomer):
    newcomer.run([line], "lamport-rs")
