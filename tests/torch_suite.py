"""torch's own tests of process groups, on the backend "lamport": `make test-torch-suite`, on the CPU.

They are in torch's wheel, and written for gloo and NCCL among others. Here they are told that they run on gloo, and
make groups of "lamport" in its place. A test that fails is run again on gloo itself, for comparison. Those that cannot
pass are known: they ask for gloo by its name. The exit status is 1 if another test fails that passes on gloo, or if one
of these passes.

`torch_suite.py [NAME...]` runs the tests of these names only. `--in-place-of nccl` takes two GPUs, and NCCL for gloo.
`--part I/N`, with I from 1 to N, runs one of N parts, so that several run side by side.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import unittest
from collections import Counter
from typing import Any

CANNOT_PASS = {
    "gloo": {
        "test_ddp_logging_data_cpu": "compares what DDP logs, which names gloo, with dist.get_backend()",
        "test_get_backend": "compares dist.get_backend() with gloo",
        "test_monitored_barrier_gloo": "dist.monitored_barrier() takes groups of gloo only",
        "test_monitored_barrier_gloo_subgroup": "likewise",
    },
    "nccl": {
        "test_batch_isend_irecv_self_nccl": "only rank 0 sends, and the barrier before it goes over gloo, as in "
        "a group of cpu:gloo,cuda:nccl",
        "test_ddp_profiling_execution_trace": "compares dist.get_backend() with nccl",
        "test_ddp_profiling_torch_profiler": "looks for events by the name of dist.get_backend()",
        "test_get_backend": "compares dist.get_backend() with nccl",
    },
}
"""Tests that fail in place of each backend, and why."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="tests (default: all)")
    parser.add_argument("--in-place-of", choices=tuple(CANNOT_PASS), default="gloo", help="whose tests")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="one of N parts of the tests")
    return parser.parse_args()


ARGUMENTS = _arguments()

CHOSEN = "LAMPORT_RS_TORCH_SUITE"
"""The variable that says which backend to make groups of."""

os.environ["BACKEND"] = ARGUMENTS.in_place_of
os.environ.setdefault("WORLD_SIZE", "2")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("TEMP_DIR", tempfile.gettempdir())

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

_plain_init = dist.init_process_group


def _init_process_group(backend: Any = None, *arguments: Any, **named: Any) -> None:
    _plain_init(os.environ[CHOSEN] if backend == ARGUMENTS.in_place_of else backend, *arguments, **named)


# Ranks are forked from this process.
dist.init_process_group = _init_process_group

from torch.testing._internal.distributed.distributed_test import DistributedTest, TestDistBackend  # noqa: E402


class Suite(TestDistBackend, DistributedTest._DistTestBase):
    def setUp(self) -> None:
        super().setUp()
        # Spawned ranks import torch, which takes seconds, in each test. Forked ones cannot use CUDA, which the tests'
        # module asks for what there is.
        method = "fork" if ARGUMENTS.in_place_of == "gloo" else "spawn"
        self._start_processes(torch.multiprocessing.get_context(method).Process)


class Outcomes(unittest.TextTestResult):
    """What became of each test, by its name."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.of: dict[str, str] = {}

    def _note(self, test: Any, outcome: str) -> None:
        self.of[getattr(test, "_testMethodName", str(test))] = outcome

    def addSuccess(self, test: Any) -> None:  # noqa: N802
        super().addSuccess(test)
        self._note(test, "passed")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._note(test, "skipped")

    def addFailure(self, test: Any, error: Any) -> None:  # noqa: N802
        super().addFailure(test, error)
        self._note(test, "failed")

    def addError(self, test: Any, error: Any) -> None:  # noqa: N802
        super().addError(test, error)
        self._note(test, "failed")


def run(backend: str, names: list[str]) -> dict[str, str]:
    """Run the tests on groups of `backend`."""
    os.environ[CHOSEN] = backend
    runner = unittest.TextTestRunner(resultclass=Outcomes, verbosity=2)
    result = runner.run(unittest.TestSuite(Suite(name) for name in names))
    assert isinstance(result, Outcomes)
    return result.of


def main() -> int:
    replaced = ARGUMENTS.in_place_of
    part, parts = map(int, ARGUMENTS.part.split("/"))
    names = ARGUMENTS.names or unittest.defaultTestLoader.getTestCaseNames(Suite)
    names = list(names)[part - 1 :: parts]
    known = {name: why for name, why in CANNOT_PASS[replaced].items() if name in names}
    outcomes = run("lamport", names)
    failed = [name for name, outcome in outcomes.items() if outcome == "failed"]
    compared = run(replaced, failed) if failed else {}
    print("on lamport:", dict(Counter(outcomes.values())))
    wrong = {name for name in known if outcomes.get(name) != "failed"}
    for name in failed:
        if name not in known and compared[name] != "failed":
            wrong.add(name)
        print(f"failed: {name} ({known.get(name, 'UNEXPECTED')}; on {replaced}: {compared[name]})")
    for name in sorted(wrong):
        print(f"not as expected: {name} {outcomes.get(name)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
