"""transformers' tensor parallelism, whose sums lamport-rs does: one line more than without, and no import.

The model is a tiny Llama with random weights, so that nothing is downloaded. Needs transformers 5.17 or later, and
accelerate, which transformers asks for.

torchrun --standalone --nproc-per-node 2 examples/transformers_generate.py
"""

import logging
import os
import tempfile

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, DistributedConfig, LlamaConfig, LlamaForCausalLM

logging.basicConfig()
logging.getLogger("lamport_rs").setLevel("INFO")  # Says when the workspace is made.

device = torch.device("cpu")
if torch.cuda.is_available():
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)

config = LlamaConfig(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    initializer_range=0.5,  # So much that the layers decide about the next token, and not the last token alone.
    bos_token_id=None,
    eos_token_id=None,
)
torch.manual_seed(0)  # The same weights on every rank.
with tempfile.TemporaryDirectory() as directory:
    LlamaForCausalLM(config).save_pretrained(directory)
    whole = AutoModelForCausalLM.from_pretrained(directory, device_map=device)

    # The one line. Without it transformers makes a group of NCCL or gloo.
    dist.init_process_group("lamport")
    model = AutoModelForCausalLM.from_pretrained(directory, distributed_config=DistributedConfig(tp_plan="auto"))

prompt = torch.arange(1, 9, device=device)[None]
tokens = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, 8:].tolist()
expected = whole.generate(prompt, max_new_tokens=12, do_sample=False)[0, 8:].tolist()
assert tokens == expected, f"{tokens}, but without tensor parallelism {expected}"
print(f"rank {dist.get_rank()}: {' '.join(map(str, tokens))}\n", end="")

dist.destroy_process_group()
