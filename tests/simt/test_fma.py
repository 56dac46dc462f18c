"""The kernels for float32 without tensor cores, on the emulator.

Catches a row, a unit or a gate taken for another in any instance, a layer of fewer units than its
instance, a step of a packed sequence at which rows begin or end, inputs asked for beyond the end,
products that are rounded to TF32, and sums or results that follow the schedule.
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

from rnnfast import _C, ops

FMA = Simt("fma")
LARGEST = 512
HOPPER = (90, 132, 227 << 10, 16)
# At, below and beside the sizes of instances, of pieces of K, and of pieces that CTAs exchange; the
# widest loads need multiples of 4.
HIDDEN = (1, 3, 4, 31, 32, 33, 63, 64, 66)
# Whether the last tile of an instance is full; more steps than inputs are loaded ahead, as many,
# fewer, and an odd number of them.
SIZES: list[dict[str, Any]] = [
    {"T": 9, "B": 5},
    {"T": 2, "B": 4, "bidirectional": True},
    {"T": 1, "B": 1, "states_given": False},
    {"lengths": (8, 8, 7, 5, 5, 1), "bidirectional": True},
    {"lengths": (3, 1, 1, 1, 1), "states_given": False, "bias": False},
]

pytestmark = pytest.mark.usefixtures("_library")


def entry(problem: Problem, instance: tuple[int, int, int], backward: bool) -> str:
    """The instance, by hidden size, CTAs and batch rows, as a kernel to ask for."""
    sizes = (problem.T, problem.B, problem.H, 1 + problem.bidirectional, backward, False)
    plan = _C.cuda_plan(problem.cell, "float32", *sizes, *HOPPER, "fma")
    known = [(p["hidden"], p["peers"], p["rows"]) for p in plan if p["kernel"] == "fma"]
    return f"fma/{known.index(instance)}" if instance in known else "step"


def runs(problem: Problem, simt: Simt = FMA) -> None:
    """Forward, forward for training and backward by whole-sequence kernels, and all is right."""
    torch.ops.rnnfast_simt.launched()
    check(problem, simt)
    kinds = torch.ops.rnnfast_simt.launched()
    assert len(kinds) == 3, kinds


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_values_and_gradients(mode: str, shape: dict[str, Any]) -> None:
    runs(Problem(mode, dtype=torch.float32, **shape))


@covering("mode, size, hidden", MODES, SIZES, HIDDEN, ids=name)
def test_every_size(mode: str, hidden: int, size: dict[str, Any]) -> None:
    runs(Problem(mode, dtype=torch.float32, H=hidden, I=3, **size))


INSTANCES = [(128, 1, 1), (128, 4, 1), (256, 8, 1), (256, 8, 4), (512, 16, 1), (512, 16, 2)]


@covering("less, mode, instance", (0, 3, 20), MODES, INSTANCES, ids=name)
def test_every_instance(mode: str, instance: tuple[int, int, int], less: int) -> None:
    """Each by its number in the plan, which sorts them by what they are expected to cost."""
    hidden, _, rows = instance
    problems = [
        Problem(mode, T=3, B=rows + 1, I=2, H=hidden - less, dtype=torch.float32),
        Problem(
            mode, lengths=(4, 2, 2, 1), bidirectional=True, H=hidden - less, dtype=torch.float32
        ),
    ]
    for problem in problems[: 2 if hidden < LARGEST else 1]:  # large ones take the emulator long
        forward, backward = (entry(problem, instance, backward) for backward in (False, True))
        wanted = ["cta" if instance[1] == 1 else "cluster"] * sum(
            e != "step" for e in (forward, backward)
        )
        if not wanted:
            pytest.skip("its registers do not hold the weights of this cell")
        torch.ops.rnnfast_simt.launched()
        found = kept(problem, Simt(forward))
        arguments = backward_arguments(problem, Simt(forward), found)
        gradients = Simt(backward).layer_backward(*arguments)
        assert torch.ops.rnnfast_simt.launched() == wanted
        # The CPU kernels, which other tests prove, on the same numbers and from the same reserve.
        output, states_n, reserve = ops.layer(*problem.layer_arguments(True))
        assert_close(found[0], [output, *states_n], TOLERANCE[torch.float32])
        assert_close(gate_by_gate(found[1]), reserve, TOLERANCE[torch.float32])
        arguments[7] = gate_by_gate(arguments[7])
        assert_gradients_close(
            gradients, list(ops.layer_backward(*arguments)), TOLERANCE[torch.float32]
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [20, 100, 200])
def test_float32_is_float32_where_tf32_is_allowed(mode: str, hidden: int) -> None:
    """In the recurrence; the projection is a product of the library, here on a CPU."""
    problem = Problem(mode, dtype=torch.float32, H=hidden)
    exactly = kept(problem, FMA)
    torch.backends.cudnn.allow_tf32 = True
    allowed = kept(problem, FMA)
    assert_close([*allowed[0], *allowed[1]], [*exactly[0], *exactly[1]], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [6, 100])
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_inference_is_training_without_the_reserve(
    mode: str, hidden: int, shape: dict[str, Any]
) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.float32, H=hidden, **shape)
    values, _ = kept(problem, FMA)
    output, states_n, reserve = FMA.layer(*problem.layer_arguments(False))
    assert reserve == []
    assert_close([output, *states_n], values, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [6, 100])
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_only_what_is_needed(mode: str, hidden: int, shape: dict[str, Any]) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.float32, H=hidden, **shape)
    *given, needs = backward_arguments(problem, FMA)
    everything = FMA.layer_backward(*given, needs)
    for i in range(len(needs)):
        (only,) = FMA.layer_backward(*given, [k == i for k in range(len(needs))])
        assert_close([only], [everything[i]], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hidden", [7, 48, 100, 200])
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_every_schedule_gives_the_same_bits(mode: str, hidden: int, shape: dict[str, Any]) -> None:
    problem = Problem(mode, bidirectional=True, dtype=torch.float32, H=hidden, **shape)
    values, reserve = kept(problem, FMA)
    arguments = backward_arguments(problem, FMA, (values, reserve))
    gradients = FMA.layer_backward(*arguments)
    for seed in range(1, 4):
        other = FMA._replace(seed=seed)
        again, again_reserve = kept(problem, other)
        assert_close([*again, *again_reserve], [*values, *reserve], 0)
        assert_close(other.layer_backward(*arguments), gradients, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("hidden", [5, 20, 61, 100])
def test_what_is_not_finite_stays_in_its_row(mode: str, bad: float, hidden: int) -> None:
    """And in its unit, where the CPU keeps it there: units that do not exist carry nothing on."""
    check_what_is_not_finite(mode, FMA, bad, torch.float32, hidden)


@pytest.mark.parametrize(
    ("dtype", "hidden"), [(torch.float32, LARGEST + 1), (torch.float64, 8), (torch.bfloat16, 8)]
)
def test_what_it_does_not_serve_runs_step_by_step(dtype: torch.dtype, hidden: int) -> None:
    problem = Problem("GRU", dtype=dtype, T=2, B=2, H=hidden)
    torch.ops.rnnfast_simt.launched()
    found = kept(problem, FMA)
    FMA.layer_backward(*backward_arguments(problem, FMA, found))
    assert torch.ops.rnnfast_simt.launched() == []
    output, states_n, _ = ops.layer(*problem.layer_arguments(True))
    assert_close(found[0], [output, *states_n], TOLERANCE[dtype])
