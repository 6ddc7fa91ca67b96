"""Ranks of the command line: how they end."""

import atexit
import time
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from lamport_rs.command_line.launch import launch

LONGER_THAN_ALLOWED = 120
TIME_LIMIT = 60


def end_slowly() -> None:
    """As gloo's teardown may do."""
    atexit.register(time.sleep, LONGER_THAN_ALLOWED)
    dist.destroy_process_group = lambda: time.sleep(LONGER_THAN_ALLOWED)


def succeed(_rank: int, _world_size: int, _device: torch.device) -> None:
    end_slowly()


def fail_on_rank_1(rank: int, _world_size: int, _device: torch.device) -> None:
    end_slowly()
    if rank == 1:
        fail()


def fail() -> NoReturn:
    raise ValueError("all is lost")


@pytest.mark.long
def test_ranks_that_succeeded_end_without_teardown():
    launch(succeed, 2, "host", time_limit=TIME_LIMIT)


@pytest.mark.long
def test_a_rank_that_failed_ends_without_teardown_and_its_traceback_is_shown():
    with pytest.raises(LamportError, match=r"(?s)in fail.*all is lost"):
        launch(fail_on_rank_1, 2, "host", time_limit=TIME_LIMIT)
