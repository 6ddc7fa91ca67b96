"""The plugin's log: a child of vLLM's, which has the handler and the format. Other loggers are silent in vLLM."""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.lamport_rs")
