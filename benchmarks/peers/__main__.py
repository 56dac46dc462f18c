"""Times rnnfast beside every other implementation that this environment has: `make bench-peers`.

    python -m benchmarks.peers --quick --cells gru --problems t50b32i128h128
    python -m benchmarks.peers --dtype bfloat16
    ONEDNN_ROOT=FOLDER python -m benchmarks.peers --peers oneDNN    # another oneDNN than Python's
    python -m benchmarks.peers.report benchmarks/results/peers/MACHINE.json

All sides of a problem take turns in one process, on the same processors, with as many threads each.
Every runtime has threads of its own, which spin for a while after their work and would take the
processors from the side that comes next; so each block begins with `SETTLE` of untimed calls. With
them, oneDNN's, ONNX Runtime's, OpenVINO's and JAX's times were within 12 % of those alone in a
process, most within 5 % (GRU, t100b1i64h64 and t20b3i5h6, on a machine that was not quite idle).

Values, in training gradients too, are compared with torch.nn in float64 before anything is timed.
An implementation that is missing, has no such pass or dtype, or computes something else is left
out, and the report says why. What the machine could do is known for float32 alone.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import rnnfast
from benchmarks import problems, results
from benchmarks.__main__ import RESULTS
from benchmarks.peers import (
    jax_peer,
    machine,
    onednn_peer,
    onnx_peers,
    record,
    report,
    torch_peers,
)
from benchmarks.peers.bound import CELLS, UNKNOWN, Figures, bound
from benchmarks.peers.side import Peer, Side, Unavailable
from benchmarks.timing import FULL, QUICK, Budget, take_turns
from benchmarks.workloads import PASSES, Workload, compare, make_workload

SETTLE = 0.01

PEERS: dict[str, Peer] = {
    record.OURS: torch_peers.rnnfast,
    record.FROZEN: torch_peers.rnnfast_frozen,
    record.BASELINE: torch_peers.torch_nn,
    "torch.compile": torch_peers.torch_compile,
    "oneDNN": onednn_peer.onednn,
    "ONNX Runtime": onnx_peers.onnxruntime,
    "OpenVINO": onnx_peers.openvino,
    "JAX": jax_peer.jax_scan,
    "JAX, unroll 8": partial(jax_peer.jax_scan, unroll=8),
}
IN_FLOAT32 = ("ONNX Runtime", "OpenVINO", "JAX", "JAX, unroll 8")
"""Those that have no layers in bfloat16, or do not run them."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("onnxruntime", "openvino", "onnx", "jax", "jaxlib", "numpy")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--problems", nargs="+", metavar="NAME", help="only these; see problems.py")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=tuple(CELLS))
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=PASSES)
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="beside torch.nn, only these")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few samples: a look, not a result")
    parser.add_argument("--output", type=Path, help="JSON file; default: named after the machine")
    options = parser.parse_args(arguments)
    try:
        chosen = problems.select(options.problems) if options.problems else problems.DENSE
    except ValueError as error:
        parser.error(str(error))
    if any(p.layers > 1 or p.bidirectional or p.lengths for p in chosen):
        parser.error("only dense problems of one layer and one direction")
    options.chosen = chosen
    return options


def pin(threads: int) -> list[int]:
    """Keeps this process on as many physical cores as there are threads, and returns them."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    chosen = list(cores.values())[:threads]
    os.sched_setaffinity(0, chosen)
    return chosen


def environment(cores: Sequence[int], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    facts = results.environment(dtype, record.OURS)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    try:
        versions["oneDNN"] = onednn_peer.version()
    except Unavailable:
        versions["oneDNN"] = "not installed"
    return {**facts, "cores": list(cores), "versions": versions}


def prepare(
    workload: Workload, name: str, wanted: Collection[str] | None = None
) -> tuple[dict[str, Side], dict[str, float], dict[str, str]]:
    """The sides whose values are right, their errors, and why the others are left out."""
    sides: dict[str, Side] = {}
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    expected = torch_peers.torch_nn(workload, name).values()
    for peer, make in PEERS.items():
        if wanted is not None and peer not in (*wanted, record.OURS, record.BASELINE):
            continue
        try:
            if workload.grad_output.dtype != torch.float32 and peer in IN_FLOAT32:
                raise Unavailable("float32 only")
            side = make(workload, name)
            errors[peer] = compare(workload, name, side.values(), expected).candidate
            sides[peer] = side
        except Exception as error:
            if peer in (record.OURS, record.BASELINE):
                raise
            kind = "" if isinstance(error, Unavailable) else f"{type(error).__name__}: "
            left_out[peer] = f"{kind}{next(iter(str(error).splitlines()), '')}"[:200]
    return sides, errors, left_out


def measure(options: argparse.Namespace, figures: Figures, budget: Budget) -> list[record.Entry]:
    """Checks, then times, every problem, cell and pass that was asked for."""
    jobs = [(p, cell, name) for p in options.chosen for cell in options.cells for name in PASSES]
    jobs = [job for job in jobs if job[2] in options.passes]
    dtype = DTYPES[options.dtype]
    entries = []
    text = TextColumn("{task.description}")
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(jobs))
        for problem, cell, name in jobs:
            progress.update(bar, description=f"{problem.name} {cell} {name}")
            workload = make_workload(problem, cell, dtype, torch.nn, rnnfast)
            sides, errors, left_out = prepare(workload, name, options.peers)
            gc.collect()
            samples = take_turns([side.run for side in sides.values()], budget)
            taken = dict(zip(sides, samples, strict=True))
            limit = bound(problem, cell, name, figures) if dtype == torch.float32 else UNKNOWN
            entries.append(record.Entry(problem, cell, name, taken, errors, left_out, limit))
            progress.advance(bar)
    return entries


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    cores = pin(options.threads)
    torch.set_num_threads(options.threads)
    facts = environment(cores, DTYPES[options.dtype])
    here = machine.Machine(options.threads)
    figures = here.figures()
    facts["machine"] = here.described(figures)
    budget = replace(QUICK if options.quick else FULL, settle=SETTLE)
    made = record.Record(facts, tuple(measure(options, figures, budget)))
    other = f"-onednn-{onednn_peer.version()}" if onednn_peer.another() else ""
    name = results.default_name(facts, options.quick).replace("-threads", f"-threads-peers{other}")
    path = options.output or RESULTS / "peers" / name
    record.write(made, path)
    report.main([str(path)])
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
