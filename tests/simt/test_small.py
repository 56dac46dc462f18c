"""The kernels for small layers of 16-bit numbers, on the emulator.

Catches a row, a unit or a gate taken for another in any instance, a layer of fewer units than its
instance or of an odd number of them, a step of a packed sequence at which rows begin or end, inputs
asked for too late or beyond the end, and sums or results that follow the schedule.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from covering import covering
from emulated import Simt, gate_by_gate
from problems import MODES, TOLERANCE, Problem, assert_close, assert_gradients_close
from test_parity import (
    KEPT,
    SHAPES,
    backward_arguments,
    check,
    check_what_is_not_finite,
    kept,
    name,
)

from rnnfast import ops

SMALL = Simt("small")
DTYPES = (torch.bfloat16, torch.float16)
# At, below and beside the sizes of instances and parts of K; odd ones; even ones that are no
# multiple of 8; and one that no instance holds.
HIDDEN = (15, 16, 24, 31, 32, 33, 36, 63, 64, 66, 96, 100, 127, 128)
# Whether an instance fills, is empty in parts, or begins another tile; more steps than inputs are
# asked for ahead, as many, fewer.
SIZES: list[dict[str, Any]] = [
    {"T": 9, "B": 5},
    {"T": 4, "B": 4, "bidirectional": True},
    {"T": 2, "B": 1, "states_given": False},
    {"lengths": (8, 8, 7, 5, 5, 1), "bidirectional": True},
    {"lengths": (6, 1, 1, 1, 1), "states_given": False, "bias": False},
]

pytestmark = pytest.mark.usefixtures("_library")


def runs_small(problem: Problem) -> None:
    """Forward, forward for training and backward by whole-sequence kernels, and all is right."""
    torch.ops.rnnfast_simt.launched()
    check(problem, SMALL)
    kinds = torch.ops.rnnfast_simt.launched()
    assert kinds == ["cta"] * 3, kinds


@covering("dtype, mode, shape", DTYPES, MODES, SHAPES, ids=name)
def test_values_and_gradients(mode: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    if shape.get("H", 0) > 128:
        pytest.skip("larger than any instance")
    runs_small(Problem(mode, dtype=dtype, **shape))


@covering("mode, size, hidden", MODES, SIZES, HIDDEN, ids=name)
def test_every_size(mode: str, hidden: int, size: dict[str, Any]) -> None:
    """Both types take turns."""
    dtype = DTYPES[(hidden + len(size)) % 2]
    runs_small(Problem(mode, dtype=dtype, H=hidden, I=3, **size))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_reserve_is_that_of_the_cpu(mode: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    problem = Problem(mode, bidirectional=True, dtype=dtype, **shape)
    _, _, wanted = problem.layer(train=True)
    reserve = gate_by_gate(kept(problem, SMALL)[1])
    assert_close(reserve, [t.to(dtype) for t in wanted], TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [6, 7, 64])
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_inference_is_training_without_the_reserve(
    mode: str, hidden: int, shape: dict[str, Any]
) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.bfloat16, H=hidden, **shape)
    values, _ = kept(problem, SMALL)
    output, states_n, reserve = SMALL.layer(*problem.layer_arguments(False))
    assert reserve == []
    assert_close([output, *states_n], values, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_only_what_is_needed(mode: str, shape: dict[str, Any]) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.float16, **shape)
    *given, needs = backward_arguments(problem, SMALL)
    everything = SMALL.layer_backward(*given, needs)
    for i in range(len(needs)):
        (only,) = SMALL.layer_backward(*given, [k == i for k in range(len(needs))])
        assert_close([only], [everything[i]], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [7, 48, 100])
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_every_schedule_gives_the_same_bits(mode: str, hidden: int, shape: dict[str, Any]) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.bfloat16, H=hidden, **shape)
    values, reserve = kept(problem, SMALL)
    arguments = backward_arguments(problem, SMALL, (values, reserve))
    gradients = SMALL.layer_backward(*arguments)
    for seed in range(1, 4):
        other = SMALL._replace(seed=seed)
        again, again_reserve = kept(problem, other)
        assert_close([*again, *again_reserve], [*values, *reserve], 0)
        assert_close(other.layer_backward(*arguments), gradients, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("hidden", [5, 20, 64])
def test_what_is_not_finite_stays_in_its_row(mode: str, bad: float, hidden: int) -> None:
    """And in its unit, where the CPU keeps it there: units that do not exist carry nothing on."""
    check_what_is_not_finite(mode, SMALL, bad, torch.bfloat16, hidden)


def test_a_layer_that_is_too_large_runs_step_by_step() -> None:
    problem = Problem("GRU", dtype=torch.float16, H=130)
    torch.ops.rnnfast_simt.launched()
    found = kept(problem, SMALL)
    arguments = backward_arguments(problem, SMALL, found)
    gradients = SMALL.layer_backward(*arguments)
    assert torch.ops.rnnfast_simt.launched() == []
    arguments[7] = gate_by_gate([t.float() for t in arguments[7]])
    wanted = list(ops.layer_backward(*arguments))
    assert_gradients_close(gradients, wanted, TOLERANCE[torch.float16])
