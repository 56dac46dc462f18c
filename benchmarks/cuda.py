"""Times rnnfast against torch.nn with cuDNN on a GPU: every precision, eager and as CUDA graphs.

    python -m benchmarks.cuda                        the most important first, within --seconds
    python -m benchmarks.cuda --precisions tf32 --cells lstm --problems t50b32i128h128
    python -m benchmarks.cuda --grid                 few samples of many layers, T = 100, I = H
    python -m benchmarks.cuda --users                the layers of models in use
    python -m benchmarks.cuda --device cpu --quick   a dry run: tests the program, measures nothing

Values are compared with torch.nn in float64 before anything is timed, and a graph's replay with the
eager call. What fails is written down and costs no more than itself. The result is rewritten every
few seconds, so that a run that is cut short keeps what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import gpu_report, problems, report, results
from benchmarks.problems import Problem
from benchmarks.timing import Budget, interleave
from benchmarks.workloads import (
    CELLS,
    PASSES,
    Errors,
    Workload,
    WrongValuesError,
    check,
    make_pass,
    make_workload,
    relative_error,
    what_ran,
)

BUDGET = Budget(total=0.12, block=0.002, rounds=(3, 30), warm_up=0.01)
SHORT = Budget(total=0.008, block=0.001, rounds=(3, 9), warm_up=0.001)
"""For the many layers of --grid."""

FIRST = (
    "t128b32i256h256",
    "t512b64i512h512",
    "t1024b16i1024h1024",
    "t50b32i128h128",
    "t1000b1i512h512",
    "t1024b16i768h768",
)
"""The problems of docs/tuning.md."""

WRITE_SECONDS = 5
"""Between two times that the result is written: a run that is ended loses no more."""

REPLAY_ERROR = 0.02
"""A replay may differ by rounding from the eager call, whose sums may be made in another order."""


@dataclass(frozen=True)
class Precision:
    """A dtype, and whether float32 products may round their operands to TF32, by torch's switches
    for cuDNN (which are ours, too) and for other products.
    """

    name: str
    dtype: torch.dtype
    cudnn_tf32: bool = False
    matmul_tf32: bool = False


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("bfloat16", torch.bfloat16),
        Precision("float32", torch.float32, cudnn_tf32=True),
        Precision("float16", torch.float16),
        Precision("float32 exact", torch.float32),
        Precision("tf32", torch.float32, cudnn_tf32=True, matmul_tf32=True),
    )
}
"""float32 is torch's defaults."""


@dataclass(frozen=True)
class Job:
    """One layer to check and to time."""

    problem: Problem
    cell: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.problem.name} {self.cell} {self.precision.name}"


