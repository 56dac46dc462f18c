"""What `covering` leaves to ``--exhaustive``."""

import itertools

import pytest
from covering import covering, covers_pairs


@pytest.mark.parametrize("sizes", [(1,), (2, 3), (4, 10, 16), (4, 4, 13), (3, 4, 6), (5, 2, 3, 2)])
def test_every_two_values_meet(sizes: tuple[int, ...]) -> None:
    chosen = list(covers_pairs(sizes))
    assert len(set(chosen)) == len(chosen)
    for a, b in itertools.combinations(range(len(sizes)), 2):
        assert len({(c[a], c[b]) for c in chosen}) == sizes[a] * sizes[b]


def test_every_combination_runs_with_the_option() -> None:
    (_, combinations) = covering("a, b, c", "uv", (1, 2, 3), (4, 5, 6)).args
    assert [c.id for c in combinations[:3]] == ["u-1-4", "u-1-5", "u-1-6"]
    assert len(combinations) == 2 * 3 * 3
    left_out = [c for c in combinations if c.marks]
    assert {mark.name for c in left_out for mark in c.marks} == {"exhaustive"}
    assert len(left_out) == 9
