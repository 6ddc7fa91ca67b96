"""`make check-vllm` runs a release's own communicators, here small ones, and sees what the plugin does not serve."""

import sys
from pathlib import Path

import pytest
import vllm_layers_on_host
import vllm_on_host

CUSTOM_ALL_REDUCE = """
import torch.distributed as dist
from vllm import _custom_ops as ops
ops.meta_size()

class CustomAllreduce:
    SUPPORTED = [2]
    def __init__(self, group, device, max_size=1 << 20):
        self.disabled = dist.get_world_size(group) in CustomAllreduce.SUPPORTED
    def should_custom_ar(self, inp): return not self.disabled
    def custom_all_reduce(self, input): raise NotImplementedError
    def capture(self): raise NotImplementedError
    def close(self): pass
"""
CUDA_COMMUNICATOR = """
from vllm.platforms import current_platform
from .base_device_communicator import DeviceCommunicatorBase

class CudaCommunicator(DeviceCommunicatorBase):
    def __init__(self, cpu_group, device, device_group, unique_name):
        super().__init__(cpu_group, device, device_group, unique_name)
        from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce
        assert not current_platform.is_rocm()
        self.ca_comm = CustomAllreduce(group=self.cpu_group, device=self.device)
    def all_reduce(self, input_):
        assert self.ca_comm.should_custom_ar(input_)
        return self.ca_comm.custom_all_reduce(input_)
    def destroy(self): self.ca_comm = None
"""


def write(folder: Path, custom_all_reduce: str) -> str:
    place = folder / "vllm" / "distributed" / "device_communicators"
    place.mkdir(parents=True)
    (place / "custom_all_reduce.py").write_text(custom_all_reduce)
    (place / "cuda_communicator.py").write_text(CUDA_COMMUNICATOR)
    return str(folder)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "status"), [(("", ""), 0), (("group, device", "ranks, device"), 1), (("[2]", "[3]"), 1)]
)
def test_what_the_plugin_does_not_serve_is_seen(monkeypatch, tmp_path, capsys, change, status):
    sources = write(tmp_path, CUSTOM_ALL_REDUCE.replace(*change))
    monkeypatch.setattr(sys, "argv", ["vllm_on_host.py", sources])
    assert vllm_on_host.main() == status
    assert capsys.readouterr().out.startswith(f"{sources}: {'FAILED' if status else 'the communicators sum'}")


def test_layers_that_are_not_there_are_seen(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["vllm_layers_on_host.py", write(tmp_path, CUSTOM_ALL_REDUCE)])
    assert vllm_layers_on_host.main() == 1
    assert capsys.readouterr().out == f"{tmp_path}: FAILED\n"
