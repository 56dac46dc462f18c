"""Layers with layer normalisation, zoneout, dropout of states, clipped gradients, and with units on
their own (IndRNN); beside the same in plain PyTorch, step by step after one product for all inputs.

    python -m benchmarks.regularised              a table for each size
    python -m benchmarks.regularised --quick

torch.nn has none of them: its plain layer is a yardstick. Values are compared before anything is
timed, with the same masks; all sides take turns in one run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import beside, table
from benchmarks.beside import Side
from benchmarks.timing import Budget
from rnnfast import reference, regularisation
from rnnfast.regularisation import Regularisation
from rnnfast.spec import MODES

SHAPES = ((100, 32, 128, 256), (100, 8, 64, 128), (64, 64, 256, 512))
"""T, B, I, H."""
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.1},
    "state_dropout": {"state_dropout": 0.2},
    "clip_gradients": {"clip_gradients": 1.0},
    "heads = H": {},
}
CELLS = ("RNN", "GRU", "LSTM")


def in_torch(layer: Any, x: Tensor) -> Tensor:
    """What the layer gives, by torch's operations."""
    options = (layer._regularisation or Regularisation()).at(layer.training)
    weights = list(layer._flat_weights)
    if weights[1].dim() == 3:
        weights[1] = weights[1][:, :, 0].t().reshape(-1)
    output, _ = regularisation.layer(
        options, reference.layer, False, layer.training,
        MODES[layer.mode].name, x, None, (), weights, False,
    )  # fmt: skip
    return output


def contracting(layer: Any) -> Any:
    """The layer, with gains with which an LSTM forgets errors of rounding; with those of 1 that it
    begins with they grow, in torch's operations as in ours, until no two ways can be compared.
    """
    if hasattr(layer, "norm_hh_l0"):
        nn.init.constant_(layer.norm_hh_l0, 0.5)
    return layer


def seeded(call: Any) -> Any:
    """`call`, which draws the same masks whenever it is called."""

    def run() -> Tensor:
        torch.manual_seed(0)
        return call()  # type: ignore[no-any-return]

    return run


def row(cell: str, shape: tuple[int, ...], option: str, budget: Budget) -> list[str]:
    T, B, features, hidden = shape
    options = OPTIONS[option] or {"heads": hidden}
    ours = contracting(getattr(rnnfast, cell)(features, hidden, **options))
    theirs, x = getattr(nn, cell)(features, hidden), torch.randn(T, B, features)
    sides = [
        beside.side("torch", ours, seeded(lambda: in_torch(ours, x))),
        beside.side("rnnfast", ours, seeded(lambda: ours(x)[0])),
    ]
    yardstick = Side("torch.nn", lambda: theirs(x)[0], list(theirs.parameters()))
    found = beside.seconds(sides, budget, unlike=[yardstick]).values()
    return [
        f"{cell}, {option}",
        *(f"{a * 1e3:.3g} / {b * 1e3:.3g} = {a / b:.1f} ({c * 1e3:.3g})" for a, b, c in found),
    ]


def main() -> None:
    options, budget = beside.begin("benchmarks.regularised", __doc__, CELLS)
    for shape in SHAPES:
        rows = [row(cell, shape, name, budget) for cell in options.cells for name in OPTIONS]
        title = "step by step / rnnfast (torch.nn, without), milliseconds: T, B, I, H = "
        table.show(f"{title}{', '.join(map(str, shape))}", ["", "inference", "training"], rows)


if __name__ == "__main__":
    main()
