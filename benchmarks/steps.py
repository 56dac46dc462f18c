"""Times single steps that carry the state, as generation and reinforcement learning take them.

    python -m benchmarks.steps
    python -m benchmarks.steps --threads 1 --cells gru
    python -m benchmarks.steps --device cuda

A call is `_, state = layer(x, state)` under `torch.inference_mode()`, x of one step, and all that
Python does in it. Values are checked against float64 over STEPS steps before anything is timed.
Frozen: a layer after `rnnfast.freeze`. On a GPU, where one call is nothing but host time, what is
timed is a CUDA graph of CHAIN steps, each from the state of the one before.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn

import rnnfast
from benchmarks import report, results, table
from benchmarks.__main__ import RESULTS, freeze_heap, quiet_environment
from benchmarks.cuda import PRECISIONS, REPLAY_ERROR, events, set_switches, spin_up
from benchmarks.problems import Problem
from benchmarks.timing import FULL, QUICK, Budget, geometric_mean, interleave
from benchmarks.workloads import (
    CELLS,
    ERROR_FACTOR,
    ERROR_FLOOR,
    Errors,
    Workload,
    WrongValuesError,
    make_workload,
    relative_error,
)

ORIGIN = "generation, reinforcement learning"
PROBLEMS = [Problem(1, B, H, H, ORIGIN) for B in (1, 8, 32) for H in (128, 256, 512, 1024)]
STEPS, CHAIN = 5, 32
SHORT_CHAIN = Budget(0.01 / CHAIN, 0.001 / CHAIN, (3, 9), 0.001 / CHAIN)
"""A stopwatch that shows the seconds of one step runs CHAIN times as long."""


def take_step(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """A function that takes the next step from where the last one ended, and returns its output."""
    state = None

    def step() -> Tensor:
        nonlocal state
        with torch.inference_mode():
            output: Tensor
            output, state = layer(x, state)
        return output

    return step


def check(workload: Workload) -> Errors:
    """The largest errors of both sides after STEPS steps, relative to the largest output.

    Raises WrongValuesError where ours is beyond the bound of `workloads.compare`.
    """
    assert isinstance(workload.x, Tensor)

    def last(layer: nn.Module, x: Tensor) -> Tensor:
        step = take_step(layer, x)
        return [step() for _ in range(STEPS)][-1]

    truth = last(copy.deepcopy(workload.baseline).double(), workload.x.double())
    baseline, candidate = (
        relative_error(last(layer, workload.x), truth)
        for layer in (workload.baseline, workload.candidate)
    )
    limit = ERROR_FACTOR * baseline + ERROR_FLOOR * torch.finfo(workload.x.dtype).eps
    if not candidate <= limit:
        raise WrongValuesError(f"{workload.cell} {workload.problem.name}: error {candidate:.2e}")
    return Errors(baseline, candidate)


MODES = ("step", "frozen step")
CHAINED = f"step of a graph of {CHAIN}"


def measure(problem: Problem, cell: str, mode: str, budget: Budget) -> results.Measurement:
    workload = make_workload(problem, cell, torch.float32, nn, rnnfast)
    if mode == "frozen step":
        rnnfast.freeze(workload.candidate)
    errors = check(workload)
    x = workload.x
    assert isinstance(x, Tensor)
    pair = interleave(take_step(workload.baseline, x), take_step(workload.candidate, x), budget)
    with torch.inference_mode():
        ran = str(rnnfast.explain(workload.candidate, x))
    return results.Measurement(problem, cell, mode, pair, errors, ran)


def chain(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """CHAIN steps as one CUDA graph. Raises WrongValuesError where a replay differs from the steps
    taken one by one.
    """
    warm_up, one_by_one, step = (take_step(layer, x) for _ in range(3))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        warm_up()
        with torch.cuda.graph(graph, stream=stream):
            last = [step() for _ in range(CHAIN)][-1]
    torch.cuda.current_stream().wait_stream(stream)
    graph.replay()
    error = relative_error(last, [one_by_one() for _ in range(CHAIN)][-1].double())
    if not error <= REPLAY_ERROR:
        raise WrongValuesError(f"the graph's replay differs from the steps by {error:.1e}")
    return graph.replay


def measure_chain(problem: Problem, cell: str, precision: str) -> results.Measurement:
    """Seconds of one step of a chain on a GPU."""
    set_switches(PRECISIONS[precision])
    dtype = PRECISIONS[precision].dtype
    workload = make_workload(problem, cell, dtype, nn, rnnfast, device="cuda")
    errors, x = check(workload), workload.x
    assert isinstance(x, Tensor)
    sides = [chain(layer, x) for layer in (workload.baseline, workload.candidate)]

    def stopwatch(replay: Callable[[], object], calls: int) -> float:
        return events(replay, calls) / CHAIN

    pair = interleave(sides[0], sides[1], SHORT_CHAIN, stopwatch=stopwatch)
    with torch.inference_mode():
        ran = str(rnnfast.explain(workload.candidate, x))
    return results.Measurement(problem, cell, CHAINED, pair, errors, ran, precision, graph=True)


def show(record: results.Record) -> None:
    print(report.headline(record))
    for precision in dict.fromkeys(m.precision for m in record.measurements if m.graph):
        chosen = [m for m in record.measurements if m.graph and m.precision == precision]
        _show_mode(chosen, f"{CHAINED}, {precision}")
    for mode in MODES:
        _show_mode([m for m in record.measurements if m.pass_name == mode], mode)


def _show_mode(measurements: Sequence[results.Measurement], mode: str) -> None:
    if not measurements:
        return
    cells = list(dict.fromkeys(m.cell for m in measurements))
    rows = []
    for problem in dict.fromkeys(m.problem for m in measurements):
        row = [f"{problem.B}, {problem.H}"]
        for m in measurements:
            if m.problem == problem:
                times = (m.baseline.median * 1e6, m.candidate.median * 1e6)
                row.append(f"{times[0]:.1f} / {times[1]:.1f} = {m.speed_up:.2f}")
        rows.append(row)
    means = (geometric_mean([m.speed_up for m in measurements if m.cell == c]) for c in cells)
    rows.append(["geometric mean", *(f"{mean:.2f}" for mean in means)])
    title = f"one {mode} that carries the state, µs: torch.nn / rnnfast"
    table.show(title, ["B, H", *cells], rows)
    print(f"all: {geometric_mean([m.speed_up for m in measurements]):.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    cells = ("rnn_tanh", "gru", "lstm")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=cells)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few samples: a look, not a result")
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the machine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.device == "cuda":
        spin_up()
        facts = results.gpu_environment("rnnfast")
        names = ("bfloat16", "float16", "float32")
        chains = [(p, cell, name) for name in names for cell in options.cells for p in PROBLEMS]
        measurements = [measure_chain(*job) for job in track(chains, "steps")]
    else:
        facts = quiet_environment(torch.float32, "rnnfast")
        freeze_heap()
        budget = QUICK if options.quick else FULL
        jobs = [(p, cell, mode) for p in PROBLEMS for cell in options.cells for mode in MODES]
        measurements = [measure(*job, budget) for job in track(jobs, "steps")]
    record = results.Record(facts, tuple(measurements))
    path = options.output or RESULTS / "steps" / results.default_name(facts, options.quick)
    results.write(record, path)
    show(record)
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
