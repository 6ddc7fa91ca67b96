"""What every collective has around the core's function of its name.

The functions of `lamport_rs.operations` call the core with an operator's arguments and then its outputs, allocated.
Where the core cannot take what lies as it lies, or leaves a group of one to torch, `Collective.run_on_copies` serves.

No more calls than needed before that: it is part of every eager operation's latency. So each operation has a frame of
its own: with one that all share, norms on the host took 7 to 18 % longer in a group of one, and up to 67 % with
gradients enabled. What autograd has saved for a backward pass may be an output that is passed in, so torch has to hear
that it was written. Tensors of inference mode cannot be saved, and to ask is half as dear.

A call that raises has sent nothing, and counts all the same: if its caller goes on, this rank's next operation differs
from that of ranks whose call was served, and all raise `LamportMismatchError`. It is counted first of all: a signal's
handler may raise at any later line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, Literal, TypeAlias

import torch
from torch.compiler import is_dynamo_compiling

from lamport_rs import _core
from lamport_rs._core import LamportError, LamportSingleRankError
from lamport_rs.layout import check_tensor, empty_dense, is_strided, run_on_copies, share_memory
from lamport_rs.operations.refusals import missing, refusal_counted, refuse_call
from lamport_rs.tracing import UNDER_TRANSFORMATION, functorch_is_active
from lamport_rs.workspace import LamportWorkspace

Algorithm: TypeAlias = Literal["auto", "one_shot", "two_shot"]
"""How a tensor is reduced.

`"one_shot"`: every rank pushes all of its tensor to every peer, and each sums for itself. One way over the link.
`"two_shot"`: every rank sums one shard and pushes the sums to every peer. Two ways, but each byte travels twice and not
once per peer. `"auto"`: the faster one by measurement, or by the workspace's `two_shot_from`, or else the one that the
workspace has room for. All give the same bits. On the host only `all_reduce` can be two-shot.
"""

_DESCRIPTIONS = {name: (arguments, outputs) for name, arguments, outputs in _core.collectives()}


class Collective:
    """A collective as its schema describes it: the core's function, the operator, and what either lacks."""

    def __init__(
        self,
        name: str,
        allocate: Callable[..., tuple[torch.Tensor, ...]],
        without_peers: Callable[..., None] | None = None,
        *,
        read_early: Sequence[str] = (),
        left_as_it_lies: Callable[..., Sequence[str]] = lambda *_: (),
    ) -> None:
        """Describe the collective `name` of the core.

        Args:
            name: Its name, in all languages.
            allocate: Makes the outputs, given the arguments; also those of fake tensors.
            without_peers: Computes it in a group of one, given the core's operands, where the core does not.
            read_early: Tensors that must have been written before the kernel in front. MiniMax norms read their
                weights, and quantisers a scale that is given, before it has ended. Other norms' weights are read later:
                naming them is the safe side, and costs a small kernel where one has to be copied.
            left_as_it_lies: Names outputs, given the arguments, of which no copy may take the place.
        """
        described, self.outputs = _DESCRIPTIONS[name]
        self.name, self.allocate = name, allocate
        arguments = [
            f"{kind} {argument}" if default is None else f"{kind} {argument}={default}"
            for kind, argument, default in described
        ]
        returned = ", ".join("Tensor" for _ in self.outputs)
        self.schema = f"({', '.join(arguments)}) -> {returned if len(self.outputs) == 1 else f'({returned})'}"
        """The operator's: torch gives results no names."""
        self._tensors = [
            place
            for place, (kind, argument, _) in enumerate(described)
            if kind.startswith("Tensor") and argument != "workspace"
        ]
        self._early = [place for place in self._tensors if described[place][1] in read_early]
        self._late = [place for place in self._tensors if place not in self._early]
        self._without_peers, self._left_as_it_lies = without_peers, left_as_it_lies

    def inputs(self, arguments: Sequence[Any]) -> list[torch.Tensor | None]:
        """Return the tensors among the arguments; those at the end may be left out."""
        return [arguments[place] for place in self._tensors if place < len(arguments)]

    def run_on_copies(self, arguments: Sequence[Any], given: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor, ...]:
        """Run a call that the core does not take as its operands lie, or does not compute in a group of one.

        Args:
            arguments: All of the call's, with the workspace as the core knows it.
            given: The outputs; None for those that are to be allocated.

        Returns:
            The outputs.
        """
        outputs: list[Any] = list(given)
        if any(each is None for each in given):
            made = self.allocate(*arguments)
            outputs = [new if each is None else each for new, each in zip(made, given, strict=True)]
        left = self._left_as_it_lies(*arguments)
        copied = [place for place, name in enumerate(self.outputs) if name not in left]
        late, early = (
            [place for place in places if arguments[place] is not None] for places in (self._late, self._early)
        )

        def operation(tensors: Sequence[torch.Tensor], written: Sequence[torch.Tensor]) -> None:
            call, results = list(arguments), list(outputs)
            for place, tensor in zip([*late, *early], tensors, strict=True):
                call[place] = tensor
            for place, tensor in zip(copied, written, strict=True):
                results[place] = tensor
            try:
                getattr(_core, self.name)(*call, *results)
            except LamportSingleRankError:
                if self._without_peers is None:
                    raise
                self._without_peers(*call, *results)

        run_on_copies(
            operation,
            [arguments[place] for place in late],
            [arguments[place] for place in early],
            [outputs[place] for place in copied],
        )
        return tuple(outputs)


