"""Ranks of the command line: how they end."""

import atexit
import os
import sys
import time
from typing import NoReturn

import lamport_rs
import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportError
from lamport_rs.command_line import demo
from lamport_rs.command_line.launch import launch

pytestmark = pytest.mark.long

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


def write_to_nobody(rank: int, world_size: int, device: torch.device) -> None:
    """Rank 0 writes, and would take long to clean up; the other waits for it."""
    with lamport_rs.LamportWorkspace(rank, world_size, 4096, device=device) as workspace:
        if rank == 0:
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, sys.stdout.fileno())
            try:
                demo._say("a line")
            finally:
                workspace.cleanup()
                time.sleep(LONGER_THAN_ALLOWED)
        lamport_rs.all_reduce(torch.ones(4, device=device), workspace)


def test_a_rank_that_writes_to_nobody_ends_before_others_fail_because_of_it():
    with pytest.raises(BrokenPipeError):
        launch(write_to_nobody, 2, "host", time_limit=TIME_LIMIT)


def test_ranks_that_succeeded_end_without_teardown():
    launch(succeed, 2, "host", time_limit=TIME_LIMIT)


def test_a_rank_that_failed_ends_without_teardown_and_its_traceback_is_shown():
    with pytest.raises(LamportError, match=r"(?s)in fail.*all is lost"):
        launch(fail_on_rank_1, 2, "host", time_limit=TIME_LIMIT)
