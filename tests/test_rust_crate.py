"""The Rust crate as an engine takes it: from a checkout, in a program of its own, by the lines of docs/rust.md."""

import socket
import subprocess

import pytest
from documents import ROOT, blocks


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.long
def test_the_first_program_builds_outside_of_the_workspace_and_its_ranks_sum(tmp_path):
    page = [each for each in blocks("sh", "text") if each.page == "docs/rust.md"]
    lines, said = [each.text for each in page]
    assert "cargo new" in lines
    (tmp_path / "lamport-rs").symlink_to(ROOT)
    lines = lines.replace("127.0.0.1:24815", f"127.0.0.1:{free_port()}")
    command = ["bash", "-euo", "pipefail", "-c", lines]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    assert sorted(finished.stdout.splitlines()) == said.splitlines(), finished.stderr
