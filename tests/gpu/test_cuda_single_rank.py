"""A group of one rank on a GPU."""

import lamport_rs
import pytest
import torch
from ranks import ThreadRanks, one_gpu_per_rank
from reference import check_same_bits, random_tensor

pytestmark = pytest.mark.gpu(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_sums_are_copies_and_norms_are_those_of_the_host(dtype):
    on_host = ThreadRanks(1).member(0).workspace(1 << 16)
    device = one_gpu_per_rank(0)
    workspace = lamport_rs.LamportWorkspace(0, 1, 1 << 16, lambda message: [message], device=device)
    x, residual = (random_tensor((33, 64), dtype, seed, 2) for seed in (1, 2))
    weight = random_tensor((64,), dtype, 3, 2)
    a, b, w = x.to(device), residual.to(device), weight.to(device)
    check_same_bits(lamport_rs.all_reduce(a, workspace).cpu(), x, "the sum")
    check_same_bits(lamport_rs.all_reduce(a.t(), workspace).cpu(), x.t(), "a strided sum")
    for added, added_on_host in ((b, residual), (None, None)):
        found = lamport_rs.all_reduce_rms_norm(a, added, w, workspace, 1e-5, 1.0)
        expected = lamport_rs.all_reduce_rms_norm(x, added_on_host, weight, on_host, 1e-5, 1.0)
        check_same_bits(found[1].cpu(), expected[1], "the residual")
        torch.testing.assert_close(found[0].cpu(), expected[0])
    packed = torch.cat([x, residual], -1)
    found = lamport_rs.minimax_allreduce_rms_qk(packed.to(device), w, w, workspace, 64, 64, 0, 1, 1e-5)
    expected = lamport_rs.minimax_allreduce_rms_qk(packed, weight, weight, on_host, 64, 64, 0, 1, 1e-5)
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(each.cpu(), right)
    graph, out = torch.cuda.CUDAGraph(), torch.empty_like(a)
    with torch.cuda.graph(graph):
        lamport_rs.all_reduce(a, workspace, out)
    graph.replay()
    check_same_bits(out.cpu(), x, "captured")
    workspace.synchronize()
