"""The code in docs that needs GPUs."""

from __future__ import annotations

import pytest
from document_runs import NEEDS_GPUS, needs_gpus, run
from documents import blocks


@pytest.mark.gpu(2)
@pytest.mark.own_gpus
def test_python_blocks_that_need_gpus_run(tmp_path):
    found = [each for each in blocks("python") if needs_gpus(each)]
    assert len(found) == len(NEEDS_GPUS)
    run(found, tmp_path)
