"""The doctor: right about this machine, and about others that are made up; and never hanging."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import lamport_rs
import pytest
from lamport_rs import LamportError, __main__
from lamport_rs.command_line.cores import Cores
from lamport_rs.command_line.doctor import gpus, machine, pairs, plugins, run
from lamport_rs.command_line.doctor.report import Finding, Gpu, Link, Pair, Report, Transfer

DOCTOR = [sys.executable, "-m", "lamport_rs", "doctor", "--backend", "host"]
H100 = [Gpu(index, "NVIDIA H100", f"uuid-{index}", 80 << 30, "9.0") for index in range(2)]


def run_doctor(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*DOCTOR, *arguments], capture_output=True, text=True, timeout=240, **options)


@pytest.fixture(scope="module")
def examined() -> dict:
    finished = run_doctor("--json", "--ranks", "3")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout)


def test_every_ordered_pair_of_ranks_is_tried_and_every_pair_measured(examined):
    assert (examined["schema"], examined["healthy"], examined["backend"], examined["ranks"]) == (1, True, "host", 3)
    transfers = [(each["source"], each["target"], each["works"]) for each in examined["transfers"]]
    assert sorted(transfers) == [(a, b, True) for a in range(3) for b in range(3) if a != b]
    assert [each["ranks"] for each in examined["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    for each in examined["pairs"]:
        assert 0 < each["latency_us"] < 1e6
        assert 0 < each["bandwidth_gb_per_s"] < 1e3
        assert each["reason"] is None
    assert examined["memory"]["memfd_create"] is True
    assert examined["limits"]["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert examined["cores"]["affinity"] == len(os.sched_getaffinity(0))


def documented_names(page: str, heading: str) -> set[str]:
    """What the table below a heading of a page of docs has in its first column."""
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    section = text.partition(f"{heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def keys_of(value: object, prefix: str = "") -> set[str]:
    """The keys of JSON, with dots; those of a list's elements as `list[].key`."""
    if isinstance(value, dict):
        return {key for name, each in value.items() for key in {prefix + name, *keys_of(each, f"{prefix}{name}.")}}
    if isinstance(value, list):
        return {key for each in value for key in keys_of(each, f"{prefix[:-1]}[].")}
    return set()


def test_every_key_of_the_json_is_documented(examined):
    documented = documented_names("appendix/doctor_json.md", "# JSON of `lamport-rs doctor`")
    with_gpus = {**examined, "gpus": [asdict(H100[0])], "links": [asdict(Link(0, 1, True, "NV18"))]}
    assert keys_of(with_gpus) == documented


def test_every_check_is_documented_and_says_what_to_do(examined):
    sources = "".join(path.read_text() for path in Path(run.__file__).parent.glob("*.py"))
    named = set(re.findall(r'Finding\(\s*"(\w+)"', sources)) | {each.distribution for each in plugins.PLUGINS}
    assert named == documented_names("doctor.md", "## Checks")
    for each in examined["findings"]:
        assert each["check"] in documented_names("doctor.md", "## Checks")
        assert (each["remedy"] is None) == (each["status"] == "ok")


@pytest.mark.long
def test_people_read_the_same_in_a_narrow_terminal():
    finished = run_doctor(env={**os.environ, "COLUMNS": "60"})
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "ok       transfers: a word arrives between all 2 ordered" in finished.stdout
    assert re.search(r"^0 and 1 +[\d.]+ +[\d.]+$", finished.stdout, re.MULTILINE)
    assert finished.stdout.splitlines()[-1].startswith("everything works; errors: 0, ")
    assert max(map(len, finished.stdout.splitlines())) <= 60
    assert finished.stderr == ""


@pytest.mark.parametrize("healthy", [True, False])
def test_no_line_is_wider_than_a_narrow_terminal(healthy):
    findings = [] if healthy else [Finding("ranks", "error", "there is no GPU for each of them", "take fewer ranks")]
    text = run.as_text(Report(backend="host", ranks=2, findings=findings), 30)
    assert max(map(len, text.splitlines())) <= 30
    verdict = "everything works" if healthy else "something is wrong"
    assert text.replace("\n", " ").endswith(f"{verdict}; errors: {int(not healthy)}, warnings: 0")


