"""The kernels and the driver of recurrences whose steps see whole rows, on the emulator: beside the
tests of test_recurrence.py, which run there too.

Catches types that are mixed up, sums whose order follows the schedule, launches too many.
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
