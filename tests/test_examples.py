"""The programs in `examples`, started as their docstrings say; and the README's code, which is one of them."""

from __future__ import annotations

import ast
import re

import pytest
from torchrun import ROOT, said_by, torchrun

EXAMPLES = ROOT / "examples"
LINE = "torchrun --standalone --nproc-per-node 2 examples/{}"

TOKENS = r"\d+( \d+){11}"
"""Those that the program compares with its reference depend on the version of transformers."""
SAID = {
    "quick_start.py": ["sum 3.0, with residual 4.0, norm 0.5"],
    "process_group.py": ["all_reduce 3.0", "parallelize_module agrees with the whole model"],
    "compiled.py": ["3 compiled layers agree with eager ones"],
    "transformers_generate.py": [TOKENS],
    "decode_loop.py": ["39 277 331 666 194 964 277 331 666 194 964 277"],
    "tensor_parallel_block.py": ["4 of 8 heads; the whole block's result"],
}
"""What each rank of an example says, line by line: patterns. One rank alone decodes the same tokens."""
THROUGH_TORCH = {"process_group.py", "transformers_generate.py"}
"""Those that let torch call the package, and the package's log say that it does."""


@pytest.mark.long
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs_by_the_line_in_its_docstring_and_every_rank_says_its_result(name):
    docstring = ast.get_docstring(ast.parse((EXAMPLES / name).read_text()))
    assert LINE.format(name) in docstring
    output, log = torchrun(f"examples/{name}")
    for rank in range(2):
        said = said_by(rank, output)
        assert said == said_by(0, output), output + log
        assert re.fullmatch("\n".join(SAID[name]), "\n".join(said)), output + log
    made = re.findall(r"INFO:lamport_rs:workspace of rank \d of 2", log)
    assert len(made) == (2 if name in THROUGH_TORCH else 0), log


def test_every_example_is_tested():
    assert {file.name for file in EXAMPLES.glob("*.py")} == set(SAID)


def test_the_first_code_of_the_readme_is_the_quick_start():
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert blocks[0] == (EXAMPLES / "quick_start.py").read_text()
