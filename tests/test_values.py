"""What a result is besides its numbers: a view or not, and where it is NaN or infinite.

Catches an output that may not be written in place where torch's may, a product that is skipped
because a state is zero although a weight is infinite, a gate that never closes.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from problems import MODES, Problem
from side_by_side import LAYERS, assert_same, build, tensors
from torch import Tensor, nn

layers = pytest.mark.parametrize("name", LAYERS)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@layers
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gradients", [False, True])
def test_results_are_views_where_torchs_are(name: str, dtype: torch.dtype, gradients: bool) -> None:
    for batch_first, bidirectional, num_layers in itertools.product((False, True), repeat=3):
        options: dict[str, Any] = {"batch_first": batch_first, "bidirectional": bidirectional}
        modules = build(name, 5, 7, 1 + num_layers, **options, dtype=dtype)
        x = torch.randn(4, 3, 5, dtype=dtype)
        with torch.set_grad_enabled(gradients):
            found = [[t._is_view() for t in tensors(module(x))] for module in modules]
        assert found[1] == found[0], options


def add_parameter(output: Tensor) -> Tensor:
    output += nn.Parameter(torch.ones(7))
    return output


def set_step(output: Tensor) -> Tensor:
    output[0] = nn.Parameter(torch.ones(7))
    return output


@pytest.mark.parametrize("name", ["RNN", "GRU"])
@pytest.mark.parametrize("write", [add_parameter, set_step, Tensor.detach_])
def test_batch_first_output_is_written_in_place(name: str, write: Any) -> None:
    theirs, ours = build(name, 5, 7, batch_first=True)
    x = torch.randn(4, 3, 5)
    for gradients in (False, write is Tensor.detach_):
        with torch.set_grad_enabled(gradients):
            results = [module(x)[0] for module in (theirs, ours)]
        assert_same(write(results[0]), write(results[1]))


def nonfinite(values: list[Tensor | None]) -> list[Any]:
    """Of each value, where it is NaN, and the infinite ones themselves."""
    return [
        None if v is None else torch.where(v.isfinite(), 0, v).nan_to_num(7, 1, -1) for v in values
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("steps", [1, 3])
def test_an_infinite_weight_shows_without_hx(
    mode: str, value: float, steps: int, dtype: torch.dtype, device: str
) -> None:
    """Zero times infinity is NaN from the first step on. With 1 row, 3, and more than are few."""
    for rows, bidirectional in itertools.product((1, 3, 40), (False, True)):
        options: dict[str, Any] = {"bidirectional": bidirectional, "states_given": False}
        problem = Problem(mode, T=steps, B=rows, H=19, dtype=dtype, device=device, **options)
        with torch.no_grad():
            problem.weights[1][3, 2] = value
            inference = [problem.rnnfast(), problem.torch()]
        ours, theirs = problem.rnnfast(), problem.torch()
        for found, wanted in ((inference[0], theirs), (inference[1], theirs), (ours, theirs)):
            for a, b in zip(nonfinite(found), nonfinite(wanted), strict=True):
                assert torch.equal(a, b)
        assert any(v.isnan().any() for v in theirs)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_w_hh_after_one_step_from_zeros_is_nan_where_torchs_is(
    mode: str, device: str
) -> None:
    for rows in (1, 5):
        problem = Problem(mode, T=1, B=rows, H=19, states_given=False, device=device)
        found = []
        for values in (problem.rnnfast(), problem.torch()):
            gradient = torch.zeros_like(values[0])
            gradient[0, -1, 5] = math.inf
            (w_hh,) = torch.autograd.grad(values[0], [problem.weights[1]], gradient)
            found.append(w_hh.isnan())
        assert found[1].any()
        assert not found[1].all()
        assert torch.equal(*found)


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_that_is_closed_is_zero(mode: str, dtype: torch.dtype, device: str) -> None:
    """Else an infinite gradient passes where torch's becomes NaN."""
    problem = Problem(mode, T=1, B=2, H=9, dtype=dtype, device=device)
    closed = (2 if mode == "GRU" else 1) * 9  # r and z, or i
    with torch.no_grad():
        for weight in problem.weights:
            weight.fill_(1)
        problem.weights[2][:closed] = -2000.0
    found = []
    for values in (problem.rnnfast(), problem.torch()):
        gradient = torch.full_like(values[0], math.inf)
        (b_ih,) = torch.autograd.grad(values[0], [problem.weights[2]], gradient)
        found.append(b_ih[:closed].isnan())
    assert found[1].all()
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_bias_that_is_set_later_does_what_torch_does(
    name: str, bias: bool, num_layers: int
) -> None:
    theirs, ours = build(name, 5, 6, num_layers, bias=bias)
    x = torch.randn(4, 3, 5)
    if name == "LSTM" and bias and num_layers == 2:  # torch reads past the end of the biases
        ours.bias = False
        with pytest.raises(RuntimeError, match="Expected more weights in stacked_rnn"):
            ours(x)
        return
    found: list[Any] = []
    for module in (theirs, ours):
        module.bias = not bias
        try:
            found.append(module(x))
        except RuntimeError as refused:
            found.append(str(refused))
    if isinstance(found[0], str):
        assert found[1] == found[0]
    else:
        assert_same(*found)
