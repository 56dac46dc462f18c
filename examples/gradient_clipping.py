"""Long sequences and clipping: an RNN with relu adds two numbers marked among 100.

Relu and recurrent weights that start as the identity let the RNN remember for long (Le, Jaitly and
Hinton, 2015, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units"), and make
its gradients explode now and then. Clipping their norm keeps one such step from ruining the rest.

python examples/gradient_clipping.py [--backend torch|rnnfast] [--steps N]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, BATCH, HIDDEN = 100, 32, 64


class Adder(nn.Module):
    """Reads the sum off the last state."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.rnn = library.RNN(2, HIDDEN, nonlinearity="relu")
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.1)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, 2] -> sums [B]."""
        _, h_n = self.rnn(x)
        return self.readout(h_n[-1]).squeeze(1)


def batch() -> tuple[Tensor, Tensor]:
    """Numbers and marks [T, B, 2], with one mark in each half; the sums of the marked [B]."""
    numbers, marks, each = torch.rand(LENGTH, BATCH), torch.zeros(LENGTH, BATCH), range(BATCH)
    marks[torch.randint(LENGTH // 2, (BATCH,)), each] = 1.0
    marks[torch.randint(LENGTH // 2, LENGTH, (BATCH,)), each] = 1.0
    return torch.stack([numbers, marks], dim=2), (numbers * marks).sum(dim=0)


def train(model: Adder, max_norm: float, steps: int) -> float:
    """Trains; returns the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses, norms = [], []
    for step in range(1, steps + 1):
        x, target = batch()
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
        losses.append(loss.item())
        if step % max(steps // 5, 1) == 0:
            recent = norms[-max(steps // 5, 1) :]
            print(f"step {step:4d}   loss {losses[-1]:.4g}   largest gradient {max(recent):.4g}")
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains without and with clipping; returns the losses at the end."""
    library, steps = parse(__doc__, arguments, steps=600)
    losses = {}
    for kind, max_norm in (("unclipped", math.inf), ("clipped", 1.0)):
        print(kind)
        torch.manual_seed(0)
        losses[kind] = train(Adder(library), max_norm, steps)
        print(f"loss at the end {losses[kind]:.4g} (predicting the mean: about 0.167)\n")
    return losses


if __name__ == "__main__":
    main()
