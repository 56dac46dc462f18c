"""Layers with heads beside torch.nn's of the same function, whose w_hh is dense and mostly zeros.

    python -m benchmarks.heads              a table for each size
    python -m benchmarks.heads --quick

Values are compared before anything is timed; all sides take turns in one run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import beside, table
from benchmarks.timing import Budget

SHAPES = ((64, 16, 128, 512), (64, 16, 256, 1024))
"""T, B, I, H."""
HEADS = (1, 2, 4, 8, 16)
CELLS = ("GRU", "LSTM")


def on_the_diagonal(block: Tensor, gates: int) -> Tensor:
    """``[n, G*h, h]`` as the matrix ``[G*H, H]`` of torch.nn."""
    parts = block.unflatten(1, (gates, -1)).transpose(0, 1)  # [G, n, h, h]
    return torch.cat([torch.block_diag(*gate) for gate in parts])


def pair(cell: str, features: int, hidden: int, heads: int) -> tuple[Any, Any]:
    """torch.nn's layer and ours, of the same function."""
    theirs = getattr(nn, cell)(features, hidden)
    ours = getattr(rnnfast, cell)(features, hidden, heads=heads)
    gates = len(theirs.weight_hh_l0) // hidden
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            dense = on_the_diagonal(weight, gates) if weight.dim() == 3 else weight
            getattr(theirs, name).copy_(dense)
    return theirs, ours


def row(cell: str, shape: tuple[int, ...], heads: int, budget: Budget) -> list[str]:
    T, B, features, hidden = shape
    theirs, ours = pair(cell, features, hidden, heads)
    x = torch.randn(T, B, features)
    sides = [
        beside.side("torch.nn", theirs, lambda: theirs(x)[0]),
        beside.side("rnnfast", ours, lambda: ours(x)[0]),
    ]
    found = beside.seconds(sides, budget).values()
    return [
        f"{cell}, {heads} head{'s' * (heads > 1)}",
        *(f"{a * 1e3:.3g} / {b * 1e3:.3g} ms = {a / b:.2f}" for a, b in found),
    ]


def main() -> None:
    options, budget = beside.begin("benchmarks.heads", __doc__, CELLS)
    for shape in SHAPES:
        rows = [row(cell, shape, heads, budget) for cell in options.cells for heads in HEADS]
        title = f"torch.nn / rnnfast: T, B, I, H = {', '.join(map(str, shape))}"
        table.show(title, ["", "inference", "training"], rows)


if __name__ == "__main__":
    main()
