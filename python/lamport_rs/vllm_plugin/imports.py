"""Adjusts modules of vLLM when vLLM imports them: the plugin imports none that vLLM would not."""

from __future__ import annotations

import importlib.abc
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from lamport_rs.vllm_plugin.log import logger

Adjustment: TypeAlias = Callable[[Any], None]
"""Takes a module that has just been imported."""


class Finder(importlib.abc.MetaPathFinder):
    """Finds as the other finders do, and has what is waited for adjusted after it was loaded."""

    def __init__(self) -> None:
        self.waiting: dict[str, list[Adjustment]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that is waited for, and none else."""
        if fullname not in self.waiting:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader, self)
        return spec


class Loader(importlib.abc.Loader):
    """A module's own loader, and the adjustments after it."""

    def __init__(self, own: Any, finder: Finder) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as ever."""
        created: ModuleType | None = self._own.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code, and adjust it."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        for adjustment in self._finder.waiting.pop(module.__name__, []):
            adjust(module, adjustment)

    def __getattr__(self, name: str) -> Any:
        # Who looks for a module's source or data asks its loader.
        if name == "_own":
            raise AttributeError(name)
        return getattr(self._own, name)


_finder = Finder()


def when_imported(name: str, adjustment: Adjustment) -> None:
    """Adjust a module now if it has been imported, and else when it is. Again has no effect."""
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        adjust(module, adjustment)
        return
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    waiting = _finder.waiting.setdefault(name, [])
    if adjustment not in waiting:
        waiting.append(adjustment)


def adjust(module: Any, adjustment: Adjustment) -> None:
    """Adjust a module; an error leaves it to vLLM, whose import must not fail for the plugin."""
    try:
        adjustment(module)
    except Exception as error:
        logger.warning(
            "lamport_rs does not know %s of this release of vLLM, which goes on as without the plugin: %r",
            *(module.__name__, error),
        )


def has_module(name: str) -> bool:
    """Whether this vLLM has a module, which is not imported for the answer."""
    if name in sys.modules:
        return True
    first, *rest = name.split(".")
    folders = getattr(sys.modules.get(first), "__path__", [])
    places = [Path(folder, *rest) for folder in folders]
    return any(place.with_suffix(".py").exists() or (place / "__init__.py").exists() for place in places)
