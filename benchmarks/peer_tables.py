"""The tables about the peers in docs (performance, comparison, appendix/back_to_back) and README.md, out of records.

`python benchmarks/peer_tables.py [RECORD ...]` prints them, `--write` rewrites them in the pages. Without records it
takes those of benchmarks/results/peers that `records.py` chooses. `peers/record.py` makes records.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamport_rs import LamportError
from lamport_rs.command_line.bench.arguments import BACK_TO_BACK, KERNEL_BETWEEN
from lamport_rs.command_line.bench.record import Record, Row, read
from lamport_rs.command_line.bench.report import OWN, by_case, ratio
from pages import markdown, rewrite
from records import RESULTS, newest, shown

ROOT = Path(__file__).resolve().parents[1]
SUM, NORM, MINIMAX = "all_reduce", "all_reduce_rms_norm", "minimax_allreduce_rms_qk"
FASTER = "best other / lamport-rs"


@dataclass(frozen=True)
class Line:
    """A line of a table: the fastest of some implementations, at each size."""

    label: str
    impls: tuple[str, ...]


OURS = Line("lamport-rs", (OWN,))
TITLES = {
    SUM: "all-reduce, bytes",
    NORM: "all-reduce + residual + RMSNorm, tokens of 4096",
    MINIMAX: "MiniMax Q+K norm, tokens",
}
SYMMETRIC = Line("torch symm_mem, better of two", ("symm_mem_one_shot", "symm_mem_two_shot"))
FLASHINFER = Line("FlashInfer, better of two", ("flashinfer_trtllm", "flashinfer_mnnvl"))
VLLM, EAGER = Line("vLLM 0.8.2's custom all-reduce", ("vllm_custom",)), Line("torch around NCCL", ("torch_eager_nccl",))
WHOLE = {
    SUM: (
        OURS,
        Line("SGLang, push", ("sglang_push",)),
        Line("SGLang, pull", ("sglang_pull",)),
        Line("FlashInfer, TensorRT-LLM's", ("flashinfer_trtllm",)),
        Line("FlashInfer, MNNVL", ("flashinfer_mnnvl",)),
        VLLM,
        SYMMETRIC,
        Line("NCCL", ("nccl",)),
        Line("NCCL, registered windows", ("nccl_windows",)),
    ),
    NORM: (
        OURS,
        Line("SGLang", ("sglang_push",)),
        Line("FlashInfer, TensorRT-LLM's", ("flashinfer_trtllm",)),
        Line("FlashInfer, MNNVL", ("flashinfer_mnnvl",)),
        EAGER,
    ),
    MINIMAX: (OURS, Line("SGLang", ("sglang_qknorm",)), EAGER),
}
"""What the pages of docs have."""
SHORT = {
    SUM: (
        OURS,
        Line("SGLang, better of two", ("sglang_push", "sglang_pull")),
        FLASHINFER,
        VLLM,
        SYMMETRIC,
        Line("NCCL, better of two", ("nccl", "nccl_windows")),
    ),
}
"""What README.md has, of the smallest group, with a kernel between."""
SHORT_SIZES = ("8 Ki", "64 Ki", "256 Ki", "1 Mi", "8 Mi")
"""The columns of README.md: as many as fit beside each other on a narrow screen."""

OTHERS = (
    Line("SGLang's kernels", ("sglang_push", "sglang_pull")),
    Line("FlashInfer", FLASHINFER.impls),
    VLLM,
    Line("torch symm_mem", SYMMETRIC.impls),
    Line("NCCL", ("nccl", "nccl_windows", *EAGER.impls)),
)
"""Whom docs/comparison.md compares with, each at its best."""


def pages(records: Mapping[int, Record]) -> dict[Path, dict[str, str]]:
    """Return the generated parts of each page, by name; `records` are by the number of GPUs."""

    def whole(timing: str) -> dict[str, str]:
        return {f"peers-{size}-{timing}": parts(record, size, timing, WHOLE) for size, record in records.items()}

    smallest = min(records)
    return {
        ROOT / "docs" / "performance.md": whole(KERNEL_BETWEEN),
        ROOT / "docs" / "appendix" / "back_to_back.md": whole(BACK_TO_BACK),
        ROOT / "docs" / "comparison.md": {"times": times(records)},
        ROOT / "README.md": {"peers": parts(records[smallest], smallest, KERNEL_BETWEEN, SHORT, SHORT_SIZES)},
    }


def parts(
    record: Record,
    world_size: int,
    timing: str,
    lines: Mapping[str, Sequence[Line]],
    sizes: Sequence[str] | None = None,
) -> str:
    """Return the tables of a group, an operation after the other, with columns for `sizes` or for all sizes."""
    gpu = (record.gpu or "").replace("NVIDIA ", "").partition(" ")[0]
    found = []
    for op, kept in lines.items():
        rows = [each for each in record.rows if (each.op, each.world_size, each.timing) == (op, world_size, timing)]
        if rows:
            found.append(table(f"{world_size} {gpu}: {TITLES[op]}", rows, kept, sizes))
    if not found:
        raise LamportError(f"the record of {record.date} has no collectives of {world_size} GPUs, {timing}")
    return "\n\n".join(found)


def times(records: Mapping[int, Record]) -> str:
    """Return how many times as long as lamport-rs the others take over all sizes, least to most, a kernel between."""
    header, body = ["times as long as lamport-rs"], [[line.label] for line in OTHERS]
    for size, record in records.items():
        for op, name in ((SUM, "all-reduce"), (NORM, "with residual and RMSNorm")):
            rows = [r for r in record.rows if (r.op, r.world_size, r.timing) == (op, size, KERNEL_BETWEEN)]
            header.append(f"{size} GPUs: {name}")
            for row, line in zip(body, OTHERS, strict=True):
                found = [ratio_of(line, case) for case in by_case(rows).values()]
                ratios = [each for each in found if each is not None]
                row.append(f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "")
    return markdown(header, body)


def ratio_of(line: Line, found: Mapping[str, Row]) -> float | None:
    """Return how many times as long as lamport-rs the fastest implementation takes; None without any."""
    medians = [found[impl].median_us for impl in line.impls if impl in found]
    return min(medians) / found[OWN].median_us if medians and OWN in found else None


def table(title: str, rows: Sequence[Row], lines: Sequence[Line], sizes: Sequence[str] | None = None) -> str:
    """Return medians by size, the least of each in bold, and how much longer the best of the others takes."""
    cases = {case: found for case, found in by_case(rows).items() if sizes is None or case.size in sizes}
    measured = {impl for found in cases.values() for impl in found}
    body = [[line.label] for line in lines if measured & set(line.impls)]
    ratios = [FASTER]
    for found in cases.values():
        cells = [cell(line, found) for line in lines if measured & set(line.impls)]
        least = min((value for value, _ in cells if value is not None), key=float)
        for row, (value, mark) in zip(body, cells, strict=True):
            row.append("" if value is None else f"**{value}**{mark}" if value == least else f"{value}{mark}")
        faster = ratio({impl: row.median_us for impl, row in found.items()})
        ratios.append("" if faster is None else f"{faster:.2f}")
    return markdown([title, *(case.size for case in cases)], [*body, ratios])


def cell(line: Line, found: Mapping[str, Row]) -> tuple[str | None, str]:
    """Return the median of the fastest implementation, and a mark where its graph was short; None without any."""
    rows = [found[impl] for impl in line.impls if impl in found]
    if not rows:
        return None, ""
    fastest = min(rows, key=lambda row: row.median_us)
    return digits(fastest.median_us), "\\*" if fastest.graph_operations else ""


def digits(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def recorded(folder: Path = RESULTS / "peers") -> dict[int, Record]:
    """Return the records that the pages show; not the first ones, which are back to back only."""

    def sizes_of(record: Record) -> set[int]:
        return {row.world_size for row in record.rows if row.timing == KERNEL_BETWEEN}

    return {size: record for size, (_, record) in shown([folder], sizes_of).items()}


def given(paths: Sequence[Path]) -> dict[int, Record]:
    """Return the newest of these records for each number of GPUs."""
    records = ((path, read(path)) for path in paths)
    found = newest(records, lambda record: {row.world_size for row in record.rows})
    return {size: record for size, (_, record) in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Make the tables about the peers out of their records.")
    parser.add_argument("records", nargs="*", type=Path, metavar="RECORD", help="default: as records.py chooses")
    parser.add_argument("--write", action="store_true", help="rewrite the tables in docs and README.md")
    options = parser.parse_args(arguments)
    try:
        records = given(options.records) or recorded()
        for page, found in pages(records).items():
            print("\n\n".join(found.values()), end="\n\n")
            if options.write:
                rewrite(page, found)
    except LamportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
