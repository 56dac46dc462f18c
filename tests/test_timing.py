"""The timer of the benchmarks: its figures follow from its clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import timing


class Clock:
    """A clock that only moves when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.now += seconds
            self.log.append(name)

        return work


def test_sides_alternate_in_rotating_order() -> None:
    clock = Clock()
    budget = timing.Budget(total=0, block=1, rounds=(4, 4), warm_up=0, lead_in=0)
    pair = timing.interleave(clock.worker("a", 3.0), clock.worker("b", 1.5), budget, clock)
    assert "".join(clock.log) == "aabb" + "ab" + "ba" + "ab" + "ba"  # two warm-up calls a side
    assert pair == timing.Pair((3.0,) * 4, (1.5,) * 4)
    assert pair.ratios == [2.0] * 4


def test_short_calls_are_timed_in_blocks_after_one_untimed_call() -> None:
    clock = Clock()
    budget = timing.Budget(total=0, block=1.0, rounds=(2, 2), warm_up=0, lead_in=0.5)
    pair = timing.interleave(clock.worker("a", 0.25), clock.worker("b", 1.0), budget, clock)
    assert "".join(clock.log) == "aabb" + "aaaaab" + "baaaaa"
    assert pair == timing.Pair((0.25, 0.25), (1.0, 1.0))


def test_more_than_two_sides_take_turns_too() -> None:
    clock = Clock()
    budget = timing.Budget(total=0, block=1, rounds=(3, 3), warm_up=0, lead_in=0)
    sides = [clock.worker(name, seconds) for name, seconds in (("a", 1), ("b", 2), ("c", 3))]
    samples = timing.take_turns(sides, budget, clock)
    assert "".join(clock.log) == "aabbcc" + "abc" + "cba" + "abc"
    assert samples == [(1.0,) * 3, (2.0,) * 3, (3.0,) * 3]


def test_a_short_side_settles_before_it_is_timed() -> None:
    clock = Clock()
    budget = timing.Budget(total=0, block=0.5, rounds=(1, 1), warm_up=0, lead_in=0.5, settle=0.75)
    sides = [clock.worker("a", 0.25), clock.worker("b", 1.0)]
    timing.take_turns(sides, budget, clock)
    assert "".join(clock.log) == "aabb" + "aaa" + "aa" + "b"  # a long side needs no settling


@pytest.mark.parametrize(("total", "expected"), [(0, 3), (12, 6), (1000, 8)])
def test_rounds_follow_the_time_budget_within_limits(total: float, expected: int) -> None:
    clock = Clock()
    budget = timing.Budget(total=total, block=1, rounds=(3, 8), warm_up=0, lead_in=0)
    pair = timing.interleave(clock.worker("a", 1), clock.worker("b", 1), budget, clock)
    assert len(pair.baseline) == len(pair.candidate) == expected
