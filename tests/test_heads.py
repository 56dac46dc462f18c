"""Layers with heads: torch.nn's whose recurrent matrices are block-diagonal."""

from __future__ import annotations

import copy
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import assert_close, cotangents
from side_by_side import LAYERS, states, tensors
from test_segments import random_resets
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.heads import on_the_diagonal

T, B, I, H = 9, 4, 5, 12  # noqa: E741
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True},
]
every_class = pytest.mark.parametrize("name", LAYERS)
heads_ = pytest.mark.parametrize("heads", [2, 3, 12])


def pair(name: str, heads: int, **options: Any) -> tuple[Any, Any]:
    """torch.nn's layer and ours, of the same function."""
    torch.manual_seed(0)
    ours = getattr(rnnfast, name)(I, H, heads=heads, dtype=torch.float64, **options)
    theirs = getattr(nn, name)(I, H, dtype=torch.float64, **options)
    gates = theirs.weight_ih_l0.size(0) // H
    with torch.no_grad():
        for key, weight in ours.named_parameters():
            wide = on_the_diagonal(weight, gates) if weight.dim() == 3 else weight
            getattr(theirs, key).copy_(wide)
    return theirs, ours


@every_class
@heads_
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_values_and_gradients(name: str, heads: int, options: dict[str, Any], given: bool) -> None:
    theirs, ours = pair(name, heads, **options)
    leaf: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    x = torch.randn((B, T, I) if options.get("batch_first") else (T, B, I), **leaf)
    count = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    hx = states(name, count, B, H, **leaf) if given else None
    found, expected = tensors(ours(x, hx)), tensors(theirs(x, hx))
    assert_close(found, expected, 1e-12)
    leaves = [x, *(tensors(hx) if given else [])]
    grads = []
    for values, module in ((found, ours), (expected, theirs)):
        of = [*leaves, *module.parameters()]
        grads.append(torch.autograd.grad(values, of, cotangents(values)))
    gates, h = theirs.weight_ih_l0.size(0) // H, H // heads
    for own, other in zip(*grads, strict=True):
        if own.dim() == 3 and own.shape[0] == heads and own.shape[1:] == (gates * h, h):
            dense = other.view(gates, heads, h, heads, h)
            blocks = torch.stack([dense[:, k, :, k].reshape(gates * h, h) for k in range(heads)])
            assert_close([own], [blocks], 1e-11)
        else:
            assert_close([own], [other], 1e-11)


@every_class
def test_packed_resets_and_lengths(name: str) -> None:
    theirs, ours = pair(name, 3, bidirectional=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([5, 9, 1, 7]), enforce_sorted=False)
    assert_close(tensors(ours(packed)), tensors(theirs(packed)), 1e-12)
    same = rnnfast.convert(copy.deepcopy(theirs))
    options: dict[str, Any] = {"resets": random_resets(), "lengths": [5, 9, 1, 7]}
    assert_close(tensors(ours(x, **options)), tensors(same(x, **options)), 1e-12)


def test_torchscript_refuses_heads_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(rnnfast.GRU(I, H, heads=2))
    with pytest.raises(RuntimeError, match=r"torch\.nn has none with heads"):
        torch.jit.script(model)
    assert type(model[0]) is rnnfast.GRU
    assert model(torch.randn(T, B, I))[0].shape == (T, B, H)


@every_class
def test_compiles_whole(name: str) -> None:
    _, ours = pair(name, 3, num_layers=2)
    x = torch.randn(T, B, I, dtype=torch.float64)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_close(tensors(compiled(x)), tensors(ours(x)), 1e-12)


def test_transforms_and_second_derivatives() -> None:
    _, ours = pair("GRU", 2)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: ours(x)[0], (x,))
    batch = torch.randn(2, 3, 2, I, dtype=torch.float64)
    found = torch.func.vmap(lambda x: ours(x)[0])(batch)
    assert_close([found], [torch.stack([ours(x)[0] for x in batch])], 1e-12)