def empty_like_input(input: torch.Tensor, *_others: Any) -> tuple[torch.Tensor]:  # noqa: A002
    """Allocate the output of a collective that has one, of the first argument's shape and dtype."""
    return (empty_dense(input),)


def core_of(workspace: LamportWorkspace | torch.Tensor) -> _core.Workspace | torch.Tensor:
    """Return what the core knows the workspace by. Operations ask before they call this: that is quicker."""
    return workspace._usable_core() if isinstance(workspace, LamportWorkspace) else workspace


def table_of(workspace: LamportWorkspace | torch.Tensor) -> torch.Tensor:
    """Return the table that an operator knows the workspace by."""
    return workspace.workspace if isinstance(workspace, LamportWorkspace) else workspace


def call_operator(
    name: str,
    workspace: LamportWorkspace | torch.Tensor,
    arguments: Sequence[Any],
    check: Callable[[], None] = lambda: None,
    **outputs: torch.Tensor | None,
) -> Any:
    """Call the operator `name` with `arguments`, for a tracer or a mode that is to see it. A refusal counts.

    `outputs`, by their names, are where its results are to go. They must not share memory: a tracer does not ask the
    core. `check` raises if anything else is wrong with them.
    """
    for each in arguments:
        if isinstance(each, missing):
            refuse_call(f"{name}() misses an argument", arguments)
    # Not the packet: passes of compilers that leave out what nobody uses know effects of overloads only.
    operator = getattr(torch.ops.lamport_rs, name).default

    def call() -> Any:
        check()
        check_apart(workspace, **outputs)
        return operator(*arguments)

    if is_dynamo_compiling():
        return call()
    with refusal_counted((workspace, *arguments)):
        return call()


def explain(error: Exception, name: str, value: torch.Tensor) -> None:
    """Raise a better error in the place of `error`, which the operation or the allocation of its output raised."""
    if functorch_is_active():
        raise LamportError(f"{name}: {UNDER_TRANSFORMATION}; call the operation outside it") from error
    if isinstance(error, LamportError):
        return
    check_tensor(name, value)
    if not is_strided(value):
        layout = "nested" if value.is_nested else value.layout
        raise LamportError(f"{name} is {layout}, but must be a dense tensor") from error


def check_apart(workspace: LamportWorkspace | torch.Tensor, **outputs: torch.Tensor | None) -> None:
    """Raise LamportError if two outputs, by their names, share memory: for a tracer, which does not ask the core."""
    given = {name: out for name, out in outputs.items() if isinstance(out, torch.Tensor) and is_strided(out)}
    if len(given) > 1:
        # An operator: a compiler's tensors have storages there only.
        torch.ops.lamport_rs.check_apart(list(given.values()), list(given), table_of(workspace))


def refuse_shared_memory(
    outputs: Sequence[torch.Tensor], names: Sequence[str], _workspace: torch.Tensor
) -> torch.Tensor:
    """Raise LamportError if two outputs share memory; the operator `check_apart`, whose result says nothing."""
    for (name, out), (other_name, other) in combinations(zip(names, outputs, strict=True), 2):
        if share_memory(out, other):
            raise LamportError(f"{name} overlaps {other_name}; they must be separate tensors")
    return torch.empty(0)


def is_wanted(asked: object, out: torch.Tensor | None, workspace: LamportWorkspace | torch.Tensor) -> bool:
    """Whether an output that may be left out is wanted: if it is asked for, or has a place. A refusal counts."""
    try:
        return bool(asked) or out is not None
    except BaseException:
        _core.note_refusal(workspace)
        raise


def copy_to(name: str, destination: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """Return `result`, in `destination` if there is one: with the eager operation's checks, which `copy_` lacks."""
    if destination is None:
        return result
    check_tensor(name, destination)
    if destination.device != result.device:
        raise LamportError(f"{name} is on {destination.device}, but the workspace is on {result.device}")
    if destination.dtype != result.dtype:
        raise LamportError(f"{name} is {destination.dtype}, but must be {result.dtype}")
    if destination.shape != result.shape:
        raise LamportError(f"{name} has shape {list(destination.shape)}, but must have {list(result.shape)}")
    if not destination.is_contiguous() and 0 in destination.stride():
        raise LamportError(f"{name} has elements that share memory, but each must have its own")
    return destination.copy_(result)
