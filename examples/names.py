"""Character-level classification: an RNN reads a surname letter by letter and guesses its origin.

python examples/names.py [--backend torch|rnnfast] [--steps N] [--seed N]
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from common import parse
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

NAMES = {
    "Greek": "angelopoulos antonopoulos christodoulou dimitriou economou georgiou giannakopoulos "
    "hatzis ioannou kalogeropoulos karagiannis katsaros konstantinou kontos koutsoukos lambrou "
    "makris manolas mavros michalakis nikolaidis oikonomou panagiotou papadakis papadopoulos "
    "papageorgiou pappas petrakis rallis samaras spanos stavropoulos stefanidis theodorou "
    "tsakalotos vasileiou vlahos xenakis zafiropoulos zervas",
    "Italian": "bianchi bruno caruso colombo conti costa deluca esposito ferrara ferrari fontana "
    "galli gallo gentile giordano greco lombardi longo mancini marchetti mariani marino martini "
    "messina moretti pellegrini ricci rinaldi rizzo romano rossi russo sanna santoro serra "
    "silvestri testa valentini villa vitale",
    "Japanese": "abe aoki endo fujita fukuda goto hasegawa hashimoto hayashi ikeda inoue ishikawa "
    "ito kato kimura kobayashi kondo maeda matsumoto mori murakami nakamura nakajima nishimura "
    "ogawa okada ota saito sakamoto sasaki sato shimizu suzuki takahashi tanaka ueda watanabe "
    "yamada yamaguchi yoshida",
    "Polish": "adamczyk baranowski borkowski chmielewski czarnecki dabrowski dudek gorski "
    "grabowski jablonski jankowski jaworski kaczmarek kaminski kowalczyk kowalski kozlowski "
    "krawczyk krol lewandowski majewski malinowski mazur michalski nowak nowakowski olszewski "
    "pawlowski piotrowski sikorski stepien szymanski tomaszewski walczak wieczorek wisniewski "
    "witkowski wojcik wrobel zielinski",
}
ORIGINS = list(NAMES)


class Reader(nn.Module):
    """Scores the origins by the state after the last letter."""

    def __init__(self, library: ModuleType, hidden_size: int = 64) -> None:
        super().__init__()
        self.rnn = library.RNN(26, hidden_size)
        self.scores = nn.Linear(hidden_size, len(ORIGINS))

    def forward(self, names: PackedSequence) -> Tensor:
        """Names as packed one-hot letters [rows, 26] -> scores [B, origins]."""
        _, h_n = self.rnn(names)
        return self.scores(h_n[-1])


def encode(names: Sequence[str]) -> PackedSequence:
    """Packed one-hot letters. Names of different lengths need neither padding nor sorting."""
    letters = [torch.tensor([ord(c) - ord("a") for c in name]) for name in names]
    return pack_sequence([F.one_hot(x, 26).float() for x in letters], enforce_sorted=False)


def main(arguments: Sequence[str] | None = None) -> float:
    """Trains on four fifths of the names; returns the accuracy on the others."""
    library, steps = parse(__doc__, arguments, steps=150)
    pairs = [(name, i) for i, names in enumerate(NAMES.values()) for name in names.split()]
    order = torch.randperm(len(pairs)).tolist()
    held_out = len(pairs) // 5
    test, train = ([pairs[i] for i in part] for part in (order[:held_out], order[held_out:]))

    model = Reader(library)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    names, labels = encode([name for name, _ in train]), torch.tensor([i for _, i in train])
    for step in range(1, steps + 1):
        loss = F.cross_entropy(model(names), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % max(steps // 5, 1) == 0:
            print(f"step {step:4d}   loss {loss.item():.4f}")

    with torch.inference_mode():
        guesses = model(encode([name for name, _ in test])).softmax(dim=1)
    best = guesses.argmax(dim=1)
    accuracy = (best == torch.tensor([i for _, i in test])).float().mean().item()
    print("\nnames never seen")
    for (name, label), guess, share in list(zip(test, best, guesses, strict=True))[:8]:
        print(f"{name:16s} {ORIGINS[label]:9s} read as {ORIGINS[guess]:9s} {share[guess]:4.0%}")
    print(f"accuracy on {len(test)} of them: {accuracy:.0%} (chance: {1 / len(ORIGINS):.0%})")
    return accuracy


if __name__ == "__main__":
    main()
