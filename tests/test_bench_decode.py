"""The benchmark's decode step: what it computes, how it is split, checked and shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from lamport_rs import __main__
from lamport_rs.command_line.bench import record as record_module
from lamport_rs.command_line.bench.arguments import STEPS
from lamport_rs.command_line.bench.cases import cases_of, decode_case, message_bytes
from lamport_rs.command_line.bench.decode_step import DecodeStep
from lamport_rs.command_line.bench.decoder import (
    LLAMA_3_8B,
    SMALL,
    Communication,
    Decoder,
    Dimensions,
    add_rms_norm,
)
from lamport_rs.command_line.bench.findings import Findings, Missing
from lamport_rs.command_line.bench.implementations import by_torch
from lamport_rs.command_line.bench.measure import WrongResultError, run_rank
from lamport_rs.command_line.bench.nccl import NEWEST
from lamport_rs.command_line.bench.options import Options
from lamport_rs.command_line.bench.plot_steps import step_figure
from lamport_rs.command_line.bench.problems import Expected
from lamport_rs.command_line.bench.record import Record, Row, describe_run, read, write
from lamport_rs.command_line.bench.report import tables, tokens_per_second
from lamport_rs.command_line.timing import Latency
from ranks import Rank, errors_of

WHOLE = Communication(add_rms_norm)
LAYERS = 2


def decoder_of(dimensions: Dimensions = SMALL, batch: int = 3) -> Decoder:
    torch.manual_seed(0)
    return Decoder(dimensions, LAYERS, batch, 1, torch.float32, lambda tensor: tensor)


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Of one sequence: a query per head, and the keys and values of its key head."""
    weights = torch.softmax(torch.einsum("hd,htd->ht", queries, keys) / queries.shape[-1] ** 0.5, -1)
    return torch.einsum("ht,htd->hd", weights, values)


def rotated(vectors: torch.Tensor, position: int) -> torch.Tensor:
    pairs = torch.complex(*vectors.chunk(2, -1))
    angles = position * 500000.0 ** -(torch.arange(pairs.shape[-1]) / pairs.shape[-1])
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1)


