"""Tables and a plot of the JSON that `python -m benchmarks.peers` writes.

python -m benchmarks.peers.report benchmarks/results/peers/MACHINE.json            the tables
python -m benchmarks.peers.report benchmarks/results/peers/MACHINE*.json --docs    docs/peers.md
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import table
from benchmarks.documents import filled, replace_block
from benchmarks.peers.record import BASELINE, OURS, Entry, Record, mean_lead, read
from benchmarks.report import CELL_LABELS, IMAGES, milliseconds
from benchmarks.results import REPOSITORY
from benchmarks.timing import geometric_mean
from benchmarks.workloads import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEGIN = "<!-- peers: written by python -m benchmarks.peers.report --docs -->"
END = "<!-- end of peers -->"
PAGE = REPOSITORY / "docs" / "peers.md"
SMALL = {
    (50, 32, 128, 128),
    (100, 1, 64, 64),
    (1000, 1, 128, 256),
    (1, 32, 128, 128),
    (20, 3, 5, 6),
}
"""T, B, I, H of the small problems: a training step of any cell takes milliseconds."""

COLOURS = (
    *("#000000", "#999999", "#0072B2", "#E69F00", "#009E73"),
    *("#CC79A7", "#D55E00", "#56B4E9", "#882255"),
)
MARKS = "DsoovP^vX"
BEYOND = (0.8, 0.1, 0.1, 0.25)
BOUNDS = ("practical ceiling", "beyond the hard bound")
"""As the legend of `plot` has them."""


def small(entry: Entry) -> bool:
    p = entry.problem
    return (p.T, p.B, p.I, p.H) in SMALL


def headline(record: Record) -> str:
    facts = record.environment
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['dtype']}, {facts['threads']} threads, {facts['cpu']}, {facts['isa']}, rnnfast at "
        f"commit {facts['commit']}, torch {facts['torch']}, Python {facts['python']}; {versions}"
    )


def machine_line(record: Record) -> str:
    """The figures of the machine that the bounds are made of."""
    facts = record.environment["machine"]
    rates = (f"{level['bytes_per_second'] / 1e9:.0f}" for level in facts["read_bandwidth"])
    return (
        f"Together the {record.environment['threads']} threads do {facts['fma_peak'] / 1e9:.0f} "
        f"GFLOP/s in registers, {facts['gemm'] / 1e9:.0f} in the best library's product; read "
        f"{', '.join(rates)} GB/s from each cache in turn and from memory; compute "
        f"{facts['sigmoid'] / 1e9:.1f} sigmoids and {facts['tanh'] / 1e9:.1f} tanhs a nanosecond; "
        f"meet at a barrier in {facts['barrier_seconds'] * 1e9:.0f} ns."
    )


PROBLEM = ("T, B, I, H", "cell")
RATIOS = ("best peer", "best / ours", "torch / ours", "ours / LB", "ours / PC")


def problem(entry: Entry) -> list[str]:
    """Under `PROBLEM`."""
    return [entry.problem.label, CELL_LABELS[entry.cell]]


def times(entry: Entry, names: Sequence[str]) -> list[str]:
    """Milliseconds, under `names`."""
    return [_milliseconds(entry.seconds(name)) for name in names]


def ratios(entry: Entry) -> list[str]:
    """Under `RATIOS`."""
    ours = entry.seconds(OURS)
    return [
        entry.best_peer,
        f"{entry.lead:.2f}",
        f"{entry.speed_up(OURS):.2f}",
        f"{ours / entry.bound.lower:.2f}" if entry.bound.lower > 0 else "-",
        _ratio(ours / entry.bound.practical),
    ]


def rows(record: Record, pass_name: str) -> Iterator[list[str]]:
    """A row for each problem and cell, under `header`."""
    names = _timed(record, pass_name)
    for entry in record.of(pass_name):
        yield [*problem(entry), *times(entry, names), *ratios(entry)]


def header(record: Record, pass_name: str) -> list[str]:
    return [*PROBLEM, *_timed(record, pass_name), *RATIOS]


def mean_rows(record: Record) -> Iterator[list[str]]:
    """Geometric means for each pass and cell, under `MEANS`."""
    for pass_name in PASSES:
        entries = record.of(pass_name)
        for cell in (*dict.fromkeys(entry.cell for entry in entries), None):
            of_cell = [entry for entry in entries if cell in (None, entry.cell)]
            if of_cell:
                yield [
                    f"{pass_name}, {CELL_LABELS[cell] if cell else 'all cells'}",
                    f"{mean_lead(of_cell):.2f}",
                    _ratio(mean_lead(list(filter(small, of_cell)))),
                    f"{geometric_mean([entry.speed_up(OURS) for entry in of_cell]):.2f}",
                    f"{sum(entry.lead >= 1 for entry in of_cell)} of {len(of_cell)}",
                ]


MEANS = (
    "geometric mean",
    "best peer / ours",
    "the same, small shapes",
    "torch.nn / ours",
    "ours is first",
)


SHORTER = {
    "rnnfast, frozen": "frozen",
    "torch.compile": "compiled",
    "JAX, unroll 8": "JAX by 8",
    "RNN (tanh)": "RNN",
}
"""Words in the wide table of a page."""


def left_out(record: Record) -> Iterator[str]:
    """One line for each implementation and reason: what it was left out of."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in record.entries:
        for name, reason in entry.left_out.items():
            where = f"{entry.problem.name} {entry.cell} {entry.pass_name}"
            reasons.setdefault((name, reason), []).append(where)
    for (name, reason), where in reasons.items():
        places = f"{len(where)} cases" if len(where) > 2 else ", ".join(where)
        yield f"{name}: left out of {places}: {reason}"


