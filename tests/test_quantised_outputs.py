"""Outputs of the operations that quantise, on the host: what is refused, and that a refusal counts."""

import itertools

import lamport_rs
import pytest
import torch
from lamport_rs import _core
from lamport_rs.layout import share_memory
from quantised_outputs import ROWS_OUT, WAYS, call_of, refuse_what_shares_memory
from ranks import Rank, ThreadRanks


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operation", ROWS_OUT)
def test_outputs_that_share_memory_are_refused_however_they_lie(ranks_of, operation, way):
    ranks_of(2).run(refuse_what_shares_memory, operation, way)


def refuse_a_place_for_no_scales(me: Rank, operation: str, way: str) -> None:
    workspace = me.workspace()
    rows = torch.ones(2, 128).half()

    def call(table: torch.Tensor, scale_out: torch.Tensor) -> torch.Tensor:
        return call_of(operation, rows, table, "fp8_static", scale_out=scale_out)[0]

    with pytest.raises(Exception, match="fp8_static computes no scales: scale_out must be None"):
        WAYS[way](call)(workspace.workspace, torch.empty(2, 1))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operation", ROWS_OUT)
def test_a_place_for_scales_that_are_not_computed_is_refused(ranks_of, operation, way):
    ranks_of(2).run(refuse_a_place_for_no_scales, operation, way)


class NoTruth:
    def __bool__(self) -> bool:
        raise ArithmeticError("neither")


@pytest.mark.parametrize(
    ("operation", "option"), [("all_reduce_quant", "with_sum"), ("all_reduce_rms_norm_quant", "with_norm")]
)
def test_a_call_counts_that_cannot_tell_what_is_wanted(monkeypatch, operation, option):
    counted = []

    class Core:
        def __getattr__(self, name: str) -> object:
            return counted.append if name == "note_refusal" else getattr(_core, name)

    monkeypatch.setattr(lamport_rs.operations.collective, "_core", Core())
    workspace = ThreadRanks(1).member(0).workspace(4096)
    for places in ({}, {option.removeprefix("with_") + "_out": torch.empty(2, 16).half()}):
        counted.clear()
        with pytest.raises(ArithmeticError, match="neither"):
            call_of(operation, torch.ones(2, 16).half(), workspace, "fp8_token", **{option: NoTruth()}, **places)
        assert len(counted) == 1
    for value, is_there in ((1, True), (0, False), ("", False)):
        found = call_of(operation, torch.ones(2, 16).half(), workspace, "fp8_token", **{option: value})
        assert (found[-1] is not None) is is_there


def test_what_a_tracer_takes_to_share_memory_does():
    """Views of a memory whose bytes say where they are."""
    memory = torch.arange(4 * 64, dtype=torch.uint8)

    def view(shape: tuple[int, ...], strides: tuple[int, ...], start: int, dtype: torch.dtype) -> torch.Tensor:
        return memory.as_strided(shape, strides, start).view(dtype)

    sizes = [((4, 8), (32, 1)), ((2, 2, 16), (64, 32, 1)), ((4, 4), (32, 1)), ((1, 8), (32, 1)), ((8,), (1,))]
    for (one, other), first, second in itertools.product(itertools.product(sizes, sizes), (0, 4, 40), range(0, 64, 4)):
        for dtype in (torch.uint8, torch.float32):
            views = view(*one, first, torch.uint8), view(*other, second, dtype)
            found = [set(each.contiguous().view(torch.uint8).flatten().tolist()) for each in views]
            expected = bool(found[0] & found[1])
            # A row alone may lie between others.
            if expected or min(each.numel() * each.itemsize for each in views) > 8:
                assert share_memory(*views) == expected, (one, other, first, second, dtype)
    assert not share_memory(memory[:4], memory[4:])
    assert not share_memory(memory, memory.clone())
    assert share_memory(memory[:4].expand(4, 4), memory[:1].expand(4, 4))
