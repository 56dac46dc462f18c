"""Precision against float64: our float32 error may be at most twice torch's own.

Catches a cheap sigmoid or tanh, an accumulation in too few partial sums, a saturated gate that
becomes NaN, a reserve that is rounded.
"""

from typing import Any

import pytest
import torch
from precision import assert_no_less_precise, relative_errors, seeds
from problems import MODES, Problem, cotangents
from torch import Tensor

SHAPES: list[dict[str, Any]] = [
    {"T": 60, "B": 4, "I": 24, "H": 40},
    {"T": 12, "B": 16, "I": 65, "H": 130, "bidirectional": True},
    {"lengths": (40, 31, 17, 2), "I": 10, "H": 33, "bidirectional": True},
    {"T": 1, "B": 9, "I": 100, "H": 64},
]


def results(problem: Problem, values: list[Tensor]) -> list[Tensor]:
    """Outputs, states and all gradients, the cotangents being exact in float32."""
    grads = [g.float().to(values[0].dtype) for g in cotangents([v.float() for v in values])]
    return [*values, *torch.autograd.grad(values, problem.leaves, grads)]


def pair(mode: str, scale: float = 1.0, **shape: Any) -> tuple[Problem, Problem]:
    """A float32 problem, and the same numbers in float64."""
    low = Problem(mode, dtype=torch.float32, **shape)
    exact = Problem(mode, dtype=torch.float64, **shape)
    with torch.no_grad():
        for a, b in zip(low.leaves, exact.leaves, strict=True):
            a.mul_(scale)
            b.copy_(a)
    return low, exact


def groups(problem: Problem, values: list[Tensor]) -> dict[str, list[Tensor]]:
    """Results, gradients of the inputs and gradients of the weights."""
    found = results(problem, values)
    count, inputs = len(values), 1 + len(problem.states)
    return {
        "results": found[:count],
        "gradients of inputs": found[count : count + inputs],
        "gradients of weights": found[count + inputs :],
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_float32_error_is_at_most_twice_torchs(
    mode: str, shape: dict[str, Any], scale: float
) -> None:
    if mode == "RNN_RELU" and scale > 1:
        scale = 0.5  # with large weights it grows without bound, and both lose all digits
    errors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for seed in seeds(shape, most=9):
        low, exact = pair(mode, scale, seed=seed, **shape)
        truth = groups(exact, exact.torch())
        ours, theirs = groups(low, low.rnnfast()), groups(low, low.torch())
        for name, values in truth.items():
            ours_so_far, theirs_so_far = errors.setdefault(name, ([], []))
            ours_so_far.append(relative_errors(ours[name], values))
            theirs_so_far.append(relative_errors(theirs[name], values))
    half_a_unit = torch.finfo(torch.float32).eps / 2
    for name, (our_errors, their_errors) in errors.items():
        assert_no_less_precise(our_errors, their_errors, factor=2, floor=half_a_unit, name=name)


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_saturated_gates_stay_finite(mode: str, dtype: torch.dtype, size: float) -> None:
    """Where huge terms cancel, torch's own result moves with the last bits of x, and ours may."""
    problem = Problem(mode, dtype=dtype, H=19, B=5)
    x = problem.x.detach() * size

    def found(library: str, x: Tensor) -> list[Tensor]:
        with torch.no_grad():
            problem.x.copy_(x)
        return results(problem, getattr(problem, library)())

    ours, theirs = found("rnnfast", x), found("torch", x)
    rounding = 2 * torch.finfo(dtype).eps
    moved = [found("torch", x * (1 + rounding * torch.randn_like(x).sign())) for _ in range(4)]
    for a, b, *others in zip(ours, theirs, *moved, strict=True):
        assert a.isfinite().all()
        scatter = torch.stack([(other - b).abs() for other in others]).amax(0)
        allowed = 1e-4 * max(1.0, b.abs().max().item()) + 4 * scatter
        assert ((a - b).abs() <= allowed).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_pass_as_in_torch(mode: str, poison: float) -> None:
    problem = Problem(mode, B=3, T=4, H=9, bidirectional=True)
    with torch.no_grad():
        problem.x[2, 1, 0] = poison
    for ours, theirs in zip(problem.rnnfast(), problem.torch(), strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_tiny_and_denormal_inputs(mode: str) -> None:
    for size in (1e-20, 1e-38, 1e-42):
        problem = Problem(mode, dtype=torch.float32, bias=False, states_given=False, H=17)
        with torch.no_grad():
            problem.x.mul_(size)
        for ours, theirs in zip(problem.rnnfast(), problem.torch(), strict=True):
            assert theirs.abs().max() > 0
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=max(1e-44, 1e-6 * size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_call_repeats_bit_by_bit(mode: str, dtype: torch.dtype) -> None:
    problem = Problem(mode, T=12, B=17, I=20, H=48, bidirectional=True, dtype=dtype)
    first, second = (results(problem, problem.rnnfast()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_does_not_depend_on_its_batch(mode: str) -> None:
    problem = Problem(mode, T=6, B=9, dtype=torch.float32, H=33)
    whole = problem.rnnfast()
    problem.x = problem.x.detach()[:, 3:4]
    problem.states = tuple(s.detach()[:, 3:4] for s in problem.states)
    for a, b in zip(problem.rnnfast(), whole, strict=True):
        torch.testing.assert_close(a, b[:, 3:4], rtol=1e-5, atol=1e-6)
