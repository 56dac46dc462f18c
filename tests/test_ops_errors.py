"""Every bad argument of the raw ops is refused, in words that name it.

Catches an argument that a kernel would read past the end of, and messages that say nothing.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import OpDevice, Problem
from torch import Tensor
from torch.utils._pytree import tree_map_only

LAYER = torch.ops.rnnfast.layer.default
BACKWARD = torch.ops.rnnfast.layer_backward.default


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
def test_layer_refuses(name: str, op_device: OpDevice) -> None:
    arguments = Problem("LSTM", device=op_device.name).layer_arguments(True)
    text = assert_refused(LAYER, arguments, BAD_LAYER[name])
    if name != "x sparse":  # refused by the dispatcher
        assert "rnnfast::layer: " in text


def test_steps_on_the_cpu_are_of_packed_sequences(device: str) -> None:
    """With an x of three dimensions they are a GPU's own, as tests/simt/test_lengths.py has it."""
    arguments = Problem("LSTM", device=device).layer_arguments(True)
    text = assert_refused(LAYER, arguments, replaced(2, torch.tensor(STEPS)))
    assert "rnnfast::layer: x must be [T, B, I], or [rows, I] with batch_sizes" in text


@pytest.mark.parametrize("name", BAD_STEPS)
def test_layer_refuses_batch_sizes(name: str, op_device: OpDevice) -> None:
    problem = Problem("GRU", lengths=(5, 3, 1), device=op_device.name)
    assert problem.batch_sizes is not None
    assert problem.batch_sizes.tolist() == STEPS
    text = assert_refused(LAYER, problem.layer_arguments(True), BAD_STEPS[name])
    assert "rnnfast::layer: " in text


@pytest.mark.parametrize("name", BAD_BACKWARD)
def test_backward_refuses(name: str, op_device: OpDevice) -> None:
    arguments = Problem("LSTM", device=op_device.name).backward_arguments()
    text = assert_refused(BACKWARD, arguments, BAD_BACKWARD[name])
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
