"""The demo: handwritten digits, read as sequences, with nn.GRU and with rnnfast.GRU.

The digits ship with scikit-learn: 1797 images of 8 x 8 pixels. A GRU reads each as 8 rows, one a
step, or as 64 pixels (`--read pixels`). The same model, from the same seed, on the same batches, is
trained with both libraries, an epoch of one and an epoch of the other in turn, so that both are
timed in the same circumstances.

The two differ by rounding alone, but training magnifies rounding: over 64 steps far more than over
8, and with any two implementations.

python examples/digits.py [--read rows|pixels] [--epochs N] [--plot FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import matplotlib
import torch
from common import BACKENDS
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

matplotlib.use("Agg")  # draws to a file, needs no window
from matplotlib import pyplot

BATCH, HIDDEN, TRAIN = 64, 128, 1437
NAMES = {"torch": "nn.GRU", "rnnfast": "rnnfast.GRU"}


class Reader(nn.Module):
    """Scores the ten digits by the GRU's last state."""

    def __init__(self, library: ModuleType, input_size: int) -> None:
        super().__init__()
        self.gru = library.GRU(input_size, HIDDEN, batch_first=True)
        self.scores = nn.Linear(HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, I] -> scores [B, 10]."""
        _, h_n = self.gru(x)
        return self.scores(h_n[-1])


@dataclass
class Run:
    """One library's training: the model, and what is measured on the way."""

    model: Reader
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: float = 0.0

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Trains on the batches; records the loss of each, and the time of all."""
        start = time.perf_counter()
        for x, labels in batches:
            loss = F.cross_entropy(self.model(x), labels)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.losses.append(loss.item())
        self.seconds.append(time.perf_counter() - start)


def train(images: Tensor, labels: Tensor, epochs: int) -> dict[str, Run]:
    """Trains both models on the first part of `images` [N, T, I]; tests them on the rest."""
    runs = {}
    for name, library in BACKENDS.items():
        torch.manual_seed(0)
        model = Reader(library, images.shape[2])
        runs[name] = Run(model, torch.optim.Adam(model.parameters(), lr=3e-3))
    for _ in tqdm(range(epochs), desc="training both", unit="epoch"):
        batches = [(images[i], labels[i]) for i in torch.randperm(TRAIN).split(BATCH)]
        for run in runs.values():
            run.epoch(batches)
    for run in runs.values():
        with torch.inference_mode():
            right = run.model(images[TRAIN:]).argmax(dim=1) == labels[TRAIN:]
        run.accuracy = right.float().mean().item()
    return runs


def table(runs: dict[str, Run]) -> Table:
    """What came out, side by side."""
    difference = max(
        abs(a - b) for a, b in zip(runs["torch"].losses, runs["rnnfast"].losses, strict=True)
    )
    seconds = {name: statistics.median(run.seconds) for name, run in runs.items()}
    speed_up = seconds["torch"] / seconds["rnnfast"]
    lines = Table(title="The same model from the same seed", show_header=True)
    lines.add_column()
    for name in runs:
        lines.add_column(NAMES[name], justify="right")
    lines.add_row("loss at the end", *(f"{run.losses[-1]:.6f}" for run in runs.values()))
    lines.add_row("loss curves' largest difference", "", f"{difference:.1e}")
    lines.add_row("test accuracy", *(f"{run.accuracy:.2%}" for run in runs.values()))
    lines.add_row("seconds per epoch (median)", *(f"{seconds[name]:.3f}" for name in runs))
    lines.add_row("speed-up", "1.00x", f"{speed_up:.2f}x")
    return lines


def plot(runs: dict[str, Run], path: Path) -> None:
    """The loss curves on top of each other, and the time of an epoch."""
    figure, (curves, bars) = pyplot.subplots(
        1, 2, figsize=(10, 4), width_ratios=[3, 1], layout="constrained"
    )
    styles = {"torch": ("0.6", "-", 4.0), "rnnfast": ("tab:red", "-", 1.0)}
    for name, run in runs.items():
        color, line, width = styles[name]
        curves.semilogy(run.losses, line, color=color, linewidth=width, label=NAMES[name])
        bars.bar(NAMES[name], statistics.median(run.seconds), color=color)
    curves.set(xlabel="training step", ylabel="loss", title="Loss of every step")
    curves.legend()
    bars.set(ylabel="seconds per epoch", title="Time")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> dict[str, Run]:
    """Trains both, prints the table, saves the plot; returns the two runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--read", choices=["rows", "pixels"], default="rows")
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, default=Path(__file__).with_suffix(".png"))
    options = parser.parse_args(arguments)

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    if options.read == "pixels":
        images = images.flatten(1).unsqueeze(2)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    runs = train(images[order], torch.tensor(data.target)[order], options.epochs)
    Console().print(table(runs))
    plot(runs, options.plot)
    print(f"plot: {options.plot}")
    return runs


if __name__ == "__main__":
    main()
