"""The site: `make docs` fails on what a reader would stumble over."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from documents import ROOT

pytestmark = pytest.mark.long

PAGE = """# Title

[A page](page.md), [a heading](page.md#part), [a file](../LICENSE), [a folder](../kernels).

```{toctree}
page
```
"""
REFERENCE = """
```{eval-rst}
.. automodule:: lamport_rs
   :members:
   :inherited-members:
   :exclude-members: all_reduce

.. autofunction:: lamport_rs.distributed.install
.. py:currentmodule:: lamport_rs
.. py:data:: TABLE_ABI_VERSION
```
"""


@pytest.fixture
def build(tmp_path):
    """Build a site of two pages like that of the project, and return its exit status and what it complains of."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "LICENSE").touch()
    shutil.copy(ROOT / "docs" / "conf.py", tmp_path / "docs")

    def build(index: str, page: str) -> tuple[int, str]:
        (tmp_path / "docs" / "index.md").write_text(index)
        (tmp_path / "docs" / "page.md").write_text(page)
        options = ["--quiet", "--fail-on-warning", "--nitpicky", "--builder", "html"]
        command = [sys.executable, "-m", "sphinx", *options, tmp_path / "docs", tmp_path / "site"]
        finished = subprocess.run(command, capture_output=True, text=True)
        return finished.returncode, finished.stderr

    return build


def test_what_leads_nowhere_or_is_not_described_is_an_error(build):
    index = PAGE + "[1](gone.md) [2](page.md#gone) [3](../gone.py) [4](#gone)"
    status, complaints = build(index, f"# Page\n\n## Part\n{REFERENCE}")
    assert status != 0
    for link in ("gone.md", "../gone.py"):
        assert f"{link} does not exist" in complaints
    assert "local id not found in doc 'page': 'gone'" in complaints
    assert "cross-reference target not found: 'gone'" in complaints
    assert "lamport_rs.all_reduce is public, and no page describes it" in complaints
    assert "lamport_rs.all_reduce_rms_norm is public" not in complaints


def test_a_page_without_faults_is_built_and_links_to_the_repository(build, tmp_path):
    reference = REFERENCE.replace("   :exclude-members: all_reduce\n", "")
    assert build(PAGE, f"# Page\n\n## Part\n{reference}") == (0, "")
    made = (tmp_path / "site" / "index.html").read_text()
    for link in ("page.html#part", "lamport-rs/blob/main/LICENSE", "lamport-rs/tree/main/kernels"):
        assert f'{link}"' in made
