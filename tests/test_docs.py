"""The code in the documents runs."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"
WITH_CODE = sorted(p.name for p in DOCS.glob("*.md") if "```python" in p.read_text("utf-8"))


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_document_runs(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
    assert blocks
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
