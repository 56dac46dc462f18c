"""The specification against torch.nn: every other test may trust it then.

Catches a wrong formula, a packed row out of place, an operation that the transforms cannot take.
"""

from typing import Any

import pytest
import torch
from problems import MODES, Problem, assert_close, gradients
from torch import Tensor

from rnnfast import _C, reference
from rnnfast.spec import CELLS


def run(problem: Problem) -> list[Tensor]:
    sizes = None if problem.batch_sizes is None else problem.batch_sizes.tolist()
    arguments = (problem.x, sizes, problem.states, problem.weights, problem.bidirectional)
    output, states_n = reference.layer(problem.cell, *arguments)
    return [output, *states_n]


def test_every_cell_has_a_step() -> None:
    assert list(CELLS) == [cell["name"] for cell in _C.cells()]
    for spec in CELLS.values():
        gates = torch.zeros(2, 3 * spec.gates)
        states = tuple(spec.zeros(gates, (2,), 3))
        assert_close(spec.step(gates, gates, states), states, 0)  # a fixed point of all


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"bidirectional": True, "bias": False},
        {"states_given": False},
        {"lengths": (5, 5, 3, 1, 1), "bidirectional": True},
        {"lengths": (4, 1), "states_given": False},
        {"T": 1, "B": 1, "I": 1, "H": 1},
        {"B": 0},
    ],
    ids=str,
)
def test_reference_matches_torch(mode: str, shape: dict[str, Any]) -> None:
    problem = Problem(mode, **shape)
    ours, theirs = run(problem), problem.torch()
    assert_close(ours, theirs, 1e-12)
    assert_close(gradients(ours, problem.leaves), gradients(theirs, problem.leaves), 1e-11)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, (4, 2, 2, 1)], ids=["dense", "packed"])
@pytest.mark.parametrize("states_given", [True, False])
def test_projection_matches_torch(
    bias: bool, lengths: tuple[int, ...] | None, states_given: bool
) -> None:
    problem = Problem(
        "LSTM",
        proj_size=2,
        bidirectional=True,
        bias=bias,
        lengths=lengths,
        states_given=states_given,
    )
    ours, theirs = run(problem), problem.torch()
    assert_close(ours, theirs, 1e-12)
    assert_close(gradients(ours, problem.leaves), gradients(theirs, problem.leaves), 1e-11)


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
def test_complex_matches_torch(mode: str) -> None:
    problem = Problem(mode, dtype=torch.complex128, lengths=(3, 2))
    assert_close(run(problem), problem.torch(), 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, ()], ids=["dense", "packed"])
def test_no_steps_give_the_initial_states(mode: str, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(mode, T=0, B=3 if lengths is None else 0, bidirectional=True)
    if lengths is not None:
        problem.x, problem.batch_sizes = problem.x.reshape(0, 4), torch.tensor([]).long()
    output, *states_n = run(problem)
    assert output.shape == (*problem.x.shape[:-1], 12)
    assert_close(states_n, problem.states, 0)
