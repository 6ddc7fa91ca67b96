"""The doctor names the plugin for vLLM by the metadata of what is installed, and does not import vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lamport_rs import sglang_plugin
from lamport_rs.command_line.doctor import plugins
from lamport_rs.vllm_plugin import RELEASES, SWITCH


def install(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    """What pip leaves of an installed distribution."""
    information = folder / f"{name}-{version.replace('+', '_')}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (information / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def site(monkeypatch, tmp_path) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.delenv(SWITCH.variable, raising=False)
    (tmp_path / "vllm.py").write_text("raise SystemExit('vLLM was imported')")
    return tmp_path


PLUGIN = "[vllm.general_plugins]\nlamport_rs = lamport_rs.vllm_plugin:install\n"


@pytest.mark.parametrize(
    ("version", "environment", "status", "text", "parts"),
    [
        (None, {}, "ok", "not installed", []),
        (RELEASES[0], {}, "ok", "vLLM 0.26.0; the plugin is in use: all_reduce, fused, minimax", list(SWITCH.parts)),
        (f"{RELEASES[1]}+cu130", {}, "ok", "vLLM 0.33.0+cu130; the plugin is in use", list(SWITCH.parts)),
        (RELEASES[0], {"LAMPORT_RS_VLLM": "minimax,fused"}, "ok", "is in use: fused, minimax", ["fused", "minimax"]),
        (RELEASES[0], {"LAMPORT_RS_VLLM": "0"}, "ok", "the plugin is switched off by LAMPORT_RS_VLLM=0", []),
        (RELEASES[0], {"VLLM_PLUGINS": "other"}, "ok", "the plugin is switched off by VLLM_PLUGINS=other", []),
        (RELEASES[0], {"VLLM_PLUGINS": "other,lamport_rs"}, "ok", "the plugin is in use", list(SWITCH.parts)),
        (RELEASES[0], {"LAMPORT_RS_VLLM": "on"}, "error", "LAMPORT_RS_VLLM is 'on', but must be 0, or ", []),
        ("0.99.0", {}, "warning", "in use: all_reduce, fused, minimax, but it was written for ", list(SWITCH.parts)),
        ("0.99.0", {"LAMPORT_RS_VLLM": "0"}, "ok", "switched off", []),
    ],
)
def test_the_plugin_is_named(monkeypatch, site, version, environment, status, text, parts):
    if version is not None:
        install(site, "vllm", version)
        install(site, "some_plugins", "1", PLUGIN)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    state = plugins.state_of(plugins.VLLM)
    finding = plugins.judge(plugins.VLLM, state)
    assert (finding.status, finding.remedy is None) == (status, status == "ok")
    assert text in finding.text
    assert (state.version, state.parts) == (version, parts)
    assert state.supported is (version is not None and version.split("+")[0] in RELEASES)
    assert (state.reason is None) is bool(parts)


def test_a_plugin_that_vllm_does_not_find_is_a_warning(monkeypatch, site):
    install(site, "vllm", RELEASES[0])
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    state = plugins.state_of(plugins.VLLM)
    assert (state.registered, state.parts) == (False, [])
    finding = plugins.judge(plugins.VLLM, state)
    assert finding.status == "warning"
    assert "has no entry point in vllm.general_plugins" in finding.text


@pytest.mark.long
def test_text_and_json_have_it_without_importing_vllm(site):
    install(site, "vllm", RELEASES[1])
    install(site, "some_plugins", "1", PLUGIN)
    path = os.pathsep.join([str(site), *sys.path])
    command = [sys.executable, "-m", "lamport_rs", "doctor", "--backend", "host", "--ranks", "1"]
    for arguments in ([], ["--json"]):
        ended = subprocess.run(
            [*command, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=240
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        if arguments:
            found = json.loads(ended.stdout)["plugins"]["vllm"]
            assert found["version"] == RELEASES[1]
            assert (found["supported"], found["registered"], found["parts"]) == (True, True, list(SWITCH.parts))
        else:
            assert "ok       vllm: vLLM 0.33.0; the plugin is in use: all_reduce, fused, minimax" in ended.stdout


@pytest.mark.parametrize(
    ("environment", "status", "text", "parts"),
    [
        ({}, "ok", "SGLang 0.5.23; the plugin is in use: all_reduce, fused, minimax", list(sglang_plugin.SWITCH.parts)),
        ({"LAMPORT_RS_SGLANG": "fused"}, "ok", "is in use: fused", ["fused"]),
        ({"LAMPORT_RS_SGLANG": "0"}, "ok", "the plugin is switched off by LAMPORT_RS_SGLANG=0", []),
        ({"LAMPORT_RS_SGLANG": "on"}, "warning", "LAMPORT_RS_SGLANG is 'on', but must be 0, or ", []),
        ({"SGLANG_PLUGINS": "other"}, "ok", "the plugin is switched off by SGLANG_PLUGINS=other", []),
        ({"SGLANG_PLUGINS": "other, lamport_rs"}, "ok", "is in use", list(sglang_plugin.SWITCH.parts)),
        ({"SGLANG_PLUGINS": ""}, "ok", "is in use", list(sglang_plugin.SWITCH.parts)),
    ],
)
def test_sglangs_plugin_is_named(monkeypatch, site, environment, status, text, parts):
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    monkeypatch.delenv("LAMPORT_RS_SGLANG", raising=False)
    install(site, "sglang", sglang_plugin.RELEASES[0])
    install(site, "some_plugins", "1", "[sglang.srt.plugins]\nlamport_rs = lamport_rs.sglang_plugin:install\n")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    state = plugins.state_of(plugins.SGLANG)
    finding = plugins.judge(plugins.SGLANG, state)
    assert (finding.check, finding.status) == ("sglang", status)
    assert text in finding.text
    assert (state.parts, state.supported, state.registered) == (parts, True, True)
    if status == "warning":
        assert finding.remedy.endswith("nothing is replaced like this")


def test_the_releases_of_sglang_are_those_on_record():
    assert set(sglang_plugin.RELEASES) == set(json.loads((Path(__file__).parent / "sglang_hooks.json").read_text()))
