"""The numbers of README.md, docs/index.md, figures.md: `python -m benchmarks.report --readme`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from benchmarks.documents import filled, replace_block
from benchmarks.report import IMAGES, headline, load, machine, markdown, plot
from benchmarks.results import REPOSITORY, Record, geometric_mean, read
from benchmarks.workloads import PASSES

BEGIN = "<!-- numbers: written by python -m benchmarks.report --readme -->"
END = "<!-- end of numbers -->"
GPU_BEGIN = "<!-- GPU numbers: written by python -m benchmarks.report --readme -->"
GPU_END = "<!-- end of GPU numbers -->"
SUMMARY_BEGIN = "<!-- summary: written by python -m benchmarks.report --readme -->"
SUMMARY_END = "<!-- end of summary -->"
SUMMARIES = ("README.md", "docs/index.md")

SUMMARISED = ("rnn_tanh", "gru", "lstm")


def write(paths: Sequence[Path]) -> None:
    """The numbers of these pages, their plots, and beside the JSON of a GPU all its tables."""
    gpus = {path.stem: path for path in paths if "gpu" in read(path).environment}
    records = [part for path in paths if path.stem not in gpus for part in load(path)]
    found = {name: read(path) for name, path in gpus.items()}
    for name, record in records:
        plot(record, REPOSITORY / IMAGES / f"{name}.png")
    for name, record in found.items():
        gpu_report.plot(record, REPOSITORY / IMAGES / f"{name}.png")
        gpus[name].with_suffix(".md").write_text(gpu_page(record))
    for page in SUMMARIES:
        _rewrite(page, summary_block(page, records, [*found.values()]), SUMMARY_BEGIN, SUMMARY_END)
    if records:
        _rewrite("docs/figures.md", figures_block(records), BEGIN, END)
    if gpus:
        _rewrite("docs/figures.md", gpu_block(found), GPU_BEGIN, GPU_END)


def _rewrite(page: str, block: str, begin: str, end: str) -> None:
    path = REPOSITORY / page
    path.write_text(replace_block(path.read_text(), block, begin, end))


def _image(page: str, name: str) -> str:
    """The plot of that name, as a link of that page."""
    return (IMAGES / f"{name}.png").relative_to(Path(page).parent).as_posix()


def gpu_page(record: Record) -> str:
    """All tables of a GPU: the page beside its JSON."""
    return f"# {machine(record)}\n\n{_title(record)}\n\n{gpu_report.tables(record)}\n"


def gpu_block(records: Mapping[str, Record]) -> str:
    """What docs/figures.md says of GPUs, whose records have the names of their files."""
    parts = []
    for name, record in records.items():
        link = f"benchmarks/results/{name}.md"
        every = filled(f"Every layer, in microseconds a step: [{link}](../{link}).")
        picture = f"![Speed of rnnfast over cuDNN]({_image('docs/figures.md', name)})"
        parts += [picture, _title(record), gpu_report.summary(record), every]
    return "\n\n".join(parts)


def _title(record: Record) -> str:
    facts = {**record.environment, "dtype": "every precision"}
    note = facts.get("note", "")
    return filled(f"{headline(dataclasses.replace(record, environment=facts))}. {note}".strip())


def figures_block(records: Sequence[tuple[str, Record]]) -> str:
    """The measured part of docs/figures.md: for each (name, record) its plot and its tables."""
    parts = []
    for name, record in in_order(records):
        image = _image("docs/figures.md", name)
        parts.append(f"![Speed of rnnfast over torch.nn]({image})\n\n{markdown(record)}")
    return "\n\n".join(parts)


def in_order(records: Sequence[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """By machine, its float32 first."""
    return sorted(records, key=lambda r: (machine(r[1]), r[1].environment["dtype"] != "float32"))


def summary_block(page: str, records: Sequence[tuple[str, Record]], gpus: Sequence[Record]) -> str:
    """For each machine the plot of its first precision, and a table of geometric means over all
    problems, with a row for each precision and pass.
    """
    found: dict[str, dict[str, Any]] = {}
    lines = []
    ordered = in_order(records)
    for name, record in ordered:
        if machine(record) not in found:
            lines.append(f"![Speed over torch.nn]({_image(page, name)})")
        of_machine = found.setdefault(machine(record), {})
        of_machine[record.environment["dtype"]] = record.ratios()
    lines += ["", "Times as fast as torch.nn: geometric mean (range)."]
    for gpu in gpus:
        found[f"{machine(gpu)}, CUDA graphs"] = gpu_report.ratios_of_graphs(gpu)
    for where, by_precision in found.items():
        lines += ["", f"{where}:", "", "| | RNN | GRU | LSTM |", "|---|---:|---:|---:|"]
        for precision, ratios in by_precision.items():
            for name in PASSES:
                cells = (_mean_and_range(ratios[cell, name]) for cell in SUMMARISED)
                lines.append(f"| {name}, {precision} | {' | '.join(cells)} |")
    runs = (record.environment for record in (*(record for _, record in ordered), *gpus))
    named = dict.fromkeys(f"{facts['commit']} with torch {facts['torch']}" for facts in runs)
    return "\n".join([*lines, "", filled(f"The runs: commit {', '.join(named)}.")])


def _mean_and_range(ratios: Sequence[float]) -> str:
    low, high = min(ratios), max(ratios)
    return f"{geometric_mean(list(ratios)):.2f} ({low:.2f} to {high:.3g})"
