"""Our RNNCell, GRUCell and LSTMCell beside torch.nn's: one step.

    python -m benchmarks.cells              a table, and the geometric means
    python -m benchmarks.cells --quick

Values are compared before anything is timed; all sides take turns in one run.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import beside, table
from benchmarks.timing import Budget, geometric_mean

SHAPES = ((1, 128), (8, 128), (32, 128), (128, 128), (1, 512), (32, 512))
"""B, H; I is H."""
CELLS = ("RNNCell", "GRUCell", "LSTMCell")


def sides_of(cell: str, B: int, hidden: int) -> list[beside.Side]:
    """torch.nn's, ours, and ours with frozen weights."""
    theirs = getattr(nn, cell)(hidden, hidden)
    ours = getattr(rnnfast, cell)(hidden, hidden)
    ours.load_state_dict(theirs.state_dict())
    frozen = rnnfast.freeze(copy.deepcopy(ours))
    x, h = torch.randn(B, hidden), torch.randn(B, hidden)
    hx = (h, torch.randn(B, hidden)) if cell == "LSTMCell" else h

    def side(name: str, module: Any) -> beside.Side:
        def step() -> Tensor:
            after = module(x, hx)
            return torch.cat(after) if isinstance(after, tuple) else after

        return beside.side(name, module, step)

    return [side("torch.nn", theirs), side("rnnfast", ours), side("frozen", frozen)]


def ratios(cell: str, B: int, hidden: int, budget: Budget) -> dict[str, tuple[float, float]]:
    """By pass, the seconds of torch.nn's and of ours."""
    sides = sides_of(cell, B, hidden)
    theirs, ours, frozen = beside.seconds(sides, budget, ("inference",))["inference"]
    training = beside.seconds(sides[:2], budget, ("training",))["training"]
    return {
        "inference": (theirs, ours),
        "frozen": (theirs, frozen),
        "training": (training[0], training[1]),
    }


def main() -> None:
    options, budget = beside.begin("benchmarks.cells", __doc__, CELLS)
    rows, means = [], dict[str, list[float]]()
    for cell in options.cells:
        for B, hidden in SHAPES:
            found = ratios(cell, B, hidden, budget)
            for name, (a, b) in found.items():
                means.setdefault(name, []).append(a / b)
            texts = [f"{a * 1e6:.3g} / {b * 1e6:.3g} = {a / b:.2f}" for a, b in found.values()]
            rows.append([f"{cell} B={B} H={hidden}", *texts])
    rows.append(["geometric mean", *(f"{geometric_mean(found):.2f}" for found in means.values())])
    table.show("torch.nn / rnnfast, microseconds", ["", *means], rows)


if __name__ == "__main__":
    main()
