"""The command's arguments; without torch, so that `--help` is there at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from lamport_rs import _core

FINALISATIONS = ("moe_finalize_all_reduce", "moe_finalize_all_reduce_rms_norm")
"""Operations on the rows that experts made."""
COLLECTIVES = tuple(name for name, *_ in _core.collectives())
"""All of the package."""
STEPS = ("decode_step",)
"""What a model does per token, with the collectives of several implementations in it."""
COSTS = ("create_workspace", "host_time")
"""What is measured of lamport_rs around the kernels."""
NO_COMMUNICATION = "no_communication"
"""What the communication's share of a step is told from."""
IMPLEMENTATION_NAMES = (
    "lamport_rs",
    "lamport_rs_one_shot",
    "lamport_rs_two_shot",
    "lamport_rs_unfused",
    "nccl",
    "nccl_windows",
    "gloo",
    "symm_mem_one_shot",
    "symm_mem_two_shot",
    "sglang_push",
    "sglang_pull",
    "sglang_qknorm",
    "flashinfer_trtllm",
    "flashinfer_mnnvl",
    "vllm_custom",
    "torch_eager_nccl",
    "torch_eager_gloo",
    NO_COMMUNICATION,
)
"""Those of `implementations.IMPLEMENTATIONS`."""
BACK_TO_BACK, KERNEL_BETWEEN = "back_to_back", "kernel_between"
NORM_BETWEEN, PRODUCT_BETWEEN = "norm_between", "product_between"
DEFAULT_TIMINGS = (BACK_TO_BACK, KERNEL_BETWEEN)
TIMINGS = (*DEFAULT_TIMINGS, NORM_BETWEEN, PRODUCT_BETWEEN)
"""What stands between two operations of a CUDA graph: nothing, or another kernel, whose own time is taken off."""
OPERATIONS = COLLECTIVES + STEPS + COSTS
_BY_DEFAULT = ("all_reduce", "all_reduce_rms_norm", "all_reduce_quant", *FINALISATIONS, "minimax_allreduce_rms_qk")
"""The others are much like these, and would make a run half as long again."""
DEFAULT_OPERATIONS = (*_BY_DEFAULT, *STEPS, *COSTS)
TIME_LIMIT = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    choice = parser.add_argument_group("what to measure")
    choice.add_argument(
        "--backend", choices=["auto", "host", "cuda"], default="auto", help="auto: GPUs if there are several"
    )
    choice.add_argument(
        "--world-sizes", type=_positive, nargs="+", metavar="N", help="default: 2 and 4 as GPUs allow; 2 on the host"
    )
    choice.add_argument("--operations", nargs="+", choices=OPERATIONS, metavar="OP", help=_operations())
    choice.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATION_NAMES, metavar="IMPL", help=_all_of(IMPLEMENTATION_NAMES)
    )
    choice.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="kernels of SGLang and FlashInfer that benchmarks/peers/build.py made (default: the installed packages')",
    )
    choice.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        metavar="BYTES",
        help="of all_reduce, as 512, 8Ki or 1Mi (default: 512 to 8Mi)",
    )
    choice.add_argument(
        "--tokens",
        type=_positive,
        nargs="+",
        metavar="T",
        help="of norms, quantised sums and experts' rows, and the batches of decode_step (default: 1 to 128 or 2048)",
    )
    choice.add_argument(
        "--layers",
        type=_positive,
        metavar="N",
        help="of decode_step's model (default: 32; on the host 4, of a small one)",
    )
    choice.add_argument(
        "--timing",
        nargs="+",
        choices=TIMINGS,
        metavar="HOW",
        help=f"some of {', '.join(TIMINGS)}: what stands between two operations "
        f"(default: {' and '.join(DEFAULT_TIMINGS)}; on the host {BACK_TO_BACK})",
    )
    choice.add_argument(
        "--replays",
        type=_positive,
        metavar="N",
        help="samples per figure: graph replays (30), or rounds on the host (5)",
    )
    choice.add_argument(
        "--time-limit",
        type=_positive,
        metavar="S",
        default=TIME_LIMIT,
        help="seconds for each world size, after which its ranks are ended (default: %(default)g)",
    )
    results = parser.add_argument_group("what to leave")
    results.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="where (default: benchmarks/results in a checkout, else here; with --draw beside the record)",
    )
    results.add_argument("--no-record", action="store_true", help="print only; leave no files")
    results.add_argument("--no-plot", action="store_true", help="draw no figures")
    results.add_argument("--draw", type=Path, metavar="JSON", help="measure nothing: print and draw this record")


def parse_bytes(text: str) -> int:
    """Return the bytes that `"512"`, `"8Ki"` or `"1 MiB"` means: a positive multiple of 16."""
    digits = text.strip().removesuffix("B").removesuffix("b").strip()
    factor = 1
    for suffix, each in (("ki", 1 << 10), ("mi", 1 << 20)):
        if digits.lower().endswith(suffix):
            digits, factor = digits[:-2].strip(), each
    if not digits.isdecimal() or (size := int(digits) * factor) <= 0 or size % 16 != 0:
        raise ValueError(f"{text!r} is no size: a positive multiple of 16 bytes, as 512, 8Ki or 1Mi")
    return size


def format_bytes(size: int) -> str:
    """Return `"8 Ki"` for 8192."""
    for suffix, factor in (("Mi", 1 << 20), ("Ki", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {suffix}"
    return str(size)


def _operations() -> str:
    return f"some of {', '.join(OPERATIONS)} (default: {', '.join(DEFAULT_OPERATIONS)})"


def _all_of(names: tuple[str, ...]) -> str:
    return f"some of {', '.join(names)} (default: all)"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def _size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
