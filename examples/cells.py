"""Loops of one's own over cells: one RNNCell, and two stacked.

The task is an echo: say at every step the symbol that was read three steps before. A loop over
cells leaves every step in your hands: to mask it, to mix in something, to stop early.

python examples/cells.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F

SYMBOLS, DELAY, LENGTH, BATCH, HIDDEN = 4, 3, 12, 32, 48


class Stack(nn.Module):
    """RNNCells on top of each other, with a readout."""

    def __init__(self, library: ModuleType, layers: int) -> None:
        super().__init__()
        sizes = [SYMBOLS] + [HIDDEN] * layers
        self.cells = nn.ModuleList(library.RNNCell(n, HIDDEN) for n in sizes[:-1])
        self.scores = nn.Linear(HIDDEN, SYMBOLS)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, symbols] -> scores [T, B, symbols]."""
        states: list[Tensor | None] = [None] * len(self.cells)
        outputs = []
        for y in x:
            for i, cell in enumerate(self.cells):
                y = states[i] = cell(y, states[i])
            outputs.append(self.scores(y))
        return torch.stack(outputs)


def train(model: Stack, steps: int) -> float:
    """Trains; returns the accuracy on fresh sequences."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        symbols = torch.randint(SYMBOLS, (LENGTH, BATCH))
        scores = model(F.one_hot(symbols, SYMBOLS).float())[DELAY:]
        loss = F.cross_entropy(scores.flatten(0, 1), symbols[:-DELAY].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(steps // 4, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")
    symbols = torch.randint(SYMBOLS, (LENGTH, 500))
    with torch.inference_mode():
        guesses = model(F.one_hot(symbols, SYMBOLS).float())[DELAY:].argmax(dim=2)
    return (guesses == symbols[:-DELAY]).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Trains one cell, then two; returns the accuracy of each."""
    library, steps = parse(__doc__, arguments, steps=200)
    accuracies = []
    for layers in (1, 2):
        print(f"{layers} RNNCell{'s' if layers > 1 else ''}")
        accuracies.append(train(Stack(library, layers), steps))
        print(f"accuracy {accuracies[-1]:.1%} (chance: {1 / SYMBOLS:.0%})\n")
    return accuracies


if __name__ == "__main__":
    main()
