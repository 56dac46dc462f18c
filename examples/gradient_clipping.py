"""Long sequences and clipping: an RNN with relu adds two numbers that lie among 98 zeros.

Relu and recurrent weights that start as the identity let the RNN remember for long (Le, Jaitly and
Hinton, 2015, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units"). But what
one step of the optimizer does to the recurrent weights comes back to the power of 100: the first
gradient has a norm of a hundred, and a step along all of it ends in numbers that are none. Clipped
to a norm of one, the same steps learn the task.

python examples/gradient_clipping.py [--backend torch|rnnfast] [--steps N] [--seed N]
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
MEAN = 2 / 12  # the loss of predicting the mean: the variance of two numbers from [0, 1)


class Adder(nn.Module):
    """Reads the sum off the last state."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.rnn = library.RNN(1, HIDDEN, nonlinearity="relu")
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.normal_(self.rnn.weight_ih_l0, std=0.3)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, 1] -> sums [B]."""
        _, h_n = self.rnn(x)
        return self.readout(h_n[-1]).squeeze(1)


def batch() -> tuple[Tensor, Tensor]:
    """Zeros with a number in each half [T, B, 1]; the sums of the two [B]."""
    x, sequences = torch.zeros(LENGTH, BATCH, 1), torch.arange(BATCH)
    numbers = torch.rand(2, BATCH)
    for half, number in enumerate(numbers):
        first = half * LENGTH // 2
        x[torch.randint(first, first + LENGTH // 2, (BATCH,)), sequences, 0] = number
    return x, numbers.sum(dim=0)


def train(model: Adder, max_norm: float, steps: int) -> float:
    """Trains, until the loss is no number; returns the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    losses, norms = [], []
    for step in range(1, steps + 1):
        x, target = batch()
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), max_norm).item())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        lost = not math.isfinite(losses[-1])
        if lost or step % max(steps // 5, 1) == 0:
            largest = max(norms[-max(steps // 5, 1) :])
            print(f"step {step:4d}   loss {losses[-1]:.4g}   largest gradient {largest:.4g}")
        if lost:
            return math.nan
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains without and with clipping; returns the losses at the end."""
    library, steps = parse(__doc__, arguments, steps=600)
    losses, seed = {}, torch.initial_seed()
    for kind, max_norm in (("unclipped", math.inf), ("clipped", 1.0)):
        print(kind)
        torch.manual_seed(seed)
        losses[kind] = train(Adder(library), max_norm, steps)
        print(f"loss at the end {losses[kind]:.4g} (predicting the mean: about {MEAN:.3f})\n")
    return losses


if __name__ == "__main__":
    main()
