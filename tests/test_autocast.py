"""Under torch.autocast: torch.nn's dtypes and messages, and no more than its errors.

Catches a dtype that is not torch.nn's, for one combination of inputs and states, and a graph that
breaks.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from precision import assert_no_less_precise, relative_errors
from problems import MODES, Problem, assert_close, gradients
from test_autograd import as_function
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rnnfast import functional, routes

LOW = [torch.bfloat16, torch.float16]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return [t.dtype for t in call()]
    except RuntimeError as error:
        return str(error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 3, 1)], ids=["dense", "packed"])
@pytest.mark.parametrize("low", LOW)
def test_autocast_gives_torchs_dtypes(
    mode: str, lengths: tuple[int, ...] | None, low: torch.dtype
) -> None:
    for x_dtype in FLOATS:
        for state_dtype in (None, *FLOATS):
            problem = Problem(mode, lengths=lengths, dtype=torch.float32, layers=2)
            problem.x = problem.x.detach().to(x_dtype)
            states = problem.states if state_dtype is not None else ()
            problem.states = tuple(s.detach().to(state_dtype) for s in states)
            with torch.autocast("cpu", dtype=low):
                ours, theirs = outcome(problem.rnnfast), outcome(problem.torch)
            if isinstance(theirs, str):
                # oneDNN has no float16 LSTM on most CPUs; ours computes in float32.
                assert "could not create a primitive descriptor" in theirs
                theirs = [low] * 3
            assert ours == theirs, (x_dtype, state_dtype)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_on_a_gpu_gives_cudnns_dtype(mode: str) -> None:
    with FakeTensorMode():
        x, state = (torch.empty(2, 3, 4, device="cuda") for _ in range(2))
        for states in ((), (state,)):
            assert routes.autocast_dtype(mode, x, states, onednn=True) == torch.float16


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("low", LOW)
def test_autocast_gives_torchs_dtypes_for_cells(mode: str, low: torch.dtype) -> None:
    for x_dtype in FLOATS:
        for state_dtype in FLOATS:
            problem = Problem(mode, T=1, dtype=torch.float32)
            x = problem.x.detach()[0].to(x_dtype)
            states = [s.detach()[0].to(state_dtype) for s in problem.states]
            name = problem.cell + "_cell"
            with torch.autocast("cpu", dtype=low):
                ours = functional.cell(mode, x, states, *problem.weights)
                hx = states if mode == "LSTM" else states[0]
                theirs = getattr(torch, name)(x, hx, *problem.weights)
            theirs = theirs if mode == "LSTM" else [theirs]
            assert [t.dtype for t in ours] == [t.dtype for t in theirs], (x_dtype, state_dtype)


def values_or_skip(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """On CPUs for which oneDNN has no LSTM in bfloat16, torch.nn raises under autocast."""
    try:
        return run()
    except RuntimeError as error:
        if "could not create a primitive descriptor" not in str(error):
            raise
        pytest.skip("torch.nn has no such layer on this CPU")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 3, 1)], ids=["dense", "packed"])
def test_autocast_is_no_less_precise_than_torchs(
    mode: str, lengths: tuple[int, ...] | None
) -> None:
    errors: list[list[Tensor]] = [[], [], [], []]  # values and gradients, ours and torch's
    for seed in range(12):
        problem = Problem(
            mode, lengths=lengths, dtype=torch.float32, layers=2, H=20, B=6, seed=seed
        )
        exact = [t.detach() for t in problem.rnnfast()]
        exact_grads = gradients(problem.rnnfast(), problem.weights)
        for i, run in enumerate((problem.rnnfast, problem.torch)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                values = values_or_skip(run)
            grads = gradients(values, problem.weights)
            assert [g.dtype for g in grads if g is not None] == [torch.float32] * len(grads)
            errors[i].append(relative_errors(values, exact))
            errors[2 + i].append(relative_errors(grads, exact_grads))
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    assert_no_less_precise(*errors[:2], factor=1.25, floor=half_a_unit, name="results")
    assert_no_less_precise(*errors[2:], factor=1.25, floor=half_a_unit, name="gradients")


@pytest.mark.parametrize("mode", MODES)
def test_float64_input_under_autocast_raises_as_torch(mode: str) -> None:
    problem = Problem(mode, dtype=torch.float32, states_given=False)
    problem.x = problem.x.detach().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = outcome(problem.rnnfast), outcome(problem.torch)
    assert ours == theirs
    assert "must have the same dtype" in ours


@pytest.mark.parametrize("mode", MODES)
def test_autocast_compiles(mode: str) -> None:
    problem = Problem(mode, dtype=torch.float32)
    call = as_function(problem)

    def model(*leaves: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(*leaves)

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours, expected = compiled(*problem.leaves), model(*problem.leaves)
    assert_close(ours, expected, 1e-6)
    assert_close(gradients(ours, problem.leaves), gradients(expected, problem.leaves), 1e-2)
