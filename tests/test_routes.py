"""Which implementation serves a call, and the reason that it gives.

Catches kernels that are handed what they do not serve, and a fallback that computes something else.
"""

import pytest
import torch
from problems import Problem, assert_close, assert_same_as_torch
from torch import Tensor, nn

from rnnfast import functional


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, (5, 2)], ids=["dense", "packed"])
@pytest.mark.parametrize("states_given", [True, False])
def test_projection_takes_torchs_route(
    bias: bool, lengths: tuple[int, ...] | None, states_given: bool
) -> None:
    problem = Problem(
        "LSTM",
        proj_size=2,
        layers=2,
        bidirectional=True,
        bias=bias,
        lengths=lengths,
        states_given=states_given,
    )
    assert_same_as_torch(problem, problem.leaves)
    chosen = functional.route(problem.x, problem.weights, proj_size=2)
    assert chosen.kind == "torch"
    assert "proj_size=2" in chosen.reason


class Wrapped(Tensor):
    """A subclass that could do anything."""


def test_routes_name_their_reason() -> None:
    x, w = torch.ones(2, 3, 4), torch.ones(4, 4)
    expected = {
        "fused": [
            (x, [w]),
            (x.double(), [w.double()]),
            (x.bfloat16(), [w.bfloat16()]),
            (x.half(), [nn.Parameter(w.half())]),
            (x.to("meta"), [w.to("meta")]),
        ],
        "torch": [
            (x, [w.double()]),
            (x.to("meta"), [w]),
            (x.to(torch.complex64), [w.to(torch.complex64)]),
            (x.as_subclass(Wrapped), [w]),
        ],
    }
    for kind, calls in expected.items():
        for input, others in calls:
            chosen = functional.route(input, others)
            assert chosen.kind == kind, chosen
            assert chosen.reason
    assert "Wrapped" in functional.route(x, [w.as_subclass(Wrapped)]).reason


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
def test_complex_takes_torchs_route(mode: str) -> None:
    problem = Problem(mode, dtype=torch.complex128)
    assert_close(problem.rnnfast(), problem.torch(), 1e-12)


def test_subclass_in_subclass_out() -> None:
    problem = Problem("GRU")
    problem.x = problem.x.detach().as_subclass(Wrapped)
    with torch.no_grad():
        ours, theirs = problem.rnnfast(), problem.torch()
    assert type(ours[0]) is type(theirs[0]) is Wrapped
    assert_close(ours, theirs, 0)
