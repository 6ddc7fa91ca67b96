"""The workspaces that plugins make for an engine's groups."""

import logging
import os
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lamport_rs import LamportTimeoutError, all_reduce
from lamport_rs.plugin_groups import GroupWorkspace, Plugin
from lamport_rs.plugin_switch import PluginSwitch
from ranks import Rank

PLUGIN = Plugin("some engine", PluginSwitch("SOME_PLUGIN", ("sums",)), logging.getLogger("some plugin"))


class Lines(logging.Handler):
    """The messages of a log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def make(me: Rank) -> tuple[GroupWorkspace, str]:
    """The workspace, and what the log says of it."""
    lines, logger = Lines(), logging.getLogger("lamport_rs")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    group: Any = dist.group.WORLD
    made = PLUGIN.make_workspace("sums", group, me.device, lambda _world_size: 4096)
    logger.removeHandler(lines)
    assert made is not None
    return made, lines.texts[-1]


def wait_ten_minutes(me: Rank) -> None:
    os.environ.pop("LAMPORT_RS_TIMEOUT", None)
    made, said = make(me)
    assert said.endswith("timeout 600 s")
    made.close()


def test_ranks_wait_ten_minutes_for_each_other(new_ranks):
    new_ranks(2).run(wait_ten_minutes)


def wait_as_told(me: Rank) -> None:
    os.environ["LAMPORT_RS_TIMEOUT"] = "0.5"
    made, said = make(me)
    assert said.endswith("timeout 0.5 s")
    if me.rank == 0:
        with pytest.raises(LamportTimeoutError, match="waited 5"):
            all_reduce(torch.ones(8), made.here())
    dist.barrier()
    made.close()
    if me.rank == 1:
        time.sleep(2)
        return
    # What the ranks agree on before is waited for as long.
    started = time.monotonic()
    assert PLUGIN.make_workspace("sums", dist.group.WORLD, me.device, lambda _world_size: 4096) is None
    assert 0.5 <= time.monotonic() - started < 2


def test_ranks_wait_as_long_as_the_environment_says(new_ranks):
    new_ranks(2).run(wait_as_told)
