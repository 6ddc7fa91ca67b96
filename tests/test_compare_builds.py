"""The comparison of two builds: what it runs, and when a change is too slow."""

from __future__ import annotations

import json
from pathlib import Path

import compare_builds
import lamport_rs
import pytest
from compare_builds import Comparison

SITE = Path(lamport_rs.__file__).resolve().parents[1]


def key(size: int) -> compare_builds.Key:
    return ("all_reduce", "lamport_rs", 2, "bfloat16", size, None, None, None, "back_to_back")


def test_the_medians_of_the_starts_are_compared():
    comparison = Comparison(key(512), (1.0, 9.0, 2.0), (2.02, 0.1, 8.0))
    assert comparison.ratio == pytest.approx(1.01)
    assert comparison.is_within(1.1)
    assert not comparison.is_within(0.9)
    assert comparison.name == "all_reduce lamport_rs 2 bfloat16 512 back_to_back"


def test_what_one_build_does_not_measure_is_not_within():
    only_before, only_after = compare_builds.compare({key(512): [1.0]}, {key(1024): [1.0]})
    assert only_before.ratio is None
    assert not only_before.is_within(100)
    assert not only_after.is_within(100)
    assert "| 1.000 | - | **not measured** |" in compare_builds.table([only_before], 1)


def test_a_row_that_is_too_slow_is_bold():
    rows = compare_builds.compare({key(512): [1.0], key(1024): [1.0]}, {key(512): [1.2], key(1024): [0.5]})
    slower, faster = compare_builds.table(rows, 10).splitlines()[2:]
    assert slower.endswith("| **1.200** |")
    assert faster.endswith("| 0.500 |")


def records(monkeypatch, figures: dict[str, list[float]]) -> list[str]:
    """Let the bench of each build have these figures, one for each start; returns the builds that were run."""
    ran: list[str] = []

    def run_bench(place: Path, options: list[str]) -> dict[str, object]:
        assert options == ["--implementations", "lamport_rs", "--sizes", "512"]
        ran.append(place.name)
        row = dict(zip(compare_builds.MEASURES, key(512), strict=True))
        return {"rows": [{**row, "median_us": figures[place.name][ran.count(place.name) - 1]}]}

    monkeypatch.setattr(compare_builds, "run_bench", run_bench)
    return ran


@pytest.mark.parametrize(("after", "status"), [(1.009, 0), (1.011, 1), (0.5, 0)])
def test_builds_take_turns_and_the_status_says_whether_one_is_slower(monkeypatch, tmp_path, capsys, after, status):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    ran = records(monkeypatch, {"old": [1.0, 1.0, 5.0], "new": [after, 0.1, 7.0]})
    out = tmp_path / "out.json"
    arguments = [f"{tmp_path}/old", f"{tmp_path}/new", "--starts", "3", "--out", str(out), "--", "--sizes", "512"]
    assert compare_builds.main(arguments) == status
    assert ran == ["old", "new", "new", "old", "old", "new"]
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["op"], row["bytes"], row["ratio"]) == ("all_reduce", 512, pytest.approx(after))
    assert "(1.000 to 5.000)" in capsys.readouterr().out


@pytest.mark.long
def test_a_build_is_measured_by_its_own_bench():
    options = ["--backend", "host", "--operations", "all_reduce", "--sizes", "512", "--replays", "1"]
    rows = compare_builds.rows_of(compare_builds.run_bench(SITE, [*compare_builds.DEFAULTS, *options]))
    assert [(row[0], row[1], row[4]) for row, _ in rows] == [("all_reduce", "lamport_rs", 512)] * 2
