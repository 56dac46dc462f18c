"""Gradients that end after so many steps: values of the whole sequence, gradients of its parts.

Catches a state that is not handed on, one that is not detached, parts that are counted from another
step than a sequence's first, and final states of rows that ended earlier.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from problems import assert_close, cotangents
from side_by_side import LAYERS, states, tensors
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast

T, B, I, H = 9, 4, 5, 6  # noqa: E741
every_class = pytest.mark.parametrize("name", LAYERS)
every_count = pytest.mark.parametrize("every", [1, 4, 9, 20])
F64: dict[str, Any] = {"dtype": torch.float64}


def pair(name: str, every: int, **options: Any) -> tuple[Any, Any]:
    """torch.nn's layer, and ours of the same weights."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(I, H, 2, **options, **F64)
    ours = getattr(rnnfast, name)(I, H, 2, detach_every=every, **options, **F64)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def in_parts(layer: Any, x: Tensor, hx: Any, every: int) -> list[Tensor]:
    """The plain loop: `every` steps, then the states are detached. x: ``[T, *]``."""
    outputs = []
    for part in x.split(every):
        output, hx = layer(part, hx)
        outputs.append(output)
        last = tensors(hx)
        hx = tuple(s.detach() for s in last) if isinstance(hx, tuple) else hx.detach()
    return [torch.cat(outputs), *last]


def assert_same(
    found: list[Tensor], wanted: list[Tensor], ours: Any, theirs: Any, *given: Tensor
) -> None:
    """Values and gradients of what is given and of the weights."""
    assert_close(found, wanted, 1e-12)
    grads = [
        torch.autograd.grad(values, [*given, *layer.parameters()], cotangents(values))
        for values, layer in ((found, ours), (wanted, theirs))
    ]
    assert_close(*map(list, grads), 1e-11)


@every_class
@every_count
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_parts_of_a_dense_sequence(name: str, every: int, batch_first: bool, given: bool) -> None:
    theirs, ours = pair(name, every)
    ours.batch_first = batch_first
    x = torch.randn(T, B, I, requires_grad=True, **F64)
    hx = states(name, 2, B, H, requires_grad=True, **F64) if given else None
    output, last = ours(x.transpose(0, 1) if batch_first else x, hx)
    found = [output.transpose(0, 1) if batch_first else output, *tensors(last)]
    leaves = [x, *(tensors(hx) if given else [])]
    assert_same(found, in_parts(theirs, x, hx, every), ours, theirs, *leaves)


@every_class
def test_without_a_batch(name: str) -> None:
    theirs, ours = pair(name, 4)
    x = torch.randn(T, I, requires_grad=True, **F64)
    output, last = ours(x)
    assert_same([output, *tensors(last)], in_parts(theirs, x, None, 4), ours, theirs, x)


def of_each(theirs: Any, x: Tensor, lengths: list[int], every: int) -> list[Tensor]:
    """One sequence after the other; padded, and the final states."""
    rows = [in_parts(theirs, x[:n, i : i + 1], None, every) for i, n in enumerate(lengths)]
    padded = [
        torch.cat([row[0], row[0].new_zeros(T - n, 1, H)])
        for row, n in zip(rows, lengths, strict=True)
    ]
    finals = [torch.cat(last, 1) for last in zip(*(row[1:] for row in rows), strict=True)]
    return [torch.cat(padded, 1), *finals]


@every_class
@every_count
@pytest.mark.parametrize("lengths", [[9, 8, 8, 1], [5, 9, 1, 7], [4, 9, 8, 4]], ids=str)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "lengths"])
def test_sequences_of_several_lengths(
    name: str, every: int, lengths: list[int], packed: bool
) -> None:
    theirs, ours = pair(name, every)
    x = torch.randn(T, B, I, requires_grad=True, **F64)
    if packed:
        given = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        output, last = ours(given)
        output = pad_packed_sequence(output, total_length=T)[0]
    else:
        output, last = ours(x, lengths=lengths)
    wanted = of_each(theirs, x, lengths, every)
    assert_same([output, *tensors(last)], wanted, ours, theirs, x)


@every_class
def test_parts_are_counted_from_a_reset(name: str) -> None:
    theirs, ours = pair(name, 3)
    x = torch.randn(T, 1, I, requires_grad=True, **F64)
    resets = torch.zeros(T, 1, dtype=torch.bool)
    resets[4] = True
    output, last = ours(x, resets=resets)
    first, second = (in_parts(theirs, part, None, 3) for part in (x[:4], x[4:]))
    wanted = [torch.cat([first[0], second[0]]), *second[1:]]
    assert_same([output, *tensors(last)], wanted, ours, theirs, x)


