"""What is learned: data that packages ship, a model, and how it is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

SEEDS = 10
BATCH = 24
"""More than 20 rows: fewer train in float32 where the CPU multiplies bfloat16."""

Input = Tensor | PackedSequence
Batch = tuple[Input, Tensor]


class Reader(nn.Module):
    """A recurrent layer between an embedding, if there are symbols, and a linear head."""

    def __init__(self, layer: nn.RNNBase, outputs: int, symbols: int = 0, last: bool = False):
        super().__init__()
        self.embedding = nn.Embedding(symbols, layer.input_size) if symbols else None
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size, outputs)
        self.last = last

    def forward(self, x: Input, states: Any = None) -> tuple[Tensor, Any]:
        """`x` [T, B, I] or packed; symbols without I. Returns a row for each step, or for the last
        one alone, and the states behind it.
        """
        if self.embedding is not None:
            packed = isinstance(x, PackedSequence)
            x = x._replace(data=self.embedding(x.data)) if packed else self.embedding(x)
        output, states = self.layer(x, states)
        if isinstance(output, PackedSequence):
            output = output.data
        return self.head(output[-1] if self.last else output), states


@dataclass(frozen=True)
class Score:
    """What is said of a trained model on the test data, from its outputs and the targets."""

    name: str
    digits: int
    of: Callable[[Tensor, Tensor], float]


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Of rows of any shape, in nats."""
    return F.cross_entropy(outputs.flatten(0, -2), target.flatten())


ACCURACY = Score(
    "accuracy, %", 2, lambda y, target: 100 * (y.argmax(-1) == target).double().mean().item()
)
RMSE = Score("RMSE, standard deviations", 4, lambda y, target: F.mse_loss(y, target).sqrt().item())
BITS = Score("bits per character", 4, lambda y, t: cross_entropy(y, t).item() / math.log(2))


@dataclass(frozen=True)
class Task:
    """model: makes one, of torch.nn. batches: without an end, in the order of a generator. carries:
    a batch goes on from the states that the one before it left.
    """

    name: str
    title: str
    steps: int
    learning_rate: float
    model: Callable[[], Reader]
    batches: Callable[[Generator], Iterator[Batch]]
    valid: Batch
    test: Batch
    loss: Callable[[Tensor, Tensor], Tensor]
    score: Score
    carries: bool = False


def shuffled(count: int, generator: Generator) -> Iterator[Tensor]:
    """Indices of one batch after another, anew for every epoch; what is left over is left out."""
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[: count - count % BATCH].split(BATCH)


@cache
def digits() -> Task:
    """Handwritten digits, the rows of an image as steps."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=Generator().manual_seed(0))
    images = torch.tensor(data.images, dtype=torch.float32)[order].transpose(0, 1) / 16
    labels = torch.tensor(data.target)[order]
    train, valid = 1197, 1497
    return Task(
        name="digits",
        title="digits, LSTM",
        steps=480,
        learning_rate=3e-3,
        model=lambda: Reader(nn.LSTM(8, 64), 10, last=True),
        batches=lambda g: ((images[:, i], labels[i]) for i in shuffled(train, g)),
        valid=(images[:, train:valid], labels[train:valid]),
        test=(images[:, valid:], labels[valid:]),
        loss=cross_entropy,
        score=ACCURACY,
    )


@cache
def membrane() -> Task:
    """The next sample of the potential of a neuron's membrane, 12,000 samples in all."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("membrane.dat") as file:
        samples = np.frombuffer(file.read(), np.float32)
    train, held_out, steps = 9000, 1500, 32
    mean, deviation = samples[:train].mean(), samples[:train].std()
    series = torch.tensor((samples - mean) / deviation)[:, None]

    def windows(starts: Tensor) -> Batch:
        x = torch.stack([series[i : i + steps + 1] for i in starts.tolist()], 1)
        return x[:-1], x[1:]

    def batches(generator: Generator) -> Iterator[Batch]:
        while True:
            yield windows(torch.randint(train - steps, (BATCH,), generator=generator))

    valid, test = (
        windows(torch.arange(start, start + held_out - steps, steps))
        for start in (train, train + held_out)
    )
    return Task(
        name="membrane",
        title="membrane potential, GRU of two layers",
        steps=240,
        learning_rate=5e-3,
        model=lambda: Reader(nn.GRU(1, 32, num_layers=2, dropout=0.1), 1),
        batches=batches,
        valid=valid,
        test=test,
        loss=F.mse_loss,
        score=RMSE,
    )


@cache
def corpus() -> tuple[str, dict[str, int]]:
    """The help on Python's topics, as this Python has it; its characters, numbered."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return text, {character: i for i, character in enumerate(sorted(set(text)))}


def encoded(text: str) -> Tensor:
    numbers = corpus()[1]
    return torch.tensor([numbers[character] for character in text])


@cache
def lines() -> Task:
    """The next character of a line; lines of 20 to 59 characters, packed."""
    found = dict.fromkeys(line.strip() for line in corpus()[0].splitlines())
    texts = [encoded(line) for line in found if 20 <= len(line) < 60]
    order = torch.randperm(len(texts), generator=Generator().manual_seed(0))
    texts = [texts[i] for i in order]
    held_out, symbols = 200, len(corpus()[1])
    train = texts[2 * held_out :]

    def batch(chosen: list[Tensor]) -> Batch:
        x, target = (
            pack_sequence([line[part] for line in chosen], enforce_sorted=False)
            for part in (slice(None, -1), slice(1, None))
        )
        return x, target.data

    return Task(
        name="lines",
        title="lines of text, RNN, packed",
        steps=300,
        learning_rate=5e-3,
        model=lambda: Reader(nn.RNN(32, 64), symbols, symbols),
        batches=lambda g: (batch([train[i] for i in chosen]) for chosen in shuffled(len(train), g)),
        valid=batch(texts[:held_out]),
        test=batch(texts[held_out : 2 * held_out]),
        loss=cross_entropy,
        score=BITS,
    )


@cache
def long() -> Task:
    """The next character of a text without end, the state carried from batch to batch."""
    text, numbers = corpus()
    steps, held_out = 12, len(text) // 10
    train, *others = encoded(text).split([len(text) - 2 * held_out, held_out, held_out])

    def batches(generator: Generator) -> Iterator[Batch]:
        start = int(torch.randint(len(train), (), generator=generator))
        rows = train.roll(start)
        rows = rows[: len(rows) - len(rows) % BATCH].view(BATCH, -1).t()
        while True:
            for i in range(0, len(rows) - steps, steps):
                yield rows[i : i + steps], rows[i + 1 : i + steps + 1]

    def stream(part: Tensor) -> Batch:
        rows = part[: BATCH * 101].view(BATCH, -1).t()
        return rows[:-1], rows[1:]

    valid, test = map(stream, others)
    return Task(
        name="long",
        title="text without end, LSTM",
        steps=10_000,
        learning_rate=2e-3,
        model=lambda: Reader(nn.LSTM(16, 32), len(numbers), len(numbers)),
        batches=batches,
        valid=valid,
        test=test,
        loss=cross_entropy,
        score=BITS,
        carries=True,
    )


TASKS: dict[str, Callable[[], Task]] = {
    "digits": digits,
    "membrane": membrane,
    "lines": lines,
    "long": long,
}
