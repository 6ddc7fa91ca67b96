"""The tables about the peers, and the pages that have them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peer_tables
import pytest
from lamport_rs import LamportError
from lamport_rs.command_line.bench.arguments import BACK_TO_BACK, KERNEL_BETWEEN
from lamport_rs.command_line.bench.record import Record, Row
from peer_tables import Line


def row(impl: str, median: float, size: int = 512, world_size: int = 2, **more) -> Row:
    more = {"timing": KERNEL_BETWEEN, **more}
    return Row("all_reduce", impl, world_size, "bfloat16", median, median, median, size, **more)


def record(*rows: Row, date: str = "2026-01-02") -> Record:
    return Record(1, date, "0123456", "NVIDIA H200", 2, None, "", None, "", "", "", rows)


def write_record(path: Path, made: Record) -> Path:
    rows = [{key: value for key, value in vars(each).items() if value is not None} for each in made.rows]
    path.write_text(json.dumps({**vars(made), "rows": rows}))
    return path


LINES = (Line("ours", ("lamport_rs",)), Line("better", ("a", "b")), Line("absent", ("c",)))


def test_a_table_has_the_fastest_of_a_line_and_the_least_of_a_column_in_bold():
    rows = [row("lamport_rs", 2.0), row("a", 2.5), row("b", 2.2, graph_operations=6), row("lamport_rs_one_shot", 1.0)]
    rows += [row("lamport_rs", 4.0, 8192), row("a", 3.6, 8192)]
    assert peer_tables.table("title", rows, LINES).splitlines() == [
        "| title | 512 | 8 Ki |",
        "| --- | --- | --- |",
        "| ours | **2.00** | 4.00 |",
        "| better | 2.20\\* | **3.60** |",
        "| best other / lamport-rs | 1.10 | 0.90 |",
    ]


def test_a_table_has_the_columns_it_is_asked_for():
    rows = [row("lamport_rs", 2.0), row("lamport_rs", 4.0, 8192), row("lamport_rs", 9.0, 1 << 20)]
    heading = peer_tables.table("title", rows, LINES, ("8 Ki", "1 Mi")).splitlines()[0]
    assert heading == "| title | 8 Ki | 1 Mi |"


def test_the_times_of_others_are_those_of_their_fastest_from_least_to_most():
    rows = [row("lamport_rs", 2.0), row("nccl", 5.0), row("nccl_windows", 4.0), row("vllm_custom", 3.0)]
    rows += [row("lamport_rs", 4.0, 8192), row("nccl", 6.0, 8192), row("sglang_push", 1.0, timing=BACK_TO_BACK)]
    lines = peer_tables.times({2: record(*rows)}).splitlines()
    assert lines[0] == "| times as long as lamport-rs | 2 GPUs: all-reduce | 2 GPUs: with residual and RMSNorm |"
    assert "| NCCL | 1.50 to 2.00 |  |" in lines
    assert "| vLLM 0.8.2's custom all-reduce | 1.50 to 1.50 |  |" in lines
    assert "| SGLang's kernels |  |  |" in lines


def test_what_looks_equal_is_bold_alike_and_what_was_not_measured_is_left_out():
    rows = [row("lamport_rs", 2.001), row("a", 2.004), row("lamport_rs", 3.0, 8192)]
    *_, ours, better, ratio = peer_tables.table("title", rows, LINES).splitlines()
    assert (ours, better, ratio) == (
        "| ours | **2.00** | **3.00** |",
        "| better | **2.00** |  |",
        "| best other / lamport-rs | 1.00 |  |",
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.267, "2.27"), (9.994, "9.99"), (9.996, "10.0"), (47.13, "47.1"), (99.96, "100"), (141.7, "142")],
)
def test_figures_have_three_digits(value, text):
    assert peer_tables.digits(value) == text


def test_the_newest_record_of_each_group_is_taken_and_those_without_a_kernel_between_are_not(tmp_path):
    write_record(tmp_path / "old.json", record(row("a", 1.0), date="2026-01-01"))
    write_record(tmp_path / "new.json", record(row("a", 2.0), row("a", 3.0, world_size=4), date="2026-01-03"))
    write_record(tmp_path / "four.json", record(row("a", 4.0, world_size=4), date="2026-01-02"))
    write_record(tmp_path / "first.json", record(row("a", 5.0, timing=BACK_TO_BACK), date="2026-01-04"))
    write_record(tmp_path / "others.json", replace(record(row("a", 6.0), date="2026-01-05"), gpu="NVIDIA H100"))
    found = peer_tables.recorded(tmp_path)
    assert {world_size: each.date for world_size, each in found.items()} == {2: "2026-01-03", 4: "2026-01-03"}


def test_a_record_without_one_of_the_timings_is_refused(tmp_path, capsys):
    path = write_record(tmp_path / "run.json", record(row("lamport_rs", 1.0)))
    assert peer_tables.main([str(path)]) == 1
    assert "no collectives of 2 GPUs, back_to_back" in capsys.readouterr().err
    with pytest.raises(LamportError, match="4 GPUs"):
        peer_tables.parts(record(row("a", 1.0)), 4, KERNEL_BETWEEN, peer_tables.WHOLE)


def test_writing_fills_all_pages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(peer_tables, "ROOT", tmp_path)
    (tmp_path / "docs" / "appendix").mkdir(parents=True)
    marked = {
        tmp_path / "README.md": "peers",
        tmp_path / "docs" / "performance.md": "peers-2-kernel_between",
        tmp_path / "docs" / "comparison.md": "times",
        tmp_path / "docs" / "appendix" / "back_to_back.md": "peers-2-back_to_back",
    }
    for page, name in marked.items():
        page.write_text(f"<!-- {name} -->\nold\n<!-- /{name} -->\n")
    rows = [row("lamport_rs", 2.0, 8192), row("sglang_push", 3.0, 8192), row("nccl_windows", 4.0, 8192)]
    rows += [replace(each, timing=BACK_TO_BACK, median_us=each.median_us - 1) for each in rows]
    path = write_record(tmp_path / "run.json", record(*rows))
    assert peer_tables.main([str(path), "--write"]) == 0
    assert "| NCCL, registered windows | 3.00 |" in capsys.readouterr().out
    readme, between, compared, back_to_back = (each.read_text() for each in marked)
    assert "| NCCL | 2.00 to 2.00 |" in compared
    assert "old" not in readme + between + back_to_back
    assert "| 2 H200: all-reduce, bytes | 8 Ki |" in readme
    assert "| NCCL, better of two | 4.00 |" in readme
    assert "| SGLang, push | 3.00 |" in between
    assert "| SGLang, push | 2.00 |" in back_to_back


def test_the_pages_show_the_committed_records():
    for page, found in peer_tables.pages(peer_tables.recorded()).items():
        text = page.read_text()
        for name, part in found.items():
            marked = f"<!-- {name} -->\n{part}\n<!-- /{name} -->"
            assert marked in text, f"{name} is out of date: run `python benchmarks/peer_tables.py --write`"
