"""One model on several processes: DistributedDataParallel, and the weights of a single process.

Each process trains on its share of every batch; the gradients are averaged between the processes
(gloo on CPUs, nccl on GPUs, one for each process). So after any number of steps the weights are
those of one process that trains on whole batches, but for rounding: that is compared at the end.
The task: the sum of two numbers that are marked in a sequence (Hochreiter and Schmidhuber 1997).

torchrun --nproc-per-node 2 examples/distributed.py [--backend torch|rnnfast] [--steps N]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

LENGTH, BATCH, HIDDEN = 10, 64, 32


class Adder(nn.Module):
    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.lstm = library.LSTM(2, HIDDEN, num_layers=2)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, 2] -> [B]."""
        output, _ = self.lstm(x)
        return self.readout(output[-1])[:, 0]


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1) and marks on two of them ``[T, B, 2]``; the sums of these two ``[B]``."""
    numbers = torch.rand(LENGTH, BATCH, generator=generator)
    marks = torch.zeros(LENGTH, BATCH)
    halves = torch.rand(2, LENGTH // 2, BATCH, generator=generator)
    for i, half in enumerate(halves):
        marks[half.argmax(0) + i * LENGTH // 2, torch.arange(BATCH)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def train(model: nn.Module, steps: int, device: torch.device, rank: int, size: int) -> float:
    """Trains on every `size`-th row of each batch; returns the mean loss of the last steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(steps):
        x, target = (t.to(device) for t in batch(generator))
        loss = F.mse_loss(model(x[:, rank::size]), target[rank::size])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    last = losses[-max(steps // 10, 1) :]
    return sum(last) / len(last)


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Trains in all processes; returns the loss, and how far the weights are from one process's."""
    library, steps = parse(__doc__, arguments, steps=300)
    if "RANK" not in os.environ:
        sys.exit("start its processes by: torchrun --nproc-per-node 2 examples/distributed.py")
    on_gpus = torch.cuda.is_available()
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    seed = torch.initial_seed()
    model = Adder(library).to(device)
    loss = train(DistributedDataParallel(model), steps, device, rank, size)
    torch.manual_seed(seed)
    alone = Adder(library).to(device)
    train(alone, steps, device, rank=0, size=1)
    pairs = zip(model.parameters(), alone.parameters(), strict=True)
    difference = max((a - b).abs().max().item() for a, b in pairs)
    if rank == 0:
        print(f"{size} processes, {steps} steps: loss {loss:.4f} (predicting the mean: 0.167)")
        print(f"largest difference of a weight from one process's: {difference:.1e}")
    distributed.destroy_process_group()
    return loss, difference


if __name__ == "__main__":
    main()
