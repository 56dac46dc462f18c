"""The code in the documents runs, what they link to exists."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnfast

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page for page in (ROOT / "README.md", *DOCS.glob("*.md"))}
LINKING = sorted(str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md")))
WIDTH = 120
WITH_CODE = sorted(name for name, page in PAGES.items() if "```python" in page.read_text("utf-8"))


@pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.*")
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_code_of_a_document_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGES[name].read_text("utf-8"), re.DOTALL)
    assert blocks
    torch.manual_seed(0)
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.parametrize("page", LINKING)
def test_what_a_page_links_to_exists(page: str) -> None:
    path = ROOT / page
    prose = re.sub(r"```python.*?```", "", path.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    links += re.findall(r"^\[[^\]]+\]: (?!https?:)([^#\s]+)", prose, re.MULTILINE)
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize("page", LINKING)
def test_the_lines_of_a_page_are_narrow(page: str) -> None:
    """Rows of tables and code, too; a line that is one long address may be as long as it is."""
    lines = enumerate((ROOT / page).read_text("utf-8").splitlines(), 1)
    wide = [n for n, line in lines if len(line) > WIDTH and not re.match(r"\S*https?://\S+$", line)]
    assert wide == []


@pytest.mark.parametrize("page", LINKING)
def test_the_site_shows_every_line_of_a_page(page: str) -> None:
    """One that begins with a per cent sign would be a comment there."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    assert [line for line in lines if line.lstrip().startswith("%")] == []


def test_a_page_lists_every_example() -> None:
    text = (DOCS / "examples.md").read_text("utf-8")
    examples = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert {name for name in examples if f"(../examples/{name})" not in text} <= {"common.py"}


def test_the_reference_has_every_public_name() -> None:
    text = "".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"auto(?:class|function|module):: (?:rnnfast\.)?(\w+)", text))
    public = {*rnnfast.__all__, *rnnfast.functional.__all__}
    own = [n for n, f in vars(rnnfast.ops).items() if getattr(f, "__module__", "") == "rnnfast.ops"]
    assert {*public, *(name for name in own if not name.startswith("_"))} <= named


def test_the_drawings_are_those_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = runpy.run_path(str(DOCS / "drawings.py"))
    for drawing in (drawn["cpu_step"](), drawn["gpu_step"]()):
        monkeypatch.setitem(drawing.write.__globals__, "FOLDER", tmp_path)
        drawing.write()
        name = f"{drawing.name}.svg"
        assert (tmp_path / name).read_text("utf-8") == (DOCS / "images" / name).read_text("utf-8")


def test_what_to_cite_is_this_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version is not None
    assert f"version: {version[1]}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
