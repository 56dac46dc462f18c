"""Text for the pages of the documentation: paragraphs, and blocks between two marker lines."""

from __future__ import annotations

import textwrap

WIDTH = 120
"""Columns of a page's lines, tables included: `tests/test_docs.py` holds them to it."""


def replace_block(text: str, block: str, begin: str, end: str) -> str:
    """`text` with everything between its two marker lines replaced by `block`.

    Raises ValueError unless each marker occurs once and they are in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"wanted the markers {begin!r} and {end!r}, once each, in this order")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    return f"{head}{begin}\n\n{block.strip()}\n\n{end}{tail}"


def filled(text: str, indent: str = "") -> str:
    """A paragraph of a page, or with `indent` what is to stand in a list there."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
