"""The raw ops: their values against the reference, their registration; bad arguments are those of
test_ops_errors.py.

Catches a fake kernel that disagrees with the real one, a needless gradient, an argument that is
taken for contiguous or aligned, a reserve of another layout than the documented one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import (
    CELLS,
    MODES,
    OpDevice,
    Problem,
    assert_close,
    assert_gradients_close,
    cotangents,
    displaced,
    strided,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from rnnfast import ops, reference

SHAPES: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "states_given": False},
    {"lengths": (5, 4, 4, 1), "bidirectional": True, "bias": False},
    {"lengths": (3, 1), "states_given": False},
    {"T": 1, "H": 17},
    {"B": 0},
    {"T": 0},
    {"T": 0, "states_given": False, "bidirectional": True},
]
LAYER = torch.ops.rnnfast.layer.default
BACKWARD = torch.ops.rnnfast.layer_backward.default


def reference_layer(problem: Problem) -> tuple[Tensor, tuple[Tensor, ...]]:
    sizes = None if problem.batch_sizes is None else problem.batch_sizes.tolist()
    return reference.layer(
        problem.cell, problem.x, sizes, problem.states, problem.weights, problem.bidirectional
    )


def on(device: OpDevice, mode: str, **shape: Any) -> Problem:
    """A problem in the most precise type of the device."""
    return Problem(mode, device=device.name, **{"dtype": device.dtype, **shape})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_is_the_reference(mode: str, shape: dict[str, Any], op_device: OpDevice) -> None:
    problem = on(op_device, mode, **shape)
    output, states_n, reserve = problem.layer(train=False)
    expected, expected_n = reference_layer(problem)
    assert reserve == []
    wanted = [t.detach() for t in (expected, *expected_n)]
    assert_close([output, *states_n], wanted, op_device.tolerance)
    assert output.is_contiguous()
    with_reserve = problem.layer(train=True)
    assert_close([with_reserve[0], *with_reserve[1]], [output, *states_n], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.get("T") != 0], ids=str)
def test_backward_gives_what_is_needed(
    mode: str, shape: dict[str, Any], op_device: OpDevice
) -> None:
    problem = on(op_device, mode, **shape | {"states_given": True})
    *given, needs = problem.backward_arguments()
    everything = ops.layer_backward(*given, needs)
    output, states_n = reference_layer(problem)
    values = [output, *states_n]
    expected = torch.autograd.grad(values, problem.leaves, [given[1], *given[2]])
    assert_close(everything, expected, 10 * op_device.tolerance)
    assert all(grad.is_contiguous() for grad in everything)
    check_needs(given, everything)


def check_needs(given: list[Any], everything: list[Tensor]) -> None:
    """Each gradient alone is what it is among all, and none is nothing."""
    count = len(everything)
    for i in range(count):
        (only,) = ops.layer_backward(*given, [k == i for k in range(count)])
        assert_close([only], [everything[i]], 1e-13)
    assert ops.layer_backward(*given, [False] * count) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 4, 4, 1)], ids=["dense", "packed"])
def test_needs_of_half_types(
    mode: str, lengths: tuple[int, ...] | None, op_device: OpDevice
) -> None:
    problem = on(op_device, mode, lengths=lengths, bidirectional=True, dtype=torch.float16)
    *given, needs = problem.backward_arguments()
    check_needs(given, ops.layer_backward(*given, needs))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_backward_of_no_steps(mode: str, bidirectional: bool, op_device: OpDevice) -> None:
    """The gradients of the states pass through, the others are zero."""
    problem = on(op_device, mode, T=0, bidirectional=bidirectional)
    arguments = problem.backward_arguments()
    x, *rest = ops.layer_backward(*arguments)
    states = arguments[2]
    assert_close(rest[: len(states)], states, 0)
    others = [x, *rest[len(states) :]]
    assert_close(others, [torch.zeros_like(t) for t in (arguments[3], *arguments[5])], 0)


@pytest.mark.parametrize("mode", MODES)
def test_missing_gradients_count_as_zeros(mode: str, op_device: OpDevice) -> None:
    problem = on(op_device, mode, bidirectional=True)
    cell, grad, grads, *rest = problem.backward_arguments()
    zeros = [torch.zeros_like(g) for g in grads]
    assert_close(
        ops.layer_backward(cell, grad, [None] * len(grads), *rest),
        ops.layer_backward(cell, grad, zeros, *rest),
        0,
    )
    assert_close(
        ops.layer_backward(cell, None, grads, *rest),
        ops.layer_backward(cell, torch.zeros_like(grad), grads, *rest),
        0,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 4, 4, 1)], ids=["dense", "packed"])
@pytest.mark.parametrize("hidden", [6, 64])
@pytest.mark.parametrize("change", [strided, displaced])
def test_any_place_in_memory(
    mode: str,
    lengths: tuple[int, ...] | None,
    hidden: int,
    change: Callable[[Tensor], Tensor],
    op_device: OpDevice,
) -> None:
    problem = on(op_device, mode, lengths=lengths, bidirectional=True, H=hidden)
    cell, x, sizes, states, weights, bidirectional, _ = problem.layer_arguments(True)
    apart = None if sizes is None else torch.stack([sizes, sizes], -1)[:, 0]
    moved = (change(x), apart, *([change(t) for t in ts] for ts in (states, weights)))
    output, states_n, reserve = ops.layer(cell, *moved, bidirectional, True)
    expected, expected_n, wanted = problem.layer(train=True)
    # What lies elsewhere, a library's product may add up in another order.
    tolerance = op_device.tolerance if change is displaced else 0
    assert_close([output, *states_n, *reserve], [expected, *expected_n, *wanted], tolerance)
    assert all(t.is_contiguous() for t in (output, *states_n, *reserve))
    _, grad, grads, *_, needs = given = problem.backward_arguments()
    kept = [displaced(t) for t in given[7]] if change is displaced else given[7]
    rest = (moved[0], apart, moved[3], bidirectional, kept, needs)
    found = ops.layer_backward(cell, change(grad), [change(g) for g in grads], *rest)
    assert_gradients_close(found, ops.layer_backward(*given), tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_that_are_expanded(mode: str, op_device: OpDevice) -> None:
    cell, grad, grads, *rest = on(op_device, mode).backward_arguments()
    first, *others = (g.new_ones(()).expand_as(g) for g in (grad, *grads))
    clones = [g.clone() for g in others]
    assert_close(
        ops.layer_backward(cell, first, others, *rest),
        ops.layer_backward(cell, first.clone(), clones, *rest),
        0,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_that_begin_anywhere(mode: str, dtype: torch.dtype, op_device: OpDevice) -> None:
    """Not where copies of 16 bytes may begin, though the rows would be apart for them."""
    problem = on(op_device, mode, T=6, B=3, H=16, dtype=dtype)
    cell, grad, *rest = problem.backward_arguments()
    moved = torch.cat([grad.new_zeros(1), grad.flatten()])[1:].view_as(grad)
    assert moved.is_contiguous()
    assert moved.data_ptr() % 16 != 0
    assert_close(ops.layer_backward(cell, moved, *rest), ops.layer_backward(cell, grad, *rest), 0)


@pytest.mark.parametrize("lengths", [None, (3, 3, 1)], ids=["dense", "packed"])
def test_reserve_is_laid_out_as_documented(
    lengths: tuple[int, ...] | None, op_device: OpDevice
) -> None:
    problem = on(op_device, "LSTM", T=3, B=3, lengths=lengths, bidirectional=True)
    output, _, (h, c, gates) = problem.layer(train=True)
    rows, B, H = problem.x.shape[:-1].numel(), problem.B, problem.H
    assert gates.shape == (2, rows, 4 * H)
    assert h.shape == c.shape == (2, rows + B, H)
    output = output.view(rows, 2, H)
    assert_close([h[0, B:], h[1, :rows]], [output[:, 0], output[:, 1]], 0)
    for timeline, initial in zip((h, c), problem.states, strict=True):
        assert_close([timeline[0, :B], timeline[1, rows:]], list(initial.detach()), 0)
    shape, dim = ((rows, H, 4), -1) if op_device.by_unit else ((rows, 4, H), 1)
    i, f, g, o = gates[0].view(shape).unbind(dim)
    assert_close([o * torch.tanh(c[0, B:])], [h[0, B:]], op_device.tolerance)
    first = f[:B] * c[0, :B] + i[:B] * g[:B]
    assert_close([first], [c[0, B : 2 * B]], op_device.tolerance)


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reserve_that_begins_anywhere(mode: str, dtype: torch.dtype, op_device: OpDevice) -> None:
    """Not where the numbers that a unit keeps can be read at once."""
    problem = on(op_device, mode, T=4, B=3, H=16, dtype=dtype)
    *given, reserve, needs = problem.backward_arguments()
    moved = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view_as(t) for t in reserve]
    assert all(t.is_contiguous() and t.data_ptr() % 16 for t in moved)
    assert_close(
        ops.layer_backward(*given, moved, needs), ops.layer_backward(*given, reserve, needs), 0
    )


@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_not_written(cell: str, op_device: OpDevice) -> None:
    problem = on(op_device, cell.upper(), bidirectional=True)
    arguments = problem.backward_arguments()
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    tensors = [t for t in (*tensors, *problem.leaves) if isinstance(t, Tensor)]
    before = [t.detach().clone() for t in tensors]
    ops.layer_backward(*arguments)
    problem.layer(train=True)
    assert_close([t.detach() for t in tensors], before, 0)


def with_gradients(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments of ``rnnfast::layer``, x, states and weights requiring gradients."""
    cell, x, batch_sizes, states, weights, *options = arguments
    x, *tensors = (t.clone().requires_grad_() for t in (x, *states, *weights))
    return cell, x, batch_sizes, tensors[: len(states)], tensors[len(states) :], *options


