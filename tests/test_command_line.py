"""The command line as people and scripts meet it: quick, quiet when it is cut off, and gone when it is ended."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from lamport_rs import __version__
from lamport_rs.command_line.bench.progress import Progress
from lamport_rs.command_line.cores import Cores, busy_cores, parse_stat
from lamport_rs.command_line.exit_status import BROKEN_PIPE, INTERRUPTED, TERMINATED
from lamport_rs.command_line.table import format_table, output_width

COMMAND = [sys.executable, "-m", "lamport_rs"]
BENCH = [*COMMAND, "bench", "--backend", "host", "--operations", "all_reduce", "--replays", "20"]
"""Seconds of work for each size."""
MOST_SECONDS = 0.1
"""Of the processor: a busy machine adds none."""
ATTEMPTS = 5
RUN_WITHOUT_TORCH = """
import runpy, sys, time
sys.argv = ["lamport-rs", *sys.argv[1:]]
started = time.process_time()
try:
    runpy.run_module("lamport_rs", run_name="__main__")
except SystemExit as exit_:
    seconds = time.process_time() - started
    print(exit_.code, "torch" in sys.modules, seconds, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["--version"], f"lamport-rs {__version__}", 0),
        (["--help"], "{doctor,demo,bench}", 0),
        (["bench", "--help"], "--draw JSON", 0),
        (["demo", "--help"], "--ranks N", 0),
        (["doctor", "--help"], "--json", 0),
        ([], "the following arguments are required: command", 2),
        (["bench", "--sizes", "3"], "is no size", 2),
        (["info"], "invalid choice: 'info'", 2),
    ],
)
def test_what_needs_no_torch_is_there_at_once(arguments, said, status):
    best = 10.0
    for _ in range(ATTEMPTS):
        line = [sys.executable, "-c", RUN_WITHOUT_TORCH, *arguments]
        finished = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert said in finished.stdout + finished.stderr
        code, torch_imported, seconds = finished.stderr.split()[-3:]
        assert (int(code), torch_imported) == (status, "False")
        best = min(best, float(seconds))
        if best < MOST_SECONDS:
            break
    assert best < MOST_SECONDS


