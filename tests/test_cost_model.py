"""The cost model of the all-reduce, its fit, and the page that rests on them."""

from __future__ import annotations

import json
import re
from dataclasses import astuple, replace
from itertools import pairwise
from math import log2
from pathlib import Path

import all_reduce_model as model
import cost_model
import pages
import peer_tables
import pytest
import records
from all_reduce_model import ALGORITHMS, Model, Point
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.command_line.bench.record import Record, Row

ROOT = Path(__file__).resolve().parents[1]
PLANS = ROOT / "rust" / "kernels" / "src"
KNOWN = Model(launch_us=0.5, way_us=1.1, spread_us=0.04, bandwidth_gb_per_s=360.0)
SIZES = (512, 8 << 10, 64 << 10, 1 << 20, 8 << 20)


def points(world_sizes=(2, 4), made_by=KNOWN) -> list[Point]:
    return [
        Point(world_size, size, algorithm, algorithm, made_by.latency_us(world_size, size, algorithm))
        for world_size in world_sizes
        for size in SIZES
        for algorithm in ALGORITHMS
    ]


def record(world_sizes=(2,), gpu: str | None = "NVIDIA H200") -> Record:
    rows = [
        Row(
            "all_reduce", f"lamport_rs_{each.algorithm}", each.world_size, "bfloat16", *[each.median_us] * 3, each.bytes
        )
        for each in points(world_sizes)
    ]
    return Record(1, "2026-01-02", "0123456789", gpu, 2, None, "", None, "", "", "", tuple(rows))


def write_record(folder: Path, made: Record, name: str) -> Path:
    path = folder / f"{name}.json"
    rows = [{key: value for key, value in vars(row).items() if value is not None} for row in made.rows]
    path.write_text(json.dumps({**vars(made), "rows": rows}))
    return path


@pytest.mark.parametrize(
    ("world_size", "algorithm", "pushed"),
    [(2, "one_shot", 1), (2, "two_shot", 1), (4, "one_shot", 3), (4, "two_shot", 1.5), (8, "two_shot", 1.75)],
)
def test_each_algorithm_pushes_its_bytes(world_size, algorithm, pushed):
    assert model.bytes_over_link(world_size, 1 << 20, algorithm) == pushed * (1 << 20)


def test_the_terms_add_up():
    # 4096 vectors are 128 warps; a shard of 8192 vectors is 256, more than there are multiprocessors.
    one_shot = 0.5 + (1.1 + 0.04 * 7) + 65536 / 360e3
    assert KNOWN.latency_us(2, 64 << 10, "one_shot") == pytest.approx(one_shot)
    two_shot = 0.5 + 2 * (1.1 + 0.04 * log2(132)) + 1.5 * 524288 / 360e3
    assert KNOWN.latency_us(4, 512 << 10, "two_shot") == pytest.approx(two_shot)


def test_a_thread_waits_once_per_way_and_again_for_each_vector_more():
    # One-shot, 2 GPUs: 9 blocks of 128 workers on each multiprocessor.
    one_round = 9 * 128 * model.MULTIPROCESSORS * 16
    assert [model.turns(2, size, "one_shot") for size in (16, one_round, one_round + 1, 3 * one_round)] == [1, 1, 2, 3]
    # Two-shot: 2048 threads, each with half of the vectors.
    one_round = 2 * 2048 * model.MULTIPROCESSORS * 16
    assert [model.turns(2, size, "two_shot") for size in (16, one_round, one_round + 32)] == [2, 2, 4]
    # A group of three runs the kernel for four.
    assert model.turns(3, 4 << 20, "one_shot") == model.turns(4, 4 << 20, "one_shot")


