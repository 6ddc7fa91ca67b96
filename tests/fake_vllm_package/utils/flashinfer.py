"""Whether FlashInfer is installed; the answer is kept, as vLLM keeps it."""

import functools
import importlib.util
import os


@functools.cache
def has_flashinfer():
    return importlib.util.find_spec("flashinfer") is not None and os.environ.get("FAKE_COMPILER", "1") == "1"
