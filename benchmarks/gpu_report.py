"""Tables and a plot of what `python -m benchmarks.cuda` measured: where each side is ahead.

Eager calls and replayed graphs stand apart: eager, the host's time hides the GPU's. cuDNN has
kernels for float16 that it lacks for bfloat16, so a last row compares the better of the two on each
side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.problems import Problem
from benchmarks.results import Measurement, Record
from benchmarks.timing import geometric_mean
from benchmarks.workloads import PASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRECISIONS = {
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32, torch's defaults",
    "float32 exact": "float32, no TF32",
    "tf32": "float32, TF32 everywhere",
}
"""As they are named, and in words."""

SIXTEEN = "16 bits, each side's better type"
CELLS = {"gru": "GRU", "lstm": "LSTM", "rnn_tanh": "RNN", "rnn_relu": "RNN (relu)"}
MODES = {False: "eager", True: "CUDA graph"}


def steps(problem: Problem) -> int:
    """Time steps one after the other."""
    return problem.T * problem.layers * (2 if problem.bidirectional else 1)


def of(record: Record, graph: bool, name: str) -> list[Measurement]:
    return [m for m in record.measurements if m.graph == graph and m.pass_name == name]


def ratios(found: Iterable[Measurement]) -> dict[str, dict[tuple[Problem, str], float]]:
    """By precision, problem and cell: cuDNN's time over ours; of 16 bits also the best."""
    result: dict[str, dict[tuple[Problem, str], float]] = {}
    pairs: dict[tuple[Problem, str], list[Measurement]] = {}
    for m in found:
        result.setdefault(m.precision, {})[m.problem, m.cell] = m.speed_up
        if m.precision in ("bfloat16", "float16"):
            pairs.setdefault((m.problem, m.cell), []).append(m)
    best = {
        key: min(m.baseline.median for m in pair) / min(m.candidate.median for m in pair)
        for key, pair in pairs.items()
        if len(pair) == 2
    }
    ordered = {name: result[name] for name in PRECISIONS if name in result}
    return {**ordered, SIXTEEN: best} if best else ordered


def ratios_of_graphs(record: Record) -> dict[str, dict[tuple[str, str], list[float]]]:
    """By precision in words: (cell, pass) -> cuDNN's time over ours, of each problem."""
    result: dict[str, dict[tuple[str, str], list[float]]] = {}
    for name in PASSES:
        found = ratios(of(record, True, name))
        for precision in (p for p in ("float32", SIXTEEN) if p in found):
            groups = result.setdefault(PRECISIONS.get(precision, precision), {})
            for (_, cell), ratio in found[precision].items():
                groups.setdefault((cell, name), []).append(ratio)
    return result


def summary(record: Record) -> str:
    """Markdown: for each precision the mean, and on how many layers cuDNN is ahead."""
    columns = ["layers", "geometric mean", "cuDNN ahead on", "lowest", "highest"]
    lines = [f"| times as fast as cuDNN | {' | '.join(columns)} |"]
    lines.append("|---|" + "---:|" * len(columns))
    for graph in sorted(MODES, reverse=True):
        for name in PASSES:
            for precision, found in ratios(of(record, graph, name)).items():
                words = f"{name}, {MODES[graph]}: {PRECISIONS.get(precision, precision)}"
                lines.append(f"| {words} | {' | '.join(_summary(found))} |")
    return "\n".join(lines)


def _summary(found: dict[tuple[Problem, str], float]) -> list[str]:
    behind = sum(ratio < 1 for ratio in found.values())
    (worst, low), *_, (best, high) = sorted(found.items(), key=lambda item: item[1]) * 2
    ends = (f"{ratio:.2f}: {layer(*key)}" for key, ratio in ((worst, low), (best, high)))
    return [str(len(found)), f"{geometric_mean(list(found.values())):.2f}", str(behind), *ends]


def layer(problem: Problem, cell: str) -> str:
    return f"{CELLS[cell]} B{problem.B} H{problem.H}"


def steps_table(record: Record, graph: bool, name: str) -> str:
    """Markdown: microseconds a step, cuDNN → ours; problems and cells down, precisions across. Set
    in bold where cuDNN is ahead.
    """
    rows: dict[tuple[Problem, str], dict[str, Measurement]] = {}
    for m in of(record, graph, name):
        rows.setdefault((m.problem, m.cell), {})[m.precision] = m
    precisions = [key for key in PRECISIONS if any(key in row for row in rows.values())]
    heads = " | ".join(PRECISIONS[key] for key in precisions)
    lines = [f"| T, B, I, H | cell | {heads} |", "|---|---|" + "---:|" * len(precisions)]
    for problem, cell in sorted(rows, key=lambda key: (*order(key[0]), key[1])):
        entries = (_entry(rows[problem, cell].get(key)) for key in precisions)
        lines.append(f"| {problem.label} | {CELLS[cell]} | {' | '.join(entries)} |")
    return "\n".join(lines)


