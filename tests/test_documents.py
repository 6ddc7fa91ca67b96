"""The code in the README and in docs: Python blocks run, shell blocks name what there is.

tests/test_first_day_laptop.py runs the latter.
"""

from __future__ import annotations

import re
import subprocess

import pytest
import torch
from document_runs import NEEDS_GPUS, needs_gpus, run
from documents import FENCE, ROOT, Block, blocks, blocks_of, pages
from lamport_rs import _core
from readme_renderer import markdown
from shell_blocks import SHELL, commands_of, complaint

NOT_RUN = {
    "text": "what a program prints, or a formula",
    "{toctree}": "Sphinx's own: `make docs` runs it",
    "{eval-rst}": "Sphinx's own: `make docs` runs it",
    "{literalinclude}": "a file of the repository, which a test of its own runs",
}
"""Languages of blocks that are no code, with the reason."""
PYTHON = blocks("python")


@pytest.mark.long
def test_python_blocks_run(tmp_path):
    """Those that need GPUs: tests/gpu/test_cuda_documents.py."""
    run([each for each in PYTHON if not needs_gpus(each)], tmp_path, CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.name)
def test_a_shell_block_can_be_parsed_and_names_what_there_is(block):
    parsed = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert parsed.returncode == 0, parsed.stderr
    assert commands_of(block.text)
    assert [complaint(command) for command in commands_of(block.text) if complaint(command)] == []


def test_every_block_is_of_a_language_that_is_known():
    known = {"python", "sh", "", *NOT_RUN}
    assert [each.name for each in blocks() if each.language.split(" ")[0] not in known] == []
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
        "torchrun --standalone --nproc-per-node 2 examples/no_such_program.py",
        "torchrun --standalone --nproc-per-node 2 benchmarks/transformers_step.py --no-such-option",
        "torchrun --nproc-per-node 2 examples/quick_start.py",
        "pip install no-such-package",
        "pip install lamport-rs",
        "pip install '.[no-such-extra]'",
        "cargo test -p no-such-crate",
        "cargo test -p lamport-rs-kernels --test no_such_test",
        "NO_SUCH_VARIABLE=1 lamport-rs doctor",
        "git clone https://github.com/no-such/repository",
        "no-such-command",
    ],
)
def test_what_there_is_not_is_found(command):
    (parsed,) = commands_of(command)
    assert complaint(parsed)


def test_a_block_knows_its_place():
    (block,) = blocks_of("page.md", "# Title\n\n```python\nx = 1\n```\n")
    assert block == Block("page.md", 4, "python", "x = 1\n")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_prose_is_filled(page):
    """Tables, links, figures and code may be wider."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    wide = [line for line in text.splitlines() if len(line) > 126 and not line.lstrip().startswith(("|", "[", "!["))]
    assert not wide


def page_of_the_site(address: re.Match[str]) -> str:
    return f"docs/{address[1] or 'index'}.md"


def schemas(names: list[str]) -> dict[str, str]:
    """The parameters of operators as the reference has them: names, and defaults."""
    found = {}
    for name in names:
        parameters = getattr(torch.ops.lamport_rs, name).default._schema.arguments
        said = [p.name + (f"={shown(p.default_value)}" if p.has_default_value() else "") for p in parameters]
        found[name] = ", ".join(said)
    return found


def shown(value: object) -> str:
    return {1e-6: "1e-6"}.get(value) or (f'"{value}"' if isinstance(value, str) else repr(value))


def test_the_reference_has_the_operators_parameters():
    page = (ROOT / "docs" / "api.md").read_text()
    found = dict(re.findall(r"torch\.ops\.lamport_rs\.(\w+)\(([^)]*)\)`", page))
    assert found == schemas([name for name, *_ in _core.collectives()])


def test_the_readme_shows_on_a_package_index():
    text = (ROOT / "README.md").read_text()
    shown = markdown.render(text, variant="GFM")
    assert shown is not None
    assert "<table>" in shown
    assert len([line for line in text.splitlines() if not line.startswith("[")]) <= 70, "one screen"
    # An index has no files of the repository beside the page.
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 12
    for link in links:
        assert link.startswith("https://"), link
        path = re.sub(r"^https://github\.com/lamport-rs/lamport-rs/(blob|raw|tree)/main/", "", link)
        path = re.sub(
            r"^https://lamport-rs\.github\.io/lamport-rs/(\w*)(?:\.html)?(?:#[\w-]+)?$", page_of_the_site, path
        )
        assert (ROOT / path).is_file(), link