@pytest.mark.parametrize("options", [{"heads": 3}, {"recompute": True}], ids=str)
def test_with_other_options(options: dict[str, Any]) -> None:
    layer = rnnfast.GRU(I, H, **options, **F64)
    every = copy.deepcopy(layer)
    every.detach_every = 4
    x = torch.randn(T, B, I, requires_grad=True, **F64)
    output, last = every(x)
    assert_same([output, last], in_parts(layer, x, None, 4), every, layer, x)


def test_what_lies_further_back_gets_nothing() -> None:
    layer = rnnfast.LSTM(I, H, detach_every=4)
    x = torch.randn(T, B, I, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0][6].sum(), x)
    reached = grad.abs().amax(dim=(1, 2)) > 0
    assert reached.tolist() == [4 <= t <= 6 for t in range(T)]


def test_without_gradients_it_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rnnfast.truncated, "run")
    layer = rnnfast.GRU(I, H, detach_every=2)
    with torch.no_grad():
        assert layer(torch.randn(T, B, I))[0].shape == (T, B, H)


def test_a_subclass_may_choose_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(rnnfast.GRU):
        detach_every = 2

    monkeypatch.delattr(rnnfast.truncated, "run")
    with pytest.raises(AttributeError, match="has no attribute 'run'"):
        Mine(I, H)(torch.randn(T, B, I))


def test_it_stays_with_the_layer() -> None:
    layer = rnnfast.GRU(I, H, detach_every=3)
    assert "detach_every=3" in repr(layer)
    assert copy.deepcopy(layer).detach_every == 3
    assert pickle.loads(pickle.dumps(layer)).detach_every == 3
    layer.detach_every = None
    assert "detach_every" not in repr(layer)


def test_compiled_as_one_graph() -> None:
    layer = rnnfast.GRU(I, H, detach_every=4)
    x = torch.randn(T, B, I, requires_grad=True)
    results = []
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        output, last = call(x)
        results.append(
            [output, last, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]
        )
    assert_close(*results, 1e-5)


def test_compiled_where_the_values_say_what_is_cut() -> None:
    layer, lengths = rnnfast.GRU(I, H, detach_every=4), torch.arange(1, B + 1)
    x = torch.randn(T, B, I)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="detach_every: sequences that"):
        torch.compile(layer, backend="eager", fullgraph=True)(x, lengths=lengths)
    torch._dynamo.reset()
    found = torch.compile(layer, backend="eager")(x, lengths=lengths)
    assert_close(found, layer(x, lengths=lengths), 1e-6)


def test_what_torch_cannot_do_is_not_dropped(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(rnnfast.GRU(I, H, detach_every=4))
    rnnfast.revert(model)
    assert type(model[0]) is rnnfast.GRU
    assert "leaves module '0' as it is: torch.nn has no layers with detach_every" in caplog.text
    with pytest.raises(RuntimeError, match=r"torch\.nn has none with detach_every"):
        torch.jit.script(model)
    model[0].detach_every = None
    assert type(rnnfast.revert(model)[0]) is nn.GRU


def test_explain_says_so() -> None:
    (found,) = rnnfast.explain(rnnfast.GRU(I, H, detach_every=4), torch.randn(T, B, I)).layers
    assert "where gradients are asked for, 4 steps a call" in found.reason


@every_class
def test_under_autocast(name: str) -> None:
    """The dtypes of the whole call; values but for the states that are rounded between parts."""
    layer = getattr(rnnfast, name)(I, H)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = layer(x)
        layer.detach_every = 4
        found = layer(x)
    for a, b in zip(tensors(found), tensors(wanted), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("every", "options", "error", "text"),
    [
        (0, {}, ValueError, "detach_every: expected a number of steps from 1 on, got 0"),
        (2.5, {}, TypeError, "detach_every: expected a number of steps, got float"),
        (True, {}, TypeError, "detach_every: expected a number of steps, got bool"),
        (2, {"bidirectional": True}, ValueError, "of a bidirectional layer one direction begins"),
    ],
)
def test_what_it_cannot_be(every: Any, options: dict[str, Any], error: Any, text: str) -> None:
    with pytest.raises(error, match=text):
        rnnfast.GRU(I, H, detach_every=every, **options)
    layer = rnnfast.GRU(I, H, **options)
    layer.detach_every = every
    with pytest.raises(error, match=text):
        layer(torch.randn(T, B, I))
