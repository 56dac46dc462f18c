"""Tables and figures of the study.

python -m benchmarks.convergence.report FILE            the tables
python -m benchmarks.convergence.report FILE --write    into docs/convergence.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import table
from benchmarks.convergence.comparison import (
    CONTROLS,
    LEVEL,
    MARGIN,
    TESTED,
    Compared,
    adjusted,
    compare,
    curves,
    spread,
)
from benchmarks.convergence.record import Record, read
from benchmarks.convergence.training import (
    ARMS,
    NUDGED,
    OURS,
    OURS_BF16,
    PARTED,
    POINTS,
    TORCH,
    TORCH_BF16,
)
from benchmarks.documents import filled, replace_block
from benchmarks.results import REPOSITORY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = REPOSITORY / "docs" / "convergence.md"
BLOCKS = {
    True: (
        "<!-- measured: written by python -m benchmarks.convergence.report --write -->",
        "<!-- end of measured -->",
    ),
    False: ("<!-- measured in a part of the arms -->", "<!-- end of the part -->"),
}
"""Where a record of all arms stands in the page, and one of some."""

STYLES = {
    TORCH: ("-", 4.0, "#999999"),
    NUDGED: (":", 1.6, "#CC79A7"),
    OURS: ("-", 1.2, "#0072B2"),
    TORCH_BF16: ("--", 1.6, "#E69F00"),
    OURS_BF16: ("--", 1.6, "#009E73"),
}

Rows = list[list[str]]


def headline(record: Record) -> str:
    facts = record.environment
    seeds = len({row["seed"] for row in record.rows})
    return (
        f"{seeds} seeds, {facts['cpu']}, {facts['isa']}, {facts['processes']} processes of"
        f" {facts['threads']} thread, {facts['minutes']} minutes, torch {facts['torch']},"
        f" Python {facts['python']}, commit {facts['commit']}"
    )


def arms(record: Record) -> list[str]:
    """Those that were trained."""
    found = {row["arm"] for row in record.rows}
    return [arm for arm in ARMS if arm in found]


def pairs(record: Record, wanted: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the pairs whose arms were trained."""
    return [pair for pair in wanted if set(pair) <= set(arms(record))]


def scores(record: Record) -> tuple[list[str], Rows]:
    """Mean and standard deviation over the seeds."""
    body = []
    for arm in arms(record):
        texts = []
        for name, task in record.tasks.items():
            found, digits = curves(record.rows, name, arm, "score"), task["digits"]
            texts.append(f"{found.mean():.{digits}f} ± {spread(found)[0]:.{digits}f}")
        body.append([arm, *texts])
    heads = (f"{name}: {task['score'].partition(',')[0]}" for name, task in record.tasks.items())
    return ["final score on test data", *heads], body


def comparisons(record: Record) -> list[Compared]:
    found = pairs(record, (*TESTED, *CONTROLS))
    return [compare(record.rows, name, *pair) for pair in found for name in record.tasks]


def differences(record: Record) -> tuple[list[str], Rows]:
    """What was tested first, then the controls. Curves and bounds are in spreads."""
    head = [
        "arm",
        "beside",
        "task",
        "score [95 %]",
        "p",
        "curves",
        "p",
        "bound",
        f"within {MARGIN:g}",
    ]
    compared = comparisons(record)
    p = adjusted(compared)
    body = []
    for one in compared:
        p_score, p_curves = (f"{value:.2g}" for value in p[one]) if one.tested else ("", "")
        low, high = one.interval
        body.append(
            [
                one.arm,
                one.other,
                one.task,
                f"{one.difference:+.2g} [{low:+.2g}, {high:+.2g}]",
                p_score,
                f"{one.largest:.2g}",
                p_curves,
                f"{one.bound:.2g}",
                "yes" if one.equivalent else "not shown",
            ]
        )
    return head, body


def partings(record: Record) -> tuple[list[str], Rows]:
    """How far losses differ in the first steps, and the step at which by more than `PARTED`: of how
    many seeds there is one, the first and the last.
    """
    body = []
    for arm in (arm for arm in arms(record) if ARMS[arm]):
        for name, task in record.tasks.items():
            rows = [row for row in record.rows if (row["task"], row["arm"]) == (name, arm)]
            steps = sorted(row["parted"] for row in rows if row["parted"])
            ranges = f": {steps[0]} to {steps[-1]}" if steps else ""
            body.append(
                [
                    arm,
                    f"{name}, {task['steps']} steps",
                    f"{max(row['early'] for row in rows):.1e}",
                    f"{len(steps)} of {len(rows)}{ranges}",
                ]
            )
    return ["arm", "losses of", "first steps", f"apart by {PARTED:g}"], body


