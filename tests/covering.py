"""Tests of many parameters: a part of the combinations in which every two values meet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest


def covers_pairs(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Some combinations of an index below each size: every two indices of different places are in
    one of them.

    For three places, the largest last, these are Latin rows: as many as the two largest have pairs.
    """
    everything = list(itertools.product(*map(range, sizes)))
    met: set[tuple[tuple[int, int], ...]] = set()
    for turn in range(sizes[0]):
        for indices in everything:
            pairs = set(itertools.combinations(enumerate(indices), 2))
            if sum(indices[1:], -indices[0]) % sizes[0] == turn and not pairs <= met:
                met |= pairs
                yield indices


def covering(names: str, *axes: Sequence[Any], ids: Any = str) -> pytest.MarkDecorator:
    """Like one `parametrize` for each name, but what meets no new pair of values runs with
    ``--exhaustive`` alone.
    """
    chosen = set(covers_pairs([len(axis) for axis in axes]))
    combinations = []
    for indices in itertools.product(*(range(len(axis)) for axis in axes)):
        marks = [] if indices in chosen else [pytest.mark.exhaustive]
        values = [axis[i] for axis, i in zip(axes, indices, strict=True)]
        combinations.append(pytest.param(*values, marks=marks, id="-".join(map(ids, values))))
    return pytest.mark.parametrize(names, combinations)
