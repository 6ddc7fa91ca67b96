"""Loads some modules of an unpacked vLLM with the plugin, and mocks for whatever else they import of it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from engine_on_host import Mocks, Settings


def load(sources: Path, modules: set[str], settings: Settings) -> None:
    """Have this process find vLLM in the sources, and its plugin installed, as vLLM's processes do."""
    sys.meta_path.insert(0, Mocks(sources, "vllm", modules, settings))
    importlib.import_module("vllm")
    from lamport_rs.vllm_plugin import install

    install()
