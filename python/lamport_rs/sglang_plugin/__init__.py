"""The plugin for SGLang, which SGLang itself loads in each of its processes (entry point group `sglang.srt.plugins`).

Nothing else imports it, so that it costs nothing where there is no SGLang. What it replaces is chosen by the
environment variable `LAMPORT_RS_SGLANG`: `0` for nothing, or a list of `PARTS`; all of them without it.

It works through SGLang's own registry of hooks. A part whose hooks a release does not have is left to SGLang, with a
warning. SGLang's modules are taken as it has loaded them: the package does not depend on SGLang.
"""

from __future__ import annotations

import sys

from lamport_rs._core import LamportError
from lamport_rs.plugin_switch import PluginSwitch

PARTS = ("all_reduce", "fused", "minimax")
"""What can be chosen: all-reduces; those fused with residual and RMSNorm, of experts' rows too; MiniMax's norms."""
SWITCH = PluginSwitch("LAMPORT_RS_SGLANG", PARTS)
RELEASES = ("0.5.23",)
"""The releases of SGLang that it was written for and checked with."""


def install() -> None:
    """Put the package in the place of SGLang's own collectives. Safe to call again.

    A rank that chooses nothing has to tell those that choose something, or they would wait for it. So the hook at the
    making of groups is there in any case, also where the environment variable is wrong; the log has the error then.
    """
    from lamport_rs.sglang_plugin.hooks import PARALLEL_STATE
    from lamport_rs.sglang_plugin.log import logger

    if PARALLEL_STATE not in sys.modules:
        logger.debug("this process has not loaded %s, so it makes no groups", PARALLEL_STATE)
        return
    from lamport_rs.sglang_plugin.groups import watch_groups

    try:
        chosen = SWITCH.chosen()
    except LamportError as error:
        logger.error("lamport_rs replaces nothing in SGLang: %s", error)
        chosen = frozenset()
    watch_groups(chosen)
