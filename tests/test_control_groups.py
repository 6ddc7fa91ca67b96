"""What a container allows, as both versions of control groups say it."""

from __future__ import annotations

import pytest
from lamport_rs._core import cpu_quota, memory_limit


@pytest.fixture
def groups(tmp_path):
    """`groups(own, {file: text})`: the arguments of what reads them."""

    def make(own: str, files: dict[str, str]):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "root", tmp_path / "own"

    return make


def test_version_2_takes_the_least_of_all_groups_above(groups):
    files = {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "250000 100000\n", "cpu.max": "400000 100000\n"}
    memory = {"a/b/memory.max": "4096\n", "a/b/memory.current": "1024\n", "a/memory.max": "max\n",
              "a/memory.current": "0\n", "memory.max": "5000\n", "memory.current": "4000\n"}  # fmt: skip
    where = groups("0::/a/b\n", {**files, **memory})
    assert cpu_quota(*where) == 2.5
    assert memory_limit(*where) == (5000, 4000)


def test_version_1_is_read_at_its_own_path_or_the_controllers_home(groups):
    own = "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/x\n0::/\n"
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/docker/abc/memory.limit_in_bytes": "9000\n",
        "memory/docker/abc/memory.usage_in_bytes": "100\n",
        "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
        "memory/memory.usage_in_bytes": "100\n",
    }
    where = groups(own, files)
    assert cpu_quota(*where) == 1.5
    assert memory_limit(*where) == (9000, 100)


def test_no_limit_and_no_control_groups_are_none(groups, tmp_path):
    where = groups("0::/\n1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"})
    assert cpu_quota(*where) is None
    assert memory_limit(*where) is None
    assert cpu_quota(tmp_path / "root", tmp_path / "missing") is None
