"""Training of long sequences: time and memory of a layer that keeps its gates, computes them again
(`recompute=True`), or runs all over again (torch.utils.checkpoint); beside torch.nn's.

    python -m benchmarks.recompute              a table for each size
    python -m benchmarks.recompute --quick

Values are compared before anything is timed; all sides take turns in one run. The memory is the
most that a process holds in a pass forward and backward, above what it held before: one process for
each.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rnnfast
from benchmarks import beside, memory, table
from benchmarks.timing import Budget

SHAPES = ((1000, 16, 128, 256, 1), (1000, 16, 128, 256, 4))
"""T, B, I, H, layers."""
CELLS = ("GRU", "LSTM")
WAYS = ("torch.nn", "rnnfast", "rnnfast, recompute=True", "rnnfast, torch.utils.checkpoint")


def sides(cell: str, shape: tuple[int, ...]) -> list[beside.Side]:
    """In the order of WAYS."""
    T, B, features, hidden, layers = shape
    theirs: nn.Module = getattr(nn, cell)(features, hidden, layers)
    ours, again = (rnnfast.convert(copy.deepcopy(theirs)) for _ in range(2))
    again.recompute = True
    x = torch.randn(T, B, features)
    calls: list[tuple[nn.Module, Callable[[], Tensor]]] = [
        (theirs, lambda: theirs(x)[0]),
        (ours, lambda: ours(x)[0]),
        (again, lambda: again(x)[0]),
        (ours, lambda: checkpoint(ours, x, use_reentrant=False)[0]),
    ]
    return [beside.side(way, *call) for way, call in zip(WAYS, calls, strict=True)]


def peak(cell: str, way: str, shape: tuple[int, ...]) -> int:
    """Bytes of this process that both passes take at most."""
    return memory.growth(sides(cell, shape)[WAYS.index(way)].train)


def _mib(cell: str, way: str, shape: tuple[int, ...]) -> float:
    return memory.elsewhere(peak, cell, way, shape) / 2**20


def rows(cell: str, shape: tuple[int, ...], budget: Budget) -> list[list[Any]]:
    times = beside.seconds(sides(cell, shape), budget, ["training"])["training"]
    return [
        [f"{cell}: {way}", f"{time * 1e3:.3g}", f"{_mib(cell, way, shape):.0f}"]
        for way, time in zip(WAYS, times, strict=True)
    ]


def main() -> None:
    options, budget = beside.begin("benchmarks.recompute", __doc__, CELLS)
    for shape in SHAPES:
        found = [row for cell in options.cells for row in rows(cell, shape, budget)]
        title = f"training: T, B, I, H, layers = {', '.join(map(str, shape))}"
        table.show(title, ["", "ms", "MiB"], found)


if __name__ == "__main__":
    main()
