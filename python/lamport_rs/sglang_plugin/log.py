"""The plugin's log: a child of SGLang's, so that whatever is set for `sglang` holds for it."""

from __future__ import annotations

import logging

logger = logging.getLogger("sglang.lamport_rs")
