"""Greedy decoding with a tensor-parallel model. On GPUs a step is a CUDA graph, replayed for each token.

The layers have an MLP and no attention, to be short. Every rank finds the same tokens without asking the others: sums
have the same bits everywhere.

torchrun --standalone --nproc-per-node 2 examples/decode_loop.py
"""

import os
from collections.abc import Callable

import lamport_rs
import torch
import torch.distributed as dist
from torch.nn import functional

VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, STEPS = 1000, 256, 1024, 4, 12


class Decoder:
    """A rank's part of the model: some columns of the MLPs, and a copy of the rest."""

    def __init__(self, workspace: lamport_rs.LamportWorkspace) -> None:
        """Make random weights, of which this rank keeps its part."""
        self.workspace, device = workspace, workspace.device
        torch.manual_seed(0)  # The same on every rank.
        up = torch.randn(LAYERS, HIDDEN, INTERMEDIATE) / HIDDEN**0.5
        down = torch.randn(LAYERS, INTERMEDIATE, HIDDEN) / INTERMEDIATE**0.5
        self.up = up.chunk(workspace.world_size, 2)[workspace.rank].to(device)
        self.down = down.chunk(workspace.world_size, 1)[workspace.rank].to(device)
        self.embedding = torch.randn(VOCABULARY, HIDDEN).to(device)
        self.head = torch.randn(HIDDEN, VOCABULARY).to(device)
        self.norm = torch.ones(HIDDEN, device=device)
        self.token = torch.zeros(1, dtype=torch.int64, device=device)

    def step(self) -> None:
        """Replace the token by the one that follows: in place, as a graph needs it."""
        residual = self.embedding[self.token]
        hidden = functional.rms_norm(residual, (HIDDEN,), self.norm, 1e-6)
        for up, down in zip(self.up, self.down, strict=True):
            partial = functional.silu(hidden @ up) @ down
            hidden, residual = lamport_rs.all_reduce_rms_norm(partial, residual, self.norm, self.workspace)
        self.token.copy_((hidden @ self.head).argmax(-1))


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Return what runs `step` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()  # Once before the capture, for what libraries set up with the first call.
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def main() -> None:
    """Decode, and compare the tokens of all ranks."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    with torch.no_grad(), lamport_rs.LamportWorkspace.for_group() as workspace:
        decoder = Decoder(workspace)
        step = captured(decoder.step) if workspace.backend == "cuda" else decoder.step
        decoder.token.zero_()
        tokens = []
        for _ in range(STEPS):
            step()
            tokens.append(decoder.token.clone())
        text = torch.cat(tokens)
        workspace.synchronize()  # Raises if a peer was missed; and no graph runs when the workspace goes.
        everyones = [torch.empty_like(text) for _ in range(workspace.world_size)]
        dist.all_gather(everyones, text)
        assert all(torch.equal(text, other) for other in everyones)
        print(f"rank {workspace.rank}: {' '.join(map(str, text.tolist()))}\n", end="")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