def test_the_model_knows_what_the_launch_plan_says():
    plan, variants = (PLANS / "plan" / "all_reduce.rs").read_text(), (PLANS / "variants.rs").read_text()
    for world_size, size in model.MEASURED_TWO_SHOT_FROM.items():
        assert any(f" {world_size} => {size >> bits} << {bits}," in plan for bits in (10, 20)), world_size
    assert f"WAY_BYTES: usize = {model.WAY_BYTES:_};" in plan
    assert f"ONE_SHOT_WORKERS: u32 = {model.ONE_SHOT_WORKERS};" in plan
    assert "_ => WAY_BYTES * world_size / ((world_size - 1) * (world_size - 2))," in plan
    body = variants.partition("fn all_reduce_bounds(")[2].partition("\n}\n")[0]
    arms = re.findall(r"(?:\((?:AllReduceMethod::)?(\w+), (\d+)\)|_) => LaunchBounds::new\((\d+), (\d+)\)", body)
    names = {"one_shot": "OneShot", "two_shot": "TwoShot"}
    for algorithm, threads in model.RESIDENT_THREADS.items():
        for capacity, expected in threads.items():
            fitting = [arm for arm in arms if arm[0] in ("", "_", names[algorithm]) and arm[1] in ("", str(capacity))]
            assert int(fitting[0][2]) * int(fitting[0][3]) == expected, (algorithm, capacity)


def test_memory_is_counted_with_the_protocols_constants():
    geometry = (ROOT / "rust" / "protocol" / "src" / "geometry.rs").read_text()
    assert f"SLOTS: usize = {cost_model.SLOTS};" in geometry
    assert f"HEADER_BYTES: usize = {cost_model.HEADER_BYTES};" in geometry
    assert f"ALLOCATION_GRANULARITY: usize = {cost_model.GRANULARITY >> 20} << 20;" in geometry


@pytest.mark.parametrize("world_sizes", [(2,), (2, 4)])
def test_known_parameters_are_recovered(world_sizes):
    fitted = model.fit(points(world_sizes))
    assert astuple(fitted.model) == pytest.approx(astuple(KNOWN))
    assert max(map(abs, fitted.residuals())) < 1e-9
    assert max(astuple(fitted.errors)) < 1e-6


def test_a_disturbed_row_shows_in_the_residuals_and_the_errors():
    rows = points()
    rows[3] = replace(rows[3], median_us=1.1 * rows[3].median_us)
    fitted = model.fit(rows)
    assert fitted.residuals()[3] == min(fitted.residuals())
    assert fitted.residuals()[3] == pytest.approx(-0.09, abs=0.05)
    assert min(astuple(fitted.errors)) > 0


def test_the_largest_group_is_predicted_from_the_smaller_ones():
    assert model.held_out(points((2,))) is None
    slower = Model(**{**vars(KNOWN), "way_us": 2 * KNOWN.way_us})
    world_size, misses = model.held_out(points((2,)) + points((4,), slower))
    assert world_size == 4
    assert len(misses) == len(SIZES) * len(ALGORITHMS)
    assert min(misses) < -0.3


def test_rows_that_determine_nothing_are_refused():
    with pytest.raises(LamportError, match=r"0 rows .* do not determine the model"):
        model.fit([])
    with pytest.raises(LamportError, match="do not determine the model"):
        model.fit([point for point in points() if point.bytes == 512])
    with pytest.raises(LamportError, match="needs both algorithms"):
        model.fit([point for point in points() if point.algorithm == "one_shot"])


def test_rows_by_lamport_rs_are_of_the_algorithm_that_the_plan_chooses():
    rows = tuple(Row("all_reduce", impl, 4, "bfloat16", 1, 1, 1, size)
                 for impl in ("lamport_rs", "nccl") for size in (1 << 10, 1 << 20))  # fmt: skip
    found = model.points_of([replace(record(), rows=rows)])
    assert [(point.bytes, point.algorithm) for point in found] == [(1 << 10, "one_shot"), (1 << 20, "two_shot")]
    assert model.points_of([replace(record(), gpu=None)]) == ()


def test_the_model_is_of_operations_back_to_back():
    back_to_back = record().rows
    between = tuple(replace(row, median_us=9.0, timing="kernel_between") for row in back_to_back)
    assert model.points_of([replace(record(), rows=back_to_back + between)]) == model.points_of([record()])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_predictions_grow_with_the_message(algorithm):
    for world_size in (2, 4, 8, 16):
        sizes = [16 * world_size << shift for shift in range(18)]
        latencies = [KNOWN.latency_us(world_size, size, algorithm) for size in sizes]
        assert all(below < above for below, above in pairwise(latencies))


def test_predictions_for_large_messages_grow_with_the_group():
    for algorithm in ALGORITHMS:
        latencies = [KNOWN.latency_us(world_size, 8 << 20, algorithm) for world_size in (4, 8, 16)]
        assert latencies == sorted(latencies)


