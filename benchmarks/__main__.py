"""Times rnnfast against torch.nn, side by side, and says what it found. See docs/figures.md."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import moved, problems, report, results
from benchmarks.busy import busy
from benchmarks.timing import FULL, QUICK, Budget, interleave
from benchmarks.workloads import (
    CELLS,
    PASSES,
    Workload,
    check,
    make_pass,
    make_workload,
    what_ran,
)

DTYPES = ("float32", "float64", "bfloat16", "float16")
BUSY = 0.5
RESULTS = results.REPOSITORY / "benchmarks" / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Checks rnnfast's values against torch.nn, then times the two in alternating "
        "blocks. Prints a table, and what moved since the last committed run; writes JSON.",
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--all", action="store_true", help="every problem, not only the main ones")
    chosen.add_argument("--problems", nargs="+", metavar="NAME", help="only these; see problems.py")
    cells = ("rnn_tanh", "gru", "lstm")
    parser.add_argument(
        "--cells", nargs="+", choices=CELLS, default=cells, help="default: %(default)s"
    )
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument(
        "--dtype", nargs="+", choices=DTYPES, default=("float32",), help="a run and a file for each"
    )
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few samples: a look, not a result; some minutes, fewer with --cells, --problems",
    )
    parser.add_argument(
        "--noise", action="store_true", help="torch.nn on both sides: how far is 1.00x from 1.00x?"
    )
    parser.add_argument(
        "--busy",
        type=int,
        default=0,
        metavar="N",
        help="beside so many processes that compute all the time: what load does to both sides",
    )
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the machine")
    options = parser.parse_args(arguments)
    if options.busy < 0:
        parser.error("--busy: a number of processes")
    if options.output and len(options.dtype) > 1:
        parser.error("--output: of one dtype")
    try:
        options.chosen = problems.select(options.problems) if options.problems else None
    except ValueError as error:
        parser.error(str(error))
    options.chosen = options.chosen or (problems.ALL if options.all else problems.MAIN)
    return options


def candidate_library(noise: bool) -> tuple[str, ModuleType]:
    """The library to time beside torch.nn, and its name in the results."""
    if noise:
        return "torch.nn", torch.nn
    import rnnfast

    return "rnnfast", rnnfast


def quiet_environment(dtype: torch.dtype, candidate: str, busy: int = 0) -> dict[str, Any]:
    """`results.environment`; says so where the machine is not quiet."""
    facts = results.environment(dtype, candidate, busy)
    if facts["load"] > BUSY:
        print(f"load {facts['load']}: others use this machine; do not publish what follows")
    return facts


def freeze_heap() -> None:
    """What import left behind is walked once, not in the middle of a timed block."""
    gc.collect()
    gc.freeze()


def measure_pass(
    workload: Workload, library: ModuleType, name: str, budget: Budget, threads: int = 0
) -> results.Measurement:
    """Checks, then times, one pass. threads: goes into the measurement."""
    errors = check(workload, name)
    baseline = make_pass(workload, workload.baseline, name)
    candidate = make_pass(workload, workload.candidate, name)
    pair = interleave(baseline, candidate, budget)
    ran = what_ran(workload, library, name)
    return results.Measurement(
        workload.problem, workload.cell, name, pair, errors, ran, threads=threads
    )


def measure(
    options: argparse.Namespace, dtype: torch.dtype, library: ModuleType, budget: Budget
) -> list[results.Measurement]:
    """Checks, then times, every problem, cell and pass that was asked for."""
    jobs = [(problem, cell) for problem in options.chosen for cell in options.cells]
    measurements = []
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(jobs) * len(options.passes))
        for problem, cell in jobs:
            workload = make_workload(problem, cell, dtype, torch.nn, library)
            for name in options.passes:
                progress.update(bar, description=f"{problem.name} {cell} {name}")
                measurements.append(measure_pass(workload, library, name, budget))
                progress.advance(bar)
    return measurements


def run(
    options: argparse.Namespace, dtype: torch.dtype, library: ModuleType, facts: dict[str, Any]
) -> None:
    """Measures in one dtype; writes and prints what it found."""
    with busy(options.busy):
        measurements = measure(options, dtype, library, QUICK if options.quick else FULL)
    record = results.Record(facts, tuple(measurements))
    path = options.output or RESULTS / results.default_name(facts, options.quick)
    results.write(record, path)
    report.main([str(path)])
    moved.show(record)
    print(f"written to {path}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    freeze_heap()
    candidate, library = candidate_library(options.noise)
    dtypes = [getattr(torch, name) for name in options.dtype]
    # Before anything is measured or written: what is done here is no load of others, no change.
    facts = [quiet_environment(dtype, candidate, options.busy) for dtype in dtypes]
    for dtype, environment in zip(dtypes, facts, strict=True):
        run(options, dtype, library, environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