def show(record: Record) -> None:
    """The whole record on the terminal."""
    print(headline(record), machine_line(record), sep="\n")
    for name in PASSES:
        if record.of(name):
            title = f"{name}, ms; best, torch, LB, PC: ratios of times"
            table.show(title, header(record, name), list(rows(record, name)))
    table.show("", MEANS, list(mean_rows(record)))
    print(*left_out(record), sep="\n")


def markdown(record: Record) -> str:
    """The measured part of docs/peers.md, without the plot."""
    facts = record.environment
    title = f"### {facts['cpu']}: {facts['dtype']}, oneDNN {facts['versions']['oneDNN']}"
    parts = [title, filled(f"{headline(record)}."), filled(machine_line(record))]
    parts += [table.markdown(MEANS, mean_rows(record))]
    for name in PASSES:
        entries, names = record.of(name), _timed(record, name)
        if entries:
            # Two tables: one would be too wide for a page.
            parts += [f"#### {name.capitalize()}, ms"]
            found = ([*problem(e), *times(e, names)] for e in entries)
            head, *body = ([SHORTER.get(t, t) for t in r] for r in ([*PROBLEM, *names], *found))
            parts += [table.markdown(head, body)]
            parts += [f"#### {name.capitalize()}, ratios of times"]
            found = ([*problem(e), *ratios(e)] for e in entries)
            parts += [table.markdown([*PROBLEM, *RATIOS], found)]
    parts += ["\n".join(filled(f"- {line}", "  ") for line in left_out(record))]
    return "\n\n".join(parts)


