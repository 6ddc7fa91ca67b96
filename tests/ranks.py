"""Ranks for tests: a group of processes, or of threads, that run one function each and never hang.

`ProcessRanks` are the real thing: one process per rank, with a gloo group. They are started once per world size and
serve many calls. A call that does not come back in time kills them, and the test fails.

`ThreadRanks` are threads of this process around an `all_gather(bytes)` callable: for what needs no other process.

GPU tests take `ProcessRanks` with another placement (`one_gpu_per_rank`): the rank's device is `Rank.device`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias

import lamport_rs
import torch
import torch.distributed as dist

SHARING = os.environ.get("LAMPORT_RS_SHARE_GPU") == "1"
"""Whether ranks may share a GPU, and take turns then: milliseconds for each operation."""
CALL_TIMEOUT = 300.0 if SHARING else 60.0
"""Seconds that a call of all ranks may take."""
TELLS_WHERE = signal.SIGUSR2
"""Makes a rank write down where its threads are."""

Placement: TypeAlias = Callable[[int], torch.device]
"""The device of a rank."""


def on_the_host(_rank: int) -> torch.device:
    return torch.device("cpu")


def one_gpu_per_rank(rank: int) -> torch.device:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    return torch.device("cuda", torch.cuda.current_device())


_kept: deque[lamport_rs.LamportWorkspace] = deque(maxlen=16)


def let_go() -> None:
    """Let the workspaces go that this process's ranks were to keep."""
    _kept.clear()


@dataclass
class Rank:
    """What a rank's function is given."""

    rank: int
    world_size: int
    device: torch.device
    group: Any = None
    """Process group or all-gather; None for the default group, which is the ranks' own."""

    def workspace(self, comm_size: int = 1 << 20, *, kept: bool = False, **options: Any) -> lamport_rs.LamportWorkspace:
        """A workspace of all ranks. `kept`: also if the rank's function returns, which is told to ranks that wait."""
        options = {"device": self.device, "process_group": self.group, **options}
        workspace = lamport_rs.LamportWorkspace(self.rank, self.world_size, comm_size, **options)
        if kept:
            _kept.append(workspace)
        return workspace


@dataclass
class Failure:
    """What a rank's function raised, or how its process ended, in the place of a result."""

    error: BaseException
    trace: str = ""

    def __str__(self) -> str:
        return self.trace or repr(self.error)


def results_of(outcomes: list[Any]) -> list[Any]:
    """The outcomes, if none is a failure."""
    failures: dict[str, list[int]] = {}
    for rank, outcome in enumerate(outcomes):
        if isinstance(outcome, Failure):
            failures.setdefault(str(outcome), []).append(rank)
    if failures:
        raise AssertionError("\n".join(f"ranks {ranks}: {failure}" for failure, ranks in failures.items()))
    return outcomes


def errors_of(outcomes: list[Any]) -> list[BaseException]:
    """What every rank raised."""
    for rank, each in enumerate(outcomes):
        assert isinstance(each, Failure), f"rank {rank} raised nothing but returned {each!r}"
    return [each.error for each in outcomes]


def errors_of_survivors(ranks: ProcessRanks, work: Callable[..., Any], seconds: float) -> list[BaseException]:
    """What the others raise, within `seconds`, when the last rank is killed while all are at work."""
    victim = ranks.world_size - 1
    ranks.start(work)
    time.sleep(0.5)
    ranks.signal(victim, signal.SIGKILL)
    killed = time.monotonic()
    outcomes = ranks.finish(20)
    assert time.monotonic() - killed < seconds, "they wait for the timeout"
    return errors_of(outcomes[:victim])


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except BaseException as error:
        trace = traceback.format_exc()
        # Its frames hold the function's workspaces, which have to go.
        return Failure(error.with_traceback(None), trace)


# Forked from a server that has imported torch: a rank starts in milliseconds, and no thread or CUDA context is copied.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["numpy", "pytest", "torch.distributed", "lamport_rs"])


