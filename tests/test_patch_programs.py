"""What other programs see of patched layers, whose types do not change: pickles, tools, sources.

Each test is named after what someone saw who had other classes in the place of torch's.
"""

from __future__ import annotations

import functools
import io
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.config
from patch_ways import X, every_class, layers, leave_as_they_were, make, run_python, runs_ours, ways
from side_by_side import CELLS, assert_same, batch, model_of, tensors
from torch import Tensor, fx, nn

import rnnfast


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield from leave_as_they_were()


# Pickles and checkpoints


@ways
def test_a_class_is_pickled_by_its_name(way: str) -> None:
    cls = make(way, lambda: nn.GRU(5, 6)).__class__
    assert pickle.loads(pickle.dumps(cls)) is nn.GRU
    partial = pickle.loads(pickle.dumps(functools.partial(cls, 5, 6)))
    assert type(partial()) is nn.GRU
    file = io.BytesIO()
    torch.save({"cls": cls}, file)
    file.seek(0)
    assert torch.load(file, weights_only=False) == {"cls": nn.GRU}


LOAD = """
import sys, torch
from torch import nn
with torch.serialization.safe_globals([torch.nn.modules.rnn.{name}]):
    module = torch.load("model.pt")
assert type(module) is nn.{name}
expected, x = torch.load("expected.pt")
result = module(x)
output = result[0] if isinstance(result, tuple) else result
torch.testing.assert_close(output, expected)
assert "rnnfast" not in sys.modules
"""


@every_class
@ways
def test_a_checkpoint_of_a_whole_model_loads_where_torchs_class_is_allowed(
    name: str, way: str, tmp_path: Path
) -> None:
    """Also in a process without rnnfast, as torch's own."""
    module = make(way, lambda: getattr(nn, name)(5, 6))
    x = X[0] if name in CELLS else X
    torch.save(module, tmp_path / "model.pt")
    assert b"rnnfast." not in (tmp_path / "model.pt").read_bytes()
    torch.save((tensors(module(x))[0].detach(), x), tmp_path / "expected.pt")
    run_python(LOAD.format(name=name), tmp_path)


@pytest.mark.parametrize("library", ["cloudpickle", "dill"])
@ways
def test_cloudpickle_and_dill_bring_back_what_they_were_given(library: str, way: str) -> None:
    pickler = pytest.importorskip(library)
    module = make(way, lambda: nn.GRU(5, 6))

    class Local(nn.GRU):
        pass

    local = make(way, lambda: Local(5, 6))
    for value in (module, module.__class__, functools.partial(nn.GRU, 5), [nn.GRU], local, Local):
        again = pickler.loads(pickler.dumps(value))
        assert isinstance(again, type(value))
    again = pickler.loads(pickler.dumps(local))
    assert isinstance(again, nn.GRU)
    assert_same(local(X), again(X))


# Code that goes by the exact type, and code that changes torch's classes


@ways
def test_initialisers_that_compare_types(way: str) -> None:
    def initialise(module: nn.Module) -> None:
        if type(module) == nn.GRU:  # noqa: E721  # as in a textbook
            for name in module._flat_weights_names:
                if "weight" in name:
                    nn.init.zeros_(module._parameters[name])

    model = make(way, lambda: nn.Sequential(nn.GRU(5, 6, bias=False)))
    model.apply(initialise)
    assert not model(X)[0].any()


@ways
def test_singledispatch_finds_torchs_class(way: str) -> None:
    @functools.singledispatch
    def kind(module: nn.Module) -> str:
        return "module"

    @kind.register
    def _(module: nn.GRU) -> str:
        return "gru"

    assert kind(make(way, lambda: nn.GRU(5, 6))) == "gru"
    assert kind(make(way, lambda: nn.LSTM(5, 6))) == "module"


@ways
def test_create_autospec(way: str) -> None:
    module = make(way, lambda: nn.GRU(5, 6))
    double = mock.create_autospec(module)
    double(X)
    assert isinstance(double, nn.GRU)
    with pytest.raises(TypeError):
        mock.create_autospec(nn.GRU.forward)(module)
    mock.create_autospec(nn.GRU)