def test_a_torch_that_cannot_be_imported_is_an_error_in_words(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: no such file')")
    finished = run_doctor("--json", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert finished.returncode == 1
    found = json.loads(finished.stdout)
    assert found["healthy"] is False
    (finding,) = [each for each in found["findings"] if each["status"] == "error"]
    assert "libtorch.so: no such file" in finding["text"]
    assert "install torch" in finding["remedy"]
    assert "Traceback" not in finished.stderr


def deaf(rank, _place, peer, report):
    """Rank 1 never takes part."""
    pairs._RENDEZVOUS_SECONDS = 1.0
    if rank == 1:
        time.sleep(120)
    pairs._examine_rank(rank, None, peer, report)


def stuck(_rank, _place, _peer, _report):
    time.sleep(120)


def dying(rank, _place, peer, report):
    if rank == 0:
        os._exit(7)
    pairs._examine_rank(rank, None, peer, report)


class Astray(lamport_rs.IpcBuffer):
    """Rank 1's, which takes its own buffer for that of rank 0."""

    @property
    def peer_ptrs(self):
        return 2 * super().peer_ptrs[1:]


def mute(rank, place, peer, report):
    """What rank 1 stores never arrives."""
    pairs._ARRIVAL_SECONDS = 0.2
    if rank == 1:
        lamport_rs.IpcBuffer = Astray
    pairs._examine_rank(rank, place, peer, report)


def find(job, seconds: float) -> tuple[Pair, list[Transfer], float]:
    context = multiprocessing.get_context("forkserver")
    started = time.monotonic()
    pair, transfers = pairs.judge((2, 5), pairs.run_pair(context, job, (None, None), seconds), seconds)
    return pair, transfers, time.monotonic() - started


def test_the_direction_that_does_not_work_is_named():
    _, transfers, _ = find(mute, 60)
    assert {(each.source, each.target): each.works for each in transfers} == {(2, 5): True, (5, 2): False}
    (reason,) = [each.reason for each in transfers if not each.works]
    assert reason == "the word did not arrive within 2 s"


@pytest.mark.parametrize(
    ("job", "seconds", "reason"),
    [
        (stuck, 3, "no answer within 3 s"),
        pytest.param(deaf, 20, "the other rank sent nothing", marks=pytest.mark.long),
        (dying, 60, "its process ended before it was done"),
    ],
)
def test_ranks_that_hang_or_die_are_told_in_time(job, seconds, reason):
    pair, transfers, took = find(job, seconds)
    assert took < seconds + 15
    assert [each.works for each in transfers] == [False, False]
    assert any(reason in each.reason for each in transfers)
    assert reason in pair.reason
    assert pair.latency_us is None


def test_a_process_that_cannot_be_killed_is_not_waited_for():
    code = """
import multiprocessing, time
from lamport_rs.command_line.doctor import run
from lamport_rs.command_line.doctor.report import Finding, Report, held_processes
run.examine = lambda *_arguments: Report("host", 2, findings=[Finding("transfers", "error", "broken", "mend it")])
process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
process.start()
held_processes.append(process)
print(process.pid, flush=True)
run.run(2, "host", False)
"""
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as finished:
        held = int(finished.stdout.readline())
        status = finished.wait(25)
        os.kill(held, signal.SIGKILL)
        assert "something is wrong" in finished.stdout.read()
    assert status == 1
    assert time.monotonic() - started < 25


def test_pairs_whose_turn_never_comes_are_told():
    found = list(pairs.examine(3, lambda _rank: None, total=0.0))
    assert [pair.ranks for pair, _ in found] == [(0, 1), (0, 2), (1, 2)]
    assert all(each.works is None and "not tried" in each.reason for _, transfers in found for each in transfers)
    findings = run.judge_transfers([each for _, both in found for each in both], [pair for pair, _ in found], False)
    assert [each.status for each in findings] == 6 * ["error"]


def test_each_ordered_pair_that_fails_is_a_finding_with_a_remedy():
    transfers = [Transfer(0, 1, True), Transfer(1, 0, False, "the word did not arrive within 2 s")]
    (finding,) = run.judge_transfers(transfers, [Pair((0, 1), reason="whatever")], True)
    assert finding.status == "error"
    assert finding.text.startswith("a word from rank 1 to rank 0 does not arrive: ")
    assert "--ipc=host" in finding.remedy
    works = [Transfer(0, 1, True), Transfer(1, 0, True)]
    (finding,) = run.judge_transfers(works, [Pair((0, 1), reason="rank 0: wrong sum")], False)
    assert finding.text == "words of ranks 0 and 1 arrive, but operations fail: rank 0: wrong sum"
    assert [each.status for each in run.judge_transfers(works, [Pair((0, 1), 1.0, 2.0)], False)] == ["ok"]


def test_the_exit_status_is_1_if_something_is_wrong(monkeypatch, capsys):
    report = Report(
        "host", 2, findings=[Finding("transfers", "error", "broken", "mend it"), Finding("cores", "ok", "2")]
    )
    monkeypatch.setattr(run, "examine", lambda *_arguments: report)
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "doctor"])
    assert __main__.main() == 1
    output = capsys.readouterr().out
    assert "error    transfers: broken\n         -> mend it\n" in output
    assert output.endswith("something is wrong; errors: 1, warnings: 0\n")
    report.findings[0] = Finding("cores", "warning", "few", "take more")
    assert __main__.main() == 0


