"""The kernels and the driver of recurrences whose steps see whole rows, on the emulator, against
the reference in float64.

Catches a wrong offset, a row of a packed sequence taken for another, a gradient that is left out or
that takes a wrong way around what is kept, dropped or normalised, sums whose order follows the
schedule.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from covering import covering
from emulated import Simt
from problems import CELLS, TOLERANCE, assert_close
from recurrences import EXTRAS, Problem
from torch import Tensor

OP = torch.ops.rnnfast.recurrence.default
BACKWARD = torch.ops.rnnfast.recurrence_backward.default

pytestmark = pytest.mark.usefixtures("_library")

# One row or unit, units in no whole warps and in more than one block, one step, packed in both
# orders of the steps.
SHAPES: list[dict[str, Any]] = [
    {},
    {"reverse": True, "states_given": False},
    {"T": 1, "B": 1, "H": 1},
    {"T": 1, "B": 9, "H": 33, "states_given": False},
    {"T": 9, "B": 2, "H": 33, "bias": False},
    {"T": 3, "B": 2, "H": 131},
    {"batch_sizes": (5, 4, 4, 1)},
    {"batch_sizes": (9, 2, 1), "reverse": True, "H": 7},
    {"batch_sizes": (9, 8, 8, 7, 5, 5, 5, 2, 1), "reverse": True, "states_given": False},
]
KEPT = EXTRAS[-3:]


def name(value: object) -> str:
    return str(value).replace("torch.", "")


def run(problem: Problem, seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Values, the reserve, and gradients."""
    simt = Simt("auto", seed)
    output, states_n, reserve = simt.recurrence(*problem.arguments(True))
    values = [output, *states_n]
    return values, reserve, problem.gradients(values, reserve, simt.recurrence_backward)


def check(problem: Problem) -> None:
    values, reserve, grads = run(problem)
    if problem.cell == "rnn_relu" and problem.dtype.itemsize == 2:
        # Its slope jumps: only from the same states the gradients are the same.
        wanted = problem.gradients(values, reserve, BACKWARD)
        assert_close(grads, wanted, TOLERANCE[problem.dtype])
        return
    problem.compare_with(values, grads, TOLERANCE[problem.dtype])


@covering("cell, extras, shape", CELLS, EXTRAS, SHAPES, ids=name)
def test_values_and_gradients(cell: str, extras: dict[str, Any], shape: dict[str, Any]) -> None:
    check(Problem(cell, **extras, **shape))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", KEPT, ids=name)
def test_more_units_than_a_block_has_threads(cell: str, extras: dict[str, Any]) -> None:
    check(Problem(cell, **extras, T=2, B=2, H=530))


@covering("cell, dtype, extras", CELLS, [*TOLERANCE][1:], EXTRAS, ids=name)
def test_types(cell: str, dtype: torch.dtype, extras: dict[str, Any]) -> None:
    check(Problem(cell, **extras, batch_sizes=(5, 4, 2), H=9, dtype=dtype))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", KEPT, ids=name)
def test_the_reserve_is_that_of_the_cpu(cell: str, extras: dict[str, Any]) -> None:
    problem = Problem(cell, **extras, batch_sizes=(5, 4, 4, 1), dtype=torch.float32)
    _, reserve, _ = run(problem)
    _, _, wanted = OP(*problem.arguments(True))
    if problem.extras.norm and cell != "lstm":  # nothing is said of a c then
        place = 1 + (cell == "gru") + 1
        reserve[place], wanted[place] = reserve[place][:, :1], wanted[place][:, :1]
    assert_close(reserve, wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", KEPT, ids=name)
def test_inference_is_training_without_the_reserve(cell: str, extras: dict[str, Any]) -> None:
    problem = Problem(cell, **extras)
    values, _, _ = run(problem)
    output, states_n, reserve = Simt("auto").recurrence(*problem.arguments(False))
    assert reserve == []
    assert_close([output, *states_n], values, 0)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", KEPT, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_every_schedule_gives_the_same_bits(
    cell: str, extras: dict[str, Any], dtype: torch.dtype
) -> None:
    problem = Problem(cell, **extras, batch_sizes=(4, 2, 1), H=70, dtype=dtype)
    first, *others = [run(problem, seed) for seed in range(3)]
    for other in others:
        for found, wanted in zip(other, first, strict=True):
            # Of a row without a c the statistics of c are whatever was there.
            torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_sizes", [None, (5, 4, 4, 1)], ids=name)
def test_units_on_their_own_are_one_launch(cell: str, batch_sizes: tuple[int, ...] | None) -> None:
    """Each way; a packed sequence has its steps written to the device before it."""
    problem = Problem(cell, units=True, keep="rows", drop=True, batch_sizes=batch_sizes)
    torch.ops.rnnfast_simt.count_launches()
    run(problem)
    assert torch.ops.rnnfast_simt.count_launches() == 2 * (1 if batch_sizes is None else 2)


def test_missing_gradients_count_as_zeros() -> None:
    problem, simt = Problem("lstm", norm=True, keep="rows"), Simt("auto")
    output, states_n, reserve = simt.recurrence(*problem.arguments(True))
    norm, keep, drop, clip = problem.extras
    rest = (None, problem.B, problem.w_hh, norm, keep, drop, False, reserve, clip)
    zeros = [torch.zeros_like(s) for s in states_n]
    assert_close(
        simt.recurrence_backward("lstm", output, [None, None], *rest),
        simt.recurrence_backward("lstm", output, zeros, *rest),
        0,
    )
    assert_close(
        simt.recurrence_backward("lstm", None, states_n, *rest),
        simt.recurrence_backward("lstm", torch.zeros_like(output), states_n, *rest),
        0,
    )


@pytest.mark.parametrize("shape", [{"T": 0}, {"B": 0}, {"H": 0}], ids=name)
def test_nothing_to_compute(shape: dict[str, Any]) -> None:
    problem = Problem("gru", norm=True, **shape)
    for given, wanted in zip(
        Simt("auto").recurrence(*problem.arguments(True)),
        OP(*problem.arguments(True)),
        strict=True,
    ):
        assert_close(*([t] if isinstance(t, Tensor) else t for t in (given, wanted)), 0)
