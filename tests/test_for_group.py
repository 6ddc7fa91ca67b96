"""`LamportWorkspace.for_group`, groups of one rank, `supports`, and what a workspace says of itself."""

import contextlib
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.sizing import default_comm_size
from ranks import Rank, ThreadRanks
from reference import check_same_bits, random_tensor, rounded_sum

MIB = 1 << 20


def make_for_groups(me: Rank) -> None:
    """The default group, one of some ranks, and one that this rank is alone in."""
    x = random_tensor((1000,), torch.float16, me.rank)
    inputs = [random_tensor((1000,), torch.float16, rank) for rank in range(me.world_size)]
    with LamportWorkspace.for_group() as workspace:
        assert (workspace.rank, workspace.world_size) == (me.rank, me.world_size)
        check_same_bits(lamport_rs.all_reduce(x, workspace), rounded_sum(inputs))
        assert 48 * MIB < workspace.memory_bytes <= 64 * MIB
    pair = dist.new_group([0, 2])
    if me.rank in (0, 2):
        with LamportWorkspace.for_group(pair, max_bytes=4096, device="cpu", timeout=20) as workspace:
            assert (workspace.rank, workspace.world_size) == (me.rank // 2, 2)
            assert workspace.comm_size == LamportWorkspace.compute_comm_size_for_all_reduce(4096, 2)
            check_same_bits(lamport_rs.all_reduce(x, workspace), rounded_sum([inputs[0], inputs[2]]))
    else:
        with pytest.raises(LamportError, match="this rank is not in process_group"):
            LamportWorkspace.for_group(pair)
    for alone in [dist.new_group([rank]) for rank in range(me.world_size)]:
        if alone is not dist.GroupMember.NON_GROUP_MEMBER:
            with LamportWorkspace.for_group(alone) as workspace:
                check_same_bits(lamport_rs.all_reduce(x, workspace), x)


def test_a_workspace_knows_its_group(ranks_of):
    ranks_of(3).run(make_for_groups)


def test_the_documented_sizes_are_those_of_the_package():
    text = (Path(__file__).parent.parent / "docs" / "memory.md").read_text()
    table = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert [int(row[0]) for row in table] == [1, 2, 4, 8, 16]
    for world_size, *documented in [map(int, row) for row in table]:
        sizes = [
            LamportWorkspace.compute_comm_size_for_all_reduce(size, world_size) for size in (1 << 16, MIB, 8 * MIB)
        ]
        slots = [*sizes, default_comm_size(world_size)]
        assert [-(-3 * (slot + 64 * world_size) // (2 * MIB)) * 2 for slot in slots] == documented


def test_what_is_no_torch_group_is_refused():
    with pytest.raises(LamportError, match=r"call torch\.distributed\.init_process_group\(\) first"):
        LamportWorkspace.for_group()
    with pytest.raises(LamportError, match="for_group takes a torch process group"):
        LamportWorkspace.for_group(lambda message: [message])
    with pytest.raises(LamportError, match="process_group must be a torch process group"):
        LamportWorkspace.for_group("world")


def limit_memory(me: Rank, text: str, on_rank: int | None) -> int | str:
    with pytest.MonkeyPatch.context() as patch:
        if on_rank in (None, me.rank):
            patch.setenv("LAMPORT_RS_MAX_MEMORY", text)
        try:
            with LamportWorkspace.for_group(device="cpu") as workspace:
                return workspace.memory_bytes
        except LamportError as error:
            return str(error)


def test_the_environment_bounds_the_memory_of_a_default_workspace(ranks_of):
    ranks = ranks_of(2)
    for limit in (2 * MIB, 7 * MIB, 40 * MIB + 5):
        taken = ranks.run(limit_memory, str(limit), None)
        assert taken[0] == taken[1]
        assert 0.6 * limit < taken[0] <= limit
    assert ranks.run(limit_memory, str(1 << 40), None)[0] < 100 * MIB, "not more than is of use"
    for text in ("many", "-1", "1000", ""):
        errors = ranks.run(limit_memory, text, 1)
        assert errors[0] == errors[1]
        assert f"rank 1: LAMPORT_RS_MAX_MEMORY is {text!r}, but must be a number of bytes" in errors[0]
    errors = ranks.run(limit_memory, str(8 * MIB), 1)
    assert all("comm_size" in error for error in errors), errors


def test_wrong_arguments_are_an_error_on_all_ranks(ranks_of):
    ranks_of(2).run(ask_wrongly)


def ask_wrongly(me: Rank) -> None:
    for options, text in [
        ({"max_bytes": 0 if me.rank else 64}, "max_bytes is 0, but must be positive"),
        ({"max_bytes": "64" if me.rank else 64}, "max_bytes is '64', but must be an integer"),
        ({"max_bytes": 64 << me.rank}, "comm_size"),
    ]:
        with pytest.raises(LamportError, match=text):
            LamportWorkspace.for_group(device="cpu", **options)


def be_alone(me: Rank, dtype: torch.dtype) -> None:
    workspace = me.workspace(4096)
    x, residual, weight = (random_tensor(shape, dtype, 1, 2) for shape in [(33, 64), (33, 64), (64,)])
    weight = weight.abs()
    for algorithm in ("auto", "one_shot", "two_shot"):
        check_same_bits(lamport_rs.all_reduce(x, workspace, algorithm=algorithm), x)
    out = torch.empty_like(x)
    assert lamport_rs.all_reduce(x, workspace, out) is out
    check_same_bits(out, x)
    for added in (residual, None):
        total = x if added is None else (x.float() + added.float()).to(dtype)
        rows = total.double()
        expected = rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (weight.double() + 1)
        normalised, residual_out = lamport_rs.all_reduce_rms_norm(x, added, weight, workspace, 1e-5, 1.0)
        check_same_bits(residual_out, total)
        torch.testing.assert_close(normalised, expected.to(dtype))
    rows = x.double()
    expected = (rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()).to(dtype)
    torch.testing.assert_close(lamport_rs.minimax_allreduce_rms(x, weight, workspace, 0, 1, 1e-5), expected)
    q, k = lamport_rs.minimax_allreduce_rms_qk(torch.cat([x, x, x], -1), weight, weight, workspace, 64, 64, 0, 1, 1e-5)
    torch.testing.assert_close(q, expected)
    torch.testing.assert_close(k, expected)
    total = torch.compile(lambda x: lamport_rs.all_reduce(x, table), backend="aot_eager", fullgraph=True)
    table = workspace.workspace
    check_same_bits(total(x), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_single_rank_has_copies_as_sums_and_norms_as_norms(dtype):
    # In this thread: it compiles.
    be_alone(ThreadRanks(1).member(0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_norms_of_a_single_rank_on_a_gpu_are_those_of_the_host(dtype):
    """What torch computes there runs on any device."""
    from lamport_rs import single_rank

    workspace = ThreadRanks(1).member(0).workspace(4096)
    x, residual = (random_tensor((33, 64), dtype, seed, 2) for seed in (1, 2))
    weight = random_tensor((64,), dtype, 3, 2)
    for added in (residual, None):
        found = torch.empty_like(x), torch.empty_like(x)
        single_rank.normalise_sum(x, added, weight, 1e-5, 1.0, *found)
        expected = lamport_rs.all_reduce_rms_norm(x, added, weight, workspace, 1e-5, 1.0)
        check_same_bits(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0])
    packed = torch.cat([x, residual, x], -1)
    pair = torch.empty_like(x), torch.empty_like(x)
    single_rank.normalise_pair(packed, 64, 64, (weight, weight), 1e-5, pair)
    expected = lamport_rs.minimax_allreduce_rms_qk(packed, weight, weight, workspace, 64, 64, 0, 1, 1e-5)
    for found, right in zip(pair, expected, strict=True):
        torch.testing.assert_close(found, right)


X = torch.ones(6, 64)
SUPPORTED: dict[str, tuple[torch.Tensor, dict[str, Any], bool]] = {
    "a sum": (X, {}, True),
    "a sum of integers": (X.int(), {}, False),
    "a sum of doubles": (X.double(), {}, False),
    "a strided sum": (X.t()[::2], {}, True),
    "a long sum": (torch.empty(1 << 32, dtype=torch.bfloat16, device="meta"), {}, True),
    "a scalar": (torch.ones(()), {}, True),
    "an empty tensor": (torch.ones(0, 3), {}, True),
    "a huge empty tensor": (torch.empty(0, 1 << 60), {}, True),
    "nine dimensions": (torch.ones([1] * 9), {}, False),
    "a sparse tensor": (X.to_sparse(), {}, False),
    "a norm": (X, {"operation": "all_reduce_rms_norm"}, True),
    "a norm in two shots": (X, {"operation": "all_reduce_rms_norm", "algorithm": "two_shot"}, False),
    "a norm of columns that are no vectors": (X[:, :60], {"operation": "all_reduce_rms_norm"}, False),
    "a norm of a scalar": (torch.ones(()), {"operation": "all_reduce_rms_norm"}, False),
    "float32 weights": (X.half(), {"operation": "all_reduce_rms_norm", "weight_dtype": torch.float32}, True),
    "float16 weights": (X, {"operation": "all_reduce_rms_norm", "weight_dtype": torch.float16}, False),
    "MiniMax": (X, {"operation": "minimax_allreduce_rms"}, True),
    "Q and K": (X, {"operation": "minimax_allreduce_rms_qk", "q_size": 32, "kv_size": 16}, True),
    "Q and K that are too wide": (X, {"operation": "minimax_allreduce_rms_qk", "q_size": 32, "kv_size": 40}, False),
    "Q and K without sizes": (X, {"operation": "minimax_allreduce_rms_qk"}, False),
}


def call(x: torch.Tensor, workspace: LamportWorkspace, options: dict[str, Any]) -> None:
    """The call that `supports` was asked about."""
    options = dict(options)
    operation, dtype = options.pop("operation", "all_reduce"), options.pop("weight_dtype", x.dtype)
    rank, world_size = workspace.rank, workspace.world_size
    if operation == "all_reduce":
        lamport_rs.all_reduce(x, workspace, **options)
        return
    weight = torch.ones(x.shape[-1:], dtype=dtype)
    if operation == "all_reduce_rms_norm":
        lamport_rs.all_reduce_rms_norm(x, None, weight, workspace, **options)
    elif operation == "minimax_allreduce_rms":
        lamport_rs.minimax_allreduce_rms(x, weight, workspace, rank, world_size, 1e-6)
    else:
        q, k = options.get("q_size", 0), options.get("kv_size", 0)
        lamport_rs.minimax_allreduce_rms_qk(x, weight[:q], weight[:k], workspace, q, k, rank, world_size, 1e-6)


def ask_and_call(me: Rank, name: str) -> None:
    x, options, expected = SUPPORTED[name]
    workspace = me.workspace(4096, timeout=20)
    assert workspace.supports(x, **options) is expected
    with contextlib.nullcontext() if expected else pytest.raises(LamportError):
        workspace.prepare(x, **options)
    if x.is_meta:
        return
    if expected:
        call(x, workspace, options)
    else:
        with pytest.raises(LamportError):
            call(x, workspace, options)


@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_said_beforehand_holds_for_the_call(world_size, name):
    ThreadRanks(world_size).run(ask_and_call, name)


def test_questions_without_an_answer_are_errors():
    workspace = ThreadRanks(1).member(0).workspace(4096)
    with pytest.raises(LamportError, match='there is no "all_sum"'):
        workspace.supports(X, "all_sum")
    with pytest.raises(LamportError, match='algorithm is "best"'):
        workspace.supports(X, algorithm="best")
    for value, kind in ((None, "NoneType"), ([1.0], "list"), (3, "int")):
        for ask in (workspace.supports, workspace.prepare):
            with pytest.raises(LamportError, match=rf"input must be a torch\.Tensor, not {kind}"):
                ask(value)
    for ask in (workspace.supports, workspace.prepare):
        for option in ("epsilon", "eps", "input", "workspace"):
            with pytest.raises(TypeError, match=f"{'multiple values' if option == 'input' else f'takes no {option}'}"):
                ask(X, **{option: 1})
    workspace.cleanup()
    for ask in (lambda: workspace.supports(X), lambda: workspace.memory_bytes):
        with pytest.raises(LamportError, match="cleaned up"):
            ask()


ROWS, WEIGHT, INDEX = X.half(), torch.ones(64).half(), torch.zeros(6, 2, dtype=torch.int32)
ONE, HALVES = torch.ones(1), {"q_size": 32, "kv_size": 16, "rank": 0, "nranks": 1, "eps": 1e-6}
KEYWORDS: list[tuple[str, dict[str, Any], bool]] = [
    ("all_reduce", {"out": ROWS, "algorithm": "one_shot"}, True),
    ("all_reduce_rms_norm", {"residual": None, "weight": WEIGHT, "eps": 1e-6, "weight_bias": 1.0, "out": ROWS}, True),
    ("all_reduce_rms_norm", {"residual": ROWS, "weight": WEIGHT.float(), "residual_out": ROWS}, True),
    ("all_reduce_rms_norm", {"residual": ROWS, "weight": WEIGHT.bfloat16()}, False),
    ("all_reduce_layer_norm", {"residual": None, "weight": WEIGHT, "bias": WEIGHT, "eps": 1e-5, "out": ROWS}, True),
    ("all_reduce_quant", {"quant_format": "fp8_token", "scale": None, "with_sum": True}, True),
    ("all_reduce_rms_norm_quant", {"residual": None, "weight": WEIGHT, "quant_format": "nvfp4", "scale": ONE}, True),
    ("minimax_allreduce_rms_qk", {"norm_weight_q": WEIGHT[:32], "norm_weight_k": WEIGHT[:16], **HALVES}, True),
    ("minimax_allreduce_rms", {"norm_weight": WEIGHT, "rank": 0, "nranks": 1, "eps": 1e-6}, True),
    ("minimax_allreduce_rms", {"norm_weight": WEIGHT.double(), "rank": 0, "nranks": 1, "eps": 1e-6}, False),
    ("moe_finalize_all_reduce", {"row_index": INDEX, "expert_weights": WEIGHT, "shared_rows": None}, True),
    ("moe_finalize_all_reduce_rms_norm", {"row_index": INDEX, "residual": None, "weight": WEIGHT, "eps": 1e-6}, True),
]


@pytest.mark.parametrize(("operation", "options", "expected"), KEYWORDS)
def test_the_keywords_of_a_call_are_taken_as_they_are(operation, options, expected):
    workspace = ThreadRanks(1).member(0).workspace(4096)
    assert workspace.supports(ROWS, operation, **options) is expected
    with contextlib.nullcontext() if expected else pytest.raises(LamportError):
        workspace.prepare(ROWS, operation, **options)


def fail_and_log(me: Rank) -> None:
    workspace = me.workspace(4096, kept=True, timeout=0.2)
    if me.rank == 0:
        with pytest.raises(LamportError):
            lamport_rs.all_reduce(X, workspace)


def test_the_log_has_a_line_for_each_workspace_and_each_fault(caplog):
    with caplog.at_level(logging.INFO, "lamport_rs"):
        ThreadRanks(2).run(fail_and_log)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "lamport_rs"]
    made = sorted(text for level, text in lines if level == "INFO")
    assert len(made) == 2
    for rank, text in enumerate(made):
        assert text.startswith(f"workspace of rank {rank} of 2 on cpu: 0.0 MiB, slots of 4096 bytes, timeout 0.2 s")
    (fault,) = (text for level, text in lines if level == "ERROR")
    assert "operation 1, all_reduce of 384 float32" in fault


def test_the_log_tells_where_the_time_of_a_construction_goes_if_asked(caplog):
    with caplog.at_level(logging.DEBUG, "lamport_rs"):
        ThreadRanks(2).run(lambda me: me.workspace(4096).cleanup())
    lines = sorted(record.getMessage() for record in caplog.records if record.levelname == "DEBUG")
    assert len(lines) == 2
    for rank, text in enumerate(lines):
        start, parts = text.split(": ")
        assert start == f"milliseconds of rank {rank} to make it"
        names, taken = zip(*(part.rsplit(" ", 1) for part in parts.split(", ")), strict=True)
        before = ("allocate", "allocate page", "export", "await fill", "meet")
        assert names == (*before, "fill", "map", "map pages", "agree")
        assert sum(map(float, taken)) > 0


NVTX = """
import torch
ranges = []
torch.cuda.nvtx.range_push = ranges.append
torch.cuda.nvtx.range_pop = lambda: ranges.append(None)
import lamport_rs
lamport_rs.LamportWorkspace
ranges.clear()
workspace = lamport_rs.LamportWorkspace(0, 1, 4096, lambda message: [message], device="cpu")
lamport_rs.all_reduce(torch.ones(4), workspace)
try:
    lamport_rs.all_reduce_rms_norm(torch.ones(3), None, torch.ones(3), workspace)
except lamport_rs.LamportError:
    pass
print(ranges)
"""


@pytest.mark.long
@pytest.mark.parametrize("value", ["1", "0"])
def test_operations_are_ranges_of_a_profile_if_the_environment_says_so(value, monkeypatch):
    monkeypatch.setenv("LAMPORT_RS_NVTX", value)
    found = subprocess.run([sys.executable, "-c", NVTX], capture_output=True, text=True, check=True, timeout=60)
    expected = ["lamport_rs.all_reduce", None, "lamport_rs.all_reduce_rms_norm", None] if value == "1" else []
    assert found.stdout.strip() == str(expected)
