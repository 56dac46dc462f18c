"""A deep stack of GRUs with residual connections, added in place: `y += x`.

An RNN layer's output may be written over before backward: its gradients come from tensors of its
own. So a residual connection needs no second output-sized tensor per layer. The task: at every
step, the product of the inputs two and five steps before.

python examples/residual.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, BATCH, HIDDEN, LAYERS = 25, 32, 32, 10


class Stack(nn.Module):
    """Ten GRUs; with `residual`, each adds to what it read."""

    def __init__(self, library: ModuleType, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.encode = nn.Linear(1, HIDDEN)
        self.layers = nn.ModuleList(library.GRU(HIDDEN, HIDDEN) for _ in range(LAYERS))
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, 1] -> [T, B, 1]."""
        x = self.encode(x)
        for layer in self.layers:
            y, _ = layer(x)
            if self.residual:
                y += x
            x = y
        return self.readout(x)


def train(model: Stack, steps: int) -> float:
    """Trains; returns the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(1, steps + 1):
        x = torch.empty(LENGTH, BATCH, 1).uniform_(-1.7, 1.7)
        target = x[3:-2] * x[:-5]
        loss = F.mse_loss(model(x)[5:], target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % max(steps // 4, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains the stack without and with residual connections; returns the losses at the end."""
    library, steps = parse(__doc__, arguments, steps=200)
    losses, seed = {}, torch.initial_seed()
    for kind in ("plain", "residual"):
        print(f"{kind} stack of {LAYERS} GRUs")
        torch.manual_seed(seed)
        losses[kind] = train(Stack(library, kind == "residual"), steps)
        print(f"loss at the end {losses[kind]:.3f} (predicting the mean: about 0.93)\n")
    return losses


if __name__ == "__main__":
    main()