def fake_forward(self: nn.Module, input: Tensor, hx: Any = None) -> Any:
    return "fake"


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_users_own_forward_is_respected(
    order: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module, other = nn.LSTM(5, 6), nn.GRU(5, 6)
    with caplog.at_level(logging.WARNING, "rnnfast"):
        if order == "before":
            monkeypatch.setattr(nn.LSTM, "forward", fake_forward)
        rnnfast.patch()
        if order == "after":
            monkeypatch.setattr(nn.LSTM, "forward", fake_forward)
    assert module(X) == nn.LSTM(5, 6)(X) == "fake"
    assert runs_ours(lambda: other(X))
    assert ("nn.LSTM stays as it is" in caplog.text) == (order == "before")
    rnnfast.unpatch()
    assert module(X) == "fake"
    monkeypatch.undo()
    assert not runs_ours(lambda: module(X))


def test_a_users_forward_that_calls_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.LSTM(5, 6)
    expected = module(X)[0]
    rnnfast.patch()
    before = nn.LSTM.forward
    monkeypatch.setattr(nn.LSTM, "forward", lambda self, *a, **k: before(self, *a, **k)[0] * 2)
    assert runs_ours(lambda: module(X))
    assert_same(expected * 2, module(X))
    rnnfast.unpatch()
    assert not runs_ours(lambda: module(X))
    assert_same(expected * 2, module(X))


@ways
def test_reset_parameters_and_methods_that_a_user_puts_into_torchs_class(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(self: nn.GRU) -> None:
        for weight in self.parameters():
            nn.init.ones_(weight)

    module = make(way, lambda: nn.GRU(5, 6))
    monkeypatch.setattr(nn.GRU, "reset_parameters", ones)
    monkeypatch.setattr(nn.GRU, "size", lambda self: self.hidden_size, raising=False)
    module.reset_parameters()
    assert all((weight == 1).all() for weight in module.parameters())
    assert module.size() == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ["GRU", "LSTM", "GRUCell", "LSTMCell"])
@ways
def test_quantize_dynamic_takes_them(name: str, way: str) -> None:
    model = make(way, lambda: model_of(name, library=nn))
    quantized = torch.ao.quantization.quantize_dynamic(model, {getattr(nn, name)})
    assert "quantized" in type(quantized.rnn).__module__
    x = batch(name)
    torch.testing.assert_close(quantized(x), model(x), atol=0.1, rtol=0.1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@ways
def test_prepare_takes_them(way: str) -> None:
    from torch.ao import quantization

    model = make(way, lambda: nn.Sequential(nn.LSTM(5, 6)))
    model.qconfig = quantization.default_qconfig
    prepared = quantization.prepare(model)
    assert isinstance(prepared[0].qconfig, quantization.QConfig)


# Programs that read the source of a model


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("error::UserWarning")
@every_class
@ways
def test_torchscript_compiles_torchs_source(name: str, way: str) -> None:
    model = make(way, lambda: model_of(name, library=nn))
    x = batch(name)
    scripted = torch.jit.script(model)
    assert_same(model(x), scripted(x))
    assert type(model.rnn) is getattr(nn, name)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    rnnfast.unpatch()
    assert_same(model(x), torch.jit.load(file)(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.*")
@layers
@ways
def test_traces_record_torchs_operator(name: str, way: str) -> None:
    model = make(way, lambda: model_of(name, library=nn))
    traced = torch.jit.trace(model, batch(name))
    operators = {node.kind() for node in traced.inlined_graph.nodes()}
    assert "aten::" + {"RNN": "rnn_tanh"}.get(name, name.lower()) in operators
    other = batch(name, steps=9)
    assert_same(model(other), traced(other))


@every_class
@ways
def test_fx_takes_them_for_leaves(name: str, way: str) -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 5), getattr(nn, name)(5, 6)

        def forward(self, x: Tensor) -> Any:
            return self.second(self.first(x))

    model = make(way, Chain)
    model.second.register_forward_hook(lambda *_: None)
    traced = fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["first", "second"]
    x = batch(name)
    assert_same(model(x), traced(x))
