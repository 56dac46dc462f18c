"""The named problems that correctness and performance runs share.

A problem is a shape without a cell: every cell runs on every problem. Its name is made from its
numbers, so it cannot say anything else than they do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Problem:
    """One workload. All sizes are positive.

    T: time steps (the longest sequence, when packed). B: sequences in the batch. I: input size.
    H: hidden size. layers, bidirectional: as in torch.nn. lengths: one length per sequence,
    longest first, of a packed batch; empty for a dense one. origin: where such a shape comes from.
    """

    T: int
    B: int
    I: int  # noqa: E741  the input size's name in every torch.nn formula
    H: int
    origin: str
    layers: int = 1
    bidirectional: bool = False
    lengths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if min(self.T, self.B, self.I, self.H, self.layers) < 1:
            raise ValueError(f"{self.name}: every size must be positive")
        if self.lengths:
            descending = all(a >= b for a, b in zip(self.lengths, self.lengths[1:], strict=False))
            if not descending or self.lengths[-1] < 1:
                raise ValueError(f"{self.name}: lengths must be positive, the longest first")
            if (self.lengths[0], len(self.lengths)) != (self.T, self.B):
                raise ValueError(f"{self.name}: lengths must agree with T and B")

    @property
    def name(self) -> str:
        """For example `t100b32i128h128-l2-bi`, `t60b32i128h256-packed`."""
        name = f"t{self.T}b{self.B}i{self.I}h{self.H}"
        name += f"-l{self.layers}" if self.layers > 1 else ""
        name += "-bi" if self.bidirectional else ""
        return name + ("-packed" if self.lengths else "")

    @property
    def label(self) -> str:
        """The same for people: `100, 32, 128, 128 (2 layers, bi)`."""
        extras = [f"{self.layers} layers"] if self.layers > 1 else []
        extras += ["bi"] if self.bidirectional else []
        extras += ["packed"] if self.lengths else []
        sizes = f"{self.T}, {self.B}, {self.I}, {self.H}"
        return sizes + (f" ({', '.join(extras)})" if extras else "")


def sentence_lengths(count: int, median: float, sigma: float, longest: int) -> tuple[int, ...]:
    """`count` lengths at the even quantiles of a log-normal distribution, longest first.

    Sentence lengths are close to log-normal. Quantiles rather than draws: no seed, no outlier.
    """
    normal = NormalDist(math.log(median), sigma)
    quantiles = ((2 * i + 1) / (2 * count) for i in reversed(range(count)))
    return tuple(min(longest, max(1, round(math.exp(normal.inv_cdf(q))))) for q in quantiles)


_SENTENCES = sentence_lengths(32, median=20, sigma=0.55, longest=60)

DENSE: tuple[Problem, ...] = (
    Problem(50, 32, 128, 128, "sentence classifier: 50 tokens, a batch of 32"),
    Problem(100, 1, 64, 64, "one sensor stream: latency of a small model"),
    Problem(1000, 1, 128, 256, "one utterance: 10 s of 10 ms frames, streamed alone"),
    Problem(128, 32, 256, 256, "small language model, 128 tokens of context"),
    Problem(128, 128, 512, 512, "the same, wider, with a batch that fills the cores"),
    Problem(256, 16, 1024, 1024, "large acoustic or language model: w_hh leaves the caches"),
    Problem(1, 32, 128, 128, "one step of a decoder or of a reinforcement learning roll-out"),
    Problem(20, 3, 5, 6, "a shape from tutorials and tests: nothing but overhead"),
)
"""What the peers run too."""

MAIN: tuple[Problem, ...] = (
    *DENSE,
    Problem(100, 32, 128, 128, "sequence tagger", layers=2, bidirectional=True),
    Problem(
        max(_SENTENCES),
        32,
        128,
        256,
        "sentences of a treebank, median 20 words, read both ways",
        bidirectional=True,
        lengths=_SENTENCES,
    ),
)
"""What `make bench` runs."""

EXTRA: tuple[Problem, ...] = (
    Problem(512, 64, 512, 512, "long sequences, large batch: the machine's arithmetic"),
    Problem(50, 32, 100, 128, "100-dimensional word vectors: no vector width divides I"),
    Problem(max(_SENTENCES), 32, 128, 256, "the same sentences, read one way", lengths=_SENTENCES),
)

ALL: tuple[Problem, ...] = MAIN + EXTRA

GPU: tuple[Problem, ...] = (
    Problem(
        1024, 16, 1024, 1024, "large language model of its time: w_hh fills several processors"
    ),
    Problem(1024, 16, 768, 768, "LSTM for which cuDNN has a kernel that keeps w_hh on the chip"),
    Problem(1000, 1, 512, 512, "one long stream alone: nothing but the latency of a step"),
)
"""What `python -m benchmarks.cuda` adds: shapes that a CPU would take minutes for."""

_CROSSOVER = "where one kernel takes over from another"

GRID: tuple[Problem, ...] = (
    *(
        Problem(100, B, H, H, _CROSSOVER)
        for H in (256, 128, 512, 64, 1024, 32, 768, 384)
        for B in (32, 1, 128)
    ),
    Problem(100, 64, 512, 512, _CROSSOVER),
    Problem(100, 16, 768, 768, _CROSSOVER),
    Problem(100, 16, 1024, 1024, _CROSSOVER),
    Problem(100, 32, 2048, 2048, _CROSSOVER),
    Problem(100, 1024, 256, 256, _CROSSOVER),
    Problem(100, 1024, 512, 512, _CROSSOVER),
)
"""What `python -m benchmarks.cuda --grid` measures: sizes side by side."""

_GATED = ("gru", "lstm")

USERS: dict[Problem, tuple[str, ...]] = {
    Problem(1, 1, 640, 640, "Parakeet: one token of its decoder", layers=2): ("lstm",),
    Problem(200, 1, 512, 256, "Kokoro: the text of a sentence", bidirectional=True): ("lstm",),
    Problem(100, 1, 256, 256, "DeepFilterNet: one second of frames"): ("gru",),
    Problem(32, 128, 64, 64, "the 4 layers that a Triton kernel is shown on", layers=4): ("gru",),
    Problem(16, 128, 256, 256, "reinforcement learning: short roll-outs"): _GATED,
    Problem(64, 128, 256, 256, "reinforcement learning: longer roll-outs"): _GATED,
    Problem(512, 10, 128, 256, "KernelBench, level 3", layers=6): _GATED,
    Problem(400, 1024, 96, 96, "nanopore base calling: the fast model"): ("lstm",),
    Problem(400, 1024, 384, 384, "nanopore base calling: the accurate model"): ("lstm",),
    Problem(400, 1024, 1024, 1024, "nanopore base calling: the most accurate"): ("lstm",),
}
"""What `python -m benchmarks.cuda --users` measures: layers of models in use, with their cells."""


def select(names: Iterable[str]) -> tuple[Problem, ...]:
    """The problems of these names, in the order of ALL, GPU, GRID and USERS.

    Raises ValueError, listing the names there are, for one that is unknown.
    """
    wanted = set(names)
    everything = (*ALL, *GPU, *GRID, *USERS)
    unknown = wanted - {problem.name for problem in everything}
    if unknown:
        known = " ".join(problem.name for problem in everything)
        raise ValueError(f"no problem named {', '.join(sorted(unknown))}; there are: {known}")
    return tuple(problem for problem in everything if problem.name in wanted)
