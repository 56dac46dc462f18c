"""``rnnfast.scan`` against a plain loop over the steps, and against the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import assert_close, cotangents
from test_segments import random_resets
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rnnfast

T, B, I, H = 9, 4, 5, 6  # noqa: E741
States = tuple[Tensor, ...]
RESETS: dict[str, Any] = {"resets": random_resets()}


class NormalisedCell(nn.Module):
    """A recurrence that no kernel has: layer normalisation, and a second state, a count."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Linear(I, H), nn.Linear(H, H)
        self.double()

    def forward(self, x: Tensor, states: States) -> tuple[Tensor, States]:
        h, count = states
        h = torch.tanh(F.layer_norm(self.x(x) + self.h(h), (H,)) / (1 + count[:, :1]))
        return torch.cat([h, count], -1), (h, count + 1)


def plain(
    cell: NormalisedCell, x: Tensor, states: States, resets: Tensor, others: States, ends: list[int]
) -> tuple[Tensor, States]:
    outputs = []
    for t in range(T):
        begun = tuple(
            torch.where(resets[t, :, None], o, s) for s, o in zip(states, others, strict=True)
        )
        output, after = cell(x[t], begun)
        alive = torch.tensor([t < end for end in ends])[:, None]
        outputs.append(output * alive)
        states = tuple(torch.where(alive, a, s) for a, s in zip(after, states, strict=True))
    return torch.stack(outputs), states


@pytest.mark.parametrize("form", ["time first", "batch first", "packed"])
@pytest.mark.parametrize("resetting", [False, True])
@pytest.mark.parametrize("given", ["zeros", "states", "one for all"])
@pytest.mark.parametrize("ends", [None, [5, 9, 1, 7]], ids=["full", "lengths"])
def test_scan_is_a_loop(form: str, resetting: bool, given: str, ends: list[int] | None) -> None:
    if form == "packed" and ends is None:
        ends = [9, 7, 7, 2]
    cell = NormalisedCell()
    options: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x, h = torch.randn(T, B, I, **options), torch.randn(B, H, **options)
    states: States = (h, torch.zeros(B, 2, dtype=torch.float64))
    rows = 1 if given == "one for all" else B
    others: States = (torch.randn(rows, H, **options), torch.full((rows, 2), 3.0).double())
    resets = random_resets() & resetting
    zeros = tuple(torch.zeros_like(s) for s in states)
    arguments: dict[str, Any] = {"resets": resets} if resetting else {}
    if resetting and given != "zeros":
        arguments["reset_states"] = others
    begin = arguments.get("reset_states", zeros)
    expected, last = plain(cell, x, states, resets, begin, ends or [T] * B)
    if form == "packed":
        assert ends is not None
        lengths = torch.tensor(ends)
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        if resetting:
            arguments["resets"] = pack_padded_sequence(resets, lengths, enforce_sorted=False)
        output, found = rnnfast.scan(cell, packed, states, **arguments)
        assert isinstance(output, PackedSequence)
        output = pad_packed_sequence(output, total_length=T)[0]
    elif form == "batch first":
        if resetting:
            arguments["resets"] = resets.t()
        output, found = rnnfast.scan(
            cell, x.transpose(0, 1), states, lengths=ends, batch_first=True, **arguments
        )
        output = output.transpose(0, 1)
    else:
        output, found = rnnfast.scan(cell, x, states, lengths=ends, **arguments)
    values, wanted = [output, *found], [expected, *last]
    assert_close(values, wanted, 1e-12)
    leaves = [x, h, *cell.parameters(), *([others[0]] if "reset_states" in arguments else [])]
    grads = [
        torch.autograd.grad(v[:2], leaves, cotangents(v[:2]), allow_unused=True)
        for v in (values, wanted)
    ]
    assert_close(*grads, 1e-11)


def test_a_gru_as_a_step_is_the_layer() -> None:
    layer = rnnfast.GRU(I, H)
    cell = nn.GRUCell(I, H)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})

    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        h = cell(x, states[0])
        return h, (h,)

    x, resets = torch.randn(T, B, I), random_resets()
    output, (h_n,) = rnnfast.scan(step, x, [torch.zeros(B, H)], resets=resets, lengths=[5, 9, 1, 7])
    expected, expected_n = layer(x, resets=resets, lengths=[5, 9, 1, 7])
    assert_close([output, h_n], [expected, expected_n[0]], 1e-6)


def test_images_and_a_step_that_is_compiled() -> None:
    """Inputs and states of any form: a convolutional recurrence."""
    convolution = nn.Conv2d(3, 2, 3, padding=1)

    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        h = torch.tanh(convolution(torch.cat([x, states[0]], 1)))
        return h, (h,)

    x, h = torch.randn(T, B, 1, 4, 4), torch.randn(B, 2, 4, 4)
    compiled = torch.compile(step, dynamic=True, backend="aot_eager")
    resets = random_resets()
    found = [rnnfast.scan(s, x, [h], resets=resets) for s in (step, compiled)]
    assert found[0][0].shape == (T, B, 2, 4, 4)
    assert_close([found[0][0], *found[0][1]], [found[1][0], *found[1][1]], 1e-6)


def test_states_may_grow_where_all_rows_end_together() -> None:
    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        return x, (torch.cat([states[0], x], 1),)

    x, state = torch.randn(T, B, I), torch.randn(B, H)
    assert rnnfast.scan(step, x, [state])[1][0].shape == (B, H + T * I)
    with pytest.raises(RuntimeError, match=r"states\[0\] was \(4, 6\), step returned \(4, 11\)"):
        rnnfast.scan(step, x, [state], lengths=[9, 3, 5, 9])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"states": []}, ValueError, "a state at least"),
        ({"reset_states": [torch.zeros(B, H)]}, ValueError, "there are no resets"),
        ({"resets": torch.zeros(T, B)}, TypeError, "dtype torch.bool"),
        ({"resets": torch.zeros(B, T, dtype=torch.bool)}, RuntimeError, "for each step"),
        ({"lengths": [1, 2, 3]}, RuntimeError, "^lengths: expected a number for each of 4"),
        ({"lengths": [1, 2, 3, 10]}, RuntimeError, "from 1 to the number of steps"),
        ({"states": torch.zeros(B, H)}, TypeError, r"for one state write \[states\]"),
        ({"states": [H]}, TypeError, "states: expected tensors, got int"),
        ({"states": [torch.zeros(B + 1, H)]}, RuntimeError, r"\(4, \*\), got \(5, 6\)"),
        ({"states": [torch.zeros(B - 2, H)]}, RuntimeError, r"\(4, \*\), got \(2, 6\)"),
        ({"states": [torch.tensor(0.0)]}, RuntimeError, r"\(4, \*\), got \(\)"),
        ({"x": torch.randn(B)}, ValueError, r"expected x \[T, B, \*\] or .*, got 1D"),
        ({"x": None}, ValueError, "got NoneType"),
        ({"x": torch.randn(0, B, I)}, RuntimeError, "sequence length to be larger than 0"),
        (RESETS | {"reset_states": torch.zeros(B, H)}, TypeError, r"write \[reset_states\]"),
        (RESETS | {"reset_states": [torch.zeros(B, H)] * 2}, ValueError, "expected 1 as states"),
        (RESETS | {"reset_states": [torch.zeros(3, H)]}, RuntimeError, r"\(4, 6\) as states\[0\]"),
        (RESETS | {"reset_states": [torch.zeros(B, 1)]}, RuntimeError, r"got \(4, 1\)"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        return x, states

    given = {"x": torch.randn(T, B, I), "states": [torch.zeros(B, H)]} | arguments
    with pytest.raises(error, match=text):
        rnnfast.scan(step, **given)


@pytest.mark.parametrize("arguments", [{}, RESETS, {"lengths": [5, 9, 1, 7]}], ids=str)
@pytest.mark.parametrize(
    ("found", "error", "text"),
    [
        (lambda h: h, TypeError, r"must return \(output, states\), got Tensor"),
        (lambda h: (h, h), TypeError, "a tuple of 1 as it was given, got Tensor"),
        (lambda h: (h,), TypeError, "got tuple of 1"),
        (lambda h: (h, (h, h)), TypeError, "a tuple of 1 as it was given, got 2"),
        (lambda h: (h, ()), TypeError, "a tuple of 1 as it was given, got 0"),
        (lambda h: (h, (None,)), TypeError, r"return tensors, got NoneType, states\[0\]"),
        (lambda h: (h[:0], (h,)), RuntimeError, r"\(0, 6\), output"),
        (lambda h: (h, (h[:0],)), RuntimeError, r"\(0, 6\), states\[0\]"),
    ],
)
def test_what_a_step_may_not_return(
    found: Callable[[Tensor], Any], error: type[Exception], text: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(error, match=text):
        rnnfast.scan(
            lambda _, states: found(states[0]),
            torch.randn(T, B, I),
            [torch.zeros(B, H)],
            **arguments,
        )


@pytest.mark.parametrize("rows", [(1, B), (B, 1), (B, B), (1, 1)], ids=str)
def test_reset_states_for_each_row_or_one_for_all(rows: tuple[int, int]) -> None:
    """Also where the rows of a packed sequence are sorted."""
    lengths = torch.tensor([5, 9, 1, 7])
    x, resets = torch.randn(T, B, H), random_resets()
    begin = (torch.randn(B, H), torch.randn(B, 1))
    others = (torch.randn(rows[0], H), torch.randn(rows[1], 1))

    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        h = torch.tanh(x + states[0] * states[1])
        return h, (h, states[1] + 1)

    output, last = rnnfast.scan(step, x, begin, resets=resets, reset_states=others, lengths=lengths)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    mask = pack_padded_sequence(resets, lengths, enforce_sorted=False)
    found, found_n = rnnfast.scan(step, packed, begin, resets=mask, reset_states=others)
    assert_close([pad_packed_sequence(found)[0], *found_n], [output, *last], 1e-6)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"lengths": []}, {"resets": torch.zeros(T, 0, dtype=torch.bool)}],
    ids=["neither", "lengths", "resets"],
)
def test_no_rows(arguments: dict[str, Any]) -> None:
    x, h = torch.randn(T, 0, H), torch.zeros(0, H)
    output, (h_n,) = rnnfast.scan(lambda x, s: (x, (s[0] + x,)), x, [h], **arguments)
    assert output.shape == (T, 0, H)
    assert h_n.shape == (0, H)


