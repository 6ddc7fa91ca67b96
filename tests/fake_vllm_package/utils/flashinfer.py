"""Whether FlashInfer is installed; the answer is kept, as vLLM keeps it."""

import functools
import importlib.util


@functools.cache
def has_flashinfer():
    return importlib.util.find_spec("flashinfer") is not None
