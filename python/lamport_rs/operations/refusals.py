"""Calls that are refused before the core has them: they count, so that ranks whose calls are served hear of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter, signature
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

from lamport_rs import _core
from lamport_rs.tracing import find_traced, is_faked
from lamport_rs.workspace import LamportWorkspace


@contextmanager
def refusal_counted(named: Sequence[Any]) -> Iterator[None]:
    """A block in which torch, or what it asks, may refuse a call that names all this: it counts, as one of the core's.

    Once, if what refuses it counts it.
    """
    noted = _core.refusals_noted()
    try:
        yield
    except BaseException:
        if _core.refusals_noted() == noted:
            count_refusal(named)
        raise


def count_refusal(named: Sequence[Any]) -> None:
    """Count a call on each workspace or table among what it named.

    Not if it was only to show the shapes of its results: such a call sends nothing on any rank. But it counts if it is
    compiled: it would count if it was not.
    """
    if is_faked(named):
        named = [find_traced(each) for each in named]
    _core.note_refusal(*named)


def fits(function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> bool:
    """Whether these are arguments for the parameters of `function`."""
    try:
        signature(function).bind(*arguments, **options)
    except TypeError:
        return False
    return True


class missing:  # noqa: N801  (errors have its name)
    """What stands for an argument that was not given."""


MISSING: Any = missing()

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def takes_misfits(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Have calls that do not fit the parameters of a collective come to `function`, which counts and refuses them.

    Python would refuse them, and nobody could count that. So `function` takes any surplus and unknown arguments; here
    its required ones become `MISSING` where they are not given, which no operation takes. Type checkers and `inspect`
    see what it is to be called with. Another function around it would take a tenth of the time of a call.
    """
    seen = signature(function)
    named = [each for each in seen.parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    places = [each.default for each in named if each.kind is each.POSITIONAL_OR_KEYWORD]
    changed: Any = function
    changed.__signature__ = seen.replace(parameters=named)
    changed.__defaults__ = tuple(MISSING if default is Parameter.empty else default for default in places)
    return function


def refuse_misfit(
    function: Callable[..., Any], given: Sequence[Any], surplus: Sequence[Any], unknown: Mapping[str, Any]
) -> NoReturn:
    """Raise TypeError for a call of `function` with more than its parameters, and count it. `given`: the positional."""
    if unknown:
        wrong = f"got an unexpected keyword argument {next(iter(unknown))!r}"
    else:
        wrong = f"takes {len(given)} positional arguments but {len(given) + len(surplus)} were given"
    refuse_call(f"{function.__name__}() {wrong}", [*given, *surplus, *unknown.values()])


def refuse_call(reason: str, named: Sequence[Any]) -> NoReturn:
    """Raise TypeError for a call that names all this, and count it. Where it is compiled, that is a LamportError."""
    if is_dynamo_compiling():
        # An operator: a compiler's tensors stand for others there only.
        workspaces = (each.workspace if isinstance(each, LamportWorkspace) else each for each in named)
        tables = [each for each in workspaces if isinstance(each, torch.Tensor)]
        torch.ops.lamport_rs.refuse_call(tables, reason)
    count_refusal(named)
    raise TypeError(reason)
