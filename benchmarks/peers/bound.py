"""How fast one layer can be on this machine: a hard lower bound, and a practical ceiling.

*Lower*: every product at the peak of the fused multiply-add units; a step of the recurrence takes
no less than its arithmetic, nor than reading w_hh once, each thread its share, from the cache that
holds it. All else is free. Nothing on this machine can be faster.

*Practical*: the products over all steps at the rate of the best library; a step's product as long
as a packed one takes that is measured by itself with its sizes (on one thread, or with the batch or
the hidden units split, whichever is faster, one barrier a step included); sigmoid and tanh at their
measured rates; all of it at least as long as the traffic of the tensors that live through the
sequence, from the level of memory that holds them; and what a call from Python costs at least.

Both count what the passes of `benchmarks.workloads` ask for. The initial state is zero, so the
first step has no recurrent product, forward or backward. Training is the forward pass, the
recurrence backward, dW_ih and dW_hh; there is no gradient of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.problems import Problem

CALL = {"inference": 5e-6, "training": 30e-6}
"""Seconds: a module's call under inference_mode; autograd's nodes and a backward call."""


@dataclass(frozen=True)
class Cell:
    """Per hidden unit and step. gates: rows of the weights; sigmoids, tanhs: of the forward pass;
    reserve: numbers that training keeps for the backward pass beside the output.
    """

    gates: int
    sigmoids: int
    tanhs: int
    reserve: int


CELLS = {
    "rnn_tanh": Cell(gates=1, sigmoids=0, tanhs=1, reserve=0),
    "gru": Cell(gates=3, sigmoids=2, tanhs=1, reserve=4),
    "lstm": Cell(gates=4, sigmoids=3, tanhs=2, reserve=5),
}


@dataclass(frozen=True)
class Figures:
    """What a machine does on so many threads together, measured.

    peak, gemm: floating-point operations a second, of the units and of the best library's product.
    levels: bytes a thread has of each level of memory, and bytes a second read from it, nearest
    first. sigmoid, tanh: elements a second. step(rows, K, N): seconds of one recurrent product.
    """

    threads: int
    peak: float
    gemm: float
    levels: tuple[tuple[float, float], ...]
    sigmoid: float
    tanh: float
    step: Callable[[int, int, int], float]

    def read(self, size: float) -> float:
        """Seconds to read `size` bytes once, each thread its share, where they fit."""
        for capacity, rate in self.levels:
            if size / self.threads <= capacity:
                return size / rate
        return size / self.levels[-1][1]


@dataclass(frozen=True)
class Bound:
    """In seconds of one call."""

    lower: float
    practical: float


UNKNOWN = Bound(math.nan, math.nan)


def bound(problem: Problem, cell: str, pass_name: str, figures: Figures) -> Bound:
    """Of a dense problem with one layer and one direction."""
    p, kind = problem, CELLS[cell]
    width = kind.gates * p.H
    rows, steps = p.T * p.B, p.T - 1
    training = pass_name == "training"

    projection = 2 * rows * p.I * width
    step = 2 * p.B * p.H * width
    gradients = (projection + steps * step) if training else 0
    passes = 2 if training else 1
    hidden = max(step / figures.peak, figures.read(4 * width * p.H))
    lower = (projection + gradients) / figures.peak + passes * steps * hidden

    recurrence = steps * figures.step(p.B, p.H, width)
    recurrence += rows * p.H * (kind.sigmoids / figures.sigmoid + kind.tanhs / figures.tanh)
    numbers = kind.gates + 1  # the projected gates in, the output out
    if training:
        recurrence += steps * figures.step(p.B, width, p.H)
        # The reserve out and in; grad_output and the output in, the gates' gradients out.
        numbers += 2 * kind.reserve + 2 + kind.gates
    traffic = figures.read(4 * rows * p.H * numbers)
    products = (projection + gradients) / figures.gemm
    practical = CALL[pass_name] + products + max(recurrence, traffic)
    return Bound(lower, practical)
