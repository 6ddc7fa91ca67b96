"""The plugins for serving engines: which engines are installed, and what the plugins do there. Nothing is imported."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

from lamport_rs import LamportError
from lamport_rs.command_line.doctor.report import Finding
from lamport_rs.plugin_switch import PluginSwitch
from lamport_rs.vllm_plugin import RELEASES, SWITCH

ENTRY_POINT = "lamport_rs"
"""The plugin's name among those of an engine."""


@dataclass(frozen=True)
class Plugin:
    """What is to be known of one engine."""

    engine: str
    """Its name, for people."""
    distribution: str
    """The name that it is installed by."""
    entry_points: str
    """The group of entry points in which it finds plugins."""
    chosen_by: str
    """The engine's own environment variable that names the plugins to load."""
    switch: PluginSwitch
    releases: tuple[str, ...]
    """Those that the plugin was written for."""


VLLM = Plugin("vLLM", "vllm", "vllm.general_plugins", "VLLM_PLUGINS", SWITCH, RELEASES)


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
    if allowed is not None and ENTRY_POINT not in allowed.split(","):
        return [], f"switched off by {plugin.chosen_by}={allowed}"
    try:
        chosen = plugin.switch.chosen()
    except LamportError as error:
        return [], str(error)
    parts = [part for part in plugin.switch.parts if part in chosen]
    return parts, None if parts else f"switched off by {plugin.switch.variable}=0"


def judge_vllm(state: State) -> Finding:
    """Return what the state of vLLM's plugin means."""
    if state.version is None:
        return Finding("vllm", "ok", "not installed")
    release = f"vLLM {state.version}"
    if state.registered and not state.parts and not (state.reason or "").startswith("switched off"):
        remedy = f"set {SWITCH.variable} to 0 or to some of its parts; vLLM does not start like this"
        return Finding("vllm", "error", f"{release}: {state.reason}", remedy)
    if not state.registered:
        remedy = "install the wheel of lamport_rs in vLLM's environment: pip install lamport_rs"
        return Finding("vllm", "warning", f"{release} does not load the plugin: {state.reason}", remedy)
    if not state.parts:
        return Finding("vllm", "ok", f"{release}; the plugin is {state.reason}")
    text = f"{release}; the plugin is in use: {', '.join(state.parts)}"
    if state.supported:
        return Finding("vllm", "ok", text)
    known = " and ".join(RELEASES)
    remedy = f"look for warnings of lamport_rs in vLLM's log, or take vLLM {known}, or a newer lamport_rs"
    return Finding("vllm", "warning", f"{text}, but it was written for {known}", remedy)


def as_dictionary(state: State) -> dict[str, Any]:
    """Return what JSON has."""
    return asdict(state)
