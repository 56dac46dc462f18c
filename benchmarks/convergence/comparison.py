"""Whether two arms, paired by their seeds, learn alike.

What is compared is the mean over the seeds of the paired difference, in units of the standard
deviation between the seeds of the arm on the right: its spread. docs/convergence.md has the
criterion, which was fixed before the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.convergence.training import NUDGED, OURS, OURS_BF16, TORCH, TORCH_BF16

LEVEL = 0.05
EXACT = 16
"""More seeds have too many exchanges to try them all: random ones stand for them."""
MARGIN = 0.5
"""Spreads. Arms whose difference is shown to be less are equivalent."""
TESTED = ((OURS, TORCH), (OURS_BF16, TORCH_BF16))
CONTROLS = ((NUDGED, TORCH), (TORCH_BF16, TORCH), (OURS_BF16, TORCH))
"""What rounding alone does, and what bfloat16 does; described, not tested."""

Array = NDArray[np.float64]


def spread(values: Array) -> Array:
    """The standard deviation between seeds; never zero, so that one can divide by it."""
    return np.maximum(values.std(0, ddof=1), 1e-12)


def sign_flips(differences: Array) -> tuple[float, float]:
    """The largest absolute mean over the points of `[seeds, points]`, and its p-value: how often it
    is as large when the two arms change places in some of the seeds, in all ways to do so. As the
    largest is compared with the largest, it counts for all points together.
    """
    seeds = len(differences)
    if seeds <= EXACT:
        flips = 1 - 2 * (np.arange(2**seeds)[:, None] >> np.arange(seeds) & 1)
    else:
        flips = 1 - 2 * np.random.default_rng(0).integers(0, 2, (2**EXACT, seeds))
        flips[0] = 1  # what was observed is one of them
    largest = np.abs(flips @ differences / seeds).max(1)
    return float(largest[0]), float((largest >= largest[0] * (1 - 1e-9)).mean())


def bound(differences: Array) -> float:
    """What |the mean| is below at every point, each with a confidence of 95 %: the smallest margin
    within which two one-sided t-tests show the arms equivalent. That all points pass needs no
    correction for their number.
    """
    seeds = len(differences)
    error = differences.std(0, ddof=1) / np.sqrt(seeds)
    return float((np.abs(differences.mean(0)) + stats.t.ppf(1 - LEVEL, seeds - 1) * error).max())


def interval(differences: Array) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of `[seeds]`, by Student's t."""
    seeds = len(differences)
    half = stats.t.ppf(1 - LEVEL / 2, seeds - 1) * differences.std(ddof=1) / np.sqrt(seeds)
    return float(differences.mean() - half), float(differences.mean() + half)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in their order."""
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(np.asarray(p)[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(adjusted, 1)
    return [float(value) for value in found]


@dataclass(frozen=True)
class Compared:
    """One arm beside another on one task. difference: of the scores, with its interval, in the
    score's unit. largest: of the mean differences of both curves, in spreads. p: of score and
    curves, not adjusted. bound: on score and curves, in spreads.
    """

    task: str
    arm: str
    other: str
    difference: float
    interval: tuple[float, float]
    largest: float
    p: tuple[float, float]
    bound: float

    @property
    def tested(self) -> bool:
        return (self.arm, self.other) in TESTED

    @property
    def equivalent(self) -> bool:
        return self.bound < MARGIN


def curves(rows: Sequence[dict[str, Any]], task: str, arm: str, *names: str) -> Array:
    """`[seeds, points]`: what rows of a task and an arm have under the names, side by side."""
    found = [row for row in rows if (row["task"], row["arm"]) == (task, arm)]
    found.sort(key=lambda row: row["seed"])
    return np.array([np.concatenate([np.atleast_1d(row[name]) for name in names]) for row in found])


def compare(rows: Sequence[dict[str, Any]], task: str, arm: str, other: str) -> Compared:
    scores, losses = (
        [curves(rows, task, side, *names) for side in (arm, other)]
        for names in (("score",), ("train", "valid"))
    )
    score, curve = ((ours - theirs) / spread(theirs) for ours, theirs in (scores, losses))
    difference = (scores[0] - scores[1])[:, 0]
    largest, of_curves = sign_flips(curve)
    return Compared(
        task,
        arm,
        other,
        float(difference.mean()),
        interval(difference),
        largest,
        (sign_flips(score)[1], of_curves),
        max(bound(score), bound(curve)),
    )


def adjusted(compared: Sequence[Compared]) -> dict[Compared, tuple[float, float]]:
    """Of all that is tested, the p-values of score and curves, adjusted for all of them."""
    tested = [one for one in compared if one.tested]
    p = holm([value for one in tested for value in one.p])
    return dict(zip(tested, zip(p[::2], p[1::2], strict=True), strict=True))
