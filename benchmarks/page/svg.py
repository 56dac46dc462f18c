"""Figures of matplotlib as a part of a page: their ink is the page's, their marks can be asked."""

from __future__ import annotations

import html
import io
import itertools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
INK = (
    # Black fills are left out by matplotlib: they come from the <svg>, which has currentColor.
    (r"stroke: #(000000|444444)", "stroke: currentColor"),
    (r"stroke: #(dddddd|e5e5e5)", "stroke: currentColor; stroke-opacity: 0.18"),
    (r"stroke: #ffffff", "stroke: var(--page)"),
    (r"#aa0000", "#d64545"),
    (r"'DejaVu Sans'", "'DejaVu Sans', Verdana"),
)
LEAST = 0.8
"""A figure is not drawn smaller than so many of its own width: `WIDE` of it fits a phone."""
WIDE = 4.6
_numbers = itertools.count()


def inline(figure: Figure, words: str) -> str:
    """The figure as an <svg>. words: what it shows, for those who do not see it."""
    from matplotlib import rc_context

    for artist in figure.findobj(match=_moves_nothing):
        artist.set_in_layout(False)
    for legend in (*figure.legends, *(axes.get_legend() for axes in figure.axes)):
        if legend:
            legend.set_frame_on(False)
    file = io.StringIO()
    style: Any = {**STYLE, "svg.hashsalt": str(next(_numbers))}
    with rc_context(style):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawing = file.getvalue()[file.getvalue().index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", drawing, flags=re.DOTALL)
    for pattern, ink in INK:
        drawing = re.sub(pattern, ink, drawing)
    drawing = re.sub(r'<g id="tip: ([^"]*)">', r'<g class="mark"><title>\1</title>', drawing)
    drawing = re.sub(r'<g id="[^"]*"/>', "", drawing)  # a tick that has no length
    drawing = re.sub(r'<g id="[^"]*">', "<g>", drawing)
    drawing = re.sub(r"\n\s*", "\n", drawing)
    width = figure.get_figwidth() * 96
    box = f"0 0 {figure.get_figwidth() * 72:g} {figure.get_figheight() * 72:g}"
    head = (
        f'<svg class="plot" role="img" aria-label="{html.escape(words)}" fill="currentColor" '
        f'style="width: {width:.0f}px; min-width: {LEAST * width:.0f}px" viewBox="{box}">'
    )
    return f'<div class="scroll">{re.sub("<svg[^>]*>", head, drawing, count=1)}</div>'


def _moves_nothing(artist: Any) -> bool:
    """Whether it lies inside the axes, so that the layout, which takes long, need not ask it."""
    return str(artist.get_gid() or "").startswith("tip: ")
