"""One model on several processes: DistributedDataParallel, FSDP2, and a single process's weights.

Each process trains on its share of every batch; the gradients are averaged between the processes
(gloo on CPUs, nccl on GPUs, one for each process). With FSDP2 each keeps a share of the weights,
too, and of the optimizer's state. So after any number of steps the weights are those of one process
that trains on whole batches, but for rounding: that is compared at the end.
The task: the sum of two numbers that are marked in a sequence (Hochreiter and Schmidhuber 1997).

torchrun --nproc-per-node 2 examples/distributed.py [--backend torch|rnnfast] [--steps N]
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

LENGTH, BATCH, HIDDEN = 10, 64, 32


class Adder(nn.Module):
    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.lstm = library.LSTM(2, HIDDEN, num_layers=2)
        self.readout = nn.Linear(HIDDEN, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [T, B, 2] -> [B, 1]."""
        output, _ = self.lstm(x)
        return self.readout(output[-1])


def sharded(model: Adder) -> Adder:
    """By FSDP2, in place: the layers are gathered one after the other."""
    kind = next(model.parameters()).device.type
    mesh = init_device_mesh(kind, (distributed.get_world_size(),))
    for module in (model.lstm, model):
        fully_shard(module, mesh=mesh)
    return model


WAYS = {"DistributedDataParallel": DistributedDataParallel, "FSDP2": sharded}


def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1) and marks on two of them ``[T, B, 2]``; the two's sums ``[B, 1]``."""
    numbers = torch.rand(LENGTH, BATCH, generator=generator)
    marks = torch.zeros(LENGTH, BATCH)
    halves = torch.rand(2, LENGTH // 2, BATCH, generator=generator)
    for i, half in enumerate(halves):
        marks[half.argmax(0) + i * LENGTH // 2, torch.arange(BATCH)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0).unsqueeze(1)


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


def whole(parameter: Tensor) -> Tensor:
    """With the shares of all processes."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def main(arguments: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Trains in all processes; returns, for each way, the loss, and how far the weights are from
    one process's.
    """
    library, steps = parse(__doc__, arguments, steps=300)
    if "RANK" not in os.environ:
        sys.exit("start its processes by: torchrun --nproc-per-node 2 examples/distributed.py")
    on_gpus = torch.cuda.is_available()
    distributed.init_process_group("nccl" if on_gpus else "gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpus else torch.device("cpu")
    alone = Adder(library).to(device)
    models = {way: copy.deepcopy(alone) for way in WAYS}
    train(alone, steps, device, rank=0, size=1)
    if rank == 0:
        print(f"{size} processes, {steps} steps (the loss of predicting the mean: 0.167)")
    found = {}
    for way, prepared in WAYS.items():
        loss = train(prepared(models[way]), steps, device, rank, size)
        pairs = zip(models[way].parameters(), alone.parameters(), strict=True)
        difference = max((whole(a) - b).abs().max().item() for a, b in pairs)
        found[way] = loss, difference
        if rank == 0:
            print(f"{way}: loss {loss:.4f}, weights within {difference:.1e} of one process's")
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
