"""The benchmark command: what it checks, prints, records and draws."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, __main__
from lamport_rs.command_line.bench import run as command
from lamport_rs.command_line.bench.arguments import (
    COLLECTIVES,
    DEFAULT_OPERATIONS,
    FINALISATIONS,
    IMPLEMENTATION_NAMES,
    STEPS,
    parse_bytes,
)
from lamport_rs.command_line.bench.cases import (
    Case,
    all_reduce_case,
    cases_of,
    finalise_case,
    message_bytes,
    rows_case,
)
from lamport_rs.command_line.bench.findings import Findings, Missing
from lamport_rs.command_line.bench.implementations import IMPLEMENTATIONS, Call, implementations_of
from lamport_rs.command_line.bench.implementations.by_torch import EagerGloo, Gloo
from lamport_rs.command_line.bench.implementations.own import Lamport, LamportUnfused
from lamport_rs.command_line.bench.link import floor_us, sum_of_links
from lamport_rs.command_line.bench.measure import WrongResultError, run_rank
from lamport_rs.command_line.bench.member import Member
from lamport_rs.command_line.bench.options import Options
from lamport_rs.command_line.bench.plot import draw, spread
from lamport_rs.command_line.bench.problems import QUANT_FORMAT, AllReduce, AllReduceQuant, Expected, pose
from lamport_rs.command_line.bench.progress import Progress
from lamport_rs.command_line.bench.record import Record, Row, read, write
from lamport_rs.command_line.bench.report import missing_text, ratio, tables
from lamport_rs.command_line.launch import launch
from lamport_rs.operations.quant_formats import empty_quantised, put_quantised
from ranks import Rank, errors_of

COMPARED = [op for op in DEFAULT_OPERATIONS if op in COLLECTIVES + STEPS]
KEYS = ["schema", "date", "commit", "gpu", "gpus", "driver", "torch", "nccl", "cpu", "python", "method"]


def run_bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lamport_rs", "bench", *map(str, arguments)]
    # Without COLUMNS, which readline, imported by pytest, has set behind Python's back.
    return subprocess.run(line, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})


@pytest.fixture(scope="module")
def host_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("bench")
    sizes = ["--sizes", "512", "8Ki", "--tokens", "1", "8", "--layers", "2"]
    finished = run_bench("--backend", "host", "--replays", "1", "--record", folder, *sizes)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return folder, finished


@pytest.mark.long
def test_the_record_has_every_measurement_in_the_documented_form(host_run):
    (path,) = host_run[0].glob("*-cpu-x2.json")
    run = json.loads(path.read_text())
    assert list(run) == [*KEYS, "link_gb_per_s", "interrupted", "newest_nccl", "peers", "rows"]
    assert (run["schema"], run["gpu"], run["gpus"], run["nccl"], run["interrupted"]) == (1, None, 0, None, False)
    found = {(row["op"], row["impl"], row["dtype"], row.get("bytes"), row.get("tokens"))
             for row in run["rows"] if not row["op"].startswith("moe_")}  # fmt: skip
    sums = {("all_reduce", impl, dtype, size, None) for impl in ("lamport_rs", "gloo")
            for dtype in ("float32", "bfloat16") for size in (512, 8192)}  # fmt: skip
    rows = {(op, impl, "bfloat16", None, tokens)
            for op in ("all_reduce_rms_norm", "all_reduce_quant", "minimax_allreduce_rms_qk")
            for impl in ("lamport_rs", "torch_eager_gloo") for tokens in (1, 8)}  # fmt: skip
    steps = {("decode_step", impl, "float32", None, tokens) for tokens in (1, 8)
             for impl in ("lamport_rs", "lamport_rs_unfused", "gloo", "no_communication")}  # fmt: skip
    assert found == sums | rows | steps | {("create_workspace", "lamport_rs", "uint8", 2 << 20, None)}
    finalised = [(row["op"], row["impl"], row["tokens"], row["hidden"])
                 for row in run["rows"] if row["op"].startswith("moe_")]  # fmt: skip
    assert sorted(finalised) == sorted(
        (op, impl, tokens, hidden) for op in FINALISATIONS
        for impl in ("lamport_rs", "lamport_rs_unfused", "torch_eager_gloo")
        for tokens in (1, 8) for hidden in (4096, 7168)
    )  # fmt: skip
    for row in run["rows"]:
        assert (row["world_size"], row["timing"]) == (2, "back_to_back")
        assert row.get("layers") == (2 if row["op"] == "decode_step" else None)
        assert 0 < row["min_us"] <= row["median_us"] <= row["max_us"]


@pytest.mark.long
def test_a_table_per_operation_dtype_and_width_is_printed_with_ratios(host_run):
    output = host_run[1].stdout
    for title in (
        "all_reduce, float32, 2 processes",
        "all_reduce, bfloat16, 2 processes",
        "all_reduce_rms_norm, bfloat16, 2 processes, hidden 4096",
        "all_reduce_quant, bfloat16, 2 processes, hidden 4096",
        "moe_finalize_all_reduce, bfloat16, 2 processes, hidden 7168",
        "moe_finalize_all_reduce_rms_norm, bfloat16, 2 processes, hidden 4096",
        "moe_finalize_all_reduce_rms_norm, bfloat16, 2 processes, hidden 7168",
    ):
        assert f"\n{title}, back to back: median latency in microseconds" in output
    assert "create_workspace, uint8, 2 processes: median latency in microseconds" in output
    assert "decode_step, float32, 2 processes, 2 layers of 256: median ms per step" in output
    assert output.count("best other / lamport_rs") == 10


@pytest.mark.long
def test_progress_is_a_line_per_case_by_one_rank(host_run):
    lines = [line for line in host_run[1].stderr.splitlines() if line.startswith("[2 processes, ")]
    assert [line.split("]")[0] for line in lines] == [f"[2 processes, {step}/21" for step in range(1, 22)]


@pytest.mark.long
def test_figures_are_drawn_where_matplotlib_is(host_run):
    drawn = {path.name.partition("-x2-")[2] for path in host_run[0].iterdir() if path.suffix != ".json"}
    if importlib.util.find_spec("matplotlib") is None:
        assert not drawn
        assert "no figures: matplotlib is not installed" in host_run[1].stdout
    else:
        assert drawn == {f"{op}.{suffix}" for op in COMPARED for suffix in ("png", "svg")}


@pytest.mark.long
def test_it_needs_no_numpy(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('there is no numpy')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    arguments = ["--backend", "host", "--sizes", "512", "--tokens", "1", "--layers", "1", "--replays", "1"]
    finished = run_bench(*arguments, "--no-record", PYTHONPATH=path)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_on_gpus_every_implementation_is_measured_or_named_with_a_reason(tmp_path):
    arguments = ["--world-sizes", "2", "--sizes", "8Ki", "1Mi", "--tokens", "1", "8", "--layers", "2"]
    finished = run_bench("--backend", "cuda", "--replays", "3", "--record", tmp_path, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (path,) = tmp_path.glob("*.json")
    run = json.loads(path.read_text())
    assert run["gpus"] == 2
    assert "NCCL_NVLS_ENABLE=0" in run["method"]
    for op in COMPARED:
        measured = {row["impl"] for row in run["rows"] if row["op"] == op}
        for implementation in implementations_of(op, "cuda"):
            named = f"{op} by {implementation.name}, " in finished.stderr
            assert implementation.name in measured or named, finished.stderr
        timings = {row["timing"] for row in run["rows"] if row["op"] == op}
        assert timings == ({"back_to_back"} if op == "decode_step" else {"back_to_back", "kernel_between"})


def wrong_on_rank_1(me: Rank, path: Path) -> None:
    prepare = Lamport.prepare

    def with_an_error(self, problem):
        call = prepare(self, problem)
        return Call(lambda: tuple(output + (me.rank == 1) for output in call.run()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lamport, "prepare", with_an_error)
        options = Options("host", (2,), operations=("all_reduce",), sizes=(512,), replays=1)
        run_rank(me.rank, me.world_size, me.device, options, path)


def test_a_wrong_result_on_one_rank_ends_the_run_on_all(ranks_of, tmp_path):
    for error in errors_of(ranks_of(2).try_run(wrong_on_rank_1, tmp_path / "findings")):
        assert isinstance(error, WrongResultError)
        assert "all_reduce of float32, 512 by lamport_rs is wrong: rank 1: Tensor-likes are not equal" in str(error)


def unavailable_on_rank_1(me: Rank, path: Path) -> None:
    prepare = Gloo.prepare

    def refuse(self, problem):
        if me.rank == 1:
            raise TypeError("no such argument")
        return prepare(self, problem)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gloo, "prepare", refuse)
        options = Options("host", (2,), operations=("all_reduce",), sizes=(512,), replays=1)
        run_rank(me.rank, me.world_size, me.device, options, path)


def test_an_implementation_that_one_rank_lacks_is_left_out_on_all_with_the_reason(ranks_of, tmp_path):
    ranks_of(2).run(unavailable_on_rank_1, tmp_path / "findings")
    found = Findings()
    found.take(tmp_path / "findings")
    assert {row.impl for row in found.rows} == {"lamport_rs"}
    # Once per dtype.
    assert found.missing == 2 * [Missing("all_reduce by gloo", 2, "rank 1: TypeError: no such argument", "512")]


def test_the_command_fails_when_a_rank_does(monkeypatch, capsys):
    def fail(*_arguments, **_options):
        raise LamportError("all_reduce by nccl is wrong")

    monkeypatch.setattr(command, "launch", fail)
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--backend", "host", "--no-record"])
    assert __main__.main() == 1
    assert "all_reduce by nccl is wrong" in capsys.readouterr().err


def hang(rank: int, _world_size: int, _device: torch.device) -> None:
    if rank == 1:
        time.sleep(60)


@pytest.mark.long
def test_ranks_that_hang_are_ended():
    started = time.monotonic()
    with pytest.raises(LamportError, match="2 ranks did not finish within 6 s"):
        launch(hang, 2, "host", time_limit=6)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--world-sizes", "1"], "cannot be had"),
        (["--world-sizes", "17"], "cannot be had"),
        (["--operations", "host_time"], "measured on GPUs"),
        (["--timing", "back_to_back", "kernel_between"], "measured on GPUs"),
        (["--draw", "/nowhere.json"], "holds no record"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_starts(monkeypatch, capsys, arguments, reason):
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--backend", "host", *arguments])
    assert __main__.main() == 1
    assert reason in capsys.readouterr().err


def problem_of(values: list[float], dtype: torch.dtype) -> AllReduce:
    tensor = torch.tensor(values, dtype=dtype)
    return AllReduce(all_reduce_case(tensor.nbytes, dtype), 2, (Expected(tensor, exact=True),), tensor)


def test_experts_rows_are_measured_in_two_widths_and_count_as_sums_of_them():
    cases = cases_of("moe_finalize_all_reduce", "cuda", tokens=[1, 4])
    assert [(case.tokens, case.hidden) for case in cases] == [(1, 4096), (4, 4096), (1, 7168), (4, 7168)]
    assert [message_bytes(case) for case in cases] == [8192, 32768, 14336, 57344]


def test_a_sum_that_is_rounded_once_must_be_the_very_values():
    problem = problem_of([1.0, 300.0], torch.bfloat16)
    last_place = problem.input * (1 + torch.finfo(torch.bfloat16).eps)
    problem.check((problem.input.clone(),), rounds_once=True)
    problem.check((last_place,), rounds_once=False)
    with pytest.raises(AssertionError):
        problem.check((last_place,), rounds_once=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wrong", [2.0, float("nan"), float("inf")])
def test_no_tolerance_passes_a_wrong_sum(dtype, wrong):
    with pytest.raises(AssertionError):
        problem_of([1.0, 3.0], dtype).check((torch.tensor([1.0, wrong], dtype=dtype),), rounds_once=False)


def quant_problem(total: torch.Tensor) -> tuple[AllReduceQuant, list[torch.Tensor]]:
    outputs = list(empty_quantised(total, QUANT_FORMAT, None))
    put_quantised(total, QUANT_FORMAT, outputs[0], None, outputs[1])
    expected = tuple(Expected(each.clone(), exact=True) for each in outputs)
    return AllReduceQuant(rows_case("all_reduce_quant", len(total)), 2, expected, total), outputs


def neighbours(rows: torch.Tensor) -> torch.Tensor:
    """Each value of FP8, but the next one of larger magnitude; the largest of all stays."""
    codes = rows.view(torch.uint8)
    return torch.where((codes & 0x7F) < 0x7E, codes + 1, codes).view(rows.dtype)


def test_a_sum_that_is_quantised_must_be_the_very_values_if_it_is_rounded_once():
    problem, (rows, scales) = quant_problem(torch.randn(3, 64).bfloat16())
    problem.check((rows, scales), rounds_once=True)
    problem.check((rows, scales * 1.001), rounds_once=False)
    problem.check((neighbours(rows), scales), rounds_once=False)
    for wrong in ((neighbours(rows), scales), (rows, scales * 1.001)):
        with pytest.raises(AssertionError):
            problem.check(wrong, rounds_once=True)


@pytest.mark.parametrize("wrong", [0.0, 100.0, float("nan")])
@pytest.mark.parametrize("rounds_once", [True, False])
def test_no_tolerance_passes_a_wrong_sum_that_is_quantised(wrong, rounds_once):
    for at in (0, 1):
        rows = torch.randn(2, 64).bfloat16().abs() + 1
        rows[:, 0], rows[:, 1] = 8, 1  # The second is 56 or so when the first is 448: no neighbour of 100.
        problem, outputs = quant_problem(rows)
        outputs[at].view(-1)[1] = wrong
        with pytest.raises(AssertionError):
            problem.check(outputs, rounds_once)


def check_finalisations(me: Rank) -> None:
    group = dist.group.WORLD
    assert group is not None
    member = Member(me.workspace(1 << 20), group)
    for op in FINALISATIONS:
        problem = pose(finalise_case(op, 3, 64), member)
        weights, shared = problem.experts.weights.flip(1), -problem.experts.shared
        wrong = [replace(problem.experts, weights=weights), replace(problem.experts, shared=shared)]
        for implementation in (each(member, []) for each in (Lamport, LamportUnfused, EagerGloo)):
            problem.check(implementation.prepare(problem).run(), implementation.rounds_once)
            for experts in wrong:
                outputs = implementation.prepare(replace(problem, experts=experts)).run()
                with pytest.raises(AssertionError):
                    problem.check(outputs, implementation.rounds_once)


def test_experts_rows_of_a_wrong_weight_or_without_the_shared_ones_do_not_pass(ranks_of):
    ranks_of(2).run(check_finalisations)


def check_norms(me: Rank) -> None:
    group = dist.group.WORLD
    assert group is not None
    member = Member(me.workspace(1 << 20), group)
    changes = {
        "all_reduce_rms_norm": ("input", "residual", "weight"),
        "all_reduce_layer_norm": ("input", "residual", "weight", "bias"),
        "all_reduce_rms_norm_quant": ("input", "residual", "weight"),
        "minimax_allreduce_rms": ("input", "norm_weight"),
        "minimax_allreduce_rms_qk": ("qkv", "q_weight", "k_weight"),
    }
    for op, names in changes.items():
        (problem,) = cases_of(op, "host", tokens=[3])
        problem = pose(problem, member)
        for implementation in (each(member, []) for each in (Lamport, EagerGloo)):
            problem.check(implementation.prepare(problem).run(), implementation.rounds_once)
            for name in names:
                wrong = replace(problem, **{name: getattr(problem, name).flip(-1)})
                outputs = implementation.prepare(wrong).run()
                with pytest.raises(AssertionError):
                    problem.check(outputs, implementation.rounds_once)


def test_norms_of_a_wrong_operand_do_not_pass(ranks_of):
    ranks_of(2).run(check_norms)


def test_names_of_implementations_are_distinct_and_each_serves_something():
    assert tuple(each.name for each in IMPLEMENTATIONS) == IMPLEMENTATION_NAMES
    assert len(set(IMPLEMENTATION_NAMES)) == len(IMPLEMENTATIONS)
    for each in IMPLEMENTATIONS:
        assert any(each.serves(op, backend) for op in each.operations for backend in ("host", "cuda"))


def test_every_implementation_is_in_the_help_and_in_the_documentation():
    told = " ".join(run_bench("--help", COLUMNS="400").stdout.split())
    assert f"some of {', '.join(IMPLEMENTATION_NAMES)} (default: all)" in told
    text = (Path(__file__).parents[1] / "docs" / "measuring.md").read_text()
    assert [name for name in IMPLEMENTATION_NAMES if f"`{name}`" not in text] == []


@pytest.mark.parametrize(("text", "size"), [("512", 512), ("8Ki", 8192), ("1 MiB", 1 << 20), ("2mi", 2 << 20)])
def test_sizes_are_read_with_suffixes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "-16", "8", "1.5Ki", "8K", "Ki"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


def row_of(case: Case, impl: str, median: float, world_size: int = 2) -> Row:
    return Row(impl=impl, world_size=world_size, median_us=median, min_us=median, max_us=median, **case.keys())


def sample_record(**changes: object) -> Record:
    medians = {"lamport_rs": 2.0, "lamport_rs_two_shot": 1.0, "nccl": 6.0, "symm_mem_one_shot": 5.0}
    cases = [all_reduce_case(size, torch.bfloat16) for size in (512, 8192)]
    cases += [rows_case("all_reduce_rms_norm", tokens) for tokens in (1, 8)]
    rows = tuple(row_of(case, impl, us, n) for n in (2, 4) for case in cases for impl, us in medians.items())
    record = Record(1, "2026-01-02T03:04:05+00:00", None, "NVIDIA H200", 4, None, "2", "2", "cpu", "3", "none", rows)
    return replace(record, link_gb_per_s=478.1, **changes)


def test_the_ratio_is_that_of_the_best_other_and_not_of_our_own_algorithms():
    assert ratio({"lamport_rs": 2.0, "lamport_rs_two_shot": 1.0, "nccl": 6.0, "gloo": 5.0}) == 2.5
    assert ratio({"lamport_rs": 2.0, "lamport_rs_two_shot": 1.0}) is None
    assert ratio({"nccl": 2.0}) is None


def test_a_table_leaves_out_nothing_where_an_implementation_is_missing():
    rows = [
        row_of(all_reduce_case(512, torch.bfloat16), "nccl", 6.0),
        row_of(all_reduce_case(8192, torch.bfloat16), "nccl", 7.0),
        row_of(all_reduce_case(8192, torch.bfloat16), "lamport_rs", 2.0),
    ]
    lines = tables(rows, "GPUs", 200).splitlines()
    assert lines[0] == "all_reduce, bfloat16, 2 GPUs, back to back: median latency in microseconds (least-most)"
    nccl, own = ("7.00", "(7.00-7.00)"), ("2.00", "(2.00-2.00)")
    assert [line.split() for line in lines[3:]] == [
        ["512", "6.00", "(6.00-6.00)", "-", "-"],
        ["8", "Ki", *nccl, *own, "3.50"],
    ]


def test_the_extremes_stand_beside_the_median():
    row = replace(row_of(all_reduce_case(512, torch.bfloat16), "nccl", 6.0), min_us=5.5, max_us=1234.5)
    assert tables([row], "GPUs", 200).splitlines()[-1].split() == ["512", "6.00", "(5.50-1234)"]


@pytest.mark.parametrize("width", [60, 40])
def test_tables_fit_a_narrow_terminal(width):
    rows = [replace(row, graph_operations=6) for row in sample_record().rows]
    text = tables(rows, "processes", width)
    assert max(map(len, text.splitlines())) <= width
    for name in ("lamport_rs", "lamport_rs_two_shot", "nccl", "symm_mem_one_shot", "best other / lamport_rs"):
        assert name in text
    assert text.count("6.00* (6.00-6.00)") == 8
    missing = [Missing("all_reduce by a", 2, "not installed, and so cannot be measured", size) for size in ("512", "1")]
    assert max(map(len, missing_text(missing, width).splitlines())) <= width


def test_one_size_is_a_table_but_no_figure(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    cases = [all_reduce_case(512, dtype) for dtype in (torch.float32, torch.bfloat16)]
    rows = tuple(row_of(case, impl, 2.0) for case in cases for impl in ("lamport_rs", "gloo"))
    path = write(replace(sample_record(), rows=rows), tmp_path)
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path)])
    assert __main__.main() == 0
    output = capsys.readouterr().out
    assert output.count("512") == 2
    assert "no figures: they take several sizes" in output
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.long
def test_a_record_is_drawn_where_it_is_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    path = write(sample_record(), tmp_path / "records")
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path), "--record", str(tmp_path / "drawn")])
    assert __main__.main() == 0
    assert list((tmp_path / "records").iterdir()) == [path]
    assert len(list((tmp_path / "drawn").iterdir())) == 4
    for option in ("--no-record", "--no-plot"):
        monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path), option])
        assert __main__.main() == 0
    assert list((tmp_path / "records").iterdir()) == [path]


@pytest.mark.parametrize("draws", [True, False])
def test_a_folder_that_takes_no_files_is_refused_before_anything_starts(draws, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "launch", lambda *arguments, **options: pytest.fail("it ran"))
    file = tmp_path / "file"
    file.touch()
    given = ["--draw", str(write(sample_record(), tmp_path))] if draws else ["--backend", "host"]
    for folder in (file, file / "below", Path("/proc")):
        monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", *given, "--record", str(folder)])
        assert __main__.main() == 1
        assert f"no record can be left in {folder}: " in capsys.readouterr().err


@pytest.mark.long
def test_an_interrupted_run_does_not_replace_a_whole_one_and_is_marked(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    whole = write(sample_record(), tmp_path)
    path = write(replace(sample_record(), interrupted=True), tmp_path)
    assert path.name == "2026-01-02-h200-x4-interrupted.json"
    assert not read(whole).interrupted
    assert read(path).interrupted
    assert "2026-01-02, interrupted" in draw(read(path), tmp_path)[1].read_text()
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path), "--no-plot"])
    assert __main__.main() == 0
    assert capsys.readouterr().out.startswith("This run was interrupted.")


def test_sizes_that_share_a_reason_are_named_together():
    missing = [Missing("all_reduce by a", 2, "too small", size) for size in ("512", "8 Ki")]
    text = missing_text([*missing, Missing("all_reduce by b", 2, "not installed")], 200)
    assert text.splitlines() == [
        "not measured:",
        "  all_reduce by a, 2 ranks, at 512, 8 Ki: too small",
        "  all_reduce by b, 2 ranks: not installed",
    ]


def test_a_record_reads_back_as_it_was_written_and_passes_over_notes(tmp_path):
    record = sample_record()
    path = write(record, tmp_path / "results")
    assert path.name == "2026-01-02-h200-x4.json"
    run = json.loads(path.read_text())
    assert all(value is not None for row in run["rows"] for value in row.values())
    path.write_text(json.dumps({**run, "note": "by hand"}))
    assert read(path) == record


def test_recorded_runs_of_the_project_can_be_read():
    for path in Path(__file__).parent.parent.glob("benchmarks/results/*.json"):
        assert "-soak-" in path.name or read(path).rows


@pytest.mark.long
def test_figures_show_every_implementation_and_the_links_limit(tmp_path):
    pytest.importorskip("matplotlib")
    paths = draw(sample_record(), tmp_path)
    assert [path.name for path in paths] == [
        f"2026-01-02-h200-x4-{op}.{suffix}" for op in ("all_reduce", "all_reduce_rms_norm") for suffix in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[::2])
    text = paths[1].read_text()
    for expected in ("lamport_rs_two_shot", "symm_mem_one_shot", "link's limit, 478 GB/s", "link's limit, 319 GB/s"):
        assert expected in text


@pytest.mark.long
def test_figures_without_a_link_have_no_limit(tmp_path):
    pytest.importorskip("matplotlib")
    paths = draw(replace(sample_record(), link_gb_per_s=None), tmp_path)
    assert "limit" not in paths[1].read_text()


def test_a_missing_matplotlib_costs_the_figures_only(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = write(sample_record(), tmp_path)
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path)])
    assert __main__.main() == 0
    output = capsys.readouterr().out
    assert "no figures: matplotlib is not installed" in output
    assert "all_reduce, bfloat16, 4 GPUs" in output


def test_labels_are_moved_apart_and_stay_inside():
    moved = spread([0.95, 0.95, 0.5, 0.96, 0.51], 0.1)
    in_order = sorted(moved)
    assert all(above - below >= 0.1 - 1e-9 for below, above in pairwise(in_order))
    assert in_order[-1] <= 1
    assert moved[2] == 0.5


def test_the_links_bandwidth_is_the_sum_of_its_lanes():
    status = "GPU 0: NVIDIA H200 (UUID: GPU-0)\n" + "".join(f"\t Link {n}: 26.562 GB/s\n" for n in range(18))
    assert sum_of_links(status) == pytest.approx(478.116)
    assert sum_of_links("GPU 0: NVIDIA H200\n\t Link 0: <inactive>\n") is None


def test_the_floor_is_that_of_the_better_algorithm():
    assert floor_us(478e3, 2, 478.0) == pytest.approx(1.0)
    assert floor_us(478e3, 4, 478.0) == pytest.approx(1.5)


def test_only_one_rank_reports_progress(capsys):
    for speaks in (True, False):
        progress = Progress("2 GPUs", 3, speaks)
        progress.doing("unseen where there is no terminal")
        progress.done("first")
        progress.close()
    assert capsys.readouterr().err == "[2 GPUs, 1/3] first\n"


def test_importing_the_package_imports_none_of_this():
    code = "import sys, lamport_rs; print([name for name in sys.modules if 'command_line' in name])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
