"""pytest-benchmark: every layer of torch.nn and of rnnfast, side by side.

    pytest benchmarks                                   the main problems, all cells
    pytest benchmarks -k "gru and training"             part of them
    pytest benchmarks --benchmark-json FILE             the machine-readable result

Before a layer of rnnfast is timed its values are compared with torch.nn in float64; a layer that
computes something else fails instead of winning. The two sides run one after the other here:
`python -m benchmarks` alternates them, and is what published numbers come from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import rnnfast
from benchmarks.problems import MAIN, Problem
from benchmarks.results import environment
from benchmarks.workloads import CELLS, PASSES, check, make_pass, make_workload


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """The published numbers' number of threads, where the machine has them."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("library", ["torch.nn", "rnnfast"])
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("problem", MAIN, ids=lambda problem: problem.name)
def test_layer(
    benchmark: BenchmarkFixture, problem: Problem, cell: str, name: str, library: str
) -> None:
    workload = make_workload(problem, cell, torch.float32, torch.nn, rnnfast)
    if library == "rnnfast":
        benchmark.extra_info["errors"] = vars(check(workload, name))
    layer = workload.candidate if library == "rnnfast" else workload.baseline
    benchmark.group = f"{problem.name} {cell} {name}"
    benchmark.extra_info.update(environment(torch.float32, library), origin=problem.origin)
    benchmark(make_pass(workload, layer, name))
