"""A decode step of transformers' tensor parallelism, eager and in a CUDA graph, over a group of one backend.

    torchrun --standalone --nproc-per-node 2 benchmarks/transformers_step.py --backend lamport
    torchrun --standalone --nproc-per-node 2 benchmarks/transformers_step.py --backend nccl

Layers have the shape of Llama-3-8B's, fewer of them, in bfloat16 with random weights. Prints a line of JSON: the median
of the milliseconds that a step took, by batch, eager and in a graph, and a digest of the likeliest tokens. Needs
transformers 5.17 or later, and accelerate.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, DistributedConfig, LlamaConfig, LlamaForCausalLM, StaticCache

CONTEXT = 128
"""Tokens in the cache; every step computes the one after them again."""
STEPS = 20
"""Steps between two looks at the clock."""


def save_model(config: LlamaConfig, directory: Path, device: torch.device) -> None:
    """Save a model with random weights, on rank 0."""
    if dist.get_rank() == 0:
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = LlamaForCausalLM(config)
            model.to(torch.bfloat16).save_pretrained(directory)
    dist.barrier()


def milliseconds_of(step: Callable[[], object], device: torch.device, repetitions: int) -> float:
    """The median time of a step, from `STEPS` in a row."""
    times = []
    for _ in range(repetitions + 2):
        dist.barrier()
        synchronize(device)
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        synchronize(device)
        times.append((time.perf_counter() - began) / STEPS * 1e3)
    return statistics.median(times[2:])


def synchronize(device: torch.device) -> None:
    """Wait for the device, if it is one that runs ahead."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def measure(model: Any, batch: int, device: torch.device, repetitions: int) -> dict[str, object]:
    """The times of a step of `batch` sequences."""
    cache = StaticCache(config=model.config, max_cache_len=CONTEXT + 8)
    generator = torch.Generator(device=device).manual_seed(batch)
    prompt = torch.randint(model.config.vocab_size, (batch, CONTEXT), device=device, generator=generator)
    model(prompt, past_key_values=cache, use_cache=True)
    token = prompt[:, :1].contiguous()
    position = torch.full((batch, 1), CONTEXT, device=device)

    layers: list[Any] = list(cache.layers)

    def step() -> Any:
        for layer in layers:
            layer.cumulative_length.fill_(CONTEXT)
        return model(token, past_key_values=cache, position_ids=position, use_cache=True).logits

    tokens = step().argmax(-1).flatten().tolist()
    found: dict[str, object] = {
        "batch": batch,
        "eager_ms": milliseconds_of(step, device, repetitions),
        "tokens": hashlib.sha256(repr(tokens).encode()).hexdigest()[:8],
    }
    if device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        found["graph_ms"] = milliseconds_of(graph.replay, device, repetitions)
    return found


def main() -> None:
    """Measure on this rank, and print on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="lamport", help="of the process group (default: lamport)")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    hidden = arguments.hidden
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=None,
    )
    dist.init_process_group(arguments.backend)
    directory = Path(tempfile.gettempdir()) / f"lamport_rs_{os.environ['TORCHELASTIC_RUN_ID']}_{os.getppid()}"
    save_model(config, directory, device)
    shards = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(directory, distributed_config=shards, dtype=torch.bfloat16)
    found = [measure(model, batch, device, arguments.repetitions) for batch in arguments.batches]
    if dist.get_rank() == 0:
        print(json.dumps({"backend": arguments.backend, "ranks": dist.get_world_size(), "steps": found}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
