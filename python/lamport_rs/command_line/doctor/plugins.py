"""The plugins for serving engines: which engines are installed, and what the plugins do there. Nothing is imported."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from lamport_rs import LamportError, sglang_plugin, vllm_plugin
from lamport_rs.command_line.doctor.report import Finding
from lamport_rs.plugin_switch import PluginSwitch

ENTRY_POINT = "lamport_rs"
"""The plugin's name among those of an engine."""


@dataclass(frozen=True)
class Plugin:
    """What is to be known of one engine."""

    engine: str
    """Its name, for people."""
    distribution: str
    """The name that it is installed by, and that the check has."""
    entry_points: str
    """The group of entry points in which it finds plugins."""
    chosen_by: str
    """The engine's own environment variable that names the plugins to load."""
    switch: PluginSwitch
    releases: tuple[str, ...]
    """Those that the plugin was written for."""
    starts_with_a_wrong_switch: bool
    """Whether the engine goes on without the plugin where the switch names no part."""
    is_lenient: bool
    """Whether `chosen_by` names all plugins if it is empty, and may have blanks between its names."""


VLLM = Plugin(
    *("vLLM", "vllm", "vllm.general_plugins", "VLLM_PLUGINS", vllm_plugin.SWITCH, vllm_plugin.RELEASES),
    starts_with_a_wrong_switch=False,
    is_lenient=False,
)
SGLANG = Plugin(
    *("SGLang", "sglang", "sglang.srt.plugins", "SGLANG_PLUGINS", sglang_plugin.SWITCH, sglang_plugin.RELEASES),
    starts_with_a_wrong_switch=True,
    is_lenient=True,
)
PLUGINS = (VLLM, SGLANG)


@dataclass(frozen=True)
class State:
    """What a plugin does here, as JSON has it."""

    version: str | None
    """The installed engine's."""
    supported: bool
    """Whether the plugin was written for that release."""
    registered: bool
    """Whether the engine finds the plugin."""
    parts: list[str]
    """What it replaces; nothing if it is switched off."""
    reason: str | None
    """Why it replaces nothing."""


def state_of(plugin: Plugin) -> State:
    """Return what a plugin does here."""
    try:
        found = version(plugin.distribution)
    except PackageNotFoundError:
        return State(None, False, False, [], f"{plugin.engine} is not installed")
    registered = any(each.name == ENTRY_POINT for each in entry_points(group=plugin.entry_points))
    parts, reason = _choice_of(plugin)
    if not registered:
        parts, reason = [], f"this installation of lamport_rs has no entry point in {plugin.entry_points}"
    # A build has a local part of its own: 0.33.0+cu130.
    return State(found, found.partition("+")[0] in plugin.releases, registered, parts, reason)


def _choice_of(plugin: Plugin) -> tuple[list[str], str | None]:
    allowed = os.environ.get(plugin.chosen_by)
    if allowed is not None and not (plugin.is_lenient and not allowed):
        names = [name.strip() if plugin.is_lenient else name for name in allowed.split(",")]
        if ENTRY_POINT not in names:
            return [], f"switched off by {plugin.chosen_by}={allowed}"
    try:
        chosen = plugin.switch.chosen()
    except LamportError as error:
        return [], str(error)
    parts = [part for part in plugin.switch.parts if part in chosen]
    return parts, None if parts else f"switched off by {plugin.switch.variable}=0"


def judge(plugin: Plugin, state: State) -> Finding:
    """Return what the state of a plugin means."""
    check, engine, variable = plugin.distribution, plugin.engine, plugin.switch.variable
    if state.version is None:
        return Finding(check, "ok", "not installed")
    release = f"{engine} {state.version}"
    if state.registered and not state.parts and not (state.reason or "").startswith("switched off"):
        remedy = f"set {variable} to 0 or to some of its parts; "
        if plugin.starts_with_a_wrong_switch:
            return Finding(check, "warning", f"{release}: {state.reason}", f"{remedy}nothing is replaced like this")
        return Finding(check, "error", f"{release}: {state.reason}", f"{remedy}{engine} does not start like this")
    if not state.registered:
        remedy = f"install lamport_rs in {engine}'s environment, with pip, from its wheel or its checkout"
        return Finding(check, "warning", f"{release} does not load the plugin: {state.reason}", remedy)
    if not state.parts:
        return Finding(check, "ok", f"{release}; the plugin is {state.reason}")
    text = f"{release}; the plugin is in use: {', '.join(state.parts)}"
    if state.supported:
        return Finding(check, "ok", text)
    known = " and ".join(plugin.releases)
    remedy = f"look for warnings of lamport_rs in {engine}'s log, or take {engine} {known}, or a newer lamport_rs"
    return Finding(check, "warning", f"{text}, but it was written for {known}", remedy)


def as_dictionary(state: State) -> dict[str, Any]:
    """Return what JSON has."""
    return asdict(state)
