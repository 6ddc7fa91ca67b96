"""The code in the README and in docs: Python blocks run, shell blocks name what there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from documents import FENCE, ROOT, Block, blocks, blocks_of, pages
from readme_renderer import markdown
from shell_blocks import commands_of, complaint
from torchrun import said_by, torchrun

NEEDS_GPUS = {"docs/graphs.md": "torch.cuda.CUDAGraph"}
"""Blocks that cannot run on the host, by what is in them: they capture a CUDA graph."""
NOT_RUN = {
    "text": "what a program prints, or a formula",
    "{toctree}": "Sphinx's own: `make docs` runs it",
    "{eval-rst}": "Sphinx's own: `make docs` runs it",
}
"""Languages of blocks that are no code, with the reason."""
PYTHON = blocks("python")
SHELL = blocks("sh", "")


def needs_gpus(block: Block) -> bool:
    return NEEDS_GPUS.get(block.page, "\0") in block.text


def ran(found: list[Block], folder: Path, **environment: str) -> str:
    """Run blocks on two ranks, and return what the ranks say."""
    names = [each.name for each in found]
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PYTHONPATH": path, "STORES": str(folder), **environment}.items():
            patch.setenv(name, value)
        return torchrun("tests/document_program.py", *names)[0]


def check(found: list[Block], output: str) -> None:
    for rank in range(2):
        said = [line for line in said_by(rank, output) if line.endswith(" ran")]
        assert said == [f"{each.name} ran" for each in found], output


def test_python_blocks_run(tmp_path):
    on_the_host = [each for each in PYTHON if not needs_gpus(each)]
    check(on_the_host, ran(on_the_host, tmp_path, CUDA_VISIBLE_DEVICES=""))


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_python_blocks_that_need_gpus_run(tmp_path):
    on_gpus = [each for each in PYTHON if needs_gpus(each)]
    check(on_gpus, ran(on_gpus, tmp_path))


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_a_shell_block_can_be_parsed_and_names_what_there_is(block):
    parsed = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert parsed.returncode == 0, parsed.stderr
    assert commands_of(block.text)
    assert [complaint(command) for command in commands_of(block.text) if complaint(command)] == []


def test_every_block_is_of_a_language_that_is_known():
    known = {"python", "sh", "", *NOT_RUN}
    assert [each.name for each in blocks() if each.language not in known] == []
    assert len(PYTHON) > 12
    assert len(SHELL) > 8
    assert sum(needs_gpus(each) for each in PYTHON) == len(NEEDS_GPUS)


def test_no_block_is_overlooked():
    for page in pages():
        fences = len(re.findall(r"^\s*```", page.read_text(), re.MULTILINE))
        assert fences == 2 * len(FENCE.findall(page.read_text())), page.name


@pytest.mark.parametrize(
    "command",
    [
        "make no-such-target",
        "make bench NO_SUCH_VARIABLE=1",
        "lamport-rs no-such-command",
        "lamport-rs doctor --no-such-option",
        "python benchmarks/no_such_program.py",
        "python benchmarks/cost_model.py --no-such-option",
        "torchrun --nproc-per-node 2 examples/no_such_program.py",
        "pip install no-such-package",
        "pip install 'lamport-rs[no-such-extra]'",
        "cargo test -p no-such-crate",
        "cargo test -p lamport-rs-kernels --test no_such_test",
        "NO_SUCH_VARIABLE=1 lamport-rs doctor",
        "no-such-command",
    ],
)
def test_what_there_is_not_is_found(command):
    (parsed,) = commands_of(command)
    assert complaint(parsed)


def test_a_block_knows_its_place():
    (block,) = blocks_of("page.md", "# Title\n\n```python\nx = 1\n```\n")
    assert block == Block("page.md", 4, "python", "x = 1\n")


def test_the_readme_shows_on_a_package_index():
    text = (ROOT / "README.md").read_text()
    shown = markdown.render(text, variant="GFM")
    assert shown is not None
    assert "<table>" in shown
    assert len(text.splitlines()) <= 100
    # An index has no files of the repository beside the page.
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 15
    for link in links:
        assert link.startswith("https://"), link
        path = re.sub(r"^https://github\.com/lamport-rs/lamport-rs/(blob|raw|tree)/main/", "", link)
        assert (ROOT / path).exists(), link
