"""A process that sees no GPU, with or without a driver on the machine: an error in words, never a panic."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_library import build_library

PROGRAM = """
import lamport_rs
from lamport_rs import LamportError
from lamport_rs.backends import backend_status

def alone(message):
    return [message, message]

print("status:", backend_status()["cuda"])
for create in (lamport_rs.LamportWorkspace, lamport_rs.IpcBuffer, lamport_rs.get_allreduce_workspace):
    try:
        create(0, 2, 4096, process_group=alone, device="cuda:0")
    except LamportError as error:
        print("error:", error)
try:
    lamport_rs.lamport_fill_neg_zero(4096, 16)
except LamportError as error:
    print("error:", error)
"""


def run(**environment: str) -> list[str]:
    """What the program prints where no GPU is visible."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "panic" not in done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
def test_a_preloaded_library_that_has_one_of_the_drivers_functions_is_not_the_driver(tmp_path: Path):
    shim = build_library(tmp_path / "shim.so", "int cuInit(unsigned int flags) { return 100; }\n")
    status, *_errors = run(LD_PRELOAD=str(shim))
    assert status.startswith("status: not available: ")
    assert "lacks" not in status


def test_without_a_gpu_every_entry_says_what_is_missing():
    status, *errors = run()
    assert status.startswith("status: not available: ")
    reason = status.removeprefix("status: not available: ")
    assert "libcuda.so.1" in reason or "cuInit" in reason
    assert len(errors) == 4
    assert all(error.startswith("error: ") for error in errors), errors
    # The last is a function without a backend, which torch refuses first.
    assert all(reason in error for error in errors[:3]), errors
