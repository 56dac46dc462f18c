"""Forecasting: a GRU learns to continue a noisy wave, then runs on from its own predictions.

python examples/sine.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, BATCH, AHEAD = 60, 32, 40


class Forecaster(nn.Module):
    """Predicts the next value of a series at every step."""

    def __init__(self, library: ModuleType, hidden_size: int = 64) -> None:
        super().__init__()
        self.gru = library.GRU(1, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`x` [B, T, 1] -> the prediction of each next value [B, T, 1], and the state."""
        y, h = self.gru(x, h)
        return self.readout(y), h

    @torch.inference_mode()
    def forecast(self, x: Tensor, steps: int) -> Tensor:
        """Reads `x` [B, T, 1], then feeds each prediction back: [B, steps, 1]."""
        y, h = self(x)
        values = [y[:, -1:]]
        for _ in range(steps - 1):
            y, h = self(values[-1], h)
            values.append(y)
        return torch.cat(values, dim=1)


def waves(batch: int, length: int, noise: float) -> Tensor:
    """Two sines of a random phase and frequency each: [batch, length, 1]."""
    time = torch.arange(length, dtype=torch.float32)
    phase = 2 * math.pi * torch.rand(2, batch, 1)
    period = torch.tensor([12.0, 31.0]).view(2, 1, 1) * (0.9 + 0.2 * torch.rand(2, batch, 1))
    wave = torch.sin(2 * math.pi * time / period + phase).sum(dim=0)
    return (wave + noise * torch.randn(batch, length)).unsqueeze(2)


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains; returns the forecast's error as a fraction of that of predicting the mean."""
    library, steps = parse(__doc__, arguments, steps=600)
    model = Forecaster(library)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for step in range(1, steps + 1):
        x = waves(BATCH, LENGTH + 1, noise=0.05)
        prediction, _ = model(x[:, :-1])
        loss = F.mse_loss(prediction, x[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(steps // 6, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")

    x = waves(256, LENGTH + AHEAD, noise=0.0)
    truth = x[:, LENGTH:]
    forecast = model.forecast(x[:, :LENGTH], AHEAD)
    error = (F.mse_loss(forecast, truth) / truth.square().mean()).sqrt().item()
    print("\none series, every fourth value ahead")
    print("truth    ", " ".join(f"{v:5.2f}" for v in truth[0, ::4, 0].tolist()))
    print("forecast ", " ".join(f"{v:5.2f}" for v in forecast[0, ::4, 0].tolist()))
    print(f"error over {AHEAD} steps ahead: {error:.0%} of that of predicting the mean")
    return error


if __name__ == "__main__":
    main()