def test_a_step_is_a_function() -> None:
    step: Any = None
    for cell in (nn.LSTMCell(2, 2), rnnfast.GRUCell(2, 2)):
        with pytest.raises(TypeError, match=f"{type(cell).__name__} takes .* layer rnnfast"):
            rnnfast.scan(cell, torch.ones(3, 1, 2), [torch.ones(1, 2)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="step: expected a function"):
        rnnfast.scan(step, torch.randn(T, B, I), [torch.zeros(B, H)])


def test_states_may_grow() -> None:
    """As the keys of an attention over all steps so far."""

    def step(x: Tensor, states: States) -> tuple[Tensor, States]:
        seen = torch.cat([states[0], x[:, None]], 1)
        return seen.mean(1), (seen,)

    x = torch.randn(T, B, I)
    output, (seen,) = rnnfast.scan(step, x, [x.new_zeros(B, 0, I)])
    assert_close([output[-1], seen], [x.mean(0), x.transpose(0, 1)], 1e-6)


def test_lengths_of_a_packed_sequence_are_its_own() -> None:
    packed = pack_padded_sequence(torch.randn(T, B, I), torch.tensor([9, 8, 2, 1]))
    with pytest.raises(ValueError, match="a PackedSequence has its own"):
        rnnfast.scan(lambda x, s: (x, s), packed, [torch.zeros(B, H)], lengths=[9, 8, 2, 1])
