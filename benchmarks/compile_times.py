"""Seconds until a layer compiled by ``torch.compile`` gives its first result, beside torch.nn's.

    python -m benchmarks.compile_times                    a table, and results/compile/*.json
    python -m benchmarks.compile_times --steps 4 --cells GRU

torch.nn's layers are compiled as ``torch._dynamo.config.allow_rnn`` has it: step by step. Each
time is that of a process of its own whose caches are empty, with Inductor and ``fullgraph=True``;
values, and in training gradients, are compared with the same layer's eager ones.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import results, table

CELLS = ("RNN", "GRU", "LSTM")
STEPS = (4, 16, 64)
LIMIT = 600
"""Seconds after which a compiler is stopped."""


def child(library: str, cell: str, steps: int, training: bool) -> dict[str, Any]:
    """One measurement, in this process: seconds, or why there are none."""
    torch.manual_seed(0)
    if library == "torch":
        torch._dynamo.config.allow_rnn = True
        layer = getattr(nn, cell)(32, 64)
    else:
        import rnnfast

        layer = getattr(rnnfast, cell)(32, 64)
    x = torch.randn(steps, 8, 32, requires_grad=training)
    compiled = torch.compile(layer, fullgraph=True)

    def run(module: Any) -> list[torch.Tensor]:
        with torch.set_grad_enabled(training):
            output = module(x)[0]
        if not training:
            return [output]
        return [output, *torch.autograd.grad(output.square().mean(), [x, *layer.parameters()])]

    wanted = run(layer)
    before = time.perf_counter()
    try:
        found = run(compiled)
    except Exception as error:  # whatever the compiler raises is the result
        return {"failed": type(error).__name__}
    seconds = time.perf_counter() - before
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
    return {"seconds": round(seconds, 2)}


def measure(library: str, cell: str, steps: int, training: bool) -> dict[str, Any]:
    """The same in a new process with empty caches."""
    arguments = [library, cell, str(steps), "training" if training else "inference"]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.compile_times", "--child"]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            ran = subprocess.run(
                [*command, *arguments],
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"more than {LIMIT} s"}
    if ran.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def text(row: dict[str, Any]) -> str:
    return f"{row['seconds']:.1f}" if "seconds" in row else str(row["failed"])


def show(rows: list[dict[str, Any]], title: str) -> None:
    """A line for each cell and pass; a column for each library and number of steps."""
    columns = dict.fromkeys((row["library"], row["steps"]) for row in rows)
    lines: dict[tuple[str, str], dict[tuple[str, int], str]] = {}
    for row in rows:
        line = lines.setdefault((row["cell"], row["pass"]), {})
        line[row["library"], row["steps"]] = text(row)
    header = ["cell", "pass", *(f"{library} T = {steps}" for library, steps in columns)]
    table.show(title, header, [[*key, *(line[c] for c in columns)] for key, line in lines.items()])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_times")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        library, cell, steps, training = options.child
        print(json.dumps(child(library, cell, int(steps), training == "training")))
        return
    facts = results.environment(torch.float32, "rnnfast")
    rows: list[dict[str, Any]] = []
    for library in ("rnnfast", "torch"):
        for steps in options.steps:
            for cell in options.cells:
                for training in (False, True):
                    row = {"library": library, "cell": cell, "steps": steps}
                    row["pass"] = "training" if training else "inference"
                    row |= measure(library, cell, steps, training)
                    rows.append(row)
                    print(*row.values(), flush=True)
    folder = results.REPOSITORY / "benchmarks" / "results" / "compile"
    path = options.output or folder / results.default_name(facts, False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": facts, "rows": rows}, indent=1) + "\n")
    show(rows, f"seconds to compile, {facts['cpu']}, torch {facts['torch']}")


if __name__ == "__main__":
    main()
