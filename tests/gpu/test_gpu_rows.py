"""Recurrences whose steps see whole rows on a GPU, against the reference in float64.

Catches what the emulator cannot: products of cuBLAS, the order of launches in a stream, the true
instructions.
"""

from typing import Any

import pytest
import torch
from covering import covering
from on_gpu import DEVICE, MARKS, assert_equal, needs_gpu, spoil_free_memory
from problems import CELLS, TOLERANCE, assert_close, gradients
from recurrences import EXTRAS, Problem
from torch import Tensor

pytestmark = MARKS

SHAPES: list[dict[str, Any]] = [
    {"T": 1, "B": 1, "H": 1},
    {"T": 30, "B": 9, "H": 64, "reverse": True},
    {"T": 4, "B": 33, "H": 513, "states_given": False},
    {"T": 3, "B": 8, "H": 1024, "bias": False},
    {"batch_sizes": (9, 9, 8, 4, 1), "H": 35},
    {"batch_sizes": (9, 9, 8, 4, 1), "H": 136, "reverse": True},
]


def name(value: object) -> str:
    return str(value).replace("torch.", "")


@covering("cell, dtype, extras, shape", CELLS, [*TOLERANCE], EXTRAS, SHAPES, ids=name)
def test_values_and_gradients(
    cell: str, dtype: torch.dtype, extras: dict[str, Any], shape: dict[str, Any]
) -> None:
    problem = Problem(cell, **extras, **shape, dtype=dtype, device=DEVICE)
    if DEVICE == "cuda":
        spoil_free_memory()
    if cell == "rnn_relu" and dtype.itemsize == 2:
        # Its slope jumps: only from the same states the gradients are the same.
        assert_close(
            [v.detach().double() for v in problem.fused()],
            [v.detach() for v in problem.reference()[0]],
            TOLERANCE[dtype],
        )
        return
    problem.compare(TOLERANCE[dtype])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS, ids=name)
def test_the_same_bits_again(cell: str, extras: dict[str, Any]) -> None:
    problem = Problem(cell, **extras, T=20, B=8, H=200, dtype=torch.bfloat16, device=DEVICE)
    first, again = [
        [*values, *gradients(values, problem.leaves)]
        for values in (problem.fused(), problem.fused())
    ]
    assert_equal(again, first)


@needs_gpu
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS, ids=name)
def test_a_graph_replays(cell: str, extras: dict[str, Any]) -> None:
    problem = Problem(
        cell, **extras, batch_sizes=(9, 8, 8, 3), H=96, dtype=torch.float32, device=DEVICE
    )
    arguments = problem.arguments(False)

    def run() -> list[Tensor]:
        with torch.no_grad():
            output, states_n, _ = torch.ops.rnnfast.recurrence(*arguments)
        return [output, *states_n]

    wanted = run()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        found = run()
    recorded.replay()
    torch.cuda.synchronize()
    assert_equal(found, wanted)
