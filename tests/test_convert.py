"""convert and revert: other classes for the same objects, and nothing else changes."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from side_by_side import CELLS, LAYERS, assert_same
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnfast

NAMES = (*LAYERS, *CELLS)
names = pytest.mark.parametrize("name", NAMES)


def ours(name: str) -> type:
    return getattr(rnnfast, name)


def theirs(name: str) -> type:
    return getattr(nn, name)


def batch(name: str) -> torch.Tensor:
    return torch.randn(3, 5) if name in CELLS else torch.randn(4, 3, 5)


class Zoo(nn.Module):
    """Every class, in every kind of container, one module twice, and a reference in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(theirs(name)(5, 5) for name in LAYERS)
        self.cells = nn.ModuleDict({name: theirs(name)(5, 5) for name in CELLS})
        self.nested = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.GRU(5, 5, 2)))
        self.shared = self.layers[1]
        self.hidden = [self.layers[0]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.layers, self.nested, self.shared, *self.hidden):
            x = layer(x)[0]
        for cell in self.cells.values():
            h = cell(x[-1])
            x = x + (h[0] if isinstance(h, tuple) else h)
        return x


def test_everything_in_a_model_is_swapped_and_back() -> None:
    model = Zoo()
    x = torch.randn(4, 3, 5)
    expected, keys = model(x), list(model.state_dict())
    parameters, modules = list(model.parameters()), list(model.modules())
    assert rnnfast.convert(model) is model
    assert [type(m) for m in model.layers] == [ours(name) for name in LAYERS]
    assert [type(m) for m in model.cells.values()] == [ours(name) for name in CELLS]
    assert type(model.nested[1][0]) is rnnfast.GRU
    assert_same(expected, model(x))
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert model.shared is model.layers[1]
    assert model.hidden[0] is model.layers[0]
    assert rnnfast.revert(model) is model
    assert [type(m) for m in model.layers] == [theirs(name) for name in LAYERS]
    assert [type(m) for m in model.cells.values()] == [theirs(name) for name in CELLS]
    assert torch.equal(expected, model(x))


@names
def test_the_root_itself_is_swapped_with_all_that_it_holds(name: str) -> None:
    module = theirs(name)(5, 6).eval()
    module.register_buffer("scale", torch.ones(1))
    module.note = "kept"
    calls: list[str] = []
    module.register_forward_pre_hook(lambda *_: calls.append("pre"))
    module.register_forward_hook(lambda *_: calls.append("post"))
    before = dict(vars(module))
    rnnfast.convert(module)
    assert type(module) is ours(name)
    assert not module.training
    assert vars(module) == before
    module(batch(name))
    assert calls == ["pre", "post"]
    assert type(rnnfast.revert(module)) is theirs(name)


@names
def test_converting_twice_changes_nothing_more(name: str) -> None:
    module = rnnfast.convert(rnnfast.convert(theirs(name)(5, 6)))
    assert type(module) is ours(name)
    assert type(rnnfast.revert(rnnfast.revert(module))) is theirs(name)


@names
def test_converted_is_as_good_as_built(name: str) -> None:
    module = rnnfast.convert(theirs(name)(5, 6))
    built = ours(name)(5, 6)
    assert vars(module).keys() == vars(built).keys()
    built.load_state_dict(module.state_dict())
    x = batch(name)
    assert_same(built(x), module(x))
    assert type(copy.deepcopy(module)) is ours(name)


def test_optimizer_keeps_training_across_conversions() -> None:
    curves = []
    for convert in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"rnn": nn.LSTM(5, 6), "head": nn.Linear(6, 1)})
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        x, y = torch.randn(6, 4, 5), torch.randn(4, 1)
        curve = []
        for step in range(9):
            if convert and step in (3, 6):
                (rnnfast.convert if step == 3 else rnnfast.revert)(model)
            loss = (model["head"](model["rnn"](x)[0][-1]) - y).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[1][-1] < 0.9 * curves[1][0]


class OwnForward(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input * 2, hx)


class OursDerived(rnnfast.GRU):
    pass


def test_subclasses_are_left_alone_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(OwnForward(5, 6), nn.GRU(5, 6))
    with caplog.at_level(logging.WARNING, "rnnfast"):
        rnnfast.convert(model)
    assert [type(m) for m in model] == [OwnForward, rnnfast.GRU]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"rnnfast.convert leaves module '0' as it is: its class, {__name__}.OwnForward, is derived"
        " from torch.nn.GRU; rnnfast.patch() makes its super().forward fast"
    )
    caplog.clear()
    rnnfast.revert(nn.Sequential(OursDerived(5, 6)))
    assert "rnnfast.revert leaves module '0' as it is: " in caplog.text
    assert caplog.text.rstrip().endswith("OursDerived, is derived from rnnfast.GRU")


@pytest.mark.parametrize("function", ["convert", "revert", "freeze", "unfreeze"])
@pytest.mark.parametrize("model", [[nn.GRU(5, 6)], nn.GRU, None], ids=["list", "class", "None"])
def test_what_is_no_model_is_refused(function: str, model: Any) -> None:
    with pytest.raises(TypeError, match=f"rnnfast.{function}: expected a torch.nn.Module, got"):
        getattr(rnnfast, function)(model)


def test_models_of_ours_convert_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    rnnfast.convert(nn.Sequential(*(ours(name)(5, 6) for name in NAMES)))
    rnnfast.revert(nn.Sequential(*(theirs(name)(5, 6) for name in NAMES)))
    assert not caplog.records


def test_parametrized_module_keeps_its_parametrization() -> None:
    module = nn.GRU(5, 6)
    parametrizations.orthogonal(module, "weight_ih_l0")
    x = torch.randn(4, 3, 5)
    expected = module(x)
    rnnfast.convert(module)
    assert isinstance(module, rnnfast.GRU)
    assert isinstance(module, nn.GRU)
    assert parametrize.type_before_parametrizations(module) is rnnfast.GRU
    assert_same(expected, module(x))
    rnnfast.revert(module)
    assert not isinstance(module, rnnfast.GRU)
    assert_same(expected, module(x))
    rnnfast.convert(module)
    parametrize.remove_parametrizations(module, "weight_ih_l0")
    assert type(module) is rnnfast.GRU
    assert_same(expected, module(x))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weight_norm_and_pruning_survive() -> None:
    module = nn.LSTM(5, 6)
    nn.utils.weight_norm(module, "weight_hh_l0")
    prune.l1_unstructured(module, "weight_ih_l0", 0.5)
    x = torch.randn(4, 3, 5)
    expected = module(x)
    rnnfast.convert(module)
    assert_same(expected, module(x))
    with torch.no_grad():
        module.weight_hh_l0_g.mul_(2)
    doubled = module(x)
    assert not torch.allclose(doubled[0], expected[0])
    rnnfast.revert(module)
    assert_same(module(x), doubled)


@pytest.mark.parametrize("model", [nn.Linear(3, 4), nn.Sequential(), nn.Conv1d(1, 1, 1)])
def test_convert_of_a_model_without_recurrent_layers_warns(model: nn.Module) -> None:
    sentence = f"changes nothing: {type(model).__name__} holds no"
    with pytest.warns(UserWarning, match=sentence) as seen:
        assert rnnfast.convert(model) is model
    assert seen[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["GRU", "LSTMCell"])
def test_convert_of_a_model_that_is_converted_does_not_warn(name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), getattr(nn, name)(4, 5))
    for _ in range(2):
        assert type(rnnfast.convert(model)[1]) is getattr(rnnfast, name)
    rnnfast.revert(nn.Linear(3, 4))
