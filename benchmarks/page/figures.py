"""The figures of the page, each as an <svg>."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks import gpu_report, report
from benchmarks.page import svg
from benchmarks.page.sources import SIZES, Run
from benchmarks.peers import record as peers
from benchmarks.peers import report as peers_report
from benchmarks.results import Measurement, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = "#0072B2", "#D55E00"
BATCHES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")


def _figure(width: float, height: float) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _plain(axes: Axes, log: Callable[..., object] | None = None, base: float = 10) -> None:
    """Light lines, and numbers as people write them on an axis that is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if log:
        log("log", base=base)
        axis = axes.xaxis if log == axes.set_xscale else axes.yaxis
        axis.set_major_locator(LogLocator(base, subs=(1,) if base == 2 else (1, 2, 5)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color="#e5e5e5", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _legend(figure: Any, axes: Axes, columns: int, without: Sequence[str] = ()) -> None:
    """Below the axes."""
    found = zip(*axes.get_legend_handles_labels(), strict=True)
    handles, labels = zip(*(pair for pair in found if pair[1] not in without), strict=True)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


def _mark(axes: Axes, x: float, y: float, kind: str, colour: str, words: str) -> None:
    """One that can be asked what it is. A line of one point: quicker to draw than `scatter`."""
    axes.plot([x], [y], kind, color=colour, ms=6 if kind != "." else 8, gid=f"tip: {words}")


def overview(groups: Sequence[tuple[str, float, float, float]]) -> str:
    """A line for each group of measurements: its geometric mean between its lowest and highest. Its
    name stands above it, as beside it there is no room on a phone.
    """
    figure, axes = _figure(svg.WIDE, 1.0 + 0.36 * len(groups))
    for y, (name, mean, low, high) in enumerate(groups):
        axes.plot([low, high], [y, y], color="#444444", lw=1)
        words = f"{name}: {mean:.2f}x in geometric mean, {low:.2f} to {high:.2f}"
        _mark(axes, mean, y, "o", OURS, words)
        label = f"{name}: {mean:.2f}"
        axes.annotate(label, (1, y), (4, 5), textcoords="offset points", fontsize=7.5)
    _plain(axes, axes.set_xscale)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks([])
    axes.set_ylim(len(groups) - 0.4, -0.9)
    axes.set_xlabel("times as fast as torch.nn: mean, and lowest to highest row", fontsize=9)
    return svg.inline(figure, "Geometric mean of the speed-ups of every machine, precision, pass")


def speed_ups(part: Record) -> Iterator[str]:
    """Bars as in docs/figures.md, one figure for each pass."""
    problems = len({m.problem for m in part.measurements})
    cells = len({m.cell for m in part.measurements})
    for name in dict.fromkeys(m.pass_name for m in part.measurements):
        figure, axes = _figure(svg.WIDE, 1.5 + 0.2 * problems * (cells + 0.8))
        report.panel(axes, part, name)
        title = axes.get_title().replace("geometric mean: ", "geometric mean:\n")
        axes.set_title(title, fontsize=8.5)
        axes.tick_params(labelsize=8.5)
        _legend(figure, axes, cells)
        yield svg.inline(figure, f"Speed-up of rnnfast over torch.nn: {name}")


def fields(record: Record, graph: bool, name: str) -> Iterator[str]:
    """A field for each layer of a GPU's record, one figure for each precision."""
    for precision, found in gpu_report.ratios(gpu_report.of(record, graph, name)).items():
        if precision == gpu_report.SIXTEEN:
            continue
        rows = sorted({problem for problem, _ in found}, key=gpu_report.order)
        cells = [cell for cell in gpu_report.CELLS if any(cell == of for _, of in found)]
        figure, axes = _figure(1.7 + 0.5 * len(cells), 0.7 + 0.23 * len(rows))
        kind = f"{name}, {precision}"
        gpu_report.panel(axes, found, rows, cells, f"{kind}, {gpu_report.MODES[graph]}")
        axes.set_title(f"{name}\n{gpu_report.PRECISIONS[precision]}", fontsize=8.5)
        common, labels = gpu_report.row_labels(rows)
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.set_ylabel(common, fontsize=8)
        words = f"{kind}, {gpu_report.MODES[graph]}: times as fast as torch.nn with cuDNN"
        yield svg.inline(figure, words)


def scaling(measurements: Sequence[Measurement], baseline: str) -> str:
    """Microseconds a step of one cell, pass and precision, over H; a colour for each batch."""
    figure, axes = _figure(4.0, 3.2)
    first = measurements[0]
    words = (report.CELL_LABELS[first.cell], first.pass_name, first.precision)
    kind = ", ".join(filter(None, words))
    lines: dict[int, list[Measurement]] = {}
    for m in sorted(measurements, key=lambda m: m.problem.H):
        lines.setdefault(m.problem.B, []).append(m)
    for colour, (B, line) in zip(BATCHES, sorted(lines.items()), strict=False):
        hidden = [m.problem.H for m in line]
        for side, dashes in (("candidate", "-"), ("baseline", "--")):
            values = [getattr(m, side).median * 1e6 / m.problem.T for m in line]
            axes.plot(hidden, values, dashes, color=colour, lw=1.4)
            name = "rnnfast" if side == "candidate" else baseline
            for H, value in zip(hidden, values, strict=True):
                tip = f"{name}: {kind}: B {B}, H {H}: {value:.3g} µs a step"
                _mark(axes, H, value, ".", colour, tip)
        axes.plot([], [], color=colour, label=f"B = {B}")
    axes.plot([], [], color="#444444", label="rnnfast")
    axes.plot([], [], "--", color="#444444", label=baseline)
    _plain(axes, axes.set_xscale, 2)
    _plain(axes, axes.set_yscale)
    axes.set_title(kind, fontsize=9)
    axes.set_xlabel("H", fontsize=9)
    axes.set_ylabel("µs a step", fontsize=9)
    _legend(figure, axes, 3)
    return svg.inline(figure, f"{kind}: microseconds a step over H")


def sweep(line: Sequence[Measurement], axis: str, baseline: str) -> str:
    """Milliseconds of a call of one pass over one size; a colour for each cell."""
    figure, axes = _figure(4.0, 3.2)
    for cell in dict.fromkeys(m.cell for m in line):
        of_cell, colour = [m for m in line if m.cell == cell], report.COLOURS[cell]
        at = [SIZES[axis](m) for m in of_cell]
        for side, name, dashes in (("candidate", "rnnfast", "-"), ("baseline", baseline, "--")):
            times = [getattr(m, side) for m in of_cell]
            axes.plot(at, [1e3 * t.median for t in times], dashes, color=colour, lw=1.4)
            for x, t in zip(at, times, strict=True):
                axes.plot([x, x], [1e3 * t.p20, 1e3 * t.p80], color=colour, lw=0.9)
                words = (
                    f"{name}: {report.CELL_LABELS[cell]}, {axis} = {x}: "
                    f"{report.milliseconds(t.median)} ms "
                    f"({report.milliseconds(t.p20)} to {report.milliseconds(t.p80)})"
                )
                _mark(axes, x, 1e3 * t.median, ".", colour, words)
        axes.plot([], [], color=colour, label=report.CELL_LABELS[cell])
    axes.plot([], [], color="#444444", label="rnnfast")
    axes.plot([], [], "--", color="#444444", label=baseline)
    _plain(axes, axes.set_xscale, 2)
    _plain(axes, axes.set_yscale)
    axes.set_title(_held(line[0], axis), fontsize=9)
    axes.set_xlabel("H, and I" if axis == "H" else axis, fontsize=9)
    axes.set_ylabel("ms a call", fontsize=9)
    _legend(figure, axes, 2)
    return svg.inline(figure, f"{line[0].pass_name}: milliseconds of a call over {axis}")


def _held(m: Measurement, axis: str) -> str:
    """The pass, and what stays as it is."""
    kept = (f"{name} = {size(m)}" for name, size in SIZES.items() if name != axis)
    return f"{m.pass_name}: {', '.join(kept)}"


def beside_peers(record: peers.Record, pass_name: str) -> Iterator[str]:
    """Marks as in docs/peers.md, one figure for each cell."""
    entries = record.of(pass_name)
    for cell in dict.fromkeys(entry.cell for entry in entries):
        of_cell = [entry for entry in entries if entry.cell == cell]
        figure, axes = _figure(svg.WIDE, 1.9 + 0.36 * len(of_cell))
        peers_report.panel(axes, of_cell, record.names())
        title = f"{pass_name}, {report.CELL_LABELS[cell]}: times as fast as torch.nn"
        axes.set_title(title, fontsize=9)
        bounded = any(entry.bound.lower > 0 for entry in of_cell)
        timed = {name for entry in of_cell for name in entry.samples}
        without = [name for name in record.names() if name not in timed]
        _legend(figure, axes, 3, [*without, *(() if bounded else peers_report.BOUNDS)])
        yield svg.inline(figure, title)


def roofline(entries: Sequence[peers.Entry]) -> str:
    """How much of the practical ceiling ours, the best peer and torch.nn reach, of one cell."""
    figure, axes = _figure(svg.WIDE, 1.8 + 0.3 * len(entries))
    kind = f"{entries[0].pass_name}, {report.CELL_LABELS[entries[0].cell]}"
    sides = (
        ("rnnfast", OURS, "D", lambda entry: peers.OURS),
        ("best peer", "#E69F00", "o", lambda entry: entry.best_peer),
        ("torch.nn", "#999999", "s", lambda entry: peers.BASELINE),
    )
    for label, colour, mark, chosen in reversed(sides):
        axes.plot([], [], mark, color=colour, label=label)
        for y, entry in enumerate(entries):
            share = 100 * entry.bound.practical / entry.seconds(chosen(entry))
            words = f"{chosen(entry)}: {kind}: {entry.problem.label}: {share:.0f} % of the ceiling"
            _mark(axes, share, y, mark, colour, words)
    hard = [100 * e.bound.practical / e.bound.lower for e in entries]
    axes.scatter(hard, range(len(entries)), 90, "#aa0000", marker="|", label="hard bound")
    axes.axvline(100, color="black", lw=1, label="practical ceiling")
    _plain(axes)
    axes.set_xlim(0, 140)
    axes.set_yticks(range(len(entries)), [entry.problem.label for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    title = f"{kind}: % of the practical ceiling's speed"
    axes.set_title(title, fontsize=9)
    _legend(figure, axes, 3)
    return svg.inline(figure, title)


def compile_times(run: Run) -> Iterator[str]:
    """Seconds over T, one figure for each cell and pass."""
    for cell, pass_name in dict.fromkeys((row["cell"], row["pass"]) for row in run.rows):
        figure, axes = _figure(4.0, 3.0)
        for library, colour in (("rnnfast", OURS), ("torch", THEIRS)):
            rows = [
                row
                for row in run.rows
                if (row["library"], row["cell"], row["pass"]) == (library, cell, pass_name)
            ]
            points = [(row["steps"], row.get("seconds", math.nan)) for row in rows]
            axes.plot(*zip(*points, strict=True), "-", color=colour, label=library)
            for steps, seconds in points:
                words = f"{library}: {cell}, {pass_name}, T = {steps}: {seconds:g} s"
                _mark(axes, steps, seconds, ".", colour, words)
        _plain(axes, axes.set_xscale, 2)
        axes.set_ylim(0)
        axes.set_title(f"{cell}, {pass_name}", fontsize=9)
        axes.set_xlabel("T", fontsize=9)
        axes.set_ylabel("seconds to compile", fontsize=9)
        axes.legend(fontsize=8)
        yield svg.inline(figure, f"{cell}, {pass_name}: seconds to compile over T")
