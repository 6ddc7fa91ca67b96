"""The plugin's log: a child of vLLM's, which has the handler and the format. Other loggers are silent in vLLM."""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.lamport_rs")


def leave_to_vllm(part: str, reason: str) -> None:
    """Say that this release has not what a part replaces, and what is to be done."""
    logger.warning(
        "this release of vLLM has no hook for lamport_rs's %s: %s; vLLM's own goes on. A newer lamport_rs may "
        "know this release; LAMPORT_RS_VLLM=0 silences this",
        *(part, reason),
    )
