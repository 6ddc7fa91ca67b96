"""Runs Python blocks of pages, on every rank, in order: `torchrun tests/document_program.py <page>:<line> ...`.

The blocks of a page share their names: a page may build something up. What it leaves to its reader is in `GIVEN`.
A block that makes the process group finds none; others find one of gloo. What a rank says of a block is
`rank <rank>: <page>:<line> ran`.
"""

from __future__ import annotations

import os
import sys
import tempfile

import documents
import lamport_rs
import torch
import torch.distributed as dist

WORKSPACE = """
workspace = lamport_rs.LamportWorkspace.for_group(max_bytes=1 << 20)
device = workspace.device
"""
MINIMAX = """
group, rank, world_size, eps = None, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 1e-6
q_size, kv_size = 64, 32
qkv = torch.randn(4, q_size + 2 * kv_size)
q_weight, k_weight = torch.ones(q_size), torch.ones(kv_size)
"""
GIVEN = {
    "README.md": "tensor = torch.ones(8)",
    "docs/quick_start.md": MINIMAX,
    "docs/torch_distributed.md": "tensor = torch.ones(8)",
    "docs/graphs.md": WORKSPACE,
    "docs/faults.md": WORKSPACE + "tensor = torch.ones(8, device=device)",
    "docs/foreign_kernels.md": WORKSPACE
    + "from lamport_rs import LamportWorkspace\ninput, world_size = torch.ones(64, 64), workspace.world_size",
    "docs/transformers.md": "name, prompt = tiny_llama(), torch.arange(1, 9)[None]",
}
"""What a page's reader has already, by page."""


def tiny_llama() -> str:
    """The folder of a model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=100, num_hidden_layers=1, bos_token_id=None, eos_token_id=None, **sizes)
    folder = tempfile.mkdtemp()
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


_made = 0
_init_process_group = dist.init_process_group


def init_process_group(backend: str | None = None) -> None:
    """torch's, with a store of its own: what an earlier group has left in torchrun's would be taken for this one's."""
    global _made
    _made += 1
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(f"{os.environ['STORES']}/{_made}", world_size)
    _init_process_group(backend, store=store, rank=rank, world_size=world_size)


def join() -> None:
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def leave() -> None:
    lamport_rs.clear_workspace_cache()
    if dist.is_initialized():
        # A block may do nothing but make the group: a rank that goes at once ends the connecting of the other.
        dist.barrier()
        dist.destroy_process_group()


def run(found: list[documents.Block]) -> None:
    """Run blocks of one page."""
    modules = {"os": os, "torch": torch, "dist": dist, "lamport_rs": lamport_rs}
    names: dict[str, object] = {**modules, "tiny_llama": tiny_llama}
    for number, block in enumerate(found):
        if "init_process_group(" in block.text:
            leave()
        else:
            join()
        if number == 0:
            exec(GIVEN.get(block.page, ""), names)
        exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec"), names)
        print(f"rank {os.environ['RANK']}: {block.name} ran\n", end="", flush=True)
    if isinstance(workspace := names.get("workspace"), lamport_rs.LamportWorkspace):
        workspace.cleanup()
    leave()


if __name__ == "__main__":
    dist.init_process_group = init_process_group
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    wanted = [each for each in documents.blocks("python") if each.name in sys.argv[1:]]
    for page in dict.fromkeys(each.page for each in wanted):
        run([each for each in wanted if each.page == page])