def order(problem: Problem) -> tuple[int, ...]:
    return problem.H, problem.B, problem.T, problem.I


def _entry(m: Measurement | None) -> str:
    if m is None:
        return ""
    theirs, ours = (s.median / steps(m.problem) * 1e6 for s in (m.baseline, m.candidate))
    ratio = f"{m.speed_up:.2f}x" if m.speed_up >= 1 else f"**{m.speed_up:.2f}x**"
    return f"{theirs:.2f} → {ours:.2f} {ratio}"


def tables(record: Record) -> str:
    """Everything, pass by pass."""
    parts = []
    for graph in sorted(MODES, reverse=True):
        for name in PASSES:
            if of(record, graph, name):
                title = f"{name.capitalize()}, {MODES[graph]}: microseconds a step, cuDNN → rnnfast"
                parts.append(f"## {title}\n\n{steps_table(record, graph, name)}")
    return "\n\n".join(parts)


def plot(record: Record, path: Path, graph: bool = True) -> None:
    """Writes a PNG: a field for each layer, blue where we are ahead, red where cuDNN is."""
    from matplotlib.figure import Figure

    fields = {name: ratios(of(record, graph, name)) for name in PASSES}
    panels = [(n, p) for n in PASSES for p in fields[n] if p != SIXTEEN]
    measured = {key for name in PASSES for found in fields[name].values() for key in found}
    rows = sorted({problem for problem, _ in measured}, key=order)
    cells = [cell for cell in CELLS if any(cell == of for _, of in measured)]
    size = (1.2 + 0.5 * len(cells) * len(panels), 1.6 + 0.23 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, precision) in zip(axes, panels, strict=True):
        panel(axis, fields[name][precision], rows, cells, f"{name}, {precision}")
        axis.set_title(f"{name}\n{PRECISIONS[precision].replace(', ', chr(10))}", fontsize=8)
    common, labels = row_labels(rows)
    axes[0].set_yticks(range(len(rows)), labels, fontsize=8)
    facts = record.environment
    figure.suptitle(
        f"rnnfast over cuDNN, {MODES[graph]}, {common}: {facts['gpu']}, "
        f"torch {facts['torch']}, commit {facts['commit']}. Above 1 rnnfast is faster.",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def row_labels(rows: Sequence[Problem]) -> tuple[str, list[str]]:
    """What all problems have in common, and what tells each from the others."""
    T = rows[0].T
    if any(problem.name != f"t{T}b{problem.B}i{problem.H}h{problem.H}" for problem in rows):
        return "T, B, I, H", [problem.label for problem in rows]
    return f"T = {T}, I = H", [f"B {problem.B}, H {problem.H}" for problem in rows]


def panel(
    axis: Axes,
    found: dict[tuple[Problem, str], float],
    rows: Sequence[Problem],
    cells: list[str],
    what: str,
) -> None:
    """The fields of one pass and precision, as `plot` has them. Their gids say what they are, and
    `what` of all.
    """
    for y, problem in enumerate(rows):
        for x, cell in enumerate(cells):
            ratio = found.get((problem, cell))
            if ratio is None:
                continue
            depth = min(abs(math.log2(ratio)) / 2, 1.0)  # full colour from 4 times on
            red, blue = (0.80, 0.20, 0.15), (0.10, 0.40, 0.70)
            end = red if ratio < 1 else blue
            colour = tuple(1 - depth * 0.85 * (1 - channel) for channel in end)
            field = axis.barh(y, 1, 1, left=x - 0.5, color=colour, edgecolor="white")
            field[0].set_gid(f"tip: {CELLS[cell]}, {what}: {problem.label}: {ratio:.2f}x")
            text = f"{ratio:.1f}" if ratio >= 9.95 else f"{ratio:.2f}"
            ink = "white" if depth > 0.6 else "#111111"
            axis.text(x, y, text, color=ink, ha="center", va="center", fontsize=6.5)
    axis.set_xlim(-0.5, len(cells) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xticks(range(len(cells)), [CELLS[cell] for cell in cells], fontsize=7)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
