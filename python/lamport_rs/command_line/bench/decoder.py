"""A decoder's step of one token per sequence, split over the ranks as tensor parallelism splits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812

EPSILON = 1e-5
_ROTARY_BASE = 500000.0


@dataclass(frozen=True)
class Dimensions:
    """A model's, before it is split."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int
    context: int
    """Tokens that attention reads, the new one included."""

    def divide(self, world_size: int) -> Dimensions:
        """Return a rank's part; raise ValueError if the heads, or the rest, cannot be shared out evenly."""
        parts = {"heads": self.heads, "kv_heads": self.kv_heads, "intermediate": self.intermediate}
        parts["vocabulary"] = self.vocabulary
        for name, size in parts.items():
            if size % world_size:
                raise ValueError(f"the model's {size} {name} cannot be shared out among {world_size} ranks")
        divided = {name: size // world_size for name, size in parts.items()}
        return Dimensions(hidden=self.hidden, head=self.head, context=self.context, **divided)


LLAMA_3_8B = Dimensions(4096, 32, 8, 128, 14336, 128256, 1024)
SMALL = Dimensions(256, 16, 8, 16, 512, 512, 32)
"""For the host: a step takes milliseconds."""


@dataclass(frozen=True)
class Communication:
    """What stands where a layer's partial sums become the next rows."""

    reduce_norm: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """From the partial sum, the residual and the norm's weight to the normalised rows and the new residual.

    It may overwrite the partial sum and the residual.
    """
    place: torch.Tensor | None = None
    """Where the partial sum has to be, if it matters: a vector that is long enough."""


@dataclass(frozen=True)
class Layer:
    """A rank's part of a layer, with its keys and values."""

    qkv: torch.Tensor
    attention_out: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    cache: torch.Tensor
    """Keys, then values: sequences, heads, tokens, elements of a head."""


Share: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Rank 0's tensor, on all ranks. Collective."""


class Decoder:
    """One rank's part of a model of random weights."""

    def __init__(
        self, whole: Dimensions, layers: int, batch: int, world_size: int, dtype: torch.dtype, share: Share
    ) -> None:
        """Make the weights on the default device. `share` is called for those that all ranks have in common."""
        self._part = part = whole.divide(world_size)
        hidden, attention = whole.hidden, part.heads * part.head
        # What all layers add to the residual is about as large as what is there at first.
        depth = (2 * layers) ** -0.5

        def random(*shape: int, scale: float) -> torch.Tensor:
            # In the dtype at once: in float32 they would take twice the memory.
            return torch.empty(shape, dtype=dtype).normal_(0, scale)

        def norm() -> torch.Tensor:
            return share(1 + random(hidden, scale=0.1))

        self._layers = [
            Layer(
                qkv=random(attention + 2 * part.kv_heads * part.head, hidden, scale=hidden**-0.5),
                attention_out=random(hidden, attention, scale=(whole.heads * whole.head) ** -0.5 * depth),
                gate_up=random(2 * part.intermediate, hidden, scale=hidden**-0.5),
                down=random(hidden, part.intermediate, scale=3 * whole.intermediate**-0.5 * depth),
                attention_norm=norm(),
                mlp_norm=norm(),
                cache=random(batch, 2 * part.kv_heads, whole.context, part.head, scale=1),
            )
            for _ in range(layers)
        ]
        self._last_norm = norm()
        self._embedding = share(random(whole.vocabulary, hidden, scale=1))
        self._logits = random(part.vocabulary, hidden, scale=hidden**-0.5)
        self._cosines, self._sines = _rotation(part)

    def step(self, tokens: torch.Tensor, communication: Communication) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last norm's rows, and this rank's part of the logits."""
        elementwise = _elementwise(tokens.device.type)
        residual = F.embedding(tokens, self._embedding)
        rows = F.rms_norm(residual, residual.shape[-1:], self._layers[0].attention_norm, EPSILON)
        norms = [*(layer.attention_norm for layer in self._layers[1:]), self._last_norm]
        for layer, next_norm in zip(self._layers, norms, strict=True):
            attended = self._attend(F.linear(rows, layer.qkv), layer.cache, elementwise)
            partial = _project(attended, layer.attention_out, communication.place)
            rows, residual = communication.reduce_norm(partial, residual, layer.mlp_norm)
            activated = elementwise.silu_mul(F.linear(rows, layer.gate_up))
            partial = _project(activated, layer.down, communication.place)
            rows, residual = communication.reduce_norm(partial, residual, next_norm)
        return rows, F.linear(rows, self._logits)

    def _attend(self, qkv: torch.Tensor, cache: torch.Tensor, elementwise: _Elementwise) -> torch.Tensor:
        """Attention of each sequence's newest token, whose key and value become the cache's last."""
        heads, kv_heads, head = self._part.heads, self._part.kv_heads, self._part.head
        rotated = elementwise.rotate(qkv.view(len(qkv), -1, head), self._cosines, self._sines)
        cache[:, :, -1].copy_(rotated[:, heads:])
        # The query heads that share a key head are rows of one attention.
        queries = rotated[:, :heads].reshape(-1, kv_heads, heads // kv_heads, head)
        attended = F.scaled_dot_product_attention(queries, cache[:, :kv_heads], cache[:, kv_heads:])
        return attended.reshape(len(qkv), heads * head)


def add_rms_norm(
    partial: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `Communication.reduce_norm` does of a sum that is complete; one kernel on GPUs."""
    return _elementwise(partial.device.type).add_rms_norm(partial, residual, weight)


@dataclass(frozen=True)
class _Elementwise:
    """What is neither a product nor attention: one kernel each, as serving stacks have them."""

    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    silu_mul: Callable[..., torch.Tensor]
    rotate: Callable[..., torch.Tensor]


def _add_rms_norm(
    partial: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    total = residual + partial
    wide = total.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
    return (wide * scale * weight).to(total.dtype), total


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _rotate(qkv: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """The rotary embedding of queries and keys; values keep what they are, by their rows of the tables."""
    halves = qkv.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    rotated: torch.Tensor = (qkv * cosines + halves * sines).to(qkv.dtype)
    return rotated


def _rotation(part: Dimensions) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables for `_rotate`, at the context's last token: a row per head of the queries, keys and values."""
    angles = (part.context - 1) * _ROTARY_BASE ** -(torch.arange(0, part.head, 2) / part.head)
    turned, kept = part.heads + part.kv_heads, part.kv_heads
    cosines, sines = angles.cos().repeat(2), torch.cat([-angles.sin(), angles.sin()])
    return (
        torch.cat([cosines.expand(turned, -1), torch.ones(kept, part.head)]),
        torch.cat([sines.expand(turned, -1), torch.zeros(kept, part.head)]),
    )


@cache
def _elementwise(device_type: str) -> _Elementwise:
    if device_type != "cuda":
        return _Elementwise(_add_rms_norm, _silu_mul, _rotate)
    from torch._inductor import config as inductor

    # In this process: they are few, and a pool of compilers per rank would take longer to start.
    inductor.compile_threads = 1
    return _Elementwise(torch.compile(_add_rms_norm), torch.compile(_silu_mul), torch.compile(_rotate))


def _project(rows: torch.Tensor, weight: torch.Tensor, place: torch.Tensor | None) -> torch.Tensor:
    if place is None:
        return F.linear(rows, weight)
    out = place[: len(rows) * len(weight)].view(len(rows), len(weight))
    return torch.mm(rows, weight.t(), out=out)
