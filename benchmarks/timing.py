"""Timing functions against each other on a machine that is not quiet, and the statistics.

The sides alternate in short blocks, and the order turns round after every round (A B, B A,
A B, ...). A neighbour's load, a change of clock or a warm cache then meets all, and the ratio of
two blocks of a round is worth more than the ratio of two runs minutes apart.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial


@dataclass(frozen=True)
class Budget:
    """How long to measure the sides of one problem. All times in seconds.

    total: until this is spent (all sides together); block: a block of calls lasts at least this;
    rounds: at least and at most so many blocks of each side, whatever `total` says;
    lead_in: a block whose calls are shorter than this begins with one that is not timed, and goes
    on with such calls for `settle`, until the threads of the side before have fallen asleep.
    """

    total: float
    block: float = 0.005
    rounds: tuple[int, int] = (5, 200)
    warm_up: float = 0.1
    lead_in: float = 0.05
    settle: float = 0.0


FULL = Budget(total=2.0)
QUICK = Budget(total=0.2, rounds=(3, 50), warm_up=0.02)


@dataclass(frozen=True)
class Pair:
    """Seconds per call, one sample a block; samples of the same index were taken side by side."""

    baseline: tuple[float, ...]
    candidate: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Baseline over candidate of each pair of blocks: the speed-ups."""
        return [a / b for a, b in zip(self.baseline, self.candidate, strict=True)]


@dataclass(frozen=True)
class Summary:
    """Median and the 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def summarise(samples: Sequence[float]) -> Summary:
    """Interpolated linearly between the samples; of one, that one."""
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0])
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Summary(statistics.median(samples), p20, p80)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of at least one positive ratio."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))


Stopwatch = Callable[[Callable[[], object], int], float]
"""Calls a function so many times; the seconds of one call."""


def interleave(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
    stopwatch: Stopwatch | None = None,
) -> Pair:
    """The samples of `take_turns` of two sides."""
    return Pair(*take_turns((baseline, candidate), budget, clock, stopwatch))


def take_turns(
    sides: Sequence[Callable[[], object]],
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
    stopwatch: Stopwatch | None = None,
) -> list[tuple[float, ...]]:
    """Warms all sides up, then times them in alternating blocks until the budget is spent.

    Returns, for each side, the seconds per call of its blocks; those of the same index were taken
    in the same round. stopwatch: times a block; by default with the clock, for what has run when it
    returns.
    """
    stopwatch = stopwatch or partial(_block, clock=clock)
    estimates = [_warm_up(side, budget, clock, stopwatch) for side in sides]
    calls = [max(1, math.ceil(budget.block / max(estimate, 1e-9))) for estimate in estimates]
    samples: list[list[float]] = [[] for _ in sides]
    at_least, at_most = budget.rounds
    start = clock()
    for turn in range(at_most):
        if turn >= at_least and clock() - start >= budget.total:
            break
        order = range(len(sides))
        for side in order if turn % 2 == 0 else reversed(order):
            if estimates[side] < budget.lead_in:
                _settle(sides[side], budget.settle, clock)
            samples[side].append(stopwatch(sides[side], calls[side]))
    return [tuple(found) for found in samples]


def _settle(function: Callable[[], object], seconds: float, clock: Callable[[], float]) -> None:
    """Calls at least once and until the time is over."""
    start = clock()
    function()
    while clock() - start < seconds:
        function()


def _warm_up(
    function: Callable[[], object],
    budget: Budget,
    clock: Callable[[], float],
    stopwatch: Stopwatch,
) -> float:
    """Calls at least twice and until `budget.warm_up` is over; the seconds of the shortest call."""
    start, shortest, count = clock(), math.inf, 0
    while count < 2 or clock() - start < budget.warm_up:
        shortest = min(shortest, stopwatch(function, 1))
        count += 1
    return shortest


def _block(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls
