"""One page of everything in benchmarks/results: figures, tables, where they come from.

It needs nothing but itself: figures are drawn by matplotlib into the page. They, and the tables,
can be read without JavaScript; with it tables sort, and a word in the filter leaves what has it.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page.parts import Section, sections
from benchmarks.page.sources import RESULTS, load

HERE = Path(__file__).parent


def write(path: Path, folder: Path = RESULTS, home: str = "") -> Path:
    """Writes the page of the results in `folder`. home: where the documentation is, to go back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(sections(load(folder)), home), "utf-8")
    return path


def page(parts: Sequence[Section], home: str = "") -> str:
    contents = "\n".join(f'<a href="#{part.name}">{part.title}</a>' for part in parts)
    back = f'<a href="{html.escape(home)}">Documentation</a>\n' if home else ""
    body = "\n".join(
        f'<section id="{part.name}"><h2>{part.title}</h2>\n{part.content}</section>'
        for part in parts
    )
    style, script = ((HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>rnnfast: benchmarks</title>
<style>
{style}</style>
</head>
<body>
<header><h1>rnnfast: benchmarks</h1>
<nav>{back}{contents}</nav></header>
<main>
{body}
</main>
<script>
{script}</script>
</body>
</html>
"""
