"""Rows that begin anew inside a sequence, where a mask on the device says so, on the emulator.

Catches a state or a gradient that passes a border, one that is lost where there is none, a border
of the wrong step, row or direction, a kernel that knows of no borders, and a look at the mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from covering import covering
from emulated import Simt
from problems import (
    MODES,
    TOLERANCE,
    Problem,
    assert_close,
    assert_gradients_close,
    cotangents,
    gradients,
)
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import reference, segmented

pytestmark = pytest.mark.usefixtures("_library")

KERNELS = ("step", "cta", "cluster", "auto")
# One step, one row, more rows than a tile has.
SHAPES = [(1, 3), (2, 1), (5, 10), (6, 19)]
MASKS = ("none", "all", "first", "last", "random")
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def name(value: object) -> str:
    return str(value).replace("torch.", "")


def mask_of(kind: str, T: int, B: int) -> Tensor:
    if kind == "random":
        return torch.rand(T, B, generator=torch.Generator().manual_seed(2)) < 0.4
    mask = torch.full((T, B), kind == "all")
    if kind in ("first", "last"):
        mask[0 if kind == "first" else -1] = True
    return mask


def run(
    simt: Simt, problem: Problem, begins: Tensor | None
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Values, their gradients, and what those were given."""
    cell, x, _, states, weights, both, _ = problem.layer_arguments(True)
    output, states_n, reserve = simt.layer(cell, x, begins, states, weights, both, True)
    again, again_n, nothing = simt.layer(cell, x, begins, states, weights, both, False)
    assert nothing == []
    values = [output, *states_n]
    pairs = zip([again, *again_n], values, strict=True)
    assert all(torch.equal(a.nan_to_num(7), v.nan_to_num(7)) for a, v in pairs)
    grad, *grads = cotangents(values)
    needs = [True] * (1 + len(states_n) + len(weights))
    found = simt.layer_backward(cell, grad, grads, x, begins, weights, both, reserve, needs)
    return values, found, [grad, *grads]


def assert_as_the_reference(simt: Simt, problem: Problem, begins: Tensor) -> None:
    values, found, given = run(simt, problem, begins)
    leaves = [t.detach().double().requires_grad_() for t in problem.leaves]
    x, *rest = leaves
    count = len(problem.states)
    arguments = (problem.cell, x, begins, rest[:count], rest[count:], problem.bidirectional)
    output, states_n = reference.any_layer(*arguments)
    wanted = [output, *states_n]
    tolerance = TOLERANCE[problem.dtype]
    assert_close([v.double() for v in values], [v.detach() for v in wanted], tolerance)
    if problem.cell == "rnn_relu" and problem.dtype == torch.bfloat16:
        return  # its slope jumps
    grads = torch.autograd.grad(wanted, leaves, [g.double() for g in given])
    assert_gradients_close(found, list(grads), tolerance)


