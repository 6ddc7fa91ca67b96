"""Ranks that use two workspaces in another order than the others wait for each other: not for ever."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportTimeoutError
from ranks import Rank

TIMEOUT = 1.0


def use_in_another_order(me: Rank) -> tuple[int, ...]:
    """Rank 0 begins with one of two workspaces, the others with the other one."""
    pair = [me.workspace(8192, timeout=TIMEOUT) for _ in range(2)]
    tensor = torch.ones(64, device=me.device)

    def use_both() -> None:
        for workspace in pair if me.rank == 0 else reversed(pair):
            lamport_rs.all_reduce(tensor, workspace)
            workspace.synchronize()

    with pytest.raises(LamportTimeoutError, match="waited") as caught:
        use_both()
    return caught.value.missing_ranks


@pytest.mark.parametrize("world_size", [2, 3])
def test_workspaces_used_in_another_order_end_in_an_error_that_names_who_is_missing(ranks_of, world_size):
    missing = ranks_of(world_size).run(use_in_another_order)
    assert missing == [tuple(range(1, world_size))] + [(0,)] * (world_size - 1)