def verdicts(record: Record) -> list[str]:
    """The criterion's answer for each precision, in a sentence."""
    p = adjusted(comparisons(record))
    answers = []
    for arm, other in pairs(record, TESTED):
        found = [one for one in p if one.arm == arm]
        differ = [one.task for one in found if min(p[one]) < LEVEL]
        answers.append(
            f"{arm} beside {other}: {sum(one.equivalent for one in found)} of {len(found)} shown to"
            f" be equivalent, largest bound {max(one.bound for one in found):.2g} spreads;"
            f" a difference found in {', '.join(differ) or 'none'}."
        )
    return answers


TABLES = {"Scores": scores, "Differences": differences, "Where losses part": partings}


def show(record: Record) -> None:
    print(headline(record))
    for title, made in TABLES.items():
        table.show(title, *made(record))
    print(*verdicts(record), sep="\n")


def markdown(record: Record) -> str:
    """The measured part of docs/convergence.md."""
    answers = "\n".join(filled(f"- {one}", "  ") for one in verdicts(record))
    parts = [answers, filled(f"{headline(record)}.")]
    parts += [f"### {title}\n\n{table.markdown(*made(record))}" for title, made in TABLES.items()]
    return "\n\n".join(parts)


def written(page: str, record: Record) -> str:
    """The page with what was measured."""
    return replace_block(page, markdown(record), *BLOCKS[len(arms(record)) == len(ARMS)])


def figures(record: Record) -> Iterator[str]:
    """An <svg> for each task: mean validation loss, the band of the seeds; below, differences."""
    from matplotlib.figure import Figure

    from benchmarks.page import svg

    for name, task in record.tasks.items():
        figure = Figure(figsize=(svg.WIDE, 5.0), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        steps = np.arange(1, POINTS + 1) * (task["steps"] // POINTS)
        _curves(upper, record, name, steps)
        _differences(lower, record, name, steps)
        upper.set_title(task["title"], fontsize=11)
        for axes in (upper, lower):
            axes.grid(color="#dddddd", lw=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=9)
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9)
        words = f"{task['title']}: mean validation losses, and their differences in spreads"
        yield svg.inline(figure, words)


def _curves(axes: Axes, record: Record, task: str, steps: np.ndarray) -> None:
    for arm, (dashes, width, colour) in STYLES.items():
        found = curves(record.rows, task, arm, "valid")
        mean = found.mean(0)
        if arm == TORCH:
            ends = (mean - spread(found), mean + spread(found))
            axes.fill_between(
                steps, *ends, color=colour, alpha=0.25, lw=0, label="torch.nn's seeds"
            )
        axes.plot(steps, mean, dashes, color=colour, lw=width, label=arm)
    axes.set_ylabel("validation loss", fontsize=10)


def _differences(axes: Axes, record: Record, task: str, steps: np.ndarray) -> None:
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 4)
    for arm, other in (*TESTED, *CONTROLS[:2]):
        ours, theirs = (curves(record.rows, task, side, "valid") for side in (arm, other))
        mean = np.abs((ours - theirs).mean(0) / spread(theirs))
        dashes, _, colour = STYLES[arm]
        axes.plot(steps, np.where(mean > 0, mean, np.nan), dashes, color=colour, lw=1.6)
    axes.axhline(MARGIN, color="black", lw=1)
    words = "the margin"
    axes.annotate(
        words, (0, MARGIN), (4, 3), ("axes fraction", "data"), "offset points", fontsize=9
    )
    axes.set_ylabel("difference, spreads", fontsize=10)
    axes.set_xlabel("step", fontsize=10)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convergence.report", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("result", type=Path, help="JSON of python -m benchmarks.convergence")
    parser.add_argument("--write", action="store_true", help="write into docs/convergence.md")
    options = parser.parse_args(arguments)
    record = read(options.result)
    show(record)
    if options.write:
        PAGE.write_text(written(PAGE.read_text("utf-8"), record))


if __name__ == "__main__":
    main()
