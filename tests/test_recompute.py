"""Layers whose backward pass computes the gates again: the same numbers from less memory.

Catches gates of another row, step, direction or layer than the kernel's, a state that is not the
one before a step, a gradient left out or put in another's place, and memory that is kept after all.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import assert_close, cotangents
from side_by_side import LAYERS, states, tensors
from test_segments import random_resets
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

T, B, I, H = 9, 4, 5, 6  # noqa: E741
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True},
    {"heads": 3, "bidirectional": True},
]
every_class = pytest.mark.parametrize("name", LAYERS)


def pair(name: str, *sizes: int, **options: Any) -> tuple[Any, Any]:
    """A layer that keeps its gates, and its copy that does not."""
    torch.manual_seed(0)
    plain = getattr(rnnfast, name)(*sizes, **options)
    other = copy.deepcopy(plain)
    other.recompute = True
    return plain, other


def gradients(values: list[Tensor], leaves: list[Tensor], **options: Any) -> list[Any]:
    return list(torch.autograd.grad(values, leaves, cotangents(values), **options))


def assert_alike(plain: Any, other: Any, call: Callable[[Any], Any], *given: Tensor) -> None:
    """Values bit for bit, gradients but for rounding."""
    results = [tensors(call(layer)) for layer in (plain, other)]
    assert_close(*results, 0)
    grads = [
        gradients(values, [*given, *layer.parameters()], allow_unused=True)
        for values, layer in zip(results, (plain, other), strict=True)
    ]
    assert_close(*grads, 1e-11)


@every_class
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("at_once", [1 << 21, 100], ids=["whole", "pieces"])
def test_values_and_gradients(
    name: str, options: dict[str, Any], given: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rnnfast.recompute, "_NUMBERS", at_once)
    plain, other = pair(name, I, H, dtype=torch.float64, **options)
    leaf: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn((B, T, I) if options.get("batch_first") else (T, B, I), **leaf)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    hx = states(name, count, B, H, **leaf) if given else None
    assert_alike(plain, other, lambda layer: layer(x, hx), x, *(tensors(hx) if given else []))


@every_class
@pytest.mark.parametrize("lengths", [[9, 8, 8, 1], [5, 9, 1, 7], [3, 3, 3, 3]], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_packed(name: str, lengths: list[int], given: bool) -> None:
    plain, other = pair(name, I, H, 2, bidirectional=True, dtype=torch.float64)
    leaf: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn(T, B, I, **leaf)
    hx = states(name, 4, B, H, **leaf) if given else None

    def call(layer: Any) -> Any:
        return layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False), hx)

    assert_alike(plain, other, call, x, *(tensors(hx) if given else []))


@every_class
def test_resets_and_lengths(name: str) -> None:
    plain, other = pair(name, I, H, bidirectional=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"resets": random_resets(), "lengths": [5, 9, 1, 7]}
    assert_alike(plain, other, lambda layer: layer(x, **options), x)


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_other_dtypes_and_autocast(name: str, dtype: torch.dtype, autocast: bool) -> None:
    plain, other = pair(name, 24, 40, dtype=torch.float32 if autocast else dtype)
    x = torch.randn(T, B, 24, dtype=torch.float32 if autocast else dtype, requires_grad=True)
    grads = []
    for layer in (plain, other):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            values = tensors(layer(x))
        grads.append(gradients(values, [x, *layer.parameters()]))
    tolerance = torch.finfo(torch.bfloat16 if autocast else dtype).eps * 4
    for found, expected in zip(*grads, strict=True):
        size = float(expected.abs().max())
        assert float((found - expected).abs().max()) <= tolerance * max(size, 1)


@every_class
@pytest.mark.parametrize("of", ["x", "h_0", "weights", "a bias"])
def test_only_what_is_asked_for(name: str, of: str) -> None:
    plain, other = pair(name, I, H, dtype=torch.float64)
    x, hx = torch.randn(T, B, I, dtype=torch.float64), states(name, 1, B, H, dtype=torch.float64)
    chosen: list[Any] = []
    for layer in (plain, other):
        layer.requires_grad_(of == "weights")
        layer.bias_hh_l0.requires_grad_(of in ("a bias", "weights"))
        chosen.append([p for p in layer.parameters() if p.requires_grad])
    if of in ("x", "h_0"):
        leaf = (x if of == "x" else tensors(hx)[0]).requires_grad_()
        chosen = [[leaf], [leaf]]
    grads = [
        gradients(tensors(layer(x, hx)), leaves)
        for layer, leaves in zip((plain, other), chosen, strict=True)
    ]
    assert_close(*grads, 1e-11)


@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_derivatives_of_derivatives_and_batched_ones(name: str) -> None:
    plain, other = pair(name, 3, 2, dtype=torch.float64)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: other(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: other(x)[0], (x,))
    batch = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(layer(x)[0], [x, *layer.parameters()], batch, is_grads_batched=True)
        for layer in (plain, other)
    )
    assert_close(found, expected, 1e-11)
    torch.func.grad(lambda x: other(x)[0].sum())(x.detach())
    torch.func.vmap(lambda x: other(x)[0])(batch.new_zeros(2, 3, 2, 3))


def kept(call: Callable[[], Any]) -> int:
    """Bytes that autograd keeps of one call, each memory once."""
    sizes: dict[int, int] = {}

    def count(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        result = call()
    del result
    return sum(sizes.values())


@pytest.mark.parametrize(("name", "states_kept"), [("GRU", 1), ("LSTM", 2)])
def test_the_gates_are_not_kept(name: str, states_kept: int) -> None:
    """Of each layer four gates and the states against the states alone, beside its input."""
    steps, size = 200, 32
    plain, other = pair(name, size, size, 2)
    x = torch.randn(steps, B, size)
    weights = sum(p.numel() for p in plain.parameters()) * 4
    one = steps * B * size * 4
    bytes_kept = [kept(lambda layer=layer: layer(x)) - weights for layer in (plain, other)]
    inputs = 2 * one
    slack = one // 10  # initial states
    assert bytes_kept[0] >= inputs + 2 * (4 + states_kept) * one - slack
    assert bytes_kept[1] <= inputs + 2 * states_kept * one + slack


def test_a_subclass_may_choose_it() -> None:
    class Mine(rnnfast.GRU):
        recompute = True

    class Decides(rnnfast.GRU):
        @property
        def recompute(self) -> bool:
            return self.hidden_size > 16

    x = torch.randn(50, B, 32)
    layers = (rnnfast.GRU(32, 32), rnnfast.GRU(32, 32, recompute=True), Mine(32, 32))
    plain, *others = (kept(lambda layer=layer: layer(x)) for layer in (*layers, Decides(32, 32)))
    assert others == [others[0]] * 3
    assert others[0] < plain


def test_the_memory_of_a_rebuilt_pass_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some thousand rows at a time, however long the sequence."""
    sizes: list[torch.Size] = []
    layer = rnnfast.ops.layer

    def watch(cell: str, x: Tensor, *rest: Any, **options: Any) -> Any:
        sizes.append(x.shape)
        return layer(cell, x, *rest, **options)

    monkeypatch.setattr(rnnfast.ops, "layer", watch)
    monkeypatch.setattr(rnnfast.recompute, "_NUMBERS", 4 * H * 10)
    _, other = pair("GRU", I, H)
    other(torch.randn(T, B, I))[0].sum().backward()
    assert sizes == [(T, B, I), (1, 10, I), (1, 10, I), (1, 10, I), (1, 6, I)]