def decoded(decoder: Decoder, token: int, sequence: int, dimensions: Dimensions) -> torch.Tensor:
    """The logits of one sequence, written down plainly."""

    def norm(weight: torch.Tensor) -> torch.Tensor:
        return residual * torch.rsqrt(residual.square().mean() + 1e-5) * weight

    heads, kv_heads, head = dimensions.heads, dimensions.kv_heads, dimensions.head
    residual = decoder._embedding[token]
    for layer in decoder._layers:
        vectors = (layer.qkv @ norm(layer.attention_norm)).view(-1, head)
        queries, keys = vectors[:heads], vectors[heads : heads + kv_heads]
        cache = layer.cache[sequence].clone()
        cache[:kv_heads, -1], cache[kv_heads:, -1] = rotated(keys, dimensions.context - 1), vectors[heads + kv_heads :]
        each = [part.repeat_interleave(heads // kv_heads, 0) for part in cache.chunk(2)]
        attended = attend(rotated(queries, dimensions.context - 1), *each)
        residual = residual + layer.attention_out @ attended.flatten()
        gate, up = (layer.gate_up @ norm(layer.mlp_norm)).chunk(2)
        residual = residual + layer.down @ (F.silu(gate) * up)
    return decoder._logits @ norm(decoder._last_norm)


def test_the_step_is_a_decoders():
    decoder, tokens = decoder_of(), torch.tensor([5, 0, 511])
    _, logits = decoder.step(tokens, WHOLE)
    for sequence, token in enumerate(tokens.tolist()):
        torch.testing.assert_close(logits[sequence], decoded(decoder, token, sequence, SMALL), rtol=1e-4, atol=1e-4)


def test_partial_sums_are_put_where_they_have_to_be():
    decoder, tokens = decoder_of(), torch.tensor([5, 0, 511])
    place = torch.empty(4 * SMALL.hidden)
    seen = []

    def look(partial_sum, residual, weight):
        seen.append(partial_sum.data_ptr())
        return add_rms_norm(partial_sum, residual, weight)

    found = decoder.step(tokens, Communication(look, place))
    assert seen == 2 * LAYERS * [place.data_ptr()]
    torch.testing.assert_close(found, decoder.step(tokens, WHOLE))


def test_a_model_is_shared_out_evenly_or_not_at_all():
    assert LLAMA_3_8B.divide(4) == Dimensions(4096, 8, 2, 128, 3584, 32064, 1024)
    with pytest.raises(ValueError, match="8 kv_heads cannot be shared out among 16 ranks"):
        LLAMA_3_8B.divide(16)


def test_a_step_of_the_default_layers_sums_whole_rows():
    (case,) = cases_of("decode_step", "cuda", tokens=[128])
    assert (case.layers, case.hidden, message_bytes(case)) == (32, 4096, 1 << 20)
    assert [case.tokens for case in cases_of("decode_step", "cuda")] == [1, 8, 32, 128]


@pytest.mark.parametrize("wrong", [1.1, float("nan"), 0.0])
def test_no_tolerance_passes_a_wrong_step(wrong):
    rows = torch.randn(4, 64).bfloat16()
    expected = Expected(rows, exact=False), Expected(rows, exact=False)
    step = DecodeStep(decode_case(4, "cuda", 1), 2, expected, None, None)
    step.check((rows, rows * 1.004), rounds_once=False)
    for outputs in ((rows, rows * wrong), (rows * wrong, rows)):
        with pytest.raises(AssertionError, match="is allowed"):
            step.check(outputs, rounds_once=False)


def options_of(**others: object) -> Options:
    return Options("host", (2,), operations=STEPS, tokens=(2,), layers=LAYERS, replays=1, **others)


def without_a_sum_on_rank_1(me: Rank, path: Path) -> None:
    """The last of the step's sums is not used by one rank."""
    reduce_then_norm, calls = by_torch.reduce_then_norm, []

    def forget(partial_sum, residual, weight):
        calls.append(None)
        own = partial_sum.clone()
        found = reduce_then_norm(partial_sum, residual, weight)
        last = len(calls) % (2 * LAYERS) == 0
        return add_rms_norm(own, residual, weight) if last and me.rank == 1 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_torch, "reduce_then_norm", forget)
        run_rank(me.rank, me.world_size, me.device, options_of(), path)


def test_a_sum_that_is_missing_on_one_rank_ends_the_run_on_all(ranks_of, tmp_path):
    for error in errors_of(ranks_of(2).try_run(without_a_sum_on_rank_1, tmp_path / "findings")):
        assert isinstance(error, WrongResultError)
        assert "decode_step of float32, 2 x 256 by gloo is wrong: rank 1: the last rows differ by" in str(error)


def measure_steps(me: Rank, path: Path) -> None:
    run_rank(me.rank, me.world_size, me.device, options_of(implementations=("lamport_rs",)), path)


def test_the_floor_is_measured_whoever_was_asked_for(ranks_of, tmp_path):
    ranks_of(2).run(measure_steps, tmp_path / "findings")
    found = Findings()
    found.take(tmp_path / "findings")
    assert {row.impl for row in found.rows} == {"lamport_rs", "no_communication"}


def test_a_model_that_ranks_cannot_share_is_left_out_with_the_reason(ranks_of, tmp_path):
    ranks_of(3).run(measure_steps, tmp_path / "findings")
    found = Findings()
    found.take(tmp_path / "findings")
    assert found.rows == []
    assert found.missing == [
        Missing("decode_step", 3, "the model's 16 heads cannot be shared out among 3 ranks", "2 x 256")
    ]


def text_of_pages(root: Path) -> str:
    """The pages that have figures of decode steps."""
    return "".join((root / "docs" / name).read_text() for name in ("performance.md", "appendix/more_figures.md"))


def test_the_documented_tokens_per_second_are_those_of_the_records():
    root = Path(__file__).parent.parent
    tables = text_of_pages(root).split("| tokens per second of the whole batch, of |")[1:]
    lines = [line for table in tables for line in table.partition("\n\n")[0].splitlines()[2:]]
    assert len(lines) == 8
    records = [read(path) for path in sorted((root / "benchmarks" / "results" / "decode_step").glob("*.json"))]
    for line in lines:
        label, *documented = (cell.strip() for cell in line.strip("|").split("|"))
        gpus, model, name = re.fullmatch(r"(\d) (\w+), (\S+)(?: [\d.]+)?", label).groups()
        record = [each for each in records if each.gpus == int(gpus) and model in each.gpu][-1]
        impl = {"lamport-rs": "lamport_rs", "NCCL": "nccl"}[name]
        steps = {row.tokens: row for row in record.rows if row.impl == impl}
        assert [f"{tokens_per_second(steps[batch]):.0f}" for batch in (1, 8, 32, 128)] == documented, label
        assert record.newest_nccl == NEWEST
        assert name == "lamport-rs" or label.endswith(f"NCCL {record.nccl}")


def test_a_record_made_on_gpus_names_the_newest_nccl(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    for name in ("nccl_version", "link_bandwidth"):
        monkeypatch.setattr(record_module, name, lambda: None)
    rows = record_of(MEDIANS, (1,)).rows
    assert describe_run(rows, "", "cuda").newest_nccl == NEWEST
    assert describe_run(rows, "", "host").newest_nccl is None


def test_the_table_tells_milliseconds_and_the_share_of_communication():
    medians = {"lamport_rs": 4000.0, "nccl": 5000.0, "no_communication": 3900.0}
    rows = [
        Row.of(
            decode_case(tokens, "cuda", 32), impl, 2, Latency(us, us, us + 100, host_included=impl == "nccl" or None)
        )
        for tokens in (1, 8)
        for impl, us in medians.items()
        if (tokens, impl) != (8, "no_communication")
    ]
    lines = tables(rows, "GPUs", 200).splitlines()
    assert lines[0] == (
        "decode_step, bfloat16, 2 GPUs, 32 layers of 4096: median ms per step (least-most), "
        "tokens/s, communication's share"
    )
    assert lines[2].split() == ["batch", "no_communication", "lamport_rs", "nccl"]
    assert [line.split() for line in lines[3:5]] == [
        [
            *("1", "3.90", "(3.90-4.00),", "256/s", "4.00", "(4.00-4.10),", "250/s,", "2.5%"),
            *("5.00**", "(5.00-5.10),", "200/s,", "22.0%"),
        ],
        ["8", "-", "4.00", "(4.00-4.10),", "2000/s", "5.00**", "(5.00-5.10),", "1600/s"],
    ]
    text = tables([row for row in rows if row.tokens == 8], "GPUs", 200)
    assert "best other" not in text


MEDIANS = {"lamport_rs": 4000.0, "lamport_rs_unfused": 4200.0, "nccl": 5000.0, "no_communication": 3900.0}
MANY = {**MEDIANS, "nccl_windows": 5050.0, "symm_mem_one_shot": 4960.0, "symm_mem_two_shot": 5010.0}


def record_of(medians: dict[str, float], batches: Sequence[int], world_sizes: Sequence[int] = (2,)) -> Record:
    rows = tuple(
        Row.of(decode_case(tokens, "cuda", 32), impl, world_size, Latency(us, us, us))
        for world_size in world_sizes
        for tokens in batches
        for impl, us in medians.items()
    )
    return Record(1, "2026-01-02T03:04:05+00:00", None, "NVIDIA H200", 2, None, "2", "2", "cpu", "3", "none", rows)


def panels_of(record: Record) -> list:
    figure = step_figure(record, "decode_step", record.rows)
    return figure.axes


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_the_figure_has_the_time_and_the_share_of_communication_over_every_bar_and_the_floor_over_all():
    pytest.importorskip("matplotlib")
    two, four = panels_of(record_of(MEDIANS, (8, 1), (2, 4)))
    assert two.get_title("left") == "2 GPUs, bfloat16, 32 layers of 4096"
    assert four.get_title("left") == "4 GPUs, bfloat16, 32 layers of 4096"
    for axes in (two, four):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "8"]
        assert texts_of(axes) == [
            *("3.90", "250/s", "4.00\n2.5%", "238/s", "4.20\n7.1%", "200/s", "5.00\n22.0%"),
            *("3.90", "2000/s", "4.00\n2.5%", "1905/s", "4.20\n7.1%", "1600/s", "5.00\n22.0%"),
        ]
        assert [bar.get_height() for bar in axes.patches] == 2 * [3.9, 4.0, 4.2, 5.0]
        floor, *bars = axes.patches[:4]
        assert floor.get_zorder() > max(bar.get_zorder() for bar in bars)
        assert floor.get_x() <= min(bar.get_x() for bar in bars)
        assert floor.get_x() + floor.get_width() >= max(bar.get_x() + bar.get_width() for bar in bars)


@pytest.mark.long
@pytest.mark.parametrize(
    ("medians", "batches"), [(MEDIANS, (1, 8, 32, 128)), (MANY, (1, 8, 32)), (MANY, (1, 8, 32, 128))]
)
@pytest.mark.parametrize("has_floor", [True, False])
def test_what_is_written_in_the_figure_of_a_step_does_not_touch(medians, batches, has_floor):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    medians = {name: us for name, us in medians.items() if has_floor or name != "no_communication"}
    record = record_of(medians, batches)
    figure = step_figure(record, "decode_step", record.rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    boxes = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    assert len(boxes) >= len(record.rows)
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.overlaps(second), f"{one!r} and {other!r}"
    assert all(axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1 for _, box in boxes)
    (legend,) = figure.legends
    assert {text.get_text() for text in legend.get_texts()} == set(medians)
    assert legend.get_window_extent().width <= figure.bbox.width


def test_the_share_is_neither_written_nor_coloured_where_the_floor_is_missing():
    pytest.importorskip("matplotlib")
    (axes,) = panels_of(record_of({"lamport_rs": 4000.0, "nccl": 5000.0}, (1,)))
    assert texts_of(axes) == ["250/s", "4.00", "200/s", "5.00"]
    assert [bar.get_facecolor()[3] for bar in axes.patches] == [0, 0]


def test_the_floor_alone_is_no_figure():
    pytest.importorskip("matplotlib")
    record = record_of({"no_communication": 3900.0}, (1, 8))
    assert step_figure(record, "decode_step", record.rows) is None


@pytest.mark.parametrize("batches", [(1,), (1, 8)])
def test_a_record_of_steps_is_drawn_again(batches, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    path = write(record_of(MEDIANS, batches), tmp_path)
    monkeypatch.setattr(sys, "argv", ["lamport-rs", "bench", "--draw", str(path)])
    assert __main__.main() == 0
    drawn = tmp_path / "2026-01-02-h200-x2-decode_step.svg"
    assert f"figure: {drawn}" in capsys.readouterr().out
    text = drawn.read_text()
    for expected in ("decode_step on NVIDIA H200, 2026-01-02", "22.0%", "no_communication", "lamport_rs_unfused"):
        assert expected in text


OTHERS = ("nccl", "nccl_windows", "symm_mem_one_shot", "symm_mem_two_shot")
SHARES = {
    "lamport-rs": ("lamport_rs",),
    "lamport-rs, sum and norm apart": ("lamport_rs_unfused",),
    "best other": OTHERS,
    "NCCL 2.28.9": ("nccl",),
}
"""Lines of the pages, and the implementations of which each has the fastest."""


def shown(percent: float) -> str:
    return f"{percent:.1f} %" if percent < 9.95 else f"{percent:.0f} %"


@pytest.mark.parametrize("machine", ["2026-11-27-h200-x", "2026-11-28-h100-80gb-hbm3-x"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_the_page_has_the_recorded_shares_of_communication(machine, world_size):
    root = Path(__file__).parents[1]
    record = read(root / "benchmarks" / "results" / "decode_step" / f"{machine}{world_size}.json")
    medians = {(row.impl, row.tokens): row.median_us for row in record.rows if row.world_size == world_size}
    page = text_of_pages(root)
    gpu = "H200" if "h200" in machine else "H100"
    for label, impls in SHARES.items():
        cells = []
        for batch in (1, 8, 32, 128):
            step = min(medians[impl, batch] for impl in impls)
            cells.append(shown(100 * (1 - medians["no_communication", batch] / step)))
        assert f"| {world_size} {gpu}, {label} | {' | '.join(cells)} |" in page
