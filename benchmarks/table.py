"""Tables: on the terminal with rich where it is installed, in plain columns elsewhere; Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows under their header; the first column is text, the others are aligned right."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(plain(title, header, rows))
        return
    table = Table()
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    widest = sum(max(map(len, column)) + 3 for column in zip(header, *rows, strict=True)) + 1
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, widest)
    console.print(title, style="bold")
    console.print(table)


def plain(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as text, without a trailing newline."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [title]
    for row in (header, *rows):
        first, *others = (
            text.rjust(width) if index else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join((first, *others)).rstrip())
    return "\n".join(lines)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same for a document."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
