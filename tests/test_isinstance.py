"""The class of our layers: torch.nn's for ``isinstance``, its own for ``type()``; users' classes.

A failure is code keyed by class that takes our layer for something else than torch.nn's.
"""

from __future__ import annotations

import abc
import copy
import functools
import io
import pickle
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from side_by_side import LAYERS, assert_same, copies
from torch import Tensor, nn

import rnnfast

layers = pytest.mark.parametrize("name", LAYERS)


@layers
def test_isinstance_of_torchs_class(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    theirs = getattr(nn, name)
    others = [getattr(nn, other) for other in LAYERS if other != name]
    assert isinstance(ours, theirs)
    assert isinstance(ours, nn.RNNBase)
    assert isinstance(ours, getattr(rnnfast, name))
    assert not isinstance(ours, (*others, nn.Linear))
    assert not isinstance(theirs(5, 6), getattr(rnnfast, name))
    assert issubclass(getattr(rnnfast, name), (nn.RNNBase, theirs))
    assert isinstance(mock.create_autospec(ours), theirs)
    assert type(ours) is getattr(rnnfast, name)


@layers
def test_class_attribute_is_the_class(name: str) -> None:
    cls = getattr(rnnfast, name)
    seen = cls(5, 6).__class__
    assert seen is cls
    assert issubclass(seen, getattr(nn, name))
    for value in (seen, functools.partial(seen, 5, 6).func, {"cls": seen}):
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        assert torch.load(file, weights_only=False) == pickle.loads(pickle.dumps(value)) == value


@layers
def test_class_may_be_assigned(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    other = getattr(rnnfast, name)(5, 6)
    ours.__class__ = getattr(nn, name)
    assert type(ours) is getattr(nn, name)
    ours.__class__ = other.__class__
    assert hash(type(ours)) == hash(getattr(rnnfast, name))
    assert_same(other(torch.ones(2, 3, 5))[0] * 0, ours(torch.ones(2, 3, 5))[0] * 0)
    ours.__class__ = getattr(nn, name)
    ours.__class__ = getattr(rnnfast, name)
    assert type(ours) is getattr(rnnfast, name)
    assert isinstance(ours, getattr(nn, name))


class Doubled(rnnfast.GRU):
    """A user's class: a child module, and a forward that calls ours."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = nn.Linear(self.hidden_size, 2)

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, hidden = super().forward(input, hx)
        return self.head(output) * 2, hidden


class Registered(rnnfast.LSTM, abc.ABC):
    """With a metaclass, and a registry of its subclasses."""

    registry: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Registered.registry.append(cls)


class Leaf(Registered):
    pass


def test_subclass_of_ours() -> None:
    module = Doubled(5, 6)
    x = torch.randn(4, 3, 5)
    plain = rnnfast.GRU(5, 6)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "head" not in k})
    assert_same((module.head(plain(x)[0]) * 2, plain(x)[1]), module(x))
    assert isinstance(module, nn.GRU)
    assert isinstance(module, Doubled)
    for way, other in copies(module).items():
        assert type(other) is Doubled, way
        assert_same(module(x), other(x))
    assert module.__class__.__name__ == "Doubled"
    assert isinstance(Doubled(5, 6), plain.__class__)
    assert not isinstance(plain, module.__class__)


def test_subclass_with_a_metaclass_is_registered_once() -> None:
    module = Leaf(5, 6)
    assert isinstance(module, nn.LSTM)
    assert isinstance(module, Registered)
    assert isinstance(Leaf(5, 6), module.__class__)
    assert Registered.registry == [Leaf]
    assert type(copy.deepcopy(module)) is Leaf


def test_subclass_may_define_its_own_reduce() -> None:
    assert type(pickle.loads(pickle.dumps(Reduced(7)))) is Reduced
    assert pickle.loads(pickle.dumps(Reduced(7))).hidden_size == 7


class Reduced(rnnfast.RNN):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def __reduce__(self) -> Any:
        return Reduced, (self.hidden_size,)


@pytest.mark.parametrize("library", ["cloudpickle", "dill"])
def test_a_subclass_of_the_main_program_comes_back_as_torchs_too(library: str) -> None:
    """Ray and MLflow pickle classes by value."""
    pickler = pytest.importorskip(library)

    class Local(rnnfast.GRU):
        pass

    module = Local(5, 6)
    for value in (module, module.__class__, functools.partial(Local, 5, 6), [Local]):
        again = pickler.loads(pickler.dumps(value))
        assert isinstance(again, type(value))
    again = pickler.loads(pickler.dumps(module))
    assert isinstance(again, (nn.GRU, rnnfast.GRU))
    assert isinstance(again, nn.GRU)
    x = torch.randn(4, 3, 5)
    assert_same(module(x), again(x))


def test_methods_that_a_user_puts_into_torchs_class(monkeypatch: pytest.MonkeyPatch) -> None:
    module = rnnfast.GRU(5, 6)
    monkeypatch.setattr(nn.GRU, "size", lambda self: self.hidden_size, raising=False)
    assert module.size() == 6

    @functools.singledispatch
    def kind(module: nn.Module) -> str:
        return "module"

    kind.register(nn.GRU)(lambda module: "gru")
    assert kind(module) == "gru"


@layers
def test_compiled_code_gets_eagers_answer_from_isinstance(name: str) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = getattr(rnnfast, name)(5, 6)

        def forward(self, x: Tensor) -> Tensor:
            out = self.rnn(x)[0]
            if isinstance(self.rnn, getattr(nn, name)):
                out = out * 2
            if isinstance(self.rnn, nn.RNNBase) and not isinstance(self.rnn, nn.Linear):
                out = out + 1
            if self.rnn.__class__.__name__ == name:
                out = out * 3
            if isinstance(self.rnn, (nn.Linear, getattr(nn, name))):
                out = out + 5
            if isinstance(self.rnn, nn.Linear | getattr(nn, name)):
                out = out * 7
            if issubclass(self.rnn.__class__, getattr(nn, name)):
                out = out + 11
            if type(self.rnn) is getattr(nn, name):
                out = out * 13
            return out

    torch._dynamo.reset()
    model = Asks()
    x = torch.randn(4, 7, 5)
    expected = ((model.rnn(x)[0] * 2 + 1) * 3 + 5) * 7 + 11
    assert_same(expected, model(x))
    assert_same(expected, torch.compile(model, fullgraph=True, backend="eager")(x))