def test_two_shot_is_faster_from_where_the_saved_bytes_take_longer_than_a_way():
    plain = Model(launch_us=0.5, way_us=0.6, spread_us=0.0, bandwidth_gb_per_s=370.0)
    for world_size in (8, 16):
        assert plain.crossover(world_size) == pytest.approx(model.two_shot_from(world_size), rel=0.02)
        assert plain.loss(world_size)[0] < 0.01
    assert KNOWN.loss(8)[0] > 0.01
    assert plain.crossover(4, largest=1 << 10) is None


def test_memory_is_what_a_workspace_allocates():
    size, world_size = 8 << 20, 8
    comm_size = LamportWorkspace.compute_comm_size_for_all_reduce(size, world_size)
    assert cost_model.block_bytes(comm_size, world_size) == 3 * comm_size + (2 << 20)
    # Slots that fill whole blocks of 2 MiB leave no room for headers.
    assert cost_model.block_bytes(16 << 20, 2) == (48 << 20) + (2 << 20)
    assert world_size * cost_model.two_shot_region_bytes(world_size, size) == 2 * size
    assert cost_model.two_shot_region_bytes(3, 16) == 32


def test_the_tables_say_what_was_not_measured(tmp_path, capsys):
    two = write_record(tmp_path, record((2,)), "two")
    four = write_record(tmp_path, record((4,)), "four")
    assert cost_model.main([str(two)]) == 0
    assert "rows at 2 GPUs only" in capsys.readouterr().out
    assert cost_model.main([str(two), str(four)]) == 0
    printed = capsys.readouterr().out
    assert "at 2 and 4 GPUs, of two (commit 0123456, not in benchmarks/results), four (commit" in printed
    assert "A fit to the smaller groups alone misses the rows at 4 GPUs by 0.0%" in printed
    assert cost_model.main([str(write_record(tmp_path, record(gpu=None), "host"))]) == 1
    assert "do not determine" in capsys.readouterr().err


def test_the_page_is_rewritten_between_its_markers(tmp_path):
    pytest.importorskip("matplotlib")
    names = ("fit", "residuals", "crossover", "predictions", "memory")
    page = tmp_path / "page.md"
    page.write_text("top\n" + "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\ntext of {name}\n" for name in names))
    command = ["--write", "--page", str(page), str(write_record(tmp_path, record(), "run"))]
    assert cost_model.main(command) == 0
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("top\n")
    assert all(f"<!-- /{name} -->\ntext of {name}\n" in written for name in names)
    assert "<svg" in page.with_suffix(".svg").read_text()
    assert cost_model.main(command) == 0
    assert page.read_text() == written


def test_a_page_without_its_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- fit -->\n")
    with pytest.raises(LamportError, match="<!-- fit --> and <!-- /fit -->"):
        pages.rewrite(page, {"fit": "table"})


def test_the_newest_record_of_each_number_of_gpus_of_one_kind_is_taken(tmp_path):
    h200 = "NVIDIA H200"
    for name, day, gpu in [("z, old", 1, h200), ("a, new", 3, h200), ("host", 4, None), ("others", 5, "NVIDIA H100")]:
        write_record(tmp_path, replace(record(gpu=gpu), date=f"2026-01-0{day}"), name)
    assert [path.stem for path in cost_model.recorded(tmp_path)] == ["a, new"]
    write_record(tmp_path, replace(record((4,)), date="2026-01-02"), "four")
    assert [path.stem for path in cost_model.recorded(tmp_path)] == ["a, new", "four"]
    (tmp_path / "peers").mkdir()
    write_record(tmp_path / "peers", replace(record((4,)), date="2026-01-05"), "beside peers")
    assert [path.stem for path in cost_model.recorded(tmp_path)] == ["a, new", "beside peers"]
    assert cost_model.recorded(tmp_path / "nowhere") == {}


def test_tables_and_model_are_of_the_same_kind_of_gpu():
    used = [*cost_model.recorded().values(), *peer_tables.recorded().values()]
    assert {each.gpu for each in used} == {records.SHOWN_GPU}


def test_the_page_shows_the_committed_records():
    used = cost_model.recorded()
    page = (ROOT / "docs" / "appendix" / "scaling.md").read_text()
    for name, part in cost_model.tables(model.fit(model.points_of(list(used.values()))), used).items():
        assert part in page, f"{name} is out of date: run `python benchmarks/cost_model.py --write`"
