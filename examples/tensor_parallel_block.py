"""A transformer block with attention by heads and an MLP by columns, over ranks, compared with the whole block.

Both ways end in rows that are summed over the ranks. `all_reduce_rms_norm` does the sum, the residual and the norm that
follows as one operation.

torchrun --standalone --nproc-per-node 2 examples/tensor_parallel_block.py
"""

import os
from collections.abc import Callable
from typing import TypeAlias

import lamport_rs
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

HIDDEN, HEADS, HEAD_SIZE, INTERMEDIATE = 512, 8, 64, 1536
EPS = 1e-6

SumAndNorm: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes rows, the residual and the norm's weight; returns the normalised rows and the new residual."""


def block(hidden: Tensor, residual: Tensor, weights: dict[str, Tensor], sum_and_norm: SumAndNorm) -> Tensor:
    """Return the rows for the next block. `hidden` is `[tokens, HIDDEN]`, and normalised."""
    # [q, k or v; head; token; column], with as many heads as the weights have.
    q, k, v = (hidden @ weights["qkv"].flatten(1)).unflatten(1, (3, -1, HEAD_SIZE)).permute(1, 2, 0, 3)
    heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    rows = heads.transpose(0, 1).flatten(1) @ weights["output"]
    hidden, residual = sum_and_norm(rows, residual, weights["attention_norm"])
    rows = (functional.silu(hidden @ weights["gate"]) * (hidden @ weights["up"])) @ weights["down"]
    return sum_and_norm(rows, residual, weights["mlp_norm"])[0]


def make_weights() -> dict[str, Tensor]:
    """Return the weights of the whole block."""
    shapes = {
        "qkv": (HIDDEN, 3, HEADS * HEAD_SIZE),
        "output": (HEADS * HEAD_SIZE, HIDDEN),
        "gate": (HIDDEN, INTERMEDIATE),
        "up": (HIDDEN, INTERMEDIATE),
        "down": (INTERMEDIATE, HIDDEN),
        "attention_norm": (HIDDEN,),
        "mlp_norm": (HIDDEN,),
    }
    return {name: torch.randn(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}


def shard(weights: dict[str, Tensor], rank: int, world_size: int) -> dict[str, Tensor]:
    """Return a rank's part: columns of what comes first, the same rows of what follows, and norms whole."""
    dimension = {"qkv": -1, "gate": -1, "up": -1, "output": 0, "down": 0}
    return {
        name: weight.chunk(world_size, dimension[name])[rank].contiguous() if name in dimension else weight
        for name, weight in weights.items()
    }


def add_and_norm(rows: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `all_reduce_rms_norm` does in a group of one."""
    residual = residual + rows
    return functional.rms_norm(residual, residual.shape[-1:], weight, EPS), residual


def main() -> None:
    """Run the block both ways."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    with torch.no_grad(), lamport_rs.LamportWorkspace.for_group() as workspace:

        def sum_and_norm(rows: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return lamport_rs.all_reduce_rms_norm(rows, residual, weight, workspace, EPS)

        torch.manual_seed(0)  # The same on every rank.
        weights = {name: weight.to(workspace.device) for name, weight in make_weights().items()}
        hidden, residual = torch.randn(2, 16, HIDDEN).to(workspace.device)
        expected = block(hidden, residual, weights, add_and_norm)
        own = shard(weights, workspace.rank, workspace.world_size)
        result = block(hidden, residual, own, sum_and_norm)
        torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
        said = f"{own['qkv'].shape[-1] // HEAD_SIZE} of {HEADS} heads; the whole block's result"
        print(f"rank {workspace.rank}: {said}\n", end="")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
