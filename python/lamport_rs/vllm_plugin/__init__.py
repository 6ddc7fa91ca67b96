"""The plugin for vLLM, which vLLM itself loads in each of its processes (entry point group `vllm.general_plugins`).

Nothing else imports it, so that it costs nothing where there is no vLLM. What it replaces is chosen by the environment
variable `LAMPORT_RS_VLLM`: `0` for nothing, or a list of `PARTS`; all of them without it.

A part whose hook a release of vLLM does not have is left to vLLM, with a warning. vLLM's modules are found by name at
run time: the package does not depend on vLLM.
"""

from __future__ import annotations

import os

from lamport_rs._core import LamportError

VARIABLE = "LAMPORT_RS_VLLM"
PARTS = ("all_reduce", "fused", "minimax")
"""What can be chosen: all-reduces; all-reduces fused with residual and RMSNorm; MiniMax's norms."""
SERVED = ("all_reduce",)
"""The parts that this version of the package replaces."""


def install() -> None:
    """Put the package in the place of vLLM's own collectives. Safe to call again.

    Raises:
        LamportError: If the environment variable names something that is no part.
    """
    from lamport_rs.vllm_plugin.log import logger

    named = parts_named()
    missing = sorted(set(named or ()) - set(SERVED))
    if missing:
        logger.warning(
            "%s asks for %s, which this version of lamport_rs leaves to vLLM; it serves %s",
            *(VARIABLE, ", ".join(missing), ", ".join(SERVED)),
        )
    if named is None or "all_reduce" in named:
        from lamport_rs.vllm_plugin.all_reduce import replace_custom_all_reduce

        replace_custom_all_reduce()


def parts_named() -> tuple[str, ...] | None:
    """Return the parts that the environment names; None if it leaves the choice to the package."""
    text = os.environ.get(VARIABLE, "").strip()
    if text in ("", "0"):
        return None if text == "" else ()
    named = tuple(each.strip() for each in text.split(","))
    unknown = [each for each in named if each not in PARTS]
    if unknown:
        raise LamportError(
            f"{VARIABLE} is {text!r}, but must be 0, or a list of {', '.join(PARTS)}, separated by commas; "
            f"{', '.join(map(repr, unknown))} is none of them"
        )
    return named
