"""Tables and plots of the JSON that `python -m benchmarks` writes.

python -m benchmarks.report benchmarks/results/MACHINE.json             the table
python -m benchmarks.report benchmarks/results/*.json --markdown        the same for a document
python -m benchmarks.report benchmarks/results/*.json --readme          the numbers of README, docs
python -m benchmarks.report --html                                      all results, as one page
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.documents import filled
from benchmarks.problems import Problem
from benchmarks.results import REPOSITORY, Measurement, Record, read
from benchmarks.workloads import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

CELL_LABELS = {"rnn_tanh": "RNN (tanh)", "rnn_relu": "RNN (relu)", "gru": "GRU", "lstm": "LSTM"}
COLOURS = {"rnn_tanh": "#0072B2", "rnn_relu": "#56B4E9", "gru": "#E69F00", "lstm": "#009E73"}
IMAGES = Path("docs/images")


def milliseconds(seconds: float) -> str:
    """Three significant digits: `0.0389`, `1.02`, `235`."""
    value = seconds * 1e3
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits if value >= 0.1 else 4}f}"


def headline(record: Record) -> str:
    """One line: what ran, on what."""
    facts = record.environment
    cudnn = f", cuDNN {facts['cudnn']}, driver {facts['driver']}" if "gpu" in facts else ""
    return (
        f"{facts['candidate']} against torch.nn, {facts['dtype']}, {machine(record)}, "
        f"torch {facts['torch']}{cudnn}, Python {facts['python']}, commit {facts['commit']}"
    )


def machine(record: Record) -> str:
    """What did the work: a GPU, or threads of a processor."""
    facts = record.environment
    if "gpu" in facts:
        return str(facts["gpu"])
    beside = f", beside {facts['busy']} busy processes" if facts.get("busy") else ""
    return f"{facts['threads']} threads, {facts['cpu']}, {facts['isa']}{beside}"


def _cells(record: Record) -> list[str]:
    return list(dict.fromkeys(measurement.cell for measurement in record.measurements))


def _problems(record: Record) -> list[Problem]:
    return list(dict.fromkeys(measurement.problem for measurement in record.measurements))


def _passes(record: Record) -> list[str]:
    found = {measurement.pass_name for measurement in record.measurements}
    return [name for name in PASSES if name in found]


def _of_pass(record: Record, name: str) -> dict[tuple[Problem, str], Measurement]:
    return {(m.problem, m.cell): m for m in record.measurements if m.pass_name == name}


def rich_table(record: Record, name: str) -> Table:
    """Every measurement of pass `name` a row: medians with their 20th and 80th percentile, the
    ratio of the medians and the median of the ratios of adjacent blocks, errors against float64.
    """
    from rich.table import Table

    candidate = record.environment["candidate"]
    table = Table(title=name, title_style="bold")
    table.add_column("T, B, I, H", no_wrap=True)
    table.add_column("cell")
    for heading in (
        "torch.nn, ms (p20 p80)",
        f"{candidate}, ms (p20 p80)",
        "speed-up",
        "pairwise (p20 p80)",
        "torch error",
        "our error",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for measurement in _of_pass(record, name).values():
        table.add_row(*_row(measurement))
    table.add_section()
    for (cell, pass_name), mean in record.geometric_means().items():
        if pass_name == name:
            table.add_row("geometric mean", cell, "", "", f"[bold]{mean:.2f}x[/bold]")
    return table


def _row(measurement: Measurement) -> list[str]:
    sides = (
        f"{milliseconds(side.median)} ({milliseconds(side.p20)} {milliseconds(side.p80)})"
        for side in (measurement.baseline, measurement.candidate)
    )
    speed_up, pairwise = measurement.speed_up, measurement.pairwise
    errors = dataclasses.astuple(measurement.errors) if measurement.errors else ()
    colour = "green" if speed_up >= 1.05 else "yellow" if speed_up >= 0.95 else "red"
    return [
        measurement.problem.label,
        measurement.cell,
        *sides,
        f"[{colour}]{speed_up:.2f}x[/{colour}]",
        f"{pairwise.median:.2f} ({pairwise.p20:.2f} {pairwise.p80:.2f})",
        *(f"{error:.1e}" for error in errors),
    ]


def print_tables(record: Record) -> None:
    """The whole record on the terminal, at its full width even where that is too narrow."""
    from rich.console import Console

    console = Console(width=max(Console().width, 160))
    console.print(headline(record), style="bold", highlight=False)
    for name in _passes(record):
        console.print(rich_table(record, name))


def markdown(record: Record) -> str:
    """One table a pass: problems down, cells across, `torch.nn -> ours` in ms and the speed-up."""
    cells, means = _cells(record), record.geometric_means()
    parts = [filled(f"{headline(record)}.")]
    for name in _passes(record):
        found = _of_pass(record, name)
        headings = " | ".join(f"{CELL_LABELS[cell]}, ms | speed-up" for cell in cells)
        lines = [f"| {name}: T, B, I, H | {headings} |", "|---|" + "---:|" * (2 * len(cells))]
        for problem in _problems(record):
            entries = [_markdown_entry(found.get((problem, cell))) for cell in cells]
            lines.append(f"| {problem.label} | {' | '.join(entries)} |")
        averages = [
            f" | {means[cell, name]:.2f}x" if (cell, name) in means else " | " for cell in cells
        ]
        lines.append(f"| geometric mean | {' | '.join(averages)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _markdown_entry(measurement: Measurement | None) -> str:
    if measurement is None:
        return " | "
    times = (milliseconds(measurement.baseline.median), milliseconds(measurement.candidate.median))
    return f"{times[0]} → {times[1]} | **{measurement.speed_up:.2f}x**"


def plot(record: Record, path: Path) -> None:
    """Writes a PNG: a panel for each pass, a group of bars for each problem, a bar for each cell.

    Bars start at 1x (as fast as torch.nn), on a logarithmic axis: twice as fast and half as fast
    are equally long. Whiskers: 20th to 80th percentile of the ratios of adjacent blocks.
    """
    from matplotlib.figure import Figure

    names = _passes(record)
    height = 1.9 + 0.2 * len(_problems(record)) * (len(_cells(record)) + 0.8)
    figure = Figure(figsize=(6.2 * len(names) + 0.8, height), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        panel(axes, record, name)
    panels[0].annotate("T, B, I, H", (0, 1), (-6, 4), "axes fraction", "offset points", ha="right")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    facts = record.environment
    figure.suptitle(
        f"Speed of {facts['candidate']} over torch.nn {facts['torch']}: {facts['dtype']}, "
        f"{machine(record)}",
        fontsize=10.5,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def panel(axes: Axes, record: Record, name: str) -> None:
    """One pass of a record, as `plot` has it. What a bar stands for is its gid."""
    _draw_bars(axes, record, name)
    _dress(axes, record, name)


def tip(measurement: Measurement) -> str:
    """One measurement in words, on one line."""
    spread = measurement.pairwise
    sides = (milliseconds(side.median) for side in (measurement.baseline, measurement.candidate))
    words = (measurement.pass_name, measurement.precision, "CUDA graph" * measurement.graph)
    return (
        f"tip: {CELL_LABELS[measurement.cell]}, {', '.join(filter(None, words))}: "
        f"{measurement.problem.label}: {' → '.join(sides)} ms, {measurement.speed_up:.2f}x "
        f"({spread.p20:.2f} to {spread.p80:.2f})"
    )


def _draw_bars(axes: Axes, record: Record, name: str) -> None:
    cells, found = _cells(record), _of_pass(record, name)
    step = 1 / (len(cells) + 0.8)
    for index, cell in enumerate(cells):
        for row, problem in enumerate(_problems(record)):
            if (problem, cell) not in found:
                continue
            measurement = found[problem, cell]
            y, speed_up = row + (index - (len(cells) - 1) / 2) * step, measurement.speed_up
            spread = measurement.pairwise
            bar = axes.barh(y, speed_up - 1, step * 0.94, left=1, color=COLOURS[cell])
            bar[0].set_gid(tip(measurement))
            axes.plot([spread.p20, spread.p80], [y, y], color="#444444", lw=0.9)
            end = max(1.0, speed_up, spread.p80)
            text = f"{speed_up:.2f}" if speed_up < 10 else f"{speed_up:.1f}"
            axes.annotate(
                text, (end, y), (3, 0), textcoords="offset points", va="center", fontsize=7.5
            )
        axes.barh(0, 0, color=COLOURS[cell], label=CELL_LABELS[cell])


def _dress(axes: Axes, record: Record, name: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    problems = _problems(record)
    drawn = [measurement.speed_up for measurement in _of_pass(record, name).values()]
    means = {cell: mean for (cell, of), mean in record.geometric_means().items() if of == name}
    averages = ", ".join(f"{CELL_LABELS[cell]} {mean:.2f}x" for cell, mean in means.items())
    axes.set_title(f"{name}\ngeometric mean: {averages}", fontsize=10)
    axes.axvline(1, color="black", lw=1.2)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, 0.85 * min(drawn)), max(2.0, 1.2 * max(drawn) ** 1.1))
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.set_xlabel("times as fast as torch.nn")
    axes.set_yticks(range(len(problems)), [problem.label for problem in problems])
    axes.set_ylim(len(problems) - 0.5, -0.5)
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def load(path: Path) -> list[tuple[str, Record]]:
    """The parts of a result, each with the name of its plot."""
    parts = read(path).parts()
    if len(parts) == 1:
        return [(path.stem, parts[0])]
    words = (part.environment["dtype"].replace(",", "").replace(" ", "-").lower() for part in parts)
    return [(f"{path.stem}-{word}", part) for word, part in zip(words, parts, strict=True)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", nargs="*", type=Path, help="JSON files of python -m benchmarks")
    parser.add_argument("--markdown", action="store_true", help="print Markdown, not a table")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the (only) result here")
    parser.add_argument(
        "--readme",
        action="store_true",
        help=f"rewrite the numbers of README.md, docs/index.md, figures.md, plots in {IMAGES}",
    )
    parser.add_argument(
        "--html",
        type=Path,
        nargs="?",
        const=REPOSITORY / "build" / "report.html",
        metavar="FILE",
        help="write one page of everything in benchmarks/results; default: build/report.html",
    )
    options = parser.parse_args(arguments)
    if options.html:
        from benchmarks import page

        print(page.write(options.html))
        return
    if not options.results:
        parser.error("wanted JSON files, or --html")
    records = [part for path in options.results for part in load(path)]
    if options.plot and len(records) > 1:
        parser.error("--plot draws one result of one precision")
    for _, record in records:
        if options.markdown:
            print(markdown(record), end="\n\n")
        else:
            print_tables(record)
    if options.plot:
        plot(records[0][1], options.plot)
    if options.readme:
        from benchmarks import readme

        readme.write(options.results)


if __name__ == "__main__":
    main()
