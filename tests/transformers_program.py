"""A program of transformers, on the backend "lamport" and on gloo: what `test_transformers` runs with torchrun.

`transformers_program.py STORE`, a path at which there is no file yet.
"""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
from lamport_rs import distributed
from process_groups import counted, recorded
from transformers import AutoModelForCausalLM, DistributedConfig, LlamaConfig, LlamaForCausalLM

LAYERS, STEPS = 2, 8

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.5,
    bos_token_id=None,
    eos_token_id=None,
)
directory = tempfile.TemporaryDirectory()
LlamaForCausalLM(config).save_pretrained(directory.name)


def load() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory.name, distributed_config=DistributedConfig(tp_plan="auto"))


def generate(model: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens and their scores."""
    output = model.generate(
        torch.arange(1, 6)[None],
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences, torch.cat(output.logits)


rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group("lamport", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=world_size)
model = load()
assert dist.get_backend() == "lamport"
with recorded() as sums:
    tokens, scores = generate(model)
# After attention and MLP; some versions spread the embedding, too.
assert len(sums) >= STEPS * 2 * LAYERS, sums
assert tokens.shape == (1, 5 + STEPS)
dist.destroy_process_group()

# The group that transformers makes where there is none.
model = load()
assert dist.get_backend() == "gloo"
with counted(0):
    expected_tokens, expected_scores = generate(model)
assert torch.equal(tokens, expected_tokens)
assert torch.equal(scores, expected_scores)  # Two ranks: either way a sum has one addition.

distributed.install()
with counted(len(sums)):
    assert torch.equal(generate(model)[0], expected_tokens)
dist.destroy_process_group()
print(f"rank {rank}: {len(set(tokens[0, 5:].tolist()))} tokens\n", end="")
