"""Sequence to sequence: a GRU encoder and a GRU decoder turn `5 March 1987` into `1987-03-05`.

In training the decoder reads the right answer, one character behind ("teacher forcing"), in one
call. Afterwards it reads what it wrote itself, one character a call, carrying its state.

python examples/seq2seq.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

import calendar
import datetime
import random
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

MONTHS = list(calendar.month_name)[1:]
CHARACTERS = sorted({*"0123456789- .,", *"".join(MONTHS)})
INDEX = {c: i for i, c in enumerate(CHARACTERS)}
START = len(CHARACTERS)
ANSWER = len("1987-03-05")


class Translator(nn.Module):
    """A bidirectional encoder, whose last states side by side are the decoder's first."""

    def __init__(self, library: ModuleType, hidden_size: int = 256) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS) + 1, 32)
        self.encoder = library.GRU(32, hidden_size // 2, bidirectional=True)
        self.decoder = library.GRU(32, hidden_size)
        self.scores = nn.Linear(hidden_size, len(CHARACTERS))

    def encode(self, sources: Sequence[Tensor]) -> Tensor:
        """Tokens, one tensor [T] a source -> the state after each one's last [1, B, H]."""
        embedded = [self.embedding(source) for source in sources]
        _, h_n = self.encoder(pack_sequence(embedded, enforce_sorted=False))
        return torch.cat([h_n[0], h_n[1]], dim=1).unsqueeze(0)

    def forward(self, sources: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Teacher forcing: `targets` [T, B] -> scores of each of their characters [T, B, C]."""
        start = torch.full_like(targets[:1], START)
        shifted = torch.cat([start, targets[:-1]])
        y, _ = self.decoder(self.embedding(shifted), self.encode(sources))
        return self.scores(y)

    @torch.inference_mode()
    def translate(self, sources: Sequence[Tensor]) -> Tensor:
        """The likeliest character each time: [T, B]."""
        h = self.encode(sources)
        token = torch.full((1, len(sources)), START)
        answer = []
        for _ in range(ANSWER):
            y, h = self.decoder(self.embedding(token), h)
            token = self.scores(y).argmax(dim=2)
            answer.append(token)
        return torch.cat(answer)


def written(rng: random.Random) -> tuple[str, str]:
    """A date as a person writes it, and as ISO 8601 does."""
    date = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(36525))
    month = MONTHS[date.month - 1]
    form = rng.choice(["{0.day} {1} {0.year}", "{1} {0.day}, {0.year}", "{0.day}. {2} {0.year}"])
    return form.format(date, month, month[:3]), date.isoformat()


def batch(rng: random.Random, size: int) -> tuple[list[str], list[Tensor], Tensor]:
    """Dates as written, their tokens, and the tokens of the answers [T, size]."""
    texts, answers = zip(*(written(rng) for _ in range(size)), strict=True)
    sources = [torch.tensor([INDEX[c] for c in text]) for text in texts]
    return list(texts), sources, torch.tensor([[INDEX[c] for c in a] for a in answers]).T


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains; returns the share of new dates translated without a mistake."""
    library, steps = parse(__doc__, arguments, steps=500)
    rng = random.Random(0)
    model = Translator(library)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for step in range(1, steps + 1):
        _, sources, targets = batch(rng, 64)
        loss = F.cross_entropy(model(sources, targets).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(steps // 5, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")

    texts, sources, targets = batch(rng, 500)
    answers = model.translate(sources)
    right = (answers == targets).all(dim=0)
    print()
    for text, answer, good in list(zip(texts, answers.T.tolist(), right, strict=True))[:8]:
        print(f"{text:18s} -> {''.join(CHARACTERS[i] for i in answer)}  {'' if good else 'wrong'}")
    accuracy = right.float().mean().item()
    print(f"{accuracy:.1%} of {len(texts)} new dates without a mistake")
    return accuracy


if __name__ == "__main__":
    main()
