"""The sections of the page. One that nothing was measured for is left out."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks import gpu_report
from benchmarks.page import figures
from benchmarks.page.sources import Run, of, varied
from benchmarks.page.tables import (
    Cell,
    beside_peers,
    folded,
    measured,
    peaks,
    ratio,
    smallest_calls,
    table,
)
from benchmarks.page.words import (
    BOUNDS,
    COMPILE,
    MEMORY,
    METHOD,
    MODES,
    OVERHEAD,
    REPEAT,
    STEPS,
    SUMMARY,
    SWEEPS,
)
from benchmarks.peers.record import OURS
from benchmarks.peers.report import MEANS, left_out, machine_line, mean_rows
from benchmarks.report import CELL_LABELS
from benchmarks.results import Measurement
from benchmarks.timing import geometric_mean, summarise
from benchmarks.workloads import PASSES

KINDS = {
    "": "layers",
    "users": "models in use",
    "steps": "single steps",
    "sweeps": "sweeps and smallest calls",
}
BEST_PEER = "best peer"


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    content: str


def sections(runs: list[Run]) -> list[Section]:
    """All that there are results for, in the order of the page."""
    made = (
        Section("summary", "Summary", summary(runs)),
        Section("behind", "Where rnnfast is behind", behind(runs)),
        Section("cpu", "CPUs, beside torch.nn", _each(cpu, _layers(runs, gpu=False))),
        Section("gpu", "GPUs, beside cuDNN", _each(gpu, _layers(runs, gpu=True))),
        Section("peers", "Beside every peer", _each(peers, of(runs, "peers"))),
        Section("roofline", "What the machine allows", _each(roofline, of(runs, "peers"), BOUNDS)),
        Section("scaling", "With B and H", _each(scaling, of(runs, ""))),
        Section("sweeps", "With T, B, H and threads", _each(sweeps, of(runs, "sweeps"), SWEEPS)),
        Section("memory", "Peak memory", _each(memory, of(runs, "sweeps"), MEMORY)),
        Section("overhead", "The smallest calls", _each(overhead, of(runs, "sweeps"), OVERHEAD)),
        Section("steps", "What a call costs", _each(steps, of(runs, "steps"))),
        Section("compile", "Time to compile", _each(compile_times, of(runs, "compile"), COMPILE)),
        Section("method", "How it was measured", METHOD if runs else ""),
        Section("repeat", "How to repeat it", REPEAT),
        Section("machines", "Machines, versions, commits", machines(runs) if runs else ""),
    )
    return [section for section in made if section.content]


def _each(part: Callable[[Run], str], runs: Iterable[Run], before: str = "") -> str:
    """Its part for each run; nothing, if they have none."""
    made = "".join(map(part, runs))
    return before + made if made else ""


def _layers(runs: list[Run], gpu: bool) -> Iterator[Run]:
    return (run for run in of(runs, "", "users") if run.on_gpu == gpu)


def _title(run: Run) -> str:
    return f"<h3>{html.escape(run.machine)}: {KINDS.get(run.kind, run.kind)}</h3>\n{source(run)}"


def source(run: Run) -> str:
    """The file, and the commit that ran."""
    facts = run.facts
    text = f"{run.name}: commit {facts['commit']}, torch {facts['torch']}"
    text += f", {facts['dtype']}" if facts["dtype"] != "several" else ""
    return f'<p class="source">{html.escape(text)}</p>\n'


def _plots(plots: Iterable[str]) -> str:
    drawn = "\n".join(f"<figure>{plot}</figure>" for plot in plots)
    return f'<div class="plots">{drawn}</div>\n' if drawn else ""


@dataclass(frozen=True)
class Row:
    """One measurement beside torch.nn, or beside the best of the peers."""

    run: Run
    what: str
    precision: str
    pass_name: str
    cell: str
    problem: str
    other: str
    ratios: Sequence[float]
    lead: float

    @property
    def group(self) -> tuple[str, str, str, str]:
        return _short(self.run), self.what, self.precision, self.pass_name

    @property
    def seen(self) -> Cell:
        return ratio(self.lead, summarise(self.ratios))

    @property
    def end(self) -> Cell:
        return Cell(f"{self.lead:.2f}x", self.lead, f"{self.cell} {self.problem}", self.lead < 1)


def rows_of(run: Run) -> Iterator[Row]:
    for part in run.parts():
        what, precision = KINDS[run.kind], part.environment["dtype"]
        for m in part.measurements:
            layer = (m.pass_name, CELL_LABELS[m.cell], m.problem.label)
            there = replace(run, facts=part.environment)
            yield Row(there, what, precision, *layer, run.baseline, m.pair.ratios, m.speed_up)
    for e in run.peers.entries if run.peers else ():
        versions = run.facts["versions"]
        version = versions.get(e.best_peer, "")
        pairs = zip(e.samples[e.best_peer], e.samples[OURS], strict=True)
        layer = (e.pass_name, CELL_LABELS[e.cell], e.problem.label)
        peer, ratios = f"{e.best_peer} {version}".strip(), [theirs / ours for theirs, ours in pairs]
        # What tells runs from each other: one process holds one version of oneDNN.
        what = f"{BEST_PEER}, oneDNN {versions['oneDNN']}" if "oneDNN" in versions else BEST_PEER
        yield Row(run, what, run.facts["dtype"], *layer, peer, ratios, e.lead)


def summary(runs: list[Run]) -> str:
    """The geometric mean of every group, with how many rows it is of and how many are behind."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in (row for run in runs for row in rows_of(run)):
        groups.setdefault((row.run.name, *row.group), []).append(row)
    if not groups:
        return ""
    header = ("machine", "what", "precision", "pass", "rows", "geometric mean", "behind on")
    body = table((*header, "lowest", "highest"), map(_summary, groups.values()))
    lines = []
    for group in groups.values():
        machine, what, precision, name = group[0].group
        leads = [row.lead for row in group]
        if what == KINDS[""]:
            label = f"{machine}: {name}, {precision}"
            lines.append((label, geometric_mean(leads), min(leads), max(leads)))
    return SUMMARY + (_plots([figures.overview(lines)]) if lines else "") + body


