"""Exit statuses of the command line. As a shell has them for signals: 128 and the signal's number."""

from __future__ import annotations

import signal

SUCCESS = 0
FAILURE = 1
"""Something is wrong, and the standard error output says what. (Wrong arguments are 2, by argparse.)"""
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
BROKEN_PIPE = 128 + signal.SIGPIPE
"""The reader of the output has gone, as `head` does."""
