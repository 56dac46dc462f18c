"""Trains torch.nn and rnnfast beside each other and asks whether they learn alike.

    python -m benchmarks.convergence             9 minutes on two free cores; JSON and tables
    python -m benchmarks.convergence --quick     a few steps of two seeds: does it run?
    python -m benchmarks.convergence --seeds 100:140 --bfloat16   other seeds, two arms

docs/convergence.md says what is trained, what is compared, and what came out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import results
from benchmarks.convergence import report, training
from benchmarks.convergence.record import FOLDER, Record, described, write
from benchmarks.convergence.tasks import SEEDS, TASKS, Task


def seeds_of(text: str) -> range:
    """Of `N` the first N, of `FIRST:END` those from FIRST on, without END."""
    first, _, end = text.rpartition(":")
    seeds = range(int(first or 0), int(end))
    if len(seeds) < 2:
        raise argparse.ArgumentTypeError(f"two seeds at least have a spread, got {text}")
    return seeds


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--seeds",
        type=seeds_of,
        default=range(SEEDS),
        metavar="N",
        help=f"so many, or FIRST:END; default: {SEEDS}",
    )
    parser.add_argument("--bfloat16", action="store_true", help="the arms in bfloat16 alone")
    parser.add_argument(
        "--processes", type=int, default=2, help="of one thread each; default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of two seeds")
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the machine")
    return parser.parse_args(arguments)


def finished(
    jobs: Sequence[tuple[str, int, bool, Sequence[str]]], processes: int
) -> Iterable[tuple[str, list[dict[str, Any]]]]:
    """The rows of each job as it ends, with its task."""
    if processes == 1:
        yield from ((name, training.job(name, *rest)) for name, *rest in jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        names = {pool.submit(training.job, *arguments): arguments[0] for arguments in jobs}
        yield from ((names[future], future.result()) for future in as_completed(names))


def measure(options: argparse.Namespace, tasks: dict[str, Task]) -> list[dict[str, Any]]:
    """All runs, the longest first, so that no process is left alone with one."""
    seeds = options.seeds[:2] if options.quick else options.seeds
    arms = [arm for arm in training.ARMS if arm in training.BFLOAT16 or not options.bfloat16]
    order = sorted(tasks, key=lambda name: -tasks[name].steps)
    jobs = [(name, seed, options.quick, arms) for name in order for seed in seeds]
    rows = []
    columns = (
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(
            "", total=len(seeds) * sum(t.steps for t in tasks.values()), what=""
        )
        for name, found in finished(jobs, options.processes):
            rows += found
            progress.update(bar, advance=tasks[name].steps, what=f"{name}, seed {found[0]['seed']}")
    places = {name: i for i, name in enumerate(tasks)}
    return sorted(rows, key=lambda row: (places[row["task"]], row["seed"]))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(1)
    facts = results.environment(torch.float32, "rnnfast")
    facts |= {"dtype": "several", "processes": options.processes}
    tasks = {name: training.prepared(name, options.quick) for name in options.tasks}
    before = time.monotonic()
    rows = measure(options, tasks)
    facts["minutes"] = round((time.monotonic() - before) / 60, 1)
    record = Record(facts, {name: described(task) for name, task in tasks.items()}, rows)
    name = results.default_name(facts, options.quick)
    if options.bfloat16:
        name = name.replace(".json", "-bfloat16.json")
    path = options.output or FOLDER / name
    write(record, path)
    report.show(record)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
