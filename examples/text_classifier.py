"""Text classification with an LSTM, one-way and bidirectional: padding, then pack_padded_sequence.

The reviews are generated. Each ends, or begins, with the verdict; the rest is talk, some of it
about other films. Packing makes `h_n` the state after each review's own last word, and lets the
reverse direction start there, whatever padding follows.

python examples/text_classifier.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

PRAISE = ["wonderful", "moving", "brilliant", "charming", "superb"]
BLAME = ["dull", "clumsy", "tedious", "dreadful", "shallow"]
TALK = [
    "we went on a rainy evening with friends",
    "the plot follows two brothers and a lost letter",
    "it was shot in black and white",
    "the hall was full and rather cold",
    "the first film of the series came out years ago",
    "some critics called that one {}",
    "my neighbour found it {}",
]
WORDS = sorted(
    {w for s in TALK for w in s.split()} | {*PRAISE, *BLAME, "this", "film", "is", "not"}
)
INDEX = {word: i for i, word in enumerate(WORDS, start=1)}  # 0 is padding


class Classifier(nn.Module):
    """Tells praise from blame by the LSTM's final state, of both directions if it has them."""

    def __init__(self, library: ModuleType, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 1, 32, padding_idx=0)
        self.lstm = library.LSTM(32, 48, batch_first=True, bidirectional=bidirectional)
        self.score = nn.Linear(96 if bidirectional else 48, 1)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`tokens` [B, T] padded with 0, `lengths` [B] on the CPU -> scores [B]."""
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, (h_n, _) = self.lstm(packed)
        return self.score(h_n.transpose(0, 1).flatten(1)).squeeze(1)


def review(rng: random.Random) -> tuple[str, bool]:
    """A review of 4 to some 60 words, and whether it praises."""
    word, negated = rng.choice(PRAISE + BLAME), rng.random() < 0.4
    verdict = f"this film is {'not ' if negated else ''}{word}"
    talk = [s.format(rng.choice(PRAISE + BLAME)) for s in rng.sample(TALK, rng.randint(0, 6))]
    sentences = [verdict, *talk] if rng.random() < 0.5 else [*talk, verdict]
    return " ".join(sentences), (word in PRAISE) != negated


def batch(rng: random.Random, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Padded tokens [size, T], lengths [size], labels [size]."""
    texts, labels = zip(*(review(rng) for _ in range(size)), strict=True)
    rows = [torch.tensor([INDEX[word] for word in text.split()]) for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(rows, batch_first=True), lengths, torch.tensor(labels).float()


def train(model: Classifier, steps: int) -> float:
    """Trains; returns the accuracy on fresh reviews."""
    rng = random.Random(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(1, steps + 1):
        tokens, lengths, labels = batch(rng, 64)
        loss = F.binary_cross_entropy_with_logits(model(tokens, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(steps // 5, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")
    tokens, lengths, labels = batch(rng, 1000)
    with torch.inference_mode():
        return ((model(tokens, lengths) > 0) == labels.bool()).float().mean().item()


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Trains both models; returns the accuracy of each."""
    library, steps = parse(__doc__, arguments, steps=150)
    accuracy = {}
    for kind in ("one-way", "bidirectional"):
        print(kind)
        accuracy[kind] = train(Classifier(library, kind == "bidirectional"), steps)
        print(f"accuracy on 1000 new reviews: {accuracy[kind]:.1%}\n")
    return accuracy


if __name__ == "__main__":
    main()
