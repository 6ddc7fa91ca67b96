"""What a plugin for a serving engine replaces: an environment variable chooses parts, and the ranks agree on them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamport_rs._core import LamportError

if TYPE_CHECKING:  # It imports torch.
    from lamport_rs.rendezvous import AllGather


@dataclass(frozen=True)
class PluginSwitch:
    """The environment variable of a plugin: `0` for nothing, or a list of parts; all of them without it."""

    variable: str
    parts: tuple[str, ...]
    """What can be chosen, at most eight names."""

    def named(self) -> tuple[str, ...] | None:
        """Return the parts that the environment names; None if it leaves the choice to the package.

        Raises:
            LamportError: If it names something that is no part.
        """
        text = os.environ.get(self.variable, "").strip()
        if text in ("", "0"):
            return None if text == "" else ()
        named = tuple(each.strip() for each in text.split(","))
        unknown = [each for each in named if each not in self.parts]
        if unknown:
            raise LamportError(
                f"{self.variable} is {text!r}, but must be 0, or a list of {', '.join(self.parts)}, separated by "
                f"commas; {', '.join(map(repr, unknown))} is none of them"
            )
        return named

    def chosen(self) -> frozenset[str]:
        """Return the parts that this process is to replace.

        Raises:
            LamportError: As `named`.
        """
        named = self.named()
        return frozenset(self.parts if named is None else named)

    def chosen_by_all(self, chosen: frozenset[str], all_gather: AllGather) -> tuple[frozenset[str], list[int]]:
        """Return the parts that all ranks have chosen, and the ranks that have chosen more. Collective.

        A process without a part must take part in this too: it would be waited for.
        """
        mine = sum(1 << bit for bit, part in enumerate(self.parts) if part in chosen)
        masks = [message[0] for message in all_gather(bytes([mine]))]
        common = masks[0]
        for mask in masks:
            common &= mask
        parts = frozenset(part for bit, part in enumerate(self.parts) if common >> bit & 1)
        return parts, [rank for rank, mask in enumerate(masks) if mask != common]
