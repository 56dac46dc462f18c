"""The most memory that a pass takes, of torch.nn's layer and of ours; on Linux.

What counts is what the process holds, pages of whatever allocator, code included: each number is of
a process of its own, above what it held before the pass. A small layer runs first, so that threads
and most of the code are there; what is left of that, and how pages come, is a matter of a MiB.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

import rnnfast
from benchmarks.problems import Problem
from benchmarks.workloads import check, make_pass, make_workload

PROCESS = Path("/proc/self")
SIDES = ("torch.nn", "rnnfast")
WARM_UP = Problem(2, 2, 16, 16, "")
PROBLEMS = (Problem(128, 32, 256, 256, "peak memory"), Problem(256, 16, 128, 128, "peak memory"))

Result = TypeVar("Result")


def elsewhere(function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of a module gives in a new process, in which torch is there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "rnnfast"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def growth(call: Callable[[], object]) -> int:
    """Bytes that this process holds at most during a call, above those it held before."""
    (PROCESS / "clear_refs").write_text("5")  # the peak is that of now
    before = _peak()
    call()
    return _peak() - before


def _peak() -> int:
    """Not by getrusage, which would count who started this process, too."""
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def peak(side: str, problem: Problem, cell: str, name: str, dtype: str, threads: int) -> int:
    """`growth` of the first pass of a layer in this process."""
    torch.set_num_threads(threads)
    for shape in (WARM_UP, problem):
        workload = make_workload(shape, cell, getattr(torch, dtype), nn, rnnfast)
        layer = dict(zip(SIDES, (workload.baseline, workload.candidate), strict=True))[side]
        run = make_pass(workload, layer, name)
        found = growth(run)
    return found


def row(
    problem: Problem, cell: str, name: str, dtype: str, threads: int, repeats: int
) -> dict[str, Any]:
    """Both sides' bytes, once for each of so many processes a side; values are checked before."""
    check(make_workload(problem, cell, getattr(torch, dtype), nn, rnnfast), name)
    job = (problem, cell, name, dtype, threads)
    found = {side: [elsewhere(peak, side, *job) for _ in range(repeats)] for side in SIDES}
    facts = {"label": problem.label, "cell": cell, "pass": name, "threads": threads}
    return {**facts, "bytes": found}