@contextmanager
def running_bench(*arguments: str | Path):
    """A benchmark that has measured something, in a process group of its own."""
    process = subprocess.Popen(
        [*BENCH, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for line in process.stderr:
            if line.startswith("[2 processes, 1/"):
                break
        else:
            pytest.fail(f"it ended: {process.wait()}")
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
        process.stderr.close()


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The processes that it has started, and those that these have."""
    found, left = [], [process.pid]
    while left:
        children = Path(f"/proc/{(parent := left.pop())}/task/{parent}/children").read_text().split()
        left += map(int, children)
        found += map(int, children)
    return found


def is_running(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_deaf_to_interrupts(process_id: int) -> bool:
    """Whether it blocks or ignores SIGINT."""
    lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{process_id}/status").read_text().splitlines())
    return bool((int(lines["SigBlk"], 16) | int(lines["SigIgn"], 16)) & 1 << (signal.SIGINT - 1))


def wait_until_gone(process_ids: list[int], seconds: float = 15.0) -> list[int]:
    """Those that still run after this time."""
    deadline = time.monotonic() + seconds
    while (left := [each for each in process_ids if is_running(each)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "status", "to_all"),
    [(signal.SIGINT, INTERRUPTED, True), (signal.SIGINT, INTERRUPTED, False), (signal.SIGTERM, TERMINATED, False)],
)
def test_a_run_that_is_interrupted_leaves_what_it_has_measured(number, status, to_all, tmp_path):
    # A terminal sends Ctrl-C to the ranks as well.
    sizes = ["--sizes", "512", "1Ki", "8Mi"] if to_all else ["--sizes", "512", "8Mi"]
    with running_bench("--record", tmp_path, *sizes) as process:
        ranks = ranks_of(process)
        (os.killpg if to_all else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert "Terminating process" not in errors
    (path,) = tmp_path.glob("*-cpu-x2-interrupted.json")
    run = json.loads(path.read_text())
    assert run["interrupted"] is True
    assert {row["impl"] for row in run["rows"]} == {"lamport_rs", "gloo"}
    assert "all_reduce, float32, 2 processes, back to back: median latency" in output
    assert f"record, interrupted: {path}" in output
    assert wait_until_gone(ranks) == []


def test_an_interrupt_before_anything_was_measured_is_quiet(tmp_path):
    process = subprocess.Popen(
        [*BENCH, "--record", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(ranks_of(process)) < 3:  # The ranks, and multiprocessing's tracker.
        assert time.monotonic() < deadline
        time.sleep(0.02)
    ranks = ranks_of(process)
    time.sleep(0.5)  # They import torch.
    assert all(is_deaf_to_interrupts(each) for each in ranks)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "Traceback" not in errors
    assert errors.splitlines()[-2:] == [
        "lamport-rs bench: interrupted before anything was measured",
        "lamport-rs: interrupted",
    ]
    assert output == ""
    assert list(tmp_path.iterdir()) == []
    assert wait_until_gone(ranks) == []


@pytest.mark.long
def test_ranks_end_with_a_parent_that_is_killed(tmp_path):
    with running_bench("--no-record", "--sizes", "512", "4Mi", "8Mi") as process:
        ranks = ranks_of(process)
        assert len(ranks) >= 2
        assert all(map(is_running, ranks))
        process.kill()
        assert wait_until_gone(ranks) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_doctor_that_is_ended_is_quiet_and_leaves_no_process(number):
    process = subprocess.Popen(
        [*COMMAND, "doctor", "--backend", "host", "--ranks", "16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(started := ranks_of(process)) < 4:  # Tracker, fork server, and a pair.
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        # A terminal sends Ctrl-C to all of them.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output == ""
    assert errors == ("lamport-rs: interrupted\n" if number == signal.SIGINT else "")
    assert process.returncode == (INTERRUPTED if number == signal.SIGINT else -number)
    assert wait_until_gone(started) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "status"),
    # argparse does not tell.
    [(["demo", "--backend", "host"], BROKEN_PIPE), (["bench", "--backend", "host"], BROKEN_PIPE), (["--help"], 0)],
)
@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_that_goes_ends_the_command_quietly(arguments, status, lines, tmp_path):
    given = (
        ["--record", str(tmp_path), "--sizes", "512", "1Ki", "2Ki", "--replays", "1"] if "bench" in arguments else []
    )
    process = subprocess.Popen(
        [*COMMAND, *arguments, *given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(lines):
        process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(60) == status
    process.stderr.close()
    assert "Error" not in errors
    assert "Exception" not in errors
    if "bench" in arguments:
        # What was measured is not lost with the reader.
        assert len(list(tmp_path.glob("*-cpu-x2.json"))) == 1


@pytest.mark.long
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["doctor", "--help"], ["bench", "--draw", "none"]])
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_outputs_that_are_closed_are_written_to_by_nobody(arguments, closed):
    line = f'exec "$@" {closed}'
    finished = subprocess.run(["sh", "-c", line, "sh", *COMMAND, *arguments], capture_output=True, text=True)
    assert finished.returncode == (1 if "--draw" in arguments else 0)
    assert "Error" not in finished.stderr
    assert closed != "2>&-" or "--draw" in arguments or finished.stdout


@pytest.mark.long
def test_ranks_write_nowhere_if_the_output_is_closed():
    finished = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "demo", "--backend", "host"], stderr=-1)
    assert finished.returncode == 0
    assert b"Error" not in finished.stderr


@pytest.mark.long
def test_a_reader_of_the_progress_that_goes_ends_the_run(tmp_path):
    with running_bench("--record", tmp_path, "--sizes", "512", "1Ki", "8Mi") as process:
        process.stderr.close()
        output = process.stdout.read()
        assert process.wait(120) == BROKEN_PIPE
        assert len(list(tmp_path.glob("*-interrupted.json"))) == 1
        process.stderr = open(os.devnull)  # noqa: SIM115  (closed with the process)
    assert "Error" not in output


def test_columns_that_do_not_fit_follow_below_beside_the_first():
    header, body = ["size", "first", "second", "third"], [["1", "10", "20", "30"], ["2", "11", "21", "31"]]
    wide = ["size  first  second  third", "   1     10      20     30", "   2     11      21     31"]
    assert format_table(header, body, 26).splitlines() == wide
    assert format_table(header, body, 25).splitlines() == [
        *["size  first  second", "   1     10      20", "   2     11      21"],
        *["", "size  third", "   1     30", "   2     31"],
    ]
    assert format_table(header, body, 5).count("size") == 3
    assert format_table(["only"], [["1"]], 40) == ""


def test_output_that_is_no_terminal_has_any_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    code = "from lamport_rs.command_line.table import output_width; print(output_width())"
    # Without `env` it would be what readline, which pytest imports, has set behind Python's back.
    assert int(subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ})) > 10_000
    monkeypatch.setenv("COLUMNS", "40")
    assert output_width() == 40


def test_progress_on_a_terminal_stays_in_its_line():
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with open(theirs, "w") as stream:
        progress = Progress("2 processes", 3, True, stream)
        progress.doing("x" * 100)
        progress.done("y" * 100)
        progress.close()
        written = ""
        # A read may bring a part of it, on a busy machine.
        while written.count("\r\x1b[2K") < 3:
            written += os.read(ours, 4096).decode()
    os.close(ours)
    assert [len(each) for each in written.split("\r\x1b[2K")] == [0, 39, 39, 0]


STAT = """cpu  1 1 1 1 1 1 1 1 0 0
cpu0 {0} 0 0 {1} 0 0 0 0 {0} 0
cpu1 0 0 {2} 10 {3} 0 0 0 0 0
cpu12 999 0 0 0 0 0 0 0 0 0
intr 5
"""


def test_busy_cores_are_told_from_the_kernels_counters():
    before, after = parse_stat(STAT.format(100, 100, 100, 100)), parse_stat(STAT.format(130, 110, 140, 160))
    assert before.keys() == {0, 1, 12}
    assert busy_cores(before, after, {0, 1, 12}) == pytest.approx(0.75 + 0.4)
    assert busy_cores(before, after, {1}) == pytest.approx(0.4)
    assert busy_cores(before, before, {0, 1}) == 0


@pytest.mark.parametrize(
    ("cores", "ranks", "said"),
    [
        (Cores(4, None, 0.1), 4, None),
        (Cores(4, None, 0.0), 5, "5 ranks on 4 cores: "),
        (Cores(8, 1.5, 0.0), 2, "2 ranks on 8 cores, a quota of 1.5: "),
        (Cores(4, None, 2.9), 2, "2.9 of 4 cores are busy, and 2 ranks want one each"),
        (Cores(64, 4.0, 50.0), 4, None),
    ],
)
def test_a_lack_of_cores_is_told(cores, ranks, said):
    found = cores.shortage(ranks)
    assert (found is None) if said is None else found.startswith(said)


@pytest.mark.parametrize("command", ["bench", "demo"])
def test_a_lack_of_cores_is_warned_of_before_ranks_start(command, monkeypatch, capsys):
    from lamport_rs import LamportError, __main__
    from lamport_rs.command_line import demo
    from lamport_rs.command_line.bench import run

    def stop(*_arguments, **_options):
        raise LamportError("launched")

    for module in (run, demo):
        monkeypatch.setattr(module, "launch", stop)
        monkeypatch.setattr(module, "cores_here", lambda: Cores(1, None, 0.0))
    options = ["--no-record"] if command == "bench" else []
    monkeypatch.setattr(sys, "argv", ["lamport-rs", command, "--backend", "host", *options])
    assert __main__.main() == 1
    said = capsys.readouterr().err
    assert said.index("warning: 2 ranks on 1 core: ") < said.index("launched")