def _short(run: Run) -> str:
    return str(run.facts.get("gpu") or f"{run.facts['cpu']}, {run.facts['threads']} threads")


def _summary(group: list[Row]) -> list[Cell | str]:
    ordered = sorted(group, key=lambda row: row.lead)
    slower = sum(row.lead < 1 for row in group)
    return [
        *group[0].group,
        Cell(str(len(group)), float(len(group))),
        ratio(geometric_mean([row.lead for row in group])),
        Cell(f"{slower} of {len(group)}", float(slower), behind=slower > 0),
        ordered[0].end,
        ordered[-1].end,
    ]


def behind(runs: list[Run]) -> str:
    """Every row in which torch.nn, or any peer, is ahead: the furthest first."""
    found = [row for run in runs for row in rows_of(run)]
    rows = sorted((row for row in found if row.lead < 1), key=lambda row: row.lead)
    if not rows:
        return ""
    header = ("their time over ours", "who is ahead", "pass", "cell", "T, B, I, H", "precision")
    text = f"<p>{len(rows)} of {len(found)} rows, as far as their medians tell.</p>"
    return text + table((*header, "machine"), map(_behind, rows))


def _behind(row: Row) -> list[Cell | str]:
    machine, _, precision, name = row.group
    return [row.seen, row.other, name, row.cell, row.problem, precision, machine]


def cpu(run: Run) -> str:
    """Bars, and the table behind them, of each precision."""
    return _title(run) + "".join(
        _plots(figures.speed_ups(part)) + measured(part, run.baseline) for part in run.parts()
    )


def gpu(run: Run) -> str:
    """Graphs first: eager, the host's time hides the GPU's."""
    assert run.layers
    parts = [_title(run)]
    for graph in (True, False):
        passes = [n for n in PASSES if gpu_report.of(run.layers, graph, n)]
        if passes:
            parts.append(f"<h4>{MODES[graph]}</h4>")
            parts += [_plots(figures.fields(run.layers, graph, name)) for name in passes]
    return "".join(parts) + _tables(run)


def _tables(run: Run) -> str:
    return "".join(
        folded(
            f"{part.environment['dtype']}: {len(part.measurements)} rows",
            measured(part, run.baseline),
        )
        for part in run.parts()
    )


def peers(run: Run) -> str:
    """Means, figures and tables of one run of `make bench-peers`."""
    record = run.peers
    assert record
    versions = ", ".join(f"{name} {version}" for name, version in run.facts["versions"].items())
    means = (_means(row) for row in mean_rows(record))
    parts = [_title(run), f"<p>{html.escape(versions)}</p>", table(MEANS, means)]
    for name in dict.fromkeys(entry.pass_name for entry in record.entries):
        count = len(record.of(name))
        parts += [_plots(figures.beside_peers(record, name))]
        parts += [folded(f"{name}: {count} rows", beside_peers(record, name))]
    reasons = "".join(f"<li>{html.escape(line)}</li>" for line in left_out(record))
    return "".join(parts) + (f"<ul>{reasons}</ul>" if reasons else "")


def _means(row: Sequence[str]) -> list[Cell | str]:
    return [row[0], *map(_mean, row[1:])]


def _mean(text: str) -> Cell:
    """Of a ratio, of "7 of 8", or of nothing: "-"."""
    if text == "-":
        return Cell(text)
    value = float(text.partition(" ")[0])
    return Cell(text, value, behind="of" not in text and value < 1)


