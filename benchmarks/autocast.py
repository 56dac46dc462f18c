"""Layers in float32, under autocast to bfloat16, and in bfloat16 themselves; beside torch.nn's.

    python -m benchmarks.autocast              a table for each size
    python -m benchmarks.autocast --quick

All sides take turns in one run. Before anything is timed the float32 values of both are compared,
and those of bfloat16 with them as closely as it allows.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import beside, table
from benchmarks.timing import Budget

SHAPES = ((50, 32, 128, 128), (64, 32, 512, 512))
"""T, B, I, H."""
CELLS = ("RNN", "GRU", "LSTM")
WAYS = ("float32", "autocast", "bfloat16")
CLOSE = 0.1
"""How far outputs, between -1 and 1, may be from float32's in bfloat16."""


def sides(name: str, layer: nn.Module, x: Tensor) -> list[beside.Side]:
    """In the order of WAYS, of copies of a layer."""
    own, cast, half = (copy.deepcopy(layer) for _ in WAYS)
    half, x_half = half.bfloat16(), x.bfloat16()

    def under_autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cast(x)[0]  # type: ignore[no-any-return]

    layers, calls = (own, cast, half), (lambda: own(x)[0], under_autocast, lambda: half(x_half)[0])
    return [
        beside.side(f"{name}, {way}", *of) for way, *of in zip(WAYS, layers, calls, strict=True)
    ]


def rows(cell: str, shape: tuple[int, ...], budget: Budget) -> list[list[Any]]:
    """Milliseconds of torch.nn's and of ours, and by how much ours is faster, in each way."""
    T, B, features, hidden = shape
    theirs: nn.Module = getattr(nn, cell)(features, hidden)
    ours, x = rnnfast.convert(copy.deepcopy(theirs)), torch.randn(T, B, features)
    (plain, *low), (our_plain, *our_low) = (
        sides(name, layer, x) for name, layer in (("torch.nn", theirs), ("rnnfast", ours))
    )
    with torch.no_grad():
        for one in (*low, *our_low):
            torch.testing.assert_close(one.call().float(), plain.call(), rtol=0, atol=CLOSE)
    found = beside.seconds([plain, our_plain], budget, unlike=[*low, *our_low])
    times = {name: ((t[0], *t[2:4]), (t[1], *t[4:6])) for name, t in found.items()}
    return [
        [
            f"{cell}, {way}",
            *(
                f"{a[i] * 1e3:.3g} / {b[i] * 1e3:.3g} ms = {a[i] / b[i]:.2f} ({b[i] / b[0]:.2f})"
                for a, b in times.values()
            ),
        ]
        for i, way in enumerate(WAYS)
    ]


def main() -> None:
    options, budget = beside.begin("benchmarks.autocast", __doc__, CELLS)
    for shape in SHAPES:
        found = [row for cell in options.cells for row in rows(cell, shape, budget)]
        title = f"torch.nn / rnnfast (of our float32): T, B, I, H = {', '.join(map(str, shape))}"
        table.show(title, ["", "inference", "training"], found)


if __name__ == "__main__":
    main()
