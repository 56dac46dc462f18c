"""The raw ops: their values against the reference, their registration, and every bad argument.

Catches a fake kernel that disagrees with the real one, an argument that a kernel would read past
the end of, a needless gradient, a reserve of another layout than the documented one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import CELLS, MODES, Problem, assert_close, cotangents
from torch import Tensor
from torch.utils._pytree import tree_map_only
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_is_the_reference(mode: str, shape: dict[str, Any], device: str) -> None:
    problem = Problem(mode, device=device, **shape)
    output, states_n, reserve = problem.layer(train=False)
    expected, expected_n = reference_layer(problem)
    assert reserve == []
    assert_close([output, *states_n], [t.detach() for t in (expected, *expected_n)], 1e-12)
    assert output.is_contiguous()
    with_reserve = problem.layer(train=True)
    assert_close([with_reserve[0], *with_reserve[1]], [output, *states_n], 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [s for s in SHAPES if s.get("T") != 0], ids=str)
def test_backward_gives_what_is_needed(mode: str, shape: dict[str, Any], device: str) -> None:
    problem = Problem(mode, device=device, **shape | {"states_given": True})
    *given, needs = problem.backward_arguments()
    everything = ops.layer_backward(*given, needs)
    output, states_n = reference_layer(problem)
    values = [output, *states_n]
    expected = torch.autograd.grad(values, problem.leaves, [given[1], *given[2]])
    assert_close(everything, expected, 1e-11)
    assert all(grad.is_contiguous() for grad in everything)
    for i in range(len(needs)):
        (only,) = ops.layer_backward(*given, [k == i for k in range(len(needs))])
        assert_close([only], [everything[i]], 1e-13)
    assert ops.layer_backward(*given, [False] * len(needs)) == []


@pytest.mark.parametrize("mode", MODES)
def test_missing_gradients_count_as_zeros(mode: str, device: str) -> None:
    problem = Problem(mode, bidirectional=True, device=device)
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
def test_backward_takes_any_strides(mode: str, device: str) -> None:
    problem = Problem(mode, device=device)
    cell, grad, grads, *rest = problem.backward_arguments()
    strided = [torch.stack([g, g], -1)[..., 0] for g in (grad, *grads)]
    expanded = [torch.ones((), dtype=g.dtype, device=device).expand_as(g) for g in (grad, *grads)]
    for others, same in ((strided, (grad, *grads)), (expanded, [e.clone() for e in expanded])):
        assert_close(
            ops.layer_backward(cell, others[0], others[1:], *rest),
            ops.layer_backward(cell, same[0], list(same[1:]), *rest),
            0,
        )


@pytest.mark.parametrize("lengths", [None, (3, 3, 1)], ids=["dense", "packed"])
def test_reserve_is_laid_out_as_documented(lengths: tuple[int, ...] | None, device: str) -> None:
    problem = Problem("LSTM", T=3, B=3, lengths=lengths, bidirectional=True, device=device)
    output, _, (h, c, gates) = problem.layer(train=True)
    rows, B, H = problem.x.shape[:-1].numel(), problem.B, problem.H
    assert gates.shape == (2, rows, 4 * H)
    assert h.shape == c.shape == (2, rows + B, H)
    output = output.view(rows, 2, H)
    assert_close([h[0, B:], h[1, :rows]], [output[:, 0], output[:, 1]], 0)
    for timeline, initial in zip((h, c), problem.states, strict=True):
        assert_close([timeline[0, :B], timeline[1, rows:]], list(initial.detach()), 0)
    i, f, g, o = gates[0].chunk(4, -1)
    assert_close([o * torch.tanh(c[0, B:])], [h[0, B:]], 1e-12)
    first = f[:B] * c[0, :B] + i[:B] * g[:B]
    assert_close([first], [c[0, B : 2 * B]], 1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_not_written(cell: str, device: str) -> None:
    problem = Problem(cell.upper(), bidirectional=True, device=device)
    arguments = problem.backward_arguments()
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    before = [t.clone() if isinstance(t, Tensor) else t for t in tensors]
    ops.layer_backward(*arguments)
    problem.layer(train=True)
    assert_close(
        [t for t in tensors if isinstance(t, Tensor)],
        [t for t in before if isinstance(t, Tensor)],
        0,
    )


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


def replaced(position: int, value: Any) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[position] = value(arguments[position]) if callable(value) else value

    return change


def item(position: int, index: int, value: Callable[[Any], Any]) -> Callable[[list[Any]], None]:
    def change(arguments: list[Any]) -> None:
        arguments[position] = list(arguments[position])
        arguments[position][index] = value(arguments[position][index])

    return change


def longer(t: Tensor) -> Tensor:
    return torch.cat([t, t], 0)


def wider(t: Tensor) -> Tensor:
    return torch.cat([t, t], -1)


STEPS = [3, 2, 2, 1, 1]  # fits the packed problem below
ANY_OP: dict[str, Callable[[list[Any]], None]] = {
    "unknown cell": replaced(0, "peephole"),
    "empty cell": replaced(0, ""),
}
BAD_LAYER = {
    **ANY_OP,
    "x of one dimension": replaced(1, lambda x: x[0, 0]),
    "x of four dimensions": replaced(1, lambda x: x[None]),
    "x of two dimensions without batch_sizes": replaced(1, lambda x: x[0]),
    "x too wide": replaced(1, wider),
    "x of integers": replaced(1, lambda x: x.long()),
    "x complex": replaced(1, lambda x: x.to(torch.complex128)),
    "x of another float": replaced(1, lambda x: x.float()),
    "x sparse": replaced(1, lambda x: x.to_sparse()),
    "batch_sizes with three dimensions of x": replaced(2, torch.tensor(STEPS)),
    "state of two dimensions": item(3, 0, lambda s: s[0]),
    "state of too large a batch": item(3, 0, lambda s: torch.cat([s, s], 1)),
    "state of two directions": item(3, 0, longer),
    "state too wide": item(3, 1, wider),
    "state of another float": item(3, 1, lambda s: s.float()),
    "state on another device": item(3, 0, lambda s: s.to("meta")),
    "one state of two": replaced(3, lambda s: s[:1]),
    "three states": replaced(3, lambda s: [*s, s[0]]),
    "no weights": replaced(4, []),
    "one weight": replaced(4, lambda w: w[:1]),
    "three weights": replaced(4, lambda w: w[:3]),
    "five weights": replaced(4, lambda w: [*w, w[0]]),
    "weights of one direction for two": replaced(5, True),
    "w_ih too narrow": item(4, 0, lambda w: w[:, 1:]),
    "w_ih of one dimension": item(4, 0, lambda w: w[:, 0]),
    "w_ih too short": item(4, 0, lambda w: w[1:]),
    "w_hh too narrow": item(4, 1, lambda w: w[:, 1:]),
    "w_hh of three dimensions": item(4, 1, lambda w: w[None]),
    "w_hh of no dimension": item(4, 1, lambda w: w[0, 0]),
    "w_hh of another float": item(4, 1, lambda w: w.float()),
    "w_hh on another device": item(4, 1, lambda w: w.to("meta")),
    "b_ih too short": item(4, 2, lambda w: w[1:]),
    "b_hh of two dimensions": item(4, 3, lambda w: w[None]),
}
BAD_STEPS: dict[str, Callable[[list[Any]], None]] = {
    "unsorted": replaced(2, torch.tensor([2, 3, 2, 1, 1])),
    "sum too small": replaced(2, torch.tensor([3, 2, 2, 1])),
    "sum too large": replaced(2, torch.tensor([3, 3, 2, 1, 1])),
    "negative": replaced(2, torch.tensor([5, 5, -1])),
    "zero": replaced(2, torch.tensor([3, 3, 3, 0])),
    "overflowing": replaced(2, torch.tensor([2**62, 2**62, 2**62, 2**62 + 9])),
    "int32": replaced(2, torch.tensor(STEPS, dtype=torch.int32)),
    "float": replaced(2, torch.tensor(STEPS, dtype=torch.float64)),
    "two dimensions": replaced(2, torch.tensor([STEPS])),
    "no dimension": replaced(2, torch.tensor(9)),
    "on another device": replaced(2, torch.tensor(STEPS, device="meta")),
    "none": replaced(2, torch.tensor([], dtype=torch.int64)),
    "states of another batch": item(3, 0, lambda s: s[:, :2]),
}
BAD_BACKWARD = {
    **ANY_OP,
    "another cell": replaced(0, "gru"),
    "grad_output too short": replaced(1, lambda g: g[1:]),
    "grad_output of another float": replaced(1, lambda g: g.float()),
    "grad_output on another device": replaced(1, lambda g: g.to("meta")),
    "no grad_states_n": replaced(2, []),
    "three grad_states_n": replaced(2, lambda g: [*g, g[0]]),
    "grad_states_n too wide": item(2, 1, wider),
    "grad_states_n of another float": item(2, 0, lambda g: g.float()),
    "x too short": replaced(3, lambda x: x[1:]),
    "x too wide": replaced(3, wider),
    "x of another float": replaced(3, lambda x: x.float()),
    "w_hh too narrow": item(5, 1, lambda w: w[:, 1:]),
    "w_ih too short": item(5, 0, lambda w: w[1:]),
    "weights of one direction for two": replaced(6, True),
    "no reserve": replaced(7, []),
    "reserve without gates": replaced(7, lambda r: r[:2]),
    "timeline too short": item(7, 0, lambda r: r[:, 1:]),
    "timeline too narrow": item(7, 1, lambda r: r[..., 1:].contiguous()),
    "timeline not contiguous": item(7, 1, lambda r: torch.stack([r, r], -1)[..., 0]),
    "gates too short": item(7, 2, lambda r: r[:, 1:].contiguous()),
    "gates of another float": item(7, 2, lambda r: r.float()),
    "reserve on another device": item(7, 2, lambda r: r.to("meta")),
    "needs too short": replaced(8, lambda n: n[1:]),
    "needs too long": replaced(8, lambda n: [*n, True]),
    "no needs": replaced(8, []),
}


def assert_refused(op: Any, arguments: tuple[Any, ...], change: Callable[[list[Any]], None]) -> str:
    op(*arguments)  # good before the change
    changed = list(arguments)
    change(changed)
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)) as caught:
        op(*changed)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_LAYER)
def test_layer_refuses(name: str) -> None:
    text = assert_refused(LAYER, Problem("LSTM").layer_arguments(True), BAD_LAYER[name])
    if name != "x sparse":  # refused by the dispatcher
        assert "rnnfast::layer: " in text


@pytest.mark.parametrize("name", BAD_STEPS)
def test_layer_refuses_batch_sizes(name: str) -> None:
    problem = Problem("GRU", lengths=(5, 3, 1))
    assert problem.batch_sizes is not None
    assert problem.batch_sizes.tolist() == STEPS
    text = assert_refused(LAYER, problem.layer_arguments(True), BAD_STEPS[name])
    assert "rnnfast::layer: " in text


@pytest.mark.parametrize("name", BAD_BACKWARD)
def test_backward_refuses(name: str) -> None:
    text = assert_refused(BACKWARD, Problem("LSTM").backward_arguments(), BAD_BACKWARD[name])
    assert "rnnfast::layer_backward: " in text


def test_messages_name_what_was_wanted_and_got() -> None:
    arguments = list(Problem("GRU").layer_arguments(False))
    arguments[4][1] = arguments[4][1][:, 1:]
    with pytest.raises(RuntimeError, match=r"rnnfast::layer: w_\w+ must have sizes \[.*\], got"):
        LAYER(*arguments)
    with pytest.raises(ValueError, match="rnn_tanh, rnn_relu, gru, lstm, got 'peephole'"):
        LAYER("peephole", *arguments[1:])


def test_a_cell_that_is_none_is_refused_on_the_meta_device_too() -> None:
    """With the same words, and no KeyError, as in one of a million hostile calls."""
    problem = Problem("GRU", device="cpu")
    calls = ((LAYER, problem.layer_arguments(True)), (BACKWARD, problem.backward_arguments()))
    for op, arguments in calls:
        _, *others = tree_map_only(Tensor, lambda t: t.to("meta"), arguments)
        with pytest.raises(ValueError, match="rnn_tanh, rnn_relu, gru, lstm, got 'peephole'"):
            op("peephole", *others)