def _timed(record: Record, pass_name: str) -> list[str]:
    """Who ran in this pass at all."""
    timed = {name for entry in record.of(pass_name) for name in entry.samples}
    return [name for name in record.names() if name in timed]


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else milliseconds(seconds)


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def plot(record: Record, path: Path) -> None:
    """Writes a PNG: a panel for each pass and cell, a line of marks for each problem.

    The axis is the speed-up over torch.nn, logarithmic. The shaded part to the right is what the
    machine cannot do (LB); the tick before it is the practical ceiling (PC).
    """
    from matplotlib.figure import Figure

    passes = [name for name in PASSES if record.of(name)]
    cells = list(dict.fromkeys(entry.cell for entry in record.entries))
    lines = len(dict.fromkeys(entry.problem for entry in record.entries))
    size = (4.6 * len(cells) + 1.2, len(passes) * (1.0 + 0.36 * lines) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(passes), len(cells), squeeze=False, sharey=True)
    for row, name in zip(panels, passes, strict=True):
        for axes, cell in zip(row, cells, strict=True):
            panel(axes, [e for e in record.of(name) if e.cell == cell], record.names())
            axes.set_title(f"{name}, {CELL_LABELS[cell]}", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8.5)
    facts = record.environment
    figure.suptitle(
        f"Times as fast as torch.nn {facts['torch']}: {facts['dtype']}, {facts['threads']} "
        f"threads, {facts['cpu']}",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def tip(entry: Entry, name: str) -> str:
    """The time of one implementation in words, on one line."""
    return (
        f"tip: {name}: {CELL_LABELS[entry.cell]}, {entry.pass_name}: {entry.problem.label}: "
        f"{milliseconds(entry.seconds(name))} ms, {entry.speed_up(name):.2f}x torch.nn's speed"
    )


def panel(axes: Axes, entries: Sequence[Entry], names: Sequence[str]) -> None:
    """One pass and cell, as `plot` has them. What a mark stands for is its gid."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for index, name in enumerate(names):
        if name != BASELINE:
            size = 46 if name == OURS else 28
            mark, colour = MARKS[index % len(MARKS)], COLOURS[index % len(COLOURS)]
            axes.scatter([], [], size, colour, marker=mark, label=name)
            for y, e in enumerate(entries):
                if name in e.samples:
                    ratio = e.speed_up(name)
                    axes.scatter(ratio, y, size, colour, marker=mark, zorder=3, gid=tip(e, name))
    torch_times = [entry.seconds(BASELINE) for entry in entries]
    practical = [t / e.bound.practical for t, e in zip(torch_times, entries, strict=True)]
    known = [ratio for ratio in practical if not math.isnan(ratio)]
    most = 1.6 * max([*known, *(e.speed_up(n) for e in entries for n in e.samples)])
    for y, (entry, time) in enumerate(zip(entries, torch_times, strict=True)):
        lower = time / entry.bound.lower if entry.bound.lower > 0 else math.inf
        if lower < most:
            axes.barh(y, most - lower, 0.8, left=lower, color=BEYOND)
    axes.scatter(practical, range(len(entries)), 90, "#aa0000", marker="|", label=BOUNDS[0])
    axes.barh(0, 0, color=BEYOND, label=BOUNDS[1])
    axes.axvline(1, color="black", lw=1, label=BASELINE)
    axes.set_xscale("log")
    axes.set_xlim(min(0.4, *(e.speed_up(n) for e in entries for n in e.samples)) * 0.9, most)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.set_yticks(range(len(entries)), [entry.problem.label for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def write_page(records: Sequence[tuple[str, Record]]) -> None:
    """Rewrites the numbers of docs/peers.md, and the plot beside them, which is the first's."""
    name, first = records[0]
    image = IMAGES / f"{name}.png"
    plot(first, REPOSITORY / image)
    picture = f"![Speed over torch.nn]({image.relative_to('docs').as_posix()})"
    block = "\n\n".join([picture, *(markdown(record) for _, record in records)])
    PAGE.write_text(replace_block(PAGE.read_text(), block, BEGIN, END))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "results", type=Path, nargs="+", help="JSON files of python -m benchmarks.peers"
    )
    parser.add_argument("--docs", action="store_true", help="rewrite docs/peers.md and its plot")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the first here")
    options = parser.parse_args(arguments)
    records = [(path.stem, read(path)) for path in options.results]
    for _, record in records:
        show(record)
    if options.plot:
        plot(records[0][1], options.plot)
    if options.docs:
        write_page(records)


if __name__ == "__main__":
    main()