@every_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_autocast(name: str, dtype: torch.dtype) -> None:
    theirs, ours = pair(name, 3)
    ours, x = ours.to(dtype), torch.randn(T, B, I)
    expected = theirs.float()(x)[0]
    with torch.no_grad():
        found = ours(x.to(dtype))[0]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = ours.float()(x)[0]
        torch.testing.assert_close(cast.float(), expected, rtol=0.05, atol=0.05)


@every_class
def test_a_module_like_others(name: str, caplog: pytest.LogCaptureFixture) -> None:
    ours = getattr(rnnfast, name)(I, H, 2, heads=4)
    assert repr(ours) == f"{name}({I}, {H}, num_layers=2, heads=4)"
    assert ours.weight_hh_l1.shape[0::2] == (4, 3)
    assert ours.weight_hh_l1.abs().max() <= H**-0.5
    x = torch.randn(T, B, I)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_close(tensors(other(x)), tensors(ours(x)), 0)
    other = getattr(rnnfast, name)(I, H, 2, heads=4)
    other.load_state_dict(ours.state_dict())
    assert_close(tensors(other(x)), tensors(ours(x)), 0)
    with caplog.at_level(logging.WARNING, "rnnfast"):
        assert rnnfast.revert(ours) is ours
    assert type(ours) is getattr(rnnfast, name)
    assert "torch.nn has no layers with heads" in caplog.text
    plain = getattr(rnnfast, name)(I, H, heads=1)
    assert "_heads" not in vars(plain)


@every_class
@pytest.mark.parametrize("heads", [4, nn.ModuleList([nn.Linear(2, 2)])], ids=["number", "modules"])
def test_what_others_call_heads_is_theirs(name: str, heads: Any) -> None:
    """In models that are converted, in subclasses of torch's layers and of ours."""
    theirs = getattr(nn, name)(I, H)
    model = nn.Sequential(theirs)
    model.heads, x = heads, torch.randn(T, B, I)
    expected = tensors(theirs(x))
    assert type(rnnfast.convert(model)[0]) is getattr(rnnfast, name)
    assert_close(tensors(model[0](x)), expected, 1e-6)
    assert type(rnnfast.revert(model)[0]) is getattr(nn, name)
    for library in (nn, rnnfast):
        cls = type("Attentive", (getattr(library, name),), {})
        with rnnfast.patched():
            other = cls(I, H)
        other.heads = heads
        other.load_state_dict(theirs.state_dict(), strict=False)
        assert_close(tensors(other(x)), expected, 1e-6)
        assert rnnfast.explain(other, x).layers[0].route == "fused"


@every_class
def test_cudnn_gets_no_weights_with_heads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU `to` and `load_state_dict` would lay them out for cuDNN, which refuses."""
    flattened: list[int] = []

    def flatten(layer: nn.RNNBase) -> None:
        flattened.append(getattr(layer, "_heads", 1))

    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", flatten)
    for heads in (1, 3):
        getattr(rnnfast, name)(I, H, heads=heads).to(torch.float64)
    assert set(flattened) == {1}


@pytest.mark.parametrize("heads", [2.0, "2", None, True])
def test_heads_are_an_integer(heads: Any) -> None:
    with pytest.raises(TypeError, match="heads should be of type int, got: "):
        rnnfast.GRU(I, H, heads=heads)


@pytest.mark.parametrize("heads", [0, -1, 5, 24])
def test_heads_divide_the_units(heads: int) -> None:
    with pytest.raises(ValueError, match="heads must divide hidden_size, 12, got"):
        rnnfast.GRU(I, H, heads=heads)


def test_a_projection_has_no_heads() -> None:
    with pytest.raises(ValueError, match="no projection of an LSTM with heads"):
        rnnfast.LSTM(I, H, heads=2, proj_size=3)
