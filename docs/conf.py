"""How the documentation site is built, by ``make docs``. Needs no network: no font, script or
inventory is fetched, neither by the build nor by who reads the pages.
"""

import html
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

# Only the root has them.
from benchmarks import page  # noqa: E402
from benchmarks.convergence import record, report  # noqa: E402

project = "rnnfast"
author = "rnnfast contributors"
project_copyright = author
_STATED = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
version = release = _STATED[1] if _STATED else ""

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns: list[str] = []
nitpicky = True
# torch and Python are not looked up, as that would need the network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|typing|nn)\..*"),
    ("py:class", r"dict\[str"),  # of a string of types, cut in two
    ("py:.*", r"rnnfast\.(modules|cells|regularisation\..*|spec\..*|\w+\._Model)"),  # not public
]
highlight_language = "none"  # an indented block is a command, or a sketch
pygments_style, pygments_dark_style = "friendly", "github-dark"

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included part of a file may begin at any level

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"rnnfast {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False

_TORCHS = re.compile(r"torch\.nn\.(RNN|GRU|LSTM)(Cell)?$")
_TORCHS_PAGES = "https://docs.pytorch.org/docs/stable/generated/"


def _link_to_torch(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """The six classes that ours stand for, at an address that is known without looking."""
    target = node.get("reftarget", "")
    if _TORCHS.match(target):
        return nodes.reference("", "", contnode, refuri=f"{_TORCHS_PAGES}{target}.html")
    return None


def _from_the_root(app: Any, path: Any, docname: str, source: list[str]) -> None:
    """Links in a file that a page includes from the root of the repository."""
    if Path(app.srcdir, path).resolve().parent == ROOT:
        source[0] = re.sub(r"\]\((?!https?:|#)([^)]+)\)", _rooted, source[0])


def _out_of_the_site(app: Any, docname: str, source: list[str]) -> None:
    """Links of a page to files and folders beside docs/."""
    if "/" not in docname:  # whose ../ is the root
        source[0] = re.sub(r"\]\(\.\./([^)]+)\)", _rooted, source[0])


def _rooted(link: re.Match[str]) -> str:
    """Of a page by its name; else as a file to look at, for a folder what explains it."""
    target = link[1]
    if target.startswith("docs/"):
        return f"]({target.removeprefix('docs/')})"
    folder = (ROOT / target).is_dir()
    return f"](path:../{target}/README.md)" if folder else f"](path:../{target})"


def _draw_inline(app: Any, doctree: Any, docname: str) -> None:
    """Drawings as a part of the page, so that their lines and words have its colours."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            drawing = Path(app.srcdir, image["uri"]).read_text("utf-8")
            label = html.escape(image.get("alt", ""))
            drawing = re.sub(r' color="[^"]*"', "", drawing, count=1)
            drawing = drawing.replace("<svg ", f'<svg class="drawing" aria-label="{label}" ', 1)
            image.replace_self(nodes.raw("", drawing, format="html"))


def _visit_math(self: Any, node: Any) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _visit_math_block(self: Any, node: Any) -> None:
    aligned = rf"\begin{{aligned}}{node.astext()}\end{{aligned}}"
    self.body.append(f'<div class="math">{tex2mathml(aligned, as_block=True)}</div>')
    raise nodes.SkipNode


class _Convergence(Directive):
    """The figures of docs/convergence.md, drawn from the JSON that is named."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        drawn = report.figures(record.read(ROOT / self.arguments[0]))
        return [nodes.raw("", figure, format="html") for figure in drawn]


def _back_to_the_docs(app: Any, page: str, template: str, context: Any, doctree: Any) -> None:
    """Links of a page of source to what it defines. viewcode takes all that a file defines to be
    documented under one module; what is documented under another one is looked for by its name.
    """
    if not page.startswith("_modules/"):
        return
    objects = app.env.domaindata["py"]["objects"]

    def mended(link: re.Match[str]) -> str:
        docname, anchor = link[1], link[2]
        if anchor in objects:
            return link[0]
        name = anchor.rpartition(".")[2]
        found = [o for o, at in objects.items() if at.docname == docname and o.endswith(f".{name}")]
        return link[0].replace(f"#{anchor}", f"#{found[0]}") if found else link[0]

    pattern = r'class="viewcode-back" href="(?:\.\./)*([^"#]*)\.html#([^"]*)"'
    context["body"] = re.sub(pattern, mended, context.get("body", ""))


def _write_report(app: Any, exception: Exception | None) -> None:
    """The page of all benchmarks, which figures.md links to."""
    if exception is None and app.builder.format == "html":
        page.write(Path(app.outdir, "report.html"), home="index.html")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_directive("convergence", _Convergence)
    app.add_html_math_renderer("mathml", (_visit_math, None), (_visit_math_block, None))
    app.connect("missing-reference", _link_to_torch)
    app.connect("source-read", _out_of_the_site)
    app.connect("include-read", _from_the_root)
    app.connect("doctree-resolved", _draw_inline)
    app.connect("html-page-context", _back_to_the_docs)
    app.connect("build-finished", _write_report)
