"""Workspaces that are made, fetched and given up within compiled functions."""

import lamport_rs
import pytest
import torch
from ranks import Rank
from reference import check_same_bits


def make_within(me: Rank) -> None:
    def fetch(x):
        table = lamport_rs.get_allreduce_workspace(me.rank, me.world_size, 1 << 16, device="cpu")
        return lamport_rs.all_reduce(x * 2, table) + 1

    def make(x):
        workspace = lamport_rs.LamportWorkspace(me.rank, me.world_size, 1 << 16, device="cpu", timeout=60)
        total = lamport_rs.all_reduce(x * 2, workspace) + 1
        workspace.synchronize()
        workspace.cleanup()
        return total

    def clear(x):
        lamport_rs.clear_workspace_cache()
        return fetch(x)

    def make_in_a_block(x):
        with lamport_rs.LamportWorkspace(me.rank, me.world_size, 1 << 16, device="cpu", timeout=60) as workspace:
            return lamport_rs.all_reduce(x * 2, workspace) + 1

    for work in (fetch, make, clear, make_in_a_block):
        torch._dynamo.reset()
        compiled = torch.compile(work, backend="eager")
        for _ in range(3):
            check_same_bits(compiled(torch.ones(8)), torch.full((8,), 5.0), work.__name__)
    lamport_rs.clear_workspace_cache()


@pytest.mark.long
def test_a_workspace_may_be_made_fetched_and_given_up_within_a_compiled_function(ranks_of):
    ranks_of(2).run(make_within, timeout=180)
