"""How time grows with T, B, H and threads, what the smallest calls cost, how much memory is used.

    python -m benchmarks.sweeps                    under 6 minutes on two free cores; JSON, tables
    python -m benchmarks.sweeps --dtype bfloat16
    python -m benchmarks.sweeps --quick

From one layer, BASE, each size is varied by itself. Values are checked before anything is timed;
torch.nn and rnnfast take turns. The smallest calls are eager ones under `torch.inference_mode()`,
with all that Python does in them: of a layer, of one after `rnnfast.freeze`, and of a cell.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

import rnnfast
from benchmarks import memory, report, results, table
from benchmarks.__main__ import DTYPES, RESULTS, freeze_heap, measure_pass, quiet_environment
from benchmarks.problems import Problem
from benchmarks.timing import FULL, QUICK, Budget, interleave
from benchmarks.workloads import PASSES, Workload, check, make_workload

CELLS = ("gru", "lstm")
BASE = Problem(64, 16, 128, 128, "from which each size is varied by itself")
SIZES = {
    "T": (1, 4, 16, 64, 256, 1024),
    "B": (1, 2, 4, 8, 16, 32, 64, 128),
    "H": (16, 32, 64, 128, 256, 512),
}
"""I is H throughout."""
SMALLEST = (Problem(1, 1, 8, 8, "overhead"), Problem(20, 3, 5, 6, "overhead"))
CALLS = ("layer", "frozen layer", "cell")
"""What a call is of; a cell takes one step of the problem's B."""


def points() -> list[Problem]:
    """BASE, and it with another T, B or H."""
    varied = (
        replace(BASE, **dict.fromkeys(("H", "I") if axis == "H" else (axis,), size))
        for axis, sizes in SIZES.items()
        for size in sizes
    )
    return list(dict.fromkeys((BASE, *varied)))


def threads_up_to(cores: int) -> list[int]:
    """Powers of two, and all."""
    return sorted({cores, *(2**i for i in range(cores.bit_length()))})


def sweep(dtype: torch.dtype, threads: int, budget: Budget) -> Iterator[results.Measurement]:
    """Every point with so many threads, then BASE with every other number of them."""
    others = [n for n in threads_up_to(len(os.sched_getaffinity(0))) if n != threads]
    jobs = [(p, threads) for p in points()] + [(BASE, n) for n in others]
    every = [(problem, n, cell) for problem, n in jobs for cell in CELLS]
    for problem, n, cell in track(every, "sweeps"):
        torch.set_num_threads(n)
        workload = make_workload(problem, cell, dtype, nn, rnnfast)
        for name in PASSES:
            yield measure_pass(workload, rnnfast, name, budget, n)
    torch.set_num_threads(threads)


class OneStep(nn.Module):
    """A cell as a layer of one step, so that its values are checked as a layer's are."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        states = self.cell(x[0])
        return (states[0] if isinstance(states, tuple) else states)[None], states


def smallest(
    problem: Problem, cell: str, what: str, dtype: torch.dtype
) -> tuple[Workload, list[partial[object]]]:
    """A workload, and its call of torch.nn and of ours."""
    if what == "cell":
        made = make_workload(replace(problem, T=1), cell, dtype, nn, rnnfast)
        classes = (getattr(library, f"{cell.upper()}Cell") for library in (nn, rnnfast))
        first, second = (OneStep(kind(problem.I, problem.H, dtype=dtype)) for kind in classes)
        second.load_state_dict(first.state_dict())
        made = replace(made, baseline=first, candidate=second)
        return made, [partial(side.cell, made.x[0]) for side in (first, second)]
    made = make_workload(problem, cell, dtype, nn, rnnfast)
    if what == "frozen layer":
        rnnfast.freeze(made.candidate)
    return made, [partial(layer, made.x) for layer in (made.baseline, made.candidate)]


def overhead(dtype: torch.dtype, threads: int, budget: Budget) -> Iterator[results.Measurement]:
    """The smallest calls; the pass of a measurement is what was called."""
    jobs = [(p, cell, what) for p in SMALLEST for cell in CELLS for what in CALLS]
    for problem, cell, what in track(jobs, "calls"):
        made, sides = smallest(problem, cell, what, dtype)
        errors = check(made, "inference")
        with torch.inference_mode():
            pair = interleave(*sides, budget)
            ran = str(rnnfast.explain(sides[1].func, *sides[1].args))
        yield results.Measurement(made.problem, cell, what, pair, errors, ran, threads=threads)


def peaks(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Nothing where there is no /proc to ask."""
    if not memory.PROCESS.exists():
        return []
    problems = memory.PROBLEMS[: 1 if options.quick else None]
    jobs = [(p, cell, name) for p in problems for cell in CELLS for name in PASSES]
    repeats = 1 if options.quick else 3
    return [
        memory.row(*job, options.dtype, options.threads, repeats) for job in track(jobs, "memory")
    ]


def show(record: results.Record) -> None:
    print(report.headline(record))
    sides = ("torch.nn, ms (p20 p80)", "rnnfast, ms (p20 p80)", "speed-up")
    for name in (*PASSES, *CALLS):
        rows = [_texts(m) for m in record.measurements if m.pass_name == name]
        table.show(name, ["T, B, I, H; threads; cell", *sides], rows)
    rows = [
        [f"{row['label']}; {row['cell']}, {row['pass']}", *map(_mib, row["bytes"].values())]
        for row in record.memory
    ]
    if rows:
        table.show("peak memory", ["T, B, I, H; cell", *(f"{s}, MiB" for s in memory.SIDES)], rows)


def _texts(m: results.Measurement) -> list[str]:
    times = (
        "{} ({} {})".format(*map(report.milliseconds, (side.median, side.p20, side.p80)))
        for side in (m.baseline, m.candidate)
    )
    ratio = f"{m.speed_up:.2f} ({m.pairwise.p20:.2f} {m.pairwise.p80:.2f})"
    return [f"{m.problem.label}; {m.threads}; {m.cell}", *times, ratio]


def _mib(found: Sequence[int]) -> str:
    return f"{statistics.median(found) / 2**20:.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few samples: a look, not a result")
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dtype, budget = getattr(torch, options.dtype), QUICK if options.quick else FULL
    facts = quiet_environment(dtype, "rnnfast")
    freeze_heap()
    measured = [*sweep(dtype, options.threads, budget), *overhead(dtype, options.threads, budget)]
    record = results.Record(facts, tuple(measured), memory=tuple(peaks(options)))
    path = options.output or RESULTS / "sweeps" / results.default_name(facts, options.quick)
    results.write(record, path)
    show(record)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
