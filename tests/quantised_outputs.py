"""What both operations that quantise refuse of their outputs, for the tests of both backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lamport_rs
import pytest
import torch
from quantised_rows import EPS, FORMATS
from ranks import Rank

TOKENS, HIDDEN = 5, 256
ROWS_OUT = {"all_reduce_quant": ["sum_out"], "all_reduce_rms_norm_quant": ["norm_out", "residual_out"]}
"""The outputs that are rows of the input's dtype."""


def call_of(operation: str, rows: torch.Tensor, workspace: Any, quant_format: str, **options: Any) -> Any:
    given = FORMATS[quant_format].given
    scale = None if given is None else torch.tensor([given], device=rows.device)
    if operation == "all_reduce_quant":
        return lamport_rs.all_reduce_quant(rows, workspace, quant_format, scale, **options)
    weight = torch.ones(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    return lamport_rs.all_reduce_rms_norm_quant(rows, None, weight, workspace, quant_format, scale, EPS, **options)


def places_in_one_memory(me: Rank, start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, their scales, and rows of 16 bits: each row of one memory has one of each, the last from `start` on."""
    memory = torch.zeros(TOKENS, 8 * HIDDEN, dtype=torch.uint8, device=me.device)
    codes = memory[:, :HIDDEN].view(torch.float8_e4m3fn)
    scales = memory[:, HIDDEN : HIDDEN + 4].view(torch.float32)
    return codes, scales, memory[:, start : start + 2 * HIDDEN].view(torch.float16)


def refuse_what_shares_memory(me: Rank, operation: str, way: str) -> None:
    """Outputs that are not contiguous are copied back; if two share memory, one of them would be lost."""
    workspace, how = me.workspace(1 << 16), WAYS[way]
    rows = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(me.rank)).half().to(me.device)

    def call(table: torch.Tensor, out: torch.Tensor, scale_out: torch.Tensor, name: str, place: torch.Tensor) -> Any:
        places = {"out": out, "scale_out": scale_out, name: place}
        return call_of(operation, rows, table, "fp8_token", **places)[0]

    for name in ROWS_OUT[operation]:
        # In the codes; at their last columns; in the scales; in both.
        for start in (0, HIDDEN - 8, HIDDEN, HIDDEN - 16):
            codes, scales, place = places_in_one_memory(me, start)
            with pytest.raises(Exception, match=r"overlaps .*must be separate tensors"):
                how(call)(workspace.workspace, codes, scales, name, place)
            assert not bool(place.any()), f"{name} was written"
        if way == "compiled":
            # torch's compiler takes no views of several dtypes of a tensor that is written.
            continue
        codes, scales, place = places_in_one_memory(me, 2 * HIDDEN)
        call(workspace.workspace, codes, scales, name, place)
        expected = call_of(operation, rows, workspace, "fp8_token", **{name: torch.empty_like(rows)})
        assert torch.equal(codes.float(), expected[0].float())
        assert torch.equal(scales, expected[1])
        assert any(each is not None and torch.equal(place, each) for each in expected[2:]), name
    if operation == "all_reduce_rms_norm_quant":
        refuse_rows_that_share_memory(me, rows, workspace.workspace, how)


def refuse_rows_that_share_memory(me: Rank, rows: torch.Tensor, table: torch.Tensor, how: Callable) -> None:
    def call(table: torch.Tensor, norm_out: torch.Tensor, residual_out: torch.Tensor) -> torch.Tensor:
        places = {"norm_out": norm_out, "residual_out": residual_out}
        return call_of("all_reduce_rms_norm_quant", rows, table, "fp8_token", **places)[0]

    memory = torch.zeros(TOKENS, 2 * HIDDEN, dtype=torch.float16, device=me.device)
    for first in (0, 8, HIDDEN - 1):
        with pytest.raises(Exception, match=r"norm_out overlaps residual_out; they must be separate tensors"):
            how(call)(table, memory[:, :HIDDEN], memory[:, first : first + HIDDEN])
    how(call)(table, memory[:, :HIDDEN], memory[:, HIDDEN:])
    places = {"norm_out": torch.empty_like(rows), "residual_out": torch.empty_like(rows)}
    expected = call_of("all_reduce_rms_norm_quant", rows, table, "fp8_token", **places)
    assert torch.equal(memory, torch.cat([expected[3], expected[2]], 1))


def eagerly(function: Callable) -> Callable:
    return function


def compiled(function: Callable) -> Callable:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


WAYS = {"eagerly": eagerly, "compiled": compiled}
