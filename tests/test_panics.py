"""What would be a panic on one rank is the same `LamportError` on all, promptly."""

import re
from pathlib import Path

import pytest
from broken_driver import build, run

PROMPT = 10
"""Seconds, on a busy machine."""
DRIVER = Path(__file__).parents[1] / "rust/core/src/cuda/driver.rs"


def functions() -> list[str]:
    """Those of the driver that the package calls."""
    names = re.findall(r'^    "(cu\w+)",$', DRIVER.read_text(), re.MULTILINE)
    assert len(names) > 30
    return names


def check(outcomes: list[list[str]], expected: str) -> None:
    """Whether both ranks got the same errors with a text that matches."""
    errors = [[line.split(" ", 2) for line in lines[:3]] for lines in outcomes]
    for of_one, of_other in zip(*errors, strict=True):
        (name, took, text), other = of_one, of_other
        assert (name, other[0], other[2]) == ("LamportError", "LamportError", text)
        assert max(int(took), int(other[1])) < PROMPT
        assert re.search(expected, text), text


@pytest.mark.long
@pytest.mark.parametrize("has_driver", [(True, True), (False, True)], ids=["on both", "on one"])
def test_a_driver_that_lacks_functions_is_the_same_error_on_all_ranks(tmp_path, has_driver):
    outcomes = run(build(tmp_path), tmp_path / "store", has_driver)
    check(outcomes, r"libcuda.so.1, lacks cuCtxGetCurrent and \d+ more functions; install a driver for CUDA 12.2")
    assert "lacks cuCtxGetCurrent" in outcomes[1][3]


def test_a_panic_below_the_core_is_the_same_error_on_all_ranks(tmp_path):
    made = {"cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetAttribute", "cuDeviceGetName"}
    others = [name for name in functions() if name not in made]
    outcomes = run(build(tmp_path, *others), tmp_path / "store", (False, True))
    check(outcomes, "rank 1: a panic: No null byte was present.*this is a defect")
