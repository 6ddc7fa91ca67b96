"""The kernels of SGLang and FlashInfer in the benchmark: each returns right sums, eagerly and out of graphs.

They come from the folder that `LAMPORT_RS_PEERS` names, or from the installed packages.
"""

import functools
import json
import subprocess
import sys
from typing import Any

import pytest
from lamport_rs.command_line.bench import peers

SUM, NORM, QK_NORM = "all_reduce", "all_reduce_rms_norm", "minimax_allreduce_rms_qk"
SMALL, MIDDLE, LARGE = 512, 512 << 10, 16 << 20
MEASURED = {
    (SUM, "sglang_push", 2): [SMALL, MIDDLE, LARGE],
    (SUM, "sglang_push", 4): [SMALL, MIDDLE, LARGE],
    (SUM, "sglang_pull", 4): [MIDDLE, LARGE],
    (SUM, "flashinfer_trtllm", 2): [SMALL, MIDDLE, LARGE],
    # The last one in two shots.
    (SUM, "flashinfer_trtllm", 4): [SMALL, MIDDLE, LARGE],
    (SUM, "flashinfer_mnnvl", 2): [SMALL, MIDDLE],
    (SUM, "vllm_custom", 2): [SMALL, MIDDLE, LARGE],
    (NORM, "sglang_push", 2): [1, 48, 128],
    (NORM, "sglang_push", 4): [1, 48, 128],
    (NORM, "flashinfer_trtllm", 2): [1, 48, 128],
    (NORM, "flashinfer_mnnvl", 2): [1, 48],
    (QK_NORM, "sglang_qknorm", 2): [1, 48, 128],
    (QK_NORM, "sglang_qknorm", 4): [1, 48, 128],
}
"""The sizes that a Hopper GPU measures, by operation, implementation and group."""


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A run of all peers on so many GPUs, made when it is first asked for: its rows, and what it says."""

    @functools.cache
    def measure(world_size: int) -> tuple[list[dict[str, Any]], str]:
        folder = tmp_path_factory.mktemp(f"peers-x{world_size}")
        line = [sys.executable, "-m", "lamport_rs", "bench", "--backend", "cuda", "--world-sizes", world_size]
        line += ["--operations", SUM, NORM, QK_NORM, "--sizes", SMALL, MIDDLE, LARGE, "--tokens", 1, 48, 128]
        line += ["--implementations", *{implementation for _, implementation, _ in MEASURED}, "--replays", 3]
        line += ["--record", folder, "--no-plot", "--time-limit", 240]
        finished = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=280)
        # It checks every result, before timing and after it, and fails if one is wrong.
        assert finished.returncode == 0, finished.stdout + finished.stderr
        (path,) = folder.glob("*.json")
        record = json.loads(path.read_text())
        assert record["peers"] == peers.releases()
        return record["rows"], finished.stderr

    return measure


@pytest.mark.own_gpus
@pytest.mark.parametrize(
    ("op", "implementation", "world_size"),
    [pytest.param(*key, marks=pytest.mark.gpu(key[2])) for key in MEASURED],
)
def test_a_peer_returns_right_sums(run_of, op, implementation, world_size):
    package, release = peers.SGLANG if implementation.startswith("sglang") else peers.FLASHINFER
    if peers.releases().get(package) != release:
        pytest.skip(f"{package} {release} is not installed, and {peers.VARIABLE} names no folder with its kernels")
    rows, said = run_of(world_size)
    size = "bytes" if op == SUM else "tokens"
    for timing in ("back_to_back", "kernel_between"):
        found = [row[size] for row in rows if (row["op"], row["impl"], row["timing"]) == (op, implementation, timing)]
        assert found == MEASURED[op, implementation, world_size], said
