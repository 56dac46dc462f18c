"""Benchmarks of single features: each side computes the same, or nothing is timed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import autocast, beside, cells, heads, recompute, segments
from benchmarks.timing import Budget

ONCE = Budget(total=0, block=0, rounds=(1, 1), warm_up=0, lead_in=0)


def sides(change: float) -> list[beside.Side]:
    layer, x = nn.GRU(3, 4), torch.randn(5, 2, 3)
    return [
        beside.side("one", layer, lambda: layer(x)[0]),
        beside.side("two", layer, lambda: layer(x)[0] + change),
    ]


@pytest.mark.parametrize("name", ["inference", "training"])
def test_other_values_are_not_timed(name: str) -> None:
    assert len(beside.seconds(sides(0.0), ONCE, [name])[name]) == 2
    with pytest.raises(AssertionError, match="not close"):
        beside.seconds(sides(1e-2), ONCE, [name])


@pytest.mark.parametrize("cell", segments.CELLS)
@pytest.mark.parametrize(("measure", "ways"), [(segments.resets, 5), (segments.lengths, 3)])
def test_segments(cell: str, measure: Any, ways: int) -> None:
    rows = measure(cell, (7, 3, 4, 5), ONCE)
    assert len({row[0] for row in rows}) == len(rows) == ways
    assert all(len(row) == 3 and row[0].startswith(cell) for row in rows)
    assert all(text.endswith("ms (1.0x)") for text in rows[-1][1:])


@pytest.mark.parametrize("cell", heads.CELLS)
def test_heads(cell: str) -> None:
    assert heads.row(cell, (3, 2, 4, 6), 2, ONCE)[0] == f"{cell}, 2 heads"


def test_recompute() -> None:
    rows = recompute.rows("LSTM", (200, 3, 4, 5, 2), ONCE)
    assert [row[0] for row in rows] == [f"LSTM: {way}" for way in recompute.WAYS]
    assert all(int(row[2]) >= 0 for row in rows)


@pytest.mark.parametrize("cell", autocast.CELLS)
def test_autocast(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = autocast.rows(cell, (5, 2, 3, 4), ONCE)
    assert [row[0] for row in rows] == [f"{cell}, {way}" for way in autocast.WAYS]
    assert all(text.endswith(" (1.00)") for text in rows[0][1:])
    monkeypatch.setattr(autocast, "CLOSE", 1e-9)
    with pytest.raises(AssertionError, match="not close"):
        autocast.rows(cell, (5, 2, 3, 4), ONCE)


@pytest.mark.parametrize("cell", cells.CELLS)
def test_cells(cell: str) -> None:
    assert list(cells.ratios(cell, 3, 8, ONCE)) == ["inference", "frozen", "training"]