def test_what_changes_after_the_call_is_an_error() -> None:
    _, other = pair("GRU", I, H)
    output, _ = other(torch.randn(T, B, I))
    output.mul_(2)  # may be edited, as it is not kept
    with torch.no_grad():
        other.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_explain_says_so() -> None:
    x = torch.randn(T, B, I)
    for name in LAYERS:
        plain, other = pair(name, I, H)
        said = [rnnfast.explain(layer, x).layers[0].reason for layer in (plain, other)]
        assert said[1] == said[0] + "; backward computes the gates again" * (name != "RNN")


def test_it_is_a_bool() -> None:
    with pytest.raises(TypeError, match="recompute should be of type bool, got: str"):
        rnnfast.GRU(I, H, recompute="yes")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [torch.tensor([1, 1]), "no", 1], ids=str)
def test_what_others_call_recompute_is_theirs(value: Any) -> None:
    model = nn.GRU(I, H)
    model.recompute = value
    layer = rnnfast.convert(model)
    assert repr(layer) == "GRU(5, 6)"
    assert layer(torch.randn(T, B, I))[0].shape == (T, B, H)


def test_an_option_like_others() -> None:
    layer = rnnfast.LSTM(I, H, recompute=True)
    assert repr(layer) == "LSTM(5, 6, recompute=True)"
    assert pickle.loads(pickle.dumps(layer)).recompute
    assert not rnnfast.LSTM(I, H).recompute
    assert layer.state_dict().keys() == rnnfast.LSTM(I, H).state_dict().keys()
    with torch.inference_mode():
        assert layer(torch.randn(T, B, I))[0].shape == (T, B, H)
    assert rnnfast.revert(layer)(torch.randn(T, B, I))[0].shape == (T, B, H)


@every_class
def test_compiles_whole(name: str) -> None:
    plain, other = pair(name, I, H, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    assert_alike(plain, other, lambda layer: (compiled if layer is other else layer)(x), x)


@pytest.mark.parametrize("sizes", [(T, 0, I, H), (1, B, I, H), (1, 1, 1, 1)])
def test_sizes_at_the_ends(sizes: tuple[int, int, int, int]) -> None:
    steps, batch, inputs, hidden = sizes
    plain, other = pair("LSTM", inputs, hidden, bidirectional=True, dtype=torch.float64)
    x = torch.randn(steps, batch, inputs, dtype=torch.float64, requires_grad=True)
    assert_alike(plain, other, lambda layer: layer(x), x)
