"""The code in the documents runs, what they link to exists."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page for page in (ROOT / "README.md", *DOCS.glob("*.md"))}
WITH_CODE = sorted(name for name, page in PAGES.items() if "```python" in page.read_text("utf-8"))


@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_document_runs(name: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name].read_text("utf-8"), re.DOTALL)
    assert blocks
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/numerics.md", "docs/peers.md", "CONTRIBUTING.md"]
)
def test_what_a_page_links_to_exists(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_lists_every_example() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in examples if f"(examples/{name})" not in text} <= {"common.py"}