def roofline(run: Run) -> str:
    """Only of what a bound was computed for."""
    assert run.peers
    entries = [entry for entry in run.peers.entries if entry.bound.lower > 0]
    keys = dict.fromkeys((entry.pass_name, entry.cell) for entry in entries)
    if not keys:
        return ""
    groups = {key: [e for e in entries if (e.pass_name, e.cell) == key] for key in keys}
    rows: list[list[Cell | str]] = []
    for (name, cell), found in groups.items():
        shares = [entry.bound.practical / entry.seconds(OURS) for entry in found]
        texts = (Cell(f"{100 * share:.0f} %", share) for share in _spread(shares))
        rows.append([name, CELL_LABELS[cell], *texts])
    header = ("pass", "cell", "geometric mean", "lowest", "highest")
    shown = table(header, rows, "rnnfast's share of the practical ceiling's speed")
    machine = f"<p>{html.escape(machine_line(run.peers))}</p>"
    plots = _plots(map(figures.roofline, groups.values()))
    return _title(run) + machine + shown + plots


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return geometric_mean(values), min(values), max(values)


def scaling(run: Run) -> str:
    """Where one run has many H of the same T and B: as CUDA graphs if there are any."""
    measurements = run.layers.measurements if run.layers else ()
    graph = any(m.graph for m in measurements)
    plots: dict[tuple[str, int], dict[tuple[str, str], list[Measurement]]] = {}
    for m in measurements:
        p = m.problem
        if m.graph == graph and (p.I, p.layers, p.bidirectional) == (p.H, 1, False):
            group = plots.setdefault((m.precision or run.facts["dtype"], p.T), {})
            group.setdefault((m.pass_name, m.cell), []).append(m)
    parts: list[str] = []
    for (precision, T), group in sorted(plots.items()):
        lines = filter(None, map(_lines_alone, group.values()))
        drawn = _plots(figures.scaling(found, run.baseline) for found in lines)
        if drawn:
            parts.append(folded(f"{precision}, T = {T}, I = H", drawn, open_=not parts))
    return f"{_title(run)}<p>{MODES[graph]}</p>{''.join(parts)}" if parts else ""


def _lines_alone(measurements: list[Measurement]) -> list[Measurement]:
    """Those of batches with three sizes or more: less is no line."""
    counts = [m.problem.B for m in measurements]
    return [m for m in measurements if counts.count(m.problem.B) >= 3]


def steps(run: Run) -> str:
    """Single steps: figures over H, tables."""
    assert run.layers
    keys = dict.fromkeys((m.precision, m.pass_name, m.cell) for m in run.layers.measurements)
    plots = (
        figures.scaling(
            [m for m in run.layers.measurements if (m.precision, m.pass_name, m.cell) == key],
            run.baseline,
        )
        for key in keys
    )
    return _title(run) + STEPS[run.on_gpu] + _plots(plots) + _tables(run)


def sweeps(run: Run) -> str:
    """A figure for each size that is varied, and pass; the tables behind them."""
    assert run.layers
    timed = [m for m in run.layers.measurements if m.pass_name in PASSES]
    figures_of = (
        figures.sweep([m for m in line if m.pass_name == name], axis, run.baseline)
        for axis, line in varied(timed)
        for name in PASSES
    )
    tables = (
        folded(
            f"{part.environment['dtype']}, threads: {part.environment['threads']}, "
            f"{len(part.measurements)} rows",
            measured(part, run.baseline),
        )
        for part in replace(run.layers, measurements=tuple(timed)).parts()
    )
    return _title(run) + _plots(figures_of) + "".join(tables) if timed else ""


def memory(run: Run) -> str:
    assert run.layers
    return _title(run) + peaks(run.layers.memory) if run.layers.memory else ""


def overhead(run: Run) -> str:
    assert run.layers
    calls = [m for m in run.layers.measurements if m.pass_name not in PASSES]
    return _title(run) + smallest_calls(calls, run.baseline) if calls else ""


def compile_times(run: Run) -> str:
    """Figures over T and a table."""
    header = ("library", "cell", "pass", "T", "seconds")
    rows = []
    for row in run.rows:
        took = Cell(f"{row['seconds']:.1f}", row["seconds"]) if "seconds" in row else row["failed"]
        T = Cell(str(row["steps"]), float(row["steps"]))
        rows.append([row["library"], row["cell"], row["pass"], T, took])
    plots = _plots(figures.compile_times(run))
    return _title(run) + plots + folded("the figures", table(header, rows))


def machines(runs: list[Run]) -> str:
    """A row for each file: all that it says of where it ran."""
    header = (
        "file",
        "machine",
        "precision",
        "commit",
        "torch",
        "Python",
        "CUDA, cuDNN, driver",
        "load",
        "also",
    )
    return table(header, map(_machine, runs))


def _machine(run: Run) -> list[Cell | str]:
    facts = run.facts
    gpu = ", ".join(str(facts[key]) for key in ("cuda", "cudnn", "driver") if key in facts)
    versions = (f"{name} {version}" for name, version in facts.get("versions", {}).items())
    also = [f"host: {facts['cpu']}", f"clocks: {facts['clocks']}"] if run.on_gpu else []
    also += [*versions, *filter(None, [facts.get("note")])]
    load = Cell(str(facts["load"]), float(facts["load"]))
    row = [
        run.name,
        run.machine,
        facts["dtype"],
        str(facts["commit"]),
        facts["torch"],
        facts["python"],
        gpu,
    ]
    return [*row, load, "; ".join(also)]
