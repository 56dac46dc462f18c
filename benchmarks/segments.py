"""Sequences that begin anew inside a row, and rows of unlike lengths: what users do, and ours.

    python -m benchmarks.segments              two tables
    python -m benchmarks.segments --quick

*resets*: rollouts of T steps of B environments whose episodes end at random, after `mean` steps on
average. Beside ``rnnfast.GRU(x, h, resets=begins)``: a loop over the steps that clears the state
(torch.nn's layer with T = 1, and its cell), and the split-and-pad of RL libraries: episodes cut on
the host, padded, run as one batch. T = 1 is a policy that acts.

*lengths*: a padded batch. Beside ``rnnfast.GRU(x, lengths=lengths)``: packing by
``pack_padded_sequence``, the layer, ``pad_packed_sequence``, with torch.nn's layer and with ours.

Values are compared before anything is timed; all sides take turns in one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    pack_padded_sequence,
    pad_packed_sequence,
    pad_sequence,
)

import rnnfast
from benchmarks import beside, table
from benchmarks.timing import Budget

SHAPES = ((128, 8, 64, 64), (128, 32, 64, 128), (128, 64, 128, 256))
"""T, B, I, H."""
ONE_STEP = ((1, 1, 64, 64), (1, 32, 64, 128))
MEAN_EPISODE = 25
CELLS = ("GRU", "LSTM")


def cleared(hx: Any, begins: Tensor) -> Any:
    keep = ~begins[:, None]
    return tuple(s * keep for s in hx) if isinstance(hx, tuple) else hx * keep


def steps_of_layer(layer: nn.Module, x: Tensor, hx: Any, begins: Tensor) -> Tensor:
    outputs = []
    for step, begin in zip(x, begins, strict=True):
        output, hx = layer(step[None], cleared(hx, begin))
        outputs.append(output)
    return torch.cat(outputs)


def steps_of_cell(cell: nn.Module, x: Tensor, hx: Any, begins: Tensor) -> Tensor:
    outputs = []
    hx = tuple(s[0] for s in hx) if isinstance(hx, tuple) else hx[0]
    for step, begin in zip(x, begins, strict=True):
        hx = cell(step, cleared(hx, begin))
        outputs.append(hx[0] if isinstance(hx, tuple) else hx)
    return torch.stack(outputs)


def split_and_pad(layer: nn.Module, x: Tensor, hx: Any, begins: Tensor) -> Tensor:
    """As sb3-contrib does: episodes as rows of a padded batch, the first of each with its state."""
    T, B = begins.shape
    lengths, elements, initial = [], [], []
    for b, row in enumerate(begins.t().tolist()):
        starts = [0, *(t for t in range(1, T) if row[t])]
        lengths += [end - start for start, end in zip(starts, [*starts[1:], T], strict=True)]
        elements += [b] * len(starts)
        initial += [not row[0], *[False] * (len(starts) - 1)]
    padded = pad_sequence(x.transpose(0, 1).flatten(0, 1).split(lengths))
    keep = torch.tensor(initial)[:, None]
    states = hx if isinstance(hx, tuple) else (hx,)
    states = tuple(s[:, elements] * keep for s in states)
    output, _ = layer(padded, states if isinstance(hx, tuple) else states[0])
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    flat = output.transpose(0, 1)[there]
    return flat.view(B, T, -1).transpose(0, 1)


def pack(layer: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    return pad_packed_sequence(layer(packed)[0], total_length=len(x))[0]


def pair(cell: str, features: int, hidden: int) -> tuple[Any, Any]:
    theirs = getattr(nn, cell)(features, hidden)
    ours = getattr(rnnfast, cell)(features, hidden)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def rows_of(sides: Sequence[beside.Side], budget: Budget) -> list[list[str]]:
    """A row for each side: inference, training, and how many times as fast the last one is."""
    found = beside.seconds(sides, budget).values()
    return [
        [one.name, *(f"{of[i] * 1e3:.3g} ms ({of[i] / of[-1]:.1f}x)" for of in found)]
        for i, one in enumerate(sides)
    ]


def resets(cell: str, shape: tuple[int, ...], budget: Budget) -> list[list[str]]:
    T, B, features, hidden = shape
    theirs, ours = pair(cell, features, hidden)
    one = getattr(nn, f"{cell}Cell")(features, hidden)
    one.load_state_dict({k.removesuffix("_l0"): v for k, v in theirs.state_dict().items()})
    x = torch.randn(T, B, features)
    begins = torch.rand(T, B) < 1 / MEAN_EPISODE
    h = torch.randn(1, B, hidden)
    hx = (h, torch.randn(1, B, hidden)) if cell == "LSTM" else h
    ways: list[tuple[str, Any, Callable[[], Tensor]]] = [
        ("torch.nn, step by step", theirs, lambda: steps_of_layer(theirs, x, hx, begins)),
        ("torch.nn's cell, step by step", one, lambda: steps_of_cell(one, x, hx, begins)),
        ("torch.nn, split and padded", theirs, lambda: split_and_pad(theirs, x, hx, begins)),
        ("rnnfast, split and padded", ours, lambda: split_and_pad(ours, x, hx, begins)),
        ("rnnfast, resets=", ours, lambda: ours(x, hx, resets=begins)[0]),
    ]
    return rows_of([beside.side(f"{cell}: {name}", *way) for name, *way in ways], budget)


def lengths(cell: str, shape: tuple[int, ...], budget: Budget) -> list[list[str]]:
    T, B, features, hidden = shape
    theirs, ours = pair(cell, features, hidden)
    x = torch.randn(T, B, features)
    ends = torch.randint(1, T + 1, (B,))
    ways: list[tuple[str, Any, Callable[[], Tensor]]] = [
        ("torch.nn, packed", theirs, lambda: pack(theirs, x, ends)),
        ("rnnfast, packed", ours, lambda: pack(ours, x, ends)),
        ("rnnfast, lengths=", ours, lambda: ours(x, lengths=ends)[0]),
    ]
    return rows_of([beside.side(f"{cell}: {name}", *way) for name, *way in ways], budget)


def main() -> None:
    options, budget = beside.begin("benchmarks.segments", __doc__, CELLS)
    for what, shapes, measure in (
        ("resets", SHAPES + ONE_STEP, resets),
        ("lengths", SHAPES, lengths),
    ):
        for shape in shapes:
            rows = [row for cell in options.cells for row in measure(cell, shape, budget)]
            title = f"{what}: T, B, I, H = {', '.join(map(str, shape))}"
            table.show(title, ["", "inference", "training"], rows)


if __name__ == "__main__":
    main()
