"""Tables of the page. Without JavaScript they are plain ones, with it they sort and filter."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import record as peers
from benchmarks.peers.report import header as peers_header
from benchmarks.peers.report import rows as peers_rows
from benchmarks.report import CELL_LABELS, milliseconds
from benchmarks.results import Measurement, Record
from benchmarks.timing import Summary, summarise


@dataclass(frozen=True)
class Cell:
    """text: what is seen; key: what it is sorted by; note: in small letters below; behind: set off,
    as rnnfast is slower there.
    """

    text: str
    key: float | str | None = None
    note: str = ""
    behind: bool = False


def table(header: Sequence[str], rows: Iterable[Iterable[Cell | str]], caption: str = "") -> str:
    """As HTML. Numbers, which have a key, are aligned right."""
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return f"<td>{html.escape(cell)}</td>"
    kind = " ".join(
        name
        for name, wanted in (("n", isinstance(cell.key, float)), ("behind", cell.behind))
        if wanted
    )
    attributes = f' class="{kind}"' if kind else ""
    attributes += f' data-key="{cell.key:.6g}"' if isinstance(cell.key, float) else ""
    note = f"<small>{html.escape(cell.note)}</small>" if cell.note else ""
    return f"<td{attributes}>{html.escape(cell.text)}{note}</td>"


def folded(summary: str, content: str, open_: bool = False) -> str:
    """Content behind a line that opens it."""
    return (
        f"<details{' open' if open_ else ''}><summary>{html.escape(summary)}</summary>\n"
        f"{content}</details>"
    )


def seconds(side: Summary) -> Cell:
    spread = f"{milliseconds(side.p20)} to {milliseconds(side.p80)}"
    return Cell(milliseconds(side.median), side.median, spread)


def ratio(value: float, spread: Summary | None = None, suffix: str = "x") -> Cell:
    """Above 1 rnnfast is ahead."""
    if math.isnan(value):
        return Cell("")
    note = f"{spread.p20:.2f} to {spread.p80:.2f}" if spread else ""
    return Cell(f"{value:.2f}{suffix}", value, note, behind=value < 1)


def measured(record: Record, baseline: str) -> str:
    """Every measurement of a record of one precision a row."""
    header = ("T, B, I, H", "cell", "pass", "speed-up", f"{baseline}, ms", "rnnfast, ms")
    with_errors = any(m.errors for m in record.measurements)
    errors = ("error of torch.nn", "of rnnfast") if with_errors else ()
    return table((*header, *errors), (_measured(m) for m in record.measurements))


def _measured(m: Measurement) -> list[Cell | str]:
    row: list[Cell | str] = [m.problem.label, CELL_LABELS[m.cell], m.pass_name]
    row += [ratio(m.speed_up, m.pairwise), seconds(m.baseline), seconds(m.candidate)]
    if m.errors:
        row += [Cell(f"{e:.1e}", e) for e in (m.errors.baseline, m.errors.candidate)]
    return row


def smallest_calls(measurements: Iterable[Measurement], baseline: str) -> str:
    """What a call costs, in microseconds."""
    header = ("T, B, I, H", "call of", "speed-up", f"{baseline}, µs", "rnnfast, µs")
    return table(header, map(_smallest_call, measurements))


def _smallest_call(m: Measurement) -> list[Cell | str]:
    name = f"{CELL_LABELS[m.cell]} {m.pass_name}"
    sides = (_microseconds(side) for side in (m.baseline, m.candidate))
    return [m.problem.label, name, ratio(m.speed_up, m.pairwise), *sides]


def _microseconds(side: Summary) -> Cell:
    median, p20, p80 = (f"{1e6 * value:.2f}" for value in (side.median, side.p20, side.p80))
    return Cell(median, side.median, f"{p20} to {p80}")


def peaks(rows: Iterable[dict[str, Any]]) -> str:
    """The memory of torch.nn and of ours, in MiB."""
    header = (
        "T, B, I, H",
        "cell",
        "pass",
        "torch.nn over rnnfast",
        "torch.nn, MiB",
        "rnnfast, MiB",
    )
    return table(header, map(_peaks, rows))


def _peaks(row: dict[str, Any]) -> list[Cell | str]:
    sides = [[size / 2**20 for size in found] for found in row["bytes"].values()]
    theirs, ours = map(statistics.median, sides)
    cells = (
        Cell(f"{statistics.median(s):.1f}", statistics.median(s), f"{min(s):.1f} to {max(s):.1f}")
        for s in sides
    )
    times = ratio(theirs / ours if ours else math.nan)  # so little is not seen
    return [row["label"], CELL_LABELS[row["cell"]], row["pass"], times, *cells]


def beside_peers(record: peers.Record, pass_name: str) -> str:
    """As the tables of docs/peers.md, with the spread of every time."""
    header = peers_header(record, pass_name)
    rows = (
        _beside_peers(entry, header, texts)
        for entry, texts in zip(record.of(pass_name), peers_rows(record, pass_name), strict=True)
    )
    return table([f"{name}, ms" if name in record.names() else name for name in header], rows)


def _beside_peers(
    entry: peers.Entry, header: Sequence[str], texts: Sequence[str]
) -> Iterator[Cell | str]:
    for name, text in zip(header, texts, strict=True):
        if name in entry.samples:
            yield seconds(summarise(entry.samples[name]))
        elif "/" in name and text != "-":
            yield Cell(text, float(text), behind=name.endswith("/ ours") and float(text) < 1)
        else:
            yield text