LISTING = "\n".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-uuid-{index})" for number, index in ((0, 7), (1, 1), (2, 0)))
TOPOLOGY = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tNV12\tPIX\t0-31\t0
GPU1\tNV18\t X \tSYS\tSYS\t0-31\t0
GPU2\tNV12\tSYS\t X \tSYS\t32-63\t1
NIC0\tPIX\tSYS\tSYS\t X \t\t
"""


def test_paths_are_those_of_torchs_gpus_whatever_their_numbers():
    assert gpus.parse_topology(TOPOLOGY)[0, 1] == "NV18"
    assert gpus.paths_between(H100, LISTING, TOPOLOGY) == {(0, 1): "SYS", (1, 0): "SYS"}
    assert gpus.paths_between([*H100, Gpu(2, "", "uuid-7", 0, "")], LISTING, TOPOLOGY)[0, 2] == "NV12"
    assert gpus.paths_between(H100, "", "") == {}


@pytest.mark.parametrize(
    ("here", "obstacle", "files", "status"),
    [
        (H100, None, True, "ok"),
        ([], "no libcuda.so.1", False, "ok"),
        ([], "no libcuda.so.1", True, "error"),
        ([], None, True, "error"),
        (H100, "the driver is too old", True, "error"),
    ],
)
def test_gpus_that_are_there_must_be_usable(here, obstacle, files, status):
    finding = gpus.judge_gpus(here, obstacle, files)
    assert finding.status == status
    assert (finding.remedy is None) == (status == "ok")
    if status == "error" and obstacle:
        assert obstacle in finding.text


def test_links_without_peer_access_or_nvlink_are_named():
    good = [Link(0, 1, True, "NV18"), Link(1, 0, True, "NV18")]
    assert [each.status for each in gpus.judge_links(good)] == ["ok", "ok"]
    access, path = gpus.judge_links([Link(0, 1, True, "NV18"), Link(1, 0, False, "SYS")])
    assert (access.status, access.text) == ("warning", "no peer access from GPU 1 to 0")
    assert (path.status, path.text.startswith("no NVLink from GPU 1 to 0")) == ("warning", True)
    assert gpus.judge_links([Link(0, 1, True, None)])[1].status == "warning"
    assert gpus.judge_links([]) == []


def test_device_files_tell_of_gpus(tmp_path):
    (tmp_path / "nvidiactl").touch()
    assert not gpus.has_device_files(tmp_path)
    (tmp_path / "nvidia3").touch()
    assert gpus.has_device_files(tmp_path)


GIB = 1 << 30
PLENTY = {
    "available_bytes": 64 * GIB,
    "container_limit_bytes": None,
    "container_used_bytes": None,
    "dev_shm_bytes": 32 * GIB,
    "dev_shm_free_bytes": 32 * GIB,
    "workspaces_bytes": GIB,
}


@pytest.mark.parametrize(
    ("changes", "on_gpus", "statuses"),
    [
        ({}, True, ["ok", "ok"]),
        ({"available_bytes": GIB - 1}, False, ["warning", "ok"]),
        ({"container_limit_bytes": 8 * GIB, "container_used_bytes": 7 * GIB + 1}, False, ["warning", "ok"]),
        ({"container_limit_bytes": 8 * GIB, "container_used_bytes": 7 * GIB}, False, ["ok", "ok"]),
        ({"dev_shm_bytes": 64 << 20, "dev_shm_free_bytes": 64 << 20}, True, ["ok", "warning"]),
        ({"dev_shm_bytes": None, "dev_shm_free_bytes": None}, True, ["ok", "warning"]),
        ({"dev_shm_bytes": None, "dev_shm_free_bytes": None}, False, ["ok", "ok"]),
    ],
)
def test_memory_is_compared_with_what_workspaces_take(changes, on_gpus, statuses):
    findings = machine.judge_memory({**PLENTY, **changes}, on_gpus)
    assert [each.status for each in findings] == statuses
    assert all((each.remedy is None) == (each.status == "ok") for each in findings)


@pytest.mark.parametrize(
    ("files", "locked", "on_gpus", "statuses"),
    [
        (1024, 65536, False, ["ok", "ok"]),
        (1023, None, False, ["warning", "ok"]),
        (None, 65536, True, ["ok", "warning"]),
        (None, None, True, ["ok", "ok"]),
    ],
)
def test_limits_that_matter_are_told(files, locked, on_gpus, statuses):
    findings = machine.judge_limits({"open_files": files, "locked_memory_bytes": locked}, on_gpus)
    assert [each.status for each in findings] == statuses


def test_cores_and_their_lack_are_findings():
    assert machine.judge_cores(Cores(4, None, 0.0), 4).status == "ok"
    finding = machine.judge_cores(Cores(2, None, 0.0), 4)
    assert finding.status == "warning"
    assert finding.text == "4 ranks on 2 cores: ranks wait for the scheduler, and latencies are its"
    assert finding.remedy == "allow 4 cores, or take fewer ranks"


def test_shared_memory_that_is_forbidden_is_an_obstacle(monkeypatch):
    assert machine.shared_memory_obstacle() is None

    def refuse(*_arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert machine.shared_memory_obstacle() == "Operation not permitted"


def test_gpus_that_are_not_there_are_refused(monkeypatch, capsys):
    if gpus.gpus_here():
        pytest.skip("there are GPUs here")
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["lamport-rs", "doctor", "--backend", "cuda", *options])
        assert __main__.main() == 1
        said = capsys.readouterr()
        assert said.err == ""
        assert "a rank takes a GPU of its own, a group takes two, and 0 can be used" in said.out
    report = json.loads(said.out)
    assert (report["healthy"], report["backend"], report["ranks"]) == (False, "cuda", None)
    (finding,) = (each for each in report["findings"] if each["status"] == "error")
    assert finding["check"] == "ranks"
    assert "--backend host" in finding["remedy"]
    assert report["memory"]["memfd_create"], "the machine is examined all the same"


@pytest.mark.parametrize(
    ("ranks", "share", "expected"), [(None, "", (True, 2)), (2, "", (True, 2)), (3, "", None), (3, "1", (True, 3))]
)
def test_each_rank_takes_a_gpu_unless_they_may_share(ranks, share, expected, monkeypatch):
    monkeypatch.setattr(run._core, "cuda_obstacle", lambda: None)
    monkeypatch.setenv("LAMPORT_RS_SHARE_GPU", share)
    if expected is None:
        with pytest.raises(LamportError, match="and 2 can be used here"):
            run._choose(Report(gpus=H100), ranks, "auto")
    else:
        assert run._choose(Report(gpus=H100), ranks, "auto") == expected


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_on_gpus_words_travel_and_links_are_known():
    finished = subprocess.run([*DOCTOR[:-2], "--ranks", "2", "--json"], capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads(finished.stdout)
    assert (found["backend"], found["ranks"]) == ("cuda", 2)
    assert all(each["works"] for each in found["transfers"])
    assert 0 < found["pairs"][0]["latency_us"] < 100
    assert found["pairs"][0]["bandwidth_gb_per_s"] > 1
    assert len(found["links"]) == len(found["gpus"]) * (len(found["gpus"]) - 1)
