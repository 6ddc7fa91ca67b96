"""Tensor parallelism of Hugging Face transformers, unchanged, with its sums done by the package."""

from __future__ import annotations

import pytest
from torchrun import ROOT, said_by, torchrun


@pytest.mark.long
def test_a_model_of_transformers_generates_the_tokens_of_gloo(tmp_path):
    output, log = torchrun(ROOT / "tests" / "transformers_program.py", tmp_path / "store")
    for rank in range(2):
        (said,) = said_by(rank, output)
        assert int(said.removesuffix(" tokens")) > 4, log  # Not the same token again and again.
