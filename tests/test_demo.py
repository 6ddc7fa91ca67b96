"""The demonstration that the README begins with."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch
from first_day import checked
from lamport_rs import LamportError, operations
from lamport_rs.__main__ import main
from lamport_rs.command_line import demo
from lamport_rs.command_line.bench.implementations import Call
from lamport_rs.command_line.bench.implementations.own import Lamport
from lamport_rs.command_line.launch import launch

LATENCY = r" +([\d.]+) \(([\d.]+)-([\d.]+)\)"
ROW = re.compile(rf"^ *(\d+){LATENCY}{LATENCY} +([\d.]+)$", re.MULTILINE)


def run_demo(*arguments: str) -> str:
    command = [sys.executable, "-m", "lamport_rs", "demo", *arguments]
    # os.environ has no COLUMNS: readline, which pytest imports, sets it for child processes only.
    finished = subprocess.run(command, capture_output=True, text=True, timeout=280, env={**os.environ})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def run_with_an_error(rank: int, world_size: int, device: torch.device) -> None:
    """A rank of the demonstration; on rank 1 a result of one operation is wrong."""
    prepare = Lamport.prepare

    def with_an_error(self, problem):
        call = prepare(self, problem)
        is_wrong = rank == 1 and problem.case.op == "minimax_allreduce_rms"
        return Call(lambda: tuple(output + 1 for output in call.run())) if is_wrong else call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lamport, "prepare", with_an_error)
        demo._run_rank(rank, world_size, device)


@pytest.mark.long
def test_a_wrong_result_ends_the_demo():
    with pytest.raises(LamportError, match=r"(?s)Process 1 .*Tensor-likes are not close"):
        launch(run_with_an_error, 2, "host")


@pytest.mark.long
def test_the_demo_checks_every_collective_and_prints_a_row_per_size():
    output = run_demo("--backend", "host")
    assert checked(output) == sorted(operations.__all__)
    rows = ROW.findall(output)
    assert [int(size) for size, *_ in rows] == [512, 8192, 65536, 262144, 1048576, 8388608]
    assert all(0 < float(least) <= float(own) <= float(most) for _, own, least, most, *_ in rows)
    assert all(0 < float(least) <= float(group) <= float(most) for *_, group, least, most, _ in rows)


@pytest.mark.parametrize("ranks", ["-1", "0", "17", "two", "9" * 30])
def test_a_number_of_ranks_that_no_group_has_is_a_usage_error(ranks, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "demo", "--backend", "host", f"--ranks={ranks}"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    said = capsys.readouterr()
    assert f"argument --ranks: '{ranks}' ranks cannot run: " in said.err
    assert not said.out


@pytest.mark.parametrize(("ranks", "gpus"), [(None, 1), (None, 0), (3, 2)])
def test_the_demo_says_how_many_gpus_it_takes(ranks, gpus, monkeypatch):
    monkeypatch.setattr(demo, "choose_backend", lambda backend: ("cuda", gpus))
    monkeypatch.setattr(demo, "launch", lambda *arguments: pytest.fail("it ran"))
    with pytest.raises(LamportError, match=f"one GPU per rank, 2 or more, and there are {gpus}"):
        demo.run(ranks, "cuda")


def test_the_first_lines_fit_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(demo, "launch", lambda *arguments: None)
    demo.run(16, "host")
    said = capsys.readouterr()
    assert said.out.replace("\n", " ").endswith(": 16 processes over shared memory ")
    assert said.err.startswith("warning: ")
    assert max(map(len, (said.out + said.err).splitlines())) <= 30


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_the_demo_on_gpus_checks_every_collective_and_compares_two_with_nccl():
    output = run_demo("--backend", "cuda", "--ranks", "2")
    assert checked(output) == sorted(operations.__all__)
    assert "all_reduce of bfloat16, in a CUDA graph" in output
    assert "minimax_allreduce_rms_qk of bfloat16, in a CUDA graph" in output
    assert len(ROW.findall(output)) == 6 + 5
