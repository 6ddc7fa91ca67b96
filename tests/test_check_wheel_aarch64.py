"""The check of the wheel for aarch64: what it needs, and that it says so. `make check-wheel-aarch64` runs it."""

import check_wheel_aarch64
import pytest
from check_wheel import CheckError


def test_an_emulator_that_is_missing_is_told_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(check_wheel_aarch64.shutil, "which", lambda name: None if "qemu" in name else f"/bin/{name}")
    with pytest.raises(CheckError, match=r"expected qemu-aarch64-static on the PATH.*apt-get install qemu-user-static"):
        check_wheel_aarch64.tools()


def test_a_machine_without_debians_packages_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(check_wheel_aarch64, "SOURCES", (str(tmp_path / "none"),))
    with pytest.raises(CheckError, match="expected Debian's sources of packages"):
        check_wheel_aarch64.settings_of_apt(tmp_path / "root")


def test_apt_keeps_everything_in_a_folder_of_its_own(monkeypatch, tmp_path):
    sources = tmp_path / "sources"
    sources.touch()
    monkeypatch.setattr(check_wheel_aarch64, "SOURCES", (str(sources),))
    root = tmp_path / "root"
    settings = check_wheel_aarch64.settings_of_apt(root)
    folders = [settings[f"Dir::{name}"] for name in ("State::Lists", "State::status", "Cache")]
    assert all(each.startswith(str(root)) for each in folders)
    assert settings["APT::Architecture"] == settings["APT::Architectures"] == "arm64"
    assert (root / "apt/cache/archives/partial").is_dir()
