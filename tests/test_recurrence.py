"""The op ``rnnfast::recurrence``: its values and gradients against the reference, its registration,
and every bad argument.

Catches a wrong offset, a row of a packed sequence taken for another, a gradient that is left out or
that takes a wrong way around what is kept, dropped or normalised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from covering import covering
from problems import CELLS, TOLERANCE, OpDevice, assert_close, cotangents
from recurrences import EXTRAS, Problem
from torch import Tensor, nn

OP = torch.ops.rnnfast.recurrence.default
BACKWARD = torch.ops.rnnfast.recurrence_backward.default


AXES: dict[str, Sequence[Any]] = {
    "batch_sizes": [None, (5, 4, 4, 1)],
    "norm": [False, True],
    "keep": [None, "rows", "units"],
    "drop": [False, True],
    "units": [False, True],
    "clip": [None, 0.3],
    "reverse": [False, True],
    "states_given": [True, False],
    "bias": [True, False],
    "H": [6, 1, 17, 33],
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(12))
def test_values_and_gradients(cell: str, seed: int) -> None:
    """Six combinations each: drawn, but always the same."""
    draw = random.Random(seed)
    for _ in range(6):
        case = {name: draw.choice(values) for name, values in AXES.items()}
        try:
            Problem(cell, **case).compare(1e-11)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


# One row or unit, units in no whole warps and in more than one block, one step, packed in both
# orders of the steps.
SHAPES: list[dict[str, Any]] = [
    {},
    {"reverse": True, "states_given": False},
    {"T": 1, "B": 1, "H": 1},
    {"T": 1, "B": 9, "H": 33, "states_given": False},
    {"T": 9, "B": 2, "H": 33, "bias": False},
    {"T": 3, "B": 2, "H": 131},
    {"batch_sizes": (5, 4, 4, 1)},
    {"batch_sizes": (9, 2, 1), "reverse": True, "H": 7},
    {"batch_sizes": (9, 8, 8, 7, 5, 5, 5, 2, 1), "reverse": True, "states_given": False},
]


def on(device: OpDevice, cell: str, **case: Any) -> Problem:
    """A problem in the most precise type of the device."""
    return Problem(cell, device=device.name, **{"dtype": device.dtype, **case})


@covering("cell, extras, shape", CELLS, EXTRAS, SHAPES, ids=str)
def test_every_option_with_every_shape(
    cell: str, extras: dict[str, Any], shape: dict[str, Any], rows_device: OpDevice
) -> None:
    on(rows_device, cell, **extras, **shape).compare(10 * rows_device.tolerance)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS[-3:], ids=str)
def test_more_units_than_a_block_has_threads(
    cell: str, extras: dict[str, Any], rows_device: OpDevice
) -> None:
    on(rows_device, cell, **extras, T=2, B=2, H=530).compare(10 * rows_device.tolerance)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("extras", EXTRAS[-3:], ids=str)
def test_inference_is_training_without_the_reserve(
    cell: str, extras: dict[str, Any], rows_device: OpDevice
) -> None:
    problem = on(rows_device, cell, **extras)
    with torch.no_grad():
        wanted, wanted_n, _ = OP(*problem.arguments(True))
        output, states_n, reserve = OP(*problem.arguments(False))
    assert reserve == []
    assert_close([output, *states_n], [wanted, *wanted_n], 0)


def test_missing_gradients_count_as_zeros(rows_device: OpDevice) -> None:
    problem = on(rows_device, "lstm", norm=True, keep="rows")
    with torch.no_grad():
        output, states_n, reserve = OP(*problem.arguments(True))
        norm, keep, drop, clip = problem.extras
        rest = (None, problem.B, problem.w_hh, list(norm), keep, drop, False, reserve, clip)
        zeros = [torch.zeros_like(s) for s in states_n]
        assert_close(
            BACKWARD("lstm", output, [None, None], *rest), BACKWARD("lstm", output, zeros, *rest), 0
        )
        assert_close(
            BACKWARD("lstm", None, states_n, *rest),
            BACKWARD("lstm", torch.zeros_like(output), states_n, *rest),
            0,
        )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", [{"norm": True}, {"keep": "rows"}, {"units": True}], ids=str)
@pytest.mark.parametrize("sizes", [{"B": 1, "H": 67}, {"B": 9, "H": 40}, {"B": 2}], ids=str)
def test_threads(cell: str, case: dict[str, Any], sizes: dict[str, int], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        Problem(cell, T=20, **case, **sizes).compare(1e-11)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [False, True])
def test_other_types(cell: str, dtype: torch.dtype, norm: bool) -> None:
    tolerance = TOLERANCE[dtype] * (1 if dtype == torch.float32 else 3)
    Problem(cell, H=20, T=6, norm=norm, keep="rows", drop=True, dtype=dtype).compare(tolerance)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", [False, True])
def test_errors_are_at_most_twice_torchs(cell: str, norm: bool) -> None:
    problem = Problem(cell, H=64, B=16, T=50, norm=norm, keep="rows", dtype=torch.float32)
    exact, _ = problem.reference()
    theirs, _ = problem.reference(torch.float32)
    for a, b, c in zip(problem.fused(), theirs, exact, strict=True):
        ours, other = (float((t.detach().double() - c.detach()).norm()) for t in (a, b))
        assert ours <= 2 * other


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_beside_the_cell_is_torchs_layer(cell: str, reverse: bool) -> None:
    """An oracle that shares no line with ours."""
    problem = Problem(cell, reverse=reverse)
    name = cell.partition("_")[0].upper()
    options = {"nonlinearity": cell.partition("_")[2]} if name == "RNN" else {}
    columns = problem.x_gates.shape[1]
    layer = getattr(nn, name)(columns, problem.H, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.eye(columns))
        layer.bias_ih_l0.zero_()
        layer.weight_hh_l0.copy_(problem.w_hh)
        layer.bias_hh_l0.copy_(problem.b_hh)
    x = problem.x_gates.view(problem.T, problem.B, columns)
    hx: Any = [s.unsqueeze(0) for s in problem.states]
    expected, hidden = layer(x.flip(0) if reverse else x, tuple(hx) if name == "LSTM" else hx[0])
    expected = expected.flip(0) if reverse else expected
    states_n = [s[0] for s in (hidden if name == "LSTM" else [hidden])]
    assert_close(problem.fused(), [expected.reshape(-1, problem.H), *states_n], 1e-11)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "case", [{"norm": True, "keep": "units"}, {"units": True, "drop": True}], ids=str
)
def test_second_derivatives(cell: str, case: dict[str, Any]) -> None:
    problem = Problem(cell, H=2, B=2, batch_sizes=(2, 1), **case)

    def function(*_: Tensor) -> Any:
        return tuple(problem.fused())

    leaves = problem.leaves
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("case", [{}, {"norm": True, "keep": "rows"}, {"units": True}], ids=str)
@pytest.mark.parametrize("batch_sizes", [None, (3, 3, 1)])
def test_opcheck(cell: str, case: dict[str, Any], batch_sizes: tuple[int, ...] | None) -> None:
    problem = Problem(cell, batch_sizes=batch_sizes, **case)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(OP, problem.arguments(train=True), test_utils=tests)
    with torch.no_grad():
        torch.library.opcheck(OP, problem.arguments(train=False), test_utils=tests)
        output, states_n, reserve = OP(*problem.arguments(train=True))
        norm, keep, drop, clip = problem.extras
        arguments = (
            *(cell, torch.ones_like(output), [torch.ones_like(s) for s in states_n]),
            *(problem.sizes, problem.B, problem.w_hh, list(norm), keep, drop, False, reserve, clip),
        )
        torch.library.opcheck(BACKWARD, arguments, test_utils=tests)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [{"B": 0}, {"T": 0}, {"H": 0}], ids=str)
@pytest.mark.parametrize("states_given", [False, True])
def test_nothing_to_compute(
    cell: str, sizes: dict[str, int], states_given: bool, rows_device: OpDevice
) -> None:
    options = {"norm": True, "keep": "rows", "drop": True, "states_given": states_given}
    problem = on(rows_device, cell, **options, **sizes)
    output, *states_n = problem.fused()
    assert output.shape == (problem.T * problem.B, problem.H)
    for k, state in enumerate(states_n):
        given = problem.states[k] if states_given else torch.zeros_like(state)
        assert_close([state.detach()], [given.detach()], 0)
    grads = torch.autograd.grad(
        [output, *states_n], problem.leaves, cotangents([output, *states_n]), allow_unused=True
    )
    for grad, leaf in zip(grads, problem.leaves, strict=True):
        assert grad is None or grad.shape == leaf.shape


def test_strides(rows_device: OpDevice) -> None:
    problem = on(rows_device, "lstm", norm=True, keep="rows", drop=True)
    expected = problem.fused()
    for t in problem.leaves:
        t.data = torch.stack([t.data, t.data], -1)[..., 0]
    assert not problem.w_hh.is_contiguous()
    assert_close(problem.fused(), expected, 0)


def test_a_call_that_keeps_nothing_has_no_gradients() -> None:
    output, _, reserve = OP(*Problem("gru").arguments(train=False))
    assert reserve == []
    with pytest.raises(RuntimeError, match="no gradients without train=True"):
        output.sum().backward()


BAD: list[tuple[int, Any, str]] = [
    (0, "gruu", "cell must be one of"),
    (1, torch.zeros(12), r"x_gates must be \[rows, G\*H\], got 1"),
    (1, torch.zeros(12, 17).double(), "x_gates must have sizes"),
    (1, torch.zeros(13, 18).double(), r"x_gates must have T\*B rows, got 13 of B = 3"),
    (1, torch.zeros(12, 18).long(), "x_gates must be of dtype"),
    (2, torch.tensor([3, 4]), "batch_sizes must be"),
    (2, torch.tensor([3, 3, 3]), "batch_sizes must sum up to the 12 rows"),
    (3, -1, "rows, got 12 of B = -1"),
    (3, 0, "rows, got 12 of B = 0"),
    (4, [torch.zeros(3, 6).double()] * 2, "states must be empty or hold 1"),
    (4, [torch.zeros(2, 6).double()], "states must have sizes"),
    (5, torch.zeros(18, 6), "w_hh must be of dtype"),
    (5, torch.zeros(18, 6, device="meta").double(), "must be on the device of x, cpu, got meta"),
    (8, torch.zeros(12, 6, device="meta").double(), "must be on the device of x, cpu, got meta"),
    (5, torch.zeros(18, 6, 1).double(), "w_hh must be"),
    (5, torch.zeros(17, 6).double(), "w_hh must have sizes"),
    (6, torch.zeros(6).double(), "b_hh must have sizes"),
    (7, [torch.ones(18).double()] * 3, "norm must be empty or hold 1"),
    (7, [torch.ones(6).double()], r"norm\[0\] must have sizes"),
    (8, torch.zeros(12, 12).double(), "keep must have sizes"),
    (8, torch.zeros(12).double(), "keep must have sizes"),
    (9, torch.zeros(2, 6).double(), "drop must have sizes"),
    (11, 0.0, "clip must be positive"),
]


@pytest.mark.parametrize(("place", "value", "message"), BAD, ids=lambda v: str(v)[:20])
def test_bad_arguments(place: int, value: Any, message: str) -> None:
    arguments = list(Problem("gru").arguments(train=True))
    arguments[place] = value
    with pytest.raises((RuntimeError, ValueError), match=message), torch.no_grad():
        OP(*arguments)


def test_bad_arguments_of_backward() -> None:
    problem = Problem("lstm", norm=True)
    with torch.no_grad():
        output, states_n, reserve = OP(*problem.arguments(train=True))
    grads, norm = [torch.ones_like(s) for s in states_n], list(problem.extras.norm)
    good = [problem.cell, output, grads, None, 3, problem.w_hh, norm]
    good += [None, None, False, reserve, None]
    assert len(BACKWARD(*good)) == 6
    bad: list[tuple[int, Any, str]] = [
        (1, output[1:], "grad_output must have sizes"),
        (2, grads[:1], "grad_states_n must have 2 entries"),
        (2, [grads[0], grads[1][1:]], "grad_states_n must have sizes"),
        (4, 2, "rows"),
        (4, 100, "reserve must be what"),
        (6, [], "reserve must be the 3 tensors"),
        (7, torch.zeros(12, 12).double(), "reserve must be the 6 tensors"),
        (10, [], "reserve must be what"),
        (10, reserve[:2], "reserve must be the 5 tensors"),
        (10, [t.float() for t in reserve], "reserve must be of dtype"),
        (11, -1.0, "clip must be positive"),
    ]
    for place, value, message in bad:
        arguments = list(good)
        arguments[place] = value
        with pytest.raises((RuntimeError, ValueError), match=message):
            BACKWARD(*arguments)