@covering(
    "mode, kernel, dtype, shape, mask, bidirectional, H",
    *(MODES, KERNELS, DTYPES, SHAPES, MASKS, [False, True], [6, 16, 70]),
    ids=name,
)
def test_values_and_gradients(
    mode: str,
    kernel: str,
    dtype: torch.dtype,
    shape: tuple[int, int],
    mask: str,
    bidirectional: bool,
    H: int,
) -> None:
    T, B = shape
    problem = Problem(mode, T=T, B=B, H=H, bidirectional=bidirectional, dtype=dtype)
    assert_as_the_reference(Simt(kernel), problem, mask_of(mask, T, B))


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("kernel", ["step", "cta", "cluster"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("H", [15, 64])  # inputs straight from memory, and through the ring
def test_random_borders(mode: str, kernel: str, dtype: torch.dtype, H: int) -> None:
    problem = Problem(mode, T=7, B=11, H=H, bidirectional=True, dtype=dtype)
    assert_as_the_reference(Simt(kernel), problem, mask_of("random", 7, 11))


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
def test_a_grid(mode: str) -> None:
    problem = Problem(mode, T=4, B=9, H=30, I=2, bidirectional=True, dtype=torch.float32)
    torch.ops.rnnfast_simt.launched()
    assert_as_the_reference(Simt("grid"), problem, mask_of("random", 4, 9))
    assert torch.ops.rnnfast_simt.launched() == ["grid"] * 3


@pytest.mark.parametrize("mode", ["RNN_TANH", "GRU", "LSTM"])
@pytest.mark.parametrize("kernel", ["auto", "small", "fma", "single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_kernels_that_know_no_borders_are_for_sequences_without(
    mode: str, kernel: str, dtype: torch.dtype
) -> None:
    """Also where the plan of the same layer without a mask is known already."""
    problem = Problem(mode, T=4, B=3, H=16, dtype=dtype)
    run(Simt(kernel), problem, None)
    assert_as_the_reference(Simt(kernel), problem, mask_of("random", 4, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", ["step", "cta", "cluster"])
def test_what_is_no_number_stays_behind_a_border(mode: str, kernel: str) -> None:
    """Forward what a row's sequence before a border became, backward what one after it did."""
    problem = Problem(mode, T=6, B=3, H=16, dtype=torch.float32)
    begins = torch.zeros(6, 3, dtype=torch.bool)
    begins[3, 1] = True
    values, found, _ = run(Simt(kernel), problem, begins)
    for spoilt, whole in ((0, slice(3, None)), (5, slice(None, 3))):
        other = Problem(mode, T=6, B=3, H=16, dtype=torch.float32)
        other.x.data[spoilt, 1] = torch.nan
        spoilt_values, spoilt_found, _ = run(Simt(kernel), other, begins)
        assert_close([spoilt_values[0][whole]], [values[0][whole]], 0)
        if mode != "RNN_RELU":  # for which NaN is below zero
            assert spoilt_values[0][spoilt, 1].isnan().all()
        assert_close([spoilt_found[0][whole]], [found[0][whole]], 0)


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.zeros(3, 3, 1, dtype=torch.bool),
        torch.zeros(3, 3, dtype=torch.uint8),
        torch.zeros(3, 3).long(),
    ],
    ids=name,
)
def test_refuses(bad: Tensor) -> None:
    cell, x, _, states, weights, both, _ = Problem("GRU", T=3).layer_arguments(True)
    with pytest.raises(RuntimeError, match="rnnfast::layer: batch_sizes must"):
        Simt("auto").layer(cell, x, bad, states, weights, both, True)


def test_refuses_a_mask_of_packed_rows_and_one_for_the_cpu() -> None:
    cell, x, _, states, weights, both, _ = Problem("GRU", T=3).layer_arguments(True)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="rnnfast::layer: batch_sizes must be a one-dimensional"):
        Simt("auto").layer(cell, x.flatten(0, 1), mask, states, weights, both, True)
    with pytest.raises(RuntimeError, match=r"rnnfast::layer: x must be \[T, B, I\], or"):
        rnnfast.ops.layer(cell, x, mask, states, weights, both, True)


def test_takes_any_strides_and_empty_batches() -> None:
    problem = Problem("LSTM", T=5, B=9, H=16, dtype=torch.float32)
    begins = mask_of("random", 5, 9)
    apart = begins.t().contiguous().t()
    found, wanted = run(Simt("cta"), problem, apart), run(Simt("cta"), problem, begins)
    for some, others in zip(found, wanted, strict=True):
        assert_close(some, others, 0)
    for shape in ((0, 3), (3, 0)):
        problem = Problem("LSTM", T=shape[0], B=shape[1], dtype=torch.float32)
        cell, x, _, states, weights, both, _ = problem.layer_arguments(True)
        begins = torch.zeros(shape, dtype=torch.bool)
        output, *_ = Simt("auto").layer(cell, x, begins, states, weights, both, True)
        assert output.shape == (*shape, 6)


# ---- layers ----
class Unseen(TorchDispatchMode):
    """Fails where a value is fetched from a tensor, for which a GPU would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "rnnfast.segments")
        assert not any(look in str(func) for look in looks), func
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, kernel: str = "auto") -> Iterator[None]:
    """Masks of layers stay where they are, and nobody looks at them."""
    with monkeypatch.context() as patched, Simt(kernel).in_place_of_the_cpu(), Unseen():
        patched.setattr(segmented, "DEVICE", "cpu")
        patched.setattr(segmented.segments, "find", None)
        yield


def results(layer: Any, x: Tensor, hx: Any, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Values, and the gradients of x, the states and the weights."""
    output, hidden = layer(x, hx, **options)
    given = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    values = [output, *(hidden if isinstance(hidden, tuple) else (hidden,))]
    grads = gradients(values, [x, *given, *layer.parameters()])
    return values, [g for g in grads if g is not None]


@pytest.mark.parametrize("cls", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("form", ["time", "batch", "alone"])
@pytest.mark.parametrize("given", [False, True])
def test_layers(
    cls: str,
    layers: int,
    bidirectional: bool,
    form: str,
    given: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As the stretches of the CPU, gradients of the first states included."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional}
    layer = getattr(rnnfast, cls)(5, 7, **options, batch_first=form == "batch").double()
    T, B = 7, 5
    resets = mask_of("random", T, B)
    x = torch.randn(T, B, 5, dtype=torch.float64)
    h = torch.randn(layers * (1 + bidirectional), B, 7, dtype=torch.float64)
    if form == "batch":
        x, resets = x.transpose(0, 1), resets.t()
    if form == "alone":
        x, resets, h = x[:, 0], resets[:, 0], h[:, 0]
    x.requires_grad_()
    hx: Any = None
    if given:
        hx = tuple((k * h).requires_grad_() for k in (1, 2))
        hx = hx if cls == "LSTM" else hx[0]
    wanted = results(layer, x, hx, resets=resets)
    with as_on_a_gpu(monkeypatch):
        found = results(layer, x, hx, resets=resets)
    assert_close(found[0], wanted[0], 1e-12)
    assert_close(found[1], wanted[1], 1e-11)


@pytest.mark.parametrize("cls", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("kernel", ["cta", "cluster"])
def test_layers_in_float32(cls: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = getattr(rnnfast, cls)(5, 20, num_layers=2, bidirectional=True)
    x, resets = torch.randn(7, 5, 5, requires_grad=True), mask_of("random", 7, 5)
    wanted = results(layer, x, None, resets=resets)
    with as_on_a_gpu(monkeypatch, kernel):
        found = results(layer, x, None, resets=resets)
    assert_close(found[0], wanted[0], 2e-5)
    assert_gradients_close(found[1], list(wanted[1]), 2e-5)


@pytest.mark.parametrize("T", [1, 4])
def test_the_first_states_of_a_row_that_begins_with_a_reset(
    T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, resets = rnnfast.GRU(3, 4, bidirectional=True), mask_of("first", T, 2)
    resets[0, 1] = False
    h = torch.randn(2, 2, 4, requires_grad=True)
    with as_on_a_gpu(monkeypatch):
        output, _ = layer(torch.randn(T, 2, 3), h, resets=resets)
        (grad,) = torch.autograd.grad(output.sum(), h)
    assert not grad[0, 0].any()
    assert grad[0, 1].all()
    assert grad[1].all()


WAITS: dict[str, Any] = {
    "reset_states": ({}, {"reset_states": torch.zeros(1, 3, 8)}),
    "lengths": ({}, {"lengths": torch.tensor([5, 2, 4])}),
    "heads": ({"heads": 2}, {}),
    "recompute": ({"recompute": True}, {}),
    "layer_norm": ({"layer_norm": True}, {}),
    "detach_every": ({"detach_every": 2}, {}),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_all_the_same(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, arguments = WAITS[what]
    layer, x = rnnfast.GRU(5, 8, **options), torch.randn(5, 3, 5)
    resets = mask_of("random", 5, 3)
    expected, _ = layer(x, resets=resets, **arguments)
    monkeypatch.setattr(segmented, "DEVICE", "cpu")
    output, _ = layer(x, resets=resets, **arguments)
    assert torch.equal(output, expected)
    assert "stretches" in rnnfast.explain(layer, x, resets=resets, **arguments).layers[0].reason


def test_packed_sequences_wait_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnfast.GRU(5, 8)
    x, resets = (
        pack_padded_sequence(t, torch.tensor([5, 4, 2]))
        for t in (torch.randn(5, 3, 5), mask_of("random", 5, 3))
    )
    expected = layer(x, resets=resets)[0].data
    monkeypatch.setattr(segmented, "DEVICE", "cpu")
    assert torch.equal(layer(x, resets=resets)[0].data, expected)
    assert "stretches" in rnnfast.explain(layer, x, resets=resets.data).layers[0].reason


def test_explain_says_that_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, resets = rnnfast.GRU(5, 7), torch.randn(5, 3, 5), mask_of("all", 5, 3)
    with as_on_a_gpu(monkeypatch):
        explained = rnnfast.explain(layer, x, resets=resets).layers[0]
    assert explained.route == "fused"
    assert "resets that nobody waits for" in explained.reason


@pytest.mark.parametrize("cls", ["RNN", "GRU", "LSTM"])
def test_second_derivatives(cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = getattr(rnnfast, cls)(2, 2, bidirectional=True).double()
    x, resets = torch.randn(4, 2, 2, dtype=torch.float64), mask_of("random", 4, 2)
    h = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        output, hidden = layer(x, (h, 2 * h) if cls == "LSTM" else h, resets=resets)
        return (output, *(hidden if cls == "LSTM" else (hidden,)))

    with monkeypatch.context() as patched, Simt("auto").in_place_of_the_cpu():
        patched.setattr(segmented, "DEVICE", "cpu")
        patched.setattr(segmented.segments, "find", None)
        assert torch.autograd.gradcheck(function, (x.requires_grad_(), h))
        assert torch.autograd.gradgradcheck(function, (x, h))


def test_autocast_and_dropout_between_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = rnnfast.LSTM(5, 7, num_layers=2, dropout=0.5)
    x, resets = torch.randn(5, 3, 5), mask_of("random", 5, 3)
    with as_on_a_gpu(monkeypatch):
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = layer(x, resets=resets)
        output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