class ProcessRanks:
    """One process per rank. Functions are sent by reference: they must be at the top level of a test module."""

    def __init__(self, world_size: int, placement: Placement = on_the_host) -> None:
        self.world_size = world_size
        self._directory = tempfile.TemporaryDirectory()
        self._connections: list[Connection] = []
        self._members: list[Any] = []
        for rank in range(world_size):
            ours, theirs = _processes.Pipe()
            arguments = (theirs, rank, world_size, self._directory.name, placement)
            process = _processes.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._members.append(process)

    @property
    def alive(self) -> bool:
        return all(member.is_alive() for member in self._members)

    def run(self, function: Callable[..., Any], *arguments: Any, timeout: float = CALL_TIMEOUT) -> list[Any]:
        """Call `function(Rank, *arguments)` on every rank and return the results; an exception on any is a failure."""
        outcomes = self.try_run(function, *arguments, timeout=timeout)
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            self.kill()  # What the ranks agreed on before may no longer hold.
        return results_of(outcomes)

    def try_run(self, function: Callable[..., Any], *arguments: Any, timeout: float = CALL_TIMEOUT) -> list[Any]:
        """Likewise, but return a `Failure` for each rank that raised."""
        self.start(function, *arguments)
        return self.finish(timeout)

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Start a call, for tests that interfere with it."""
        message = pickle.dumps((function, arguments))
        for connection in self._connections:
            with contextlib.suppress(OSError):  # `finish` reports the dead.
                connection.send_bytes(message)

    def finish(self, timeout: float = CALL_TIMEOUT) -> list[Any]:
        """The outcomes of the call that was started, once all ranks have one or are dead."""
        deadline = time.monotonic() + timeout
        outcomes: dict[int, Any] = {}
        while len(outcomes) < self.world_size:
            waiting = {self._connections[rank]: rank for rank in range(self.world_size) if rank not in outcomes}
            ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not ready:
                missing = sorted(waiting.values())
                places = "".join(f"\nrank {rank} is at:\n{self._place_of(rank)}" for rank in missing)
                self.kill()
                raise AssertionError(f"ranks {missing} did not return within {timeout} s; others: {outcomes}{places}")
            for connection in ready:
                rank = waiting[connection]
                try:
                    outcomes[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    self._members[rank].join(5)
                    code = self._members[rank].exitcode
                    outcomes[rank] = Failure(ChildProcessError(f"the process of rank {rank} ended with {code}"))
        return [outcomes[rank] for rank in range(self.world_size)]

    def _place_of(self, rank: int) -> str:
        """Where the threads of a rank's process are; nothing, if it is stopped or has not begun."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(rank, TELLS_WHERE)
            time.sleep(0.5)
        place = _place_in(self._directory.name, rank)
        return place.read_text() if place.exists() else ""

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank."""
        os.kill(self._members[rank].pid, number)

    def process_id(self, rank: int) -> int:
        """The process of one rank."""
        return self._members[rank].pid

    def kill(self) -> None:
        """End all ranks at once, wherever they are."""
        for member in self._members:
            member.kill()
        for member in self._members:
            member.join()
        for connection in self._connections:
            connection.close()
        self._directory.cleanup()


def _place_in(directory: str, rank: int) -> Path:
    return Path(directory, f"place-of-{rank}")


def _serve(connection: Connection, rank: int, world_size: int, directory: str, placement: Placement) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(TELLS_WHERE, _place_in(directory, rank).open("w"))
    torch.set_num_threads(1)
    patience = timedelta(seconds=CALL_TIMEOUT)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=world_size, timeout=patience
    )
    me = Rank(rank, world_size, placement(rank))
    while True:
        try:
            function, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        # Graphs of the tests before are not replayed any more.
        lamport_rs.release_memory(captured=True)
        outcome = _attempt(function, me, *arguments)
        try:
            reply = pickle.dumps(outcome)
        except Exception as error:
            reply = pickle.dumps(Failure(TypeError(f"{outcome!r} cannot be sent: {error!r}")))
        connection.send_bytes(reply)


class ThreadRanks:
    """One thread per rank, and an all-gather between them."""

    def __init__(self, world_size: int, patience: float = CALL_TIMEOUT) -> None:
        """Ranks whose all-gather fails after `patience` seconds, rather than wait for one that does not take part."""
        self.world_size, self._patience = world_size, patience
        self._barrier = threading.Barrier(world_size)
        self._messages: list[bytes] = [b""] * world_size

    def all_gather(self, rank: int, message: bytes) -> list[bytes]:
        """Every rank's message."""
        self._messages[rank] = message
        self._barrier.wait(self._patience)
        gathered = list(self._messages)
        self._barrier.wait(self._patience)
        return gathered

    def member(self, rank: int) -> Rank:
        """What a rank's function is given."""
        return Rank(rank, self.world_size, torch.device("cpu"), lambda message: self.all_gather(rank, message))

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `function(Rank, *arguments)` on every rank and return the results; an exception on any is a failure."""
        return results_of(self.try_run(function, *arguments))

    def try_run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Likewise, but return a `Failure` for each rank that raised."""
        self._barrier.reset()
        with ThreadPoolExecutor(self.world_size) as executor:
            members = [self.member(rank) for rank in range(self.world_size)]
            calls = [executor.submit(_attempt, function, member, *arguments) for member in members]
            return [call.result(2 * CALL_TIMEOUT) for call in calls]
