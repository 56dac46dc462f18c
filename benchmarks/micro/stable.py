"""What a call costs through torch's stable ABI, beside the usual one: ops that compute nothing.

    python -m benchmarks.micro.stable

Builds stable.cpp with this torch. The calls take turns, so that what else the machine does meets
all alike; medians of many short rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.utils import cpp_extension

from benchmarks.results import cpu_model
from benchmarks.table import show

ROUNDS, CALLS = 4001, 50  # so short that most rounds run undisturbed


def from_python(op: Callable[..., object], *arguments: object) -> float:
    """Nanoseconds a call."""
    began = time.perf_counter_ns()
    for _ in range(CALLS):
        op(*arguments)
    return (time.perf_counter_ns() - began) / CALLS


def measures(from_cpp: Callable[..., float]) -> dict[tuple[str, str, str], Callable[[], float]]:
    """(arguments, called from, API) -> a round of calls, in nanoseconds each."""
    x, weights = torch.zeros(1, 1, 8), [torch.zeros(24, 8), torch.zeros(24, 8)]
    weights += [torch.zeros(24), torch.zeros(24)]
    found: dict[tuple[str, str, str], Callable[[], float]] = {}
    for suffix, api in (("", "usual"), ("_stable", "stable")):
        one = getattr(torch.ops.stable, f"one{suffix}").default
        layer = getattr(torch.ops.stable, f"layer{suffix}").default
        arguments = ("gru", x, None, [], weights, False, False)
        found["one tensor", "Python", api] = partial(from_python, one, x)
        found["the layer's", "Python", api] = partial(from_python, layer, *arguments)
        found["one tensor", "C++", api] = partial(from_cpp, f"one{suffix}", True, x, [], CALLS)
        found["the layer's", "C++", api] = partial(
            from_cpp, f"layer{suffix}", False, x, weights, CALLS
        )
        x_recorded = x.clone().requires_grad_()
        found["one tensor, recorded by autograd", "Python", api] = partial(
            from_python, one, x_recorded
        )
    return found


def main() -> int:
    torch.set_num_threads(1)
    source = Path(__file__).with_name("stable.cpp")
    extension = cpp_extension.load("rnnfast_stable", [str(source)], extra_cflags=["-O2"])
    calls = measures(extension.from_cpp)
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in calls}
    # The stable ABI has no derivatives: they are Python's.
    torch.library.register_autograd("stable::one_stable", lambda context, grad: grad)
    for _ in range(ROUNDS):
        for key, call in calls.items():
            with torch.inference_mode(not key[0].endswith("autograd")):
                times[key].append(call())
    rows = []
    for op, caller in sorted({key[:2] for key in times}):
        usual, stable = (statistics.median(times[op, caller, api]) for api in ("usual", "stable"))
        figures = (usual, stable, stable - usual)
        rows.append([f"{op}, from {caller}", *(f"{figure:.0f}" for figure in figures)])
    title = f"ns a call, torch {torch.__version__}, {cpu_model()}"
    show(title, ("arguments", "usual", "stable", "more"), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
