"""A character-level LSTM language model: trains on the Zen of Python, then writes on its own.

Training reads the text in consecutive pieces and carries the state from each to the next, cut off
from the graph. Writing calls the LSTM with T = 1, carrying the state, and draws each character at
a temperature: low is careful, high is daring.

python examples/language_model.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F

with contextlib.redirect_stdout(io.StringIO()) as captured:
    import this  # noqa: F401  (prints the text when it is imported)
TEXT = captured.getvalue()
CHARACTERS = sorted(set(TEXT))
STREAMS, PIECE = 8, 25

State = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Scores the next character after every one read."""

    def __init__(self, library: ModuleType) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 32)
        self.lstm = library.LSTM(32, 128, num_layers=2)
        self.scores = nn.Linear(128, len(CHARACTERS))

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """`tokens` [T, B] -> scores [T, B, characters], and the state to go on from."""
        y, state = self.lstm(self.embedding(tokens), state)
        return self.scores(y), state

    @torch.inference_mode()
    def write(self, start: str, length: int, temperature: float) -> str:
        """`start`, and `length` characters after it."""
        scores, state = self(torch.tensor([[CHARACTERS.index(c)] for c in start]))
        text = start
        for _ in range(length):
            token = torch.multinomial((scores[-1] / temperature).softmax(dim=1), 1)  # [1, 1]
            text += CHARACTERS[token.item()]
            scores, state = self(token, state)
        return text


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Trains; returns the mean loss of the first and of the last reading of the text."""
    library, steps = parse(__doc__, arguments, steps=400)
    tokens = torch.tensor([CHARACTERS.index(c) for c in TEXT])
    # Column b of the streams is the b-th eighth of the text; one piece is PIECE rows of it.
    streams = tokens[: len(tokens) // STREAMS * STREAMS].view(STREAMS, -1).T
    pieces = list(zip(streams[:-1].split(PIECE), streams[1:].split(PIECE), strict=True))

    model = LanguageModel(library)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses: list[float] = []
    state: State | None = None
    for step in range(steps):
        x, target = pieces[step % len(pieces)]
        if step % len(pieces) == 0:
            state = None  # the text begins anew
        scores, (h, c) = model(x, state)
        state = h.detach(), c.detach()
        loss = F.cross_entropy(scores.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(steps // 5, 1) == 0:
            print(f"step {step + 1:4d}   loss {loss.item():.4f}")

    for temperature in (0.2, 0.7, 1.2):
        print(f"\ntemperature {temperature}\n{model.write('Beautiful is', 120, temperature)}")
    first, last = losses[: len(pieces)], losses[-len(pieces) :]
    return sum(first) / len(first), sum(last) / len(last)


if __name__ == "__main__":
    main()