def jobs(
    chosen: Sequence[Problem], cells: Sequence[str], precisions: Sequence[Precision]
) -> list[Job]:
    """All combinations, the most important first: early problems, gated cells, bfloat16."""
    ranked = [
        (10 * (p // 4) + (cell.startswith("rnn")) + precision, Job(problem, cell, of))
        for p, problem in enumerate(chosen)
        for cell in cells
        for precision, of in enumerate(precisions)
    ]
    return [job for _, job in sorted(ranked, key=lambda pair: pair[0])]


def grid_jobs() -> list[Job]:
    """Every cell and precision on problems.GRID; exact float32 for one batch size alone, the
    largest problems in 16 bits alone.
    """
    found = []
    for problem in problems.GRID:
        square = problem.B in (1, 32, 128) and problem.H <= 1024
        names = ["bfloat16", "float16"] + ["float32"] * square
        names += ["float32 exact"] * (square and problem.B == 32)
        cells = ("gru", "lstm", "rnn_tanh")
        found += [Job(problem, cell, PRECISIONS[name]) for cell in cells for name in names]
    return found


def user_jobs() -> list[Job]:
    """The models of problems.USERS, the short ones first."""
    names = ("bfloat16", "float16", "float32")
    return [
        Job(problem, cell, PRECISIONS[name])
        for problem, cells in problems.USERS.items()
        for cell in cells
        for name in names
    ]


def default_problems() -> list[Problem]:
    """Those of FIRST, then all others."""
    first = [problem for name in FIRST for problem in problems.select((name,))]
    return [*first, *(p for p in problems.ALL + problems.GPU if p not in first)]


def guess_seconds(problem: Problem) -> float:
    """One training pass of cuDNN, guessed high: only to decide whether there is time to begin."""
    directions = 2 if problem.bidirectional else 1
    steps = problem.T * problem.layers * directions
    flop = 24 * steps * problem.B * problem.H * (problem.I + problem.H)
    return 40e-6 * steps + flop / 2e13


def events(function: Callable[[], object], calls: int) -> float:
    """Seconds of one call on the GPU, between two CUDA events around all of them."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        function()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e-3 / calls


def captured(workload: Workload, call: Callable[[], Tensor]) -> Callable[[], None]:
    """The call as a CUDA graph.

    Its replay is compared with the eager call on an input that was not captured: work that escapes
    the capture would look fast. Raises WrongValuesError where they differ.
    """
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # puts the current stream back where the capture fails
        call()
        with torch.cuda.graph(graph, stream=side):
            replayed = call()
    torch.cuda.current_stream().wait_stream(side)
    x = workload.x if isinstance(workload.x, Tensor) else workload.x.data
    with torch.inference_mode():
        x.neg_()
    graph.replay()
    error = relative_error(replayed.detach(), call().detach().double())
    if not error <= REPLAY_ERROR:
        raise WrongValuesError(f"the graph's replay differs from the eager call by {error:.1e}")
    return graph.replay


def set_switches(precision: Precision) -> None:
    """TF32 as it is to be; and bfloat16 weights of cuDNN in one piece, which torch 2.11 leaves out:
    there every call copies them.
    """
    torch.backends.cudnn.allow_tf32 = precision.cudnn_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision.matmul_tf32
    torch.backends.cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)


def measure(
    job: Job, passes: Sequence[str], device: str, budget: Budget, failures: list[str]
) -> Iterator[results.Measurement]:
    """Checks, then times one layer in every pass, eager and as a graph."""
    set_switches(job.precision)
    dtype = job.precision.dtype
    workload = make_workload(job.problem, job.cell, dtype, nn, rnnfast, device=device)
    for name in passes:
        errors = check(workload, name)
        ran = what_ran(workload, rnnfast, name)
        for graph in (False, True) if device == "cuda" else (False,):
            try:
                yield _measure_pass(job, workload, name, graph, errors, ran, budget)
            except (RuntimeError, WrongValuesError) as error:
                failures.append(f"{job} {name}{' graph' if graph else ''}: {_line(error)}")


def _measure_pass(
    job: Job,
    workload: Workload,
    name: str,
    graph: bool,
    errors: Errors,
    ran: str,
    budget: Budget,
) -> results.Measurement:
    sides: list[Callable[[], object]] = []
    for layer in (workload.baseline, workload.candidate):
        call = make_pass(workload, layer, name)
        sides.append(captured(workload, call) if graph else call)
    on_gpu = workload.grad_output.is_cuda
    pair = interleave(sides[0], sides[1], budget, stopwatch=events if on_gpu else None)
    precision = job.precision.name
    return results.Measurement(job.problem, job.cell, name, pair, errors, ran, precision, graph)


def _line(error: BaseException) -> str:
    """The error in one line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]


def spin_up() -> None:
    """A second of work, which brings the clocks up from idle."""
    square, start = torch.randn(4096, 4096, device="cuda"), time.monotonic()
    while time.monotonic() - start < 1:
        square @ square
        torch.cuda.synchronize()


def run(options: argparse.Namespace, facts: dict[str, object], path: Path) -> results.Record:
    """Everything for which there is time. `path` holds what there is after each layer."""
    record = results.Record(facts, (), _micro(options.micro))
    failures: list[str] = []
    precisions = [PRECISIONS[name] for name in options.precisions]
    todo = (user_jobs() if options.users else []) + (grid_jobs() if options.grid else [])
    todo = todo or jobs(options.chosen, options.cells, precisions)
    begun = written = time.monotonic()
    budget = SHORT if options.grid or options.users else BUDGET
    if options.quick:
        budget = replace(budget, total=0.02, rounds=(2, 3))
    for job in todo:
        left = options.seconds - (time.monotonic() - begun)
        if left < (100 if budget is BUDGET else 20) * guess_seconds(job.problem):
            failures.append(f"{job}: left out, no time")
            continue
        found: list[results.Measurement] = []
        try:
            for measurement in measure(job, options.passes, options.device, budget, failures):
                found.append(measurement)
        except (RuntimeError, WrongValuesError) as error:
            failures.append(f"{job}: {_line(error)}")
        record = replace(record, measurements=(*record.measurements, *found))
        if time.monotonic() - written > WRITE_SECONDS:
            results.write(record, path)
            written = time.monotonic()
        print(f"[{time.monotonic() - begun:5.0f} s] {job}  {_brief(found)}", flush=True)
        if failures and "CUDA error" in failures[-1]:  # which every later call would report
            break
    results.write(record, path)
    print("\n".join(failures))
    return record


def _micro(path: Path | None) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(path.read_text())) if path and path.exists() else ()


def _brief(found: Sequence[results.Measurement]) -> str:
    """For example `inference 1.20x  inference graph 1.31x`."""
    return "  ".join(f"{m.pass_name}{' graph' if m.graph else ''} {m.speed_up:.2f}x" for m in found)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these; see problems.py")
    cells = ("gru", "lstm", "rnn_tanh")
    parser.add_argument("--grid", action="store_true", help="the layers that kernels are chosen by")
    parser.add_argument("--users", action="store_true", help="the layers of models in use")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=cells)
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--seconds", type=float, default=240, help="default: %(default)s")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="one small problem, few samples")
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the GPU")
    parser.add_argument("--micro", type=Path, help="what benchmarks.micro wrote, to go in, too")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --device cpu is a dry run")
    try:
        options.chosen = problems.select(options.problems) if options.problems else None
    except ValueError as error:
        parser.error(str(error))
    if options.quick and not options.chosen:
        options.chosen = [Problem(20, 3, 5, 6, "a dry run")]
    options.chosen = options.chosen or default_problems()
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device == "cuda":
        spin_up()
        facts = results.gpu_environment("rnnfast")
    else:
        facts = results.environment(torch.float32, "rnnfast")
    folder = results.REPOSITORY / "benchmarks" / "results"
    path = options.output or folder / results.default_name(facts, options.quick)
    record = run(options, facts, path)
    if not record.measurements:
        print("nothing was measured")
        return 1
    headline = report.headline(replace(record, environment={**facts, "dtype": "every precision"}))
    print("", headline, gpu_report.tables(record), gpu_report.summary(record), sep="\n\n")
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
