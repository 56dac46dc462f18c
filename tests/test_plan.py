"""The plan is a pure function of the problem: how the CPU kernels would run a layer.

Catches a plan that asks for more threads than there are, splits what cannot be split, or projects a
chunk of no steps.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast import _C

SIZES = st.sampled_from([1, 2, 3, 5, 16, 31, 64, 128, 500, 1024])


@settings(max_examples=300, deadline=None)
@given(
    cell=st.sampled_from([facts["name"] for facts in _C.cells()]),
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
    T=SIZES,
    B=SIZES,
    I=SIZES,
    H=SIZES,
    directions=st.sampled_from([1, 2]),
    threads=st.sampled_from([1, 2, 3, 4, 16]),
    uniform=st.booleans(),
    tiles=st.booleans(),
    l1=st.sampled_from([1, 32 << 10, 48 << 10, 128 << 10]),
    l2=st.sampled_from([1, 512 << 10, 1 << 20, 2 << 20]),
)
def test_plan_is_sound(
    cell: str,
    dtype: str,
    T: int,
    B: int,
    I: int,  # noqa: E741
    H: int,
    directions: int,
    threads: int,
    uniform: bool,
    tiles: bool,
    l1: int,
    l2: int,
) -> None:
    problem = (cell, dtype, T, B, I, H, directions, threads, uniform)
    plan = _C.plan(*problem, tiles=tiles, l1=l1, l2=l2)
    assert plan == _C.plan(*problem, tiles=tiles, l1=l1, l2=l2)
    assert 1 <= plan["threads"] <= threads
    assert plan["threads"] == 1 or plan["threads"] % directions == 0
    assert 1 <= plan["chunk_steps"] <= T
    assert 1 <= plan["panel_groups"] <= 4
    assert 1 <= plan["grad_chunk_steps"] <= T
    assert 0 <= plan["block_rows"] <= 66
    assert plan["outer_rows"] in (128, 256)
    by_tiles = tiles and dtype == "bfloat16" and B >= 8 and T * B > 20
    assert plan["kernel"] == ("tiles" if by_tiles else "packed" if T * B > 20 else "rows")
    per_direction = plan["threads"] // directions
    if plan["split"] == "batch":
        assert uniform
        assert per_direction <= B
    elif plan["split"] == "hidden":
        assert (per_direction - 1) * plan["panel_groups"] * plan["vector_width"] < H
    else:
        assert plan["threads"] == 1 if plan["split"] == "none" else per_direction == 1


def test_plan_of_known_problems() -> None:
    def split(*problem: object) -> str:
        return str(_C.plan("gru", "float32", *problem)["split"])

    assert split(128, 128, 512, 512, 1, 2) == "batch", "64 rows a thread fill the tiles, no barrier"
    assert split(1000, 1, 128, 256, 1, 2) == "hidden", "one row can only be split by its units"
    assert split(128, 128, 512, 512, 1, 2, False) == "hidden", (
        "a shrinking batch would idle a thread"
    )
    assert split(1, 32, 128, 128, 1, 2) == "hidden", "each thread packs the weights that it reads"
    assert split(100, 32, 128, 128, 2, 2) == "direction", "each thread takes a direction"
    assert split(20, 3, 5, 6, 1, 2) == "none", "too little work to wake a thread"


def test_plan_follows_the_caches() -> None:
    def split(*problem: object, l2: int) -> str:
        return str(_C.plan("lstm", "float32", *problem, l2=l2)["split"])

    large, small = 2 << 20, 1 << 20
    assert split(256, 16, 512, 512, 1, 2, l2=small) == "batch", "an L3 that is fast holds w_hh"
    assert split(256, 16, 512, 512, 1, 2, l2=large) == "hidden", "each core reads half of w_hh"
    assert split(256, 16, 1024, 1024, 1, 2, l2=small) == "hidden", "more than its part of an L3"
    assert split(256, 300, 1024, 1024, 1, 2, l2=small) == "batch"
    assert split(128, 32, 128, 128, 1, 2, l2=large) == "batch", "w_hh is near to both cores"
    assert split(128, 300, 512, 512, 1, 2, l2=large) == "batch", "so many rows hide how far it is"

    def rows(l1: int) -> tuple[int, int, int]:
        plan = _C.plan("lstm", "float32", 9, 99, 99, 99, 1, 2, l1=l1)
        return plan["block_rows"], plan["outer_rows"], plan["vector_width"]

    wide = rows(48 << 10)[2] == 16
    assert (rows(32 << 10)[0] == 0) == wide, "nothing beside a block of wide registers"
    assert rows(48 << 10)[:2] == (64 if wide else 66, 256)
    assert rows(1 << 20)[:2] == (66, 256)
    assert rows(1)[:2] == (0, 128)


def test_plan_of_tiles() -> None:
    def split(*problem: object, tiles: bool = True) -> str:
        return str(_C.plan("gru", "bfloat16", *problem, tiles=tiles)["split"])

    assert split(128, 64, 512, 512, 1, 2) == "batch", "32 rows a thread fill two tiles"
    assert split(256, 16, 1024, 1024, 1, 2) == "hidden", "8 rows a thread would fill half of one"
    assert split(256, 16, 1024, 1024, 1, 2, tiles=False) == "hidden", "w_hh is far"
    assert split(256, 16, 512, 512, 1, 2) == "hidden"
    assert split(256, 16, 512, 512, 1, 2, tiles=False) == "batch"
    assert split(4, 16, 64, 64, 1, 2) == "none", "tiles are done before a thread is awake"
    assert split(4, 16, 64, 64, 1, 2, tiles=False) == "hidden"


@pytest.mark.parametrize(
    "problem", [("gru", "float32", -1, 1, 1, 1, 1, 1), ("gru", "float32", 1, 1, 1, 1, 3, 1)]
)
def test_plan_refuses_nonsense(problem: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="plan: sizes must not be negative, directions 1 or 2"):
        _C.plan(*problem)
    with pytest.raises(ValueError, match="plan: unknown cell 'qrnn'"):
        _C.plan("qrnn", "float32", 1, 1, 1, 1, 1, 1)