# What is registered knows the number of states and of gates, not the nonlinearity.
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "RNN_RELU"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(s, torch.float64) for s in SHAPES if s.get("B") != 0 and s.get("T") != 0]
    + [({"lengths": (3, 1)}, torch.bfloat16)],
    ids=str,
)
def test_opcheck(mode: str, shape: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    problem = Problem(mode, device=device, dtype=dtype, **shape)
    for train in (False, True):
        torch.library.opcheck(LAYER, problem.layer_arguments(train))
        torch.library.opcheck(LAYER, with_gradients(problem.layer_arguments(train)))
    torch.library.opcheck(BACKWARD, problem.backward_arguments())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_flops_are_those_of_torch(mode: str, bidirectional: bool) -> None:
    problem = Problem(mode, bidirectional=bidirectional, states_given=mode != "LSTM")
    counts = []
    # torch.nn.LSTM in float64 runs its products one by one, which are counted.
    for run in (problem.rnnfast, problem.torch):
        with FlopCounterMode(display=False) as forward:
            values = run()
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(values, problem.leaves, cotangents(values))
        counts.append((forward.get_total_flops(), backward.get_total_flops()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_fake_reserve_has_the_dtype_of_the_device(device: str) -> None:
    with FakeTensorMode():
        x, w_ih, w_hh = (
            torch.empty(*sizes, dtype=torch.bfloat16, device=device)
            for sizes in ((3, 2, 4), (18, 4), (18, 6))
        )
        _, _, reserve = ops.layer("gru", x, None, [], [w_ih, w_hh], train=True)
    wanted = torch.bfloat16 if device == "cuda" else torch.float32
    assert [t.dtype for t in reserve] == [wanted, wanted]
