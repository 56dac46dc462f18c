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
from recurrences import EXTRAS, Recurrence
from torch import Tensor

from rnnfast import recurrence

pytestmark = MARKS

SHAPES: list[dict[str, Any]] = [
    {"T": 1, "B": 1, "H": 1},
    {"T": 30, "B": 9, "H": 64, "reverse": True},
    {"T": 4, "B": 33, "H": 513, "states_given": False},
    {"T": 3, "B": 8, "H": 1024, "bias": False},
    {"lengths": (9, 9, 8, 4, 1), "H": 35},
    {"lengths": (9, 9, 8, 4, 1), "H": 136, "reverse": True},
]


def name(value: object) -> str:
    return str(value).replace("torch.", "")


def fused(problem: Recurrence) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and the gradients in the order of ``Recurrence.expected``."""
    x, w_hh, b_hh, states, norm = problem.leaves.values()
    leaves = [x, *states, w_hh, *([] if b_hh is None else [b_hh]), *norm]
    for leaf in leaves:
        leaf.requires_grad_()
    output, states_n = recurrence.fused(
        problem.cell, x, problem.batch_sizes, problem.B, states, w_hh, b_hh, problem.extras,
        problem.reverse,
    )  # fmt: skip
    values = [output, *states_n]
    found = gradients(values, leaves)
    return [v.detach() for v in values], [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)
    ]


@covering("cell, dtype, extras, shape", CELLS, [*TOLERANCE], EXTRAS, SHAPES, ids=name)
def test_values_and_gradients(
    cell: str, dtype: torch.dtype, extras: dict[str, Any], shape: dict[str, Any]
) -> None:
    problem = Recurrence(cell, **extras, **shape, dtype=dtype, device=DEVICE)
    wanted, wanted_grads = problem.expected()
    if DEVICE == "cuda":
        spoil_free_memory()
    values, grads = fused(problem)
    tolerance = TOLERANCE[dtype]
    assert_close([v.double() for v in values], wanted, tolerance)
    if cell == "rnn_relu" and dtype.itemsize == 2:
        return  # its slope jumps: only from the same states the gradients are the same
    for grad, want in zip(grads, wanted_grads, strict=True):
        size = max(1.0, float(want.abs().max()))  # a sum over rows errs with its size
        torch.testing.assert_close(
            grad.double(), want.double(), rtol=tolerance, atol=tolerance * size
        )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS, ids=name)
def test_the_same_bits_again(cell: str, extras: dict[str, Any]) -> None:
    problem = Recurrence(cell, **extras, T=20, B=8, H=200, dtype=torch.bfloat16, device=DEVICE)
    values, grads = fused(problem)
    again, grads_again = fused(problem)
    assert_equal([*again, *grads_again], [*values, *grads])


@needs_gpu
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS, ids=name)
def test_a_graph_replays(cell: str, extras: dict[str, Any]) -> None:
    problem = Recurrence(
        cell, **extras, lengths=(9, 8, 8, 3), H=96, dtype=torch.float32, device=DEVICE
    )
    arguments = problem.arguments(False)

    def run() -> list[Tensor]:
        output, states_n, _ = torch.ops.rnnfast.recurrence(*arguments)
        return [output, *states_n]

    wanted = run()
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        found = run()
    recorded.replay()
    torch.cuda.synchronize()
    assert_equal(found, wanted)
