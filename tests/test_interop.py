"""TorchScript, FX, quantisation and ONNX, which know torch.nn's classes by name or exact type.

A failure is a program that holds something else than our layers compute, or an error that does not
name the call which helps.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from side_by_side import CELLS, LAYERS, Residual, assert_same, batch, model_of
from torch import Tensor, fx, nn

import rnnfast

layers = pytest.mark.parametrize("name", LAYERS)
every_class = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@every_class
def test_torchscript_compiles_torchs_class_with_our_parameters(name: str) -> None:
    model = model_of(name)
    x = batch(name)
    expected = model(x)
    with pytest.warns(UserWarning, match=rf"compiles torch.nn.{name}.*rnnfast.convert\(model\)"):
        scripted = torch.jit.script(model)
    assert_same(expected, scripted(x))
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert_same(expected, torch.jit.load(buffer)(x))
    with torch.no_grad():
        model.rnn.state_dict()[next(iter(model.rnn.state_dict()))].zero_()
    assert_same(scripted(x), model(x))
    assert type(rnnfast.convert(model).rnn) is getattr(rnnfast, name)


class Scripted(torch.jit.ScriptModule):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    @torch.jit.script_method
    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.rnn(x)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@layers
def test_script_module_subclasses_say_what_to_call(name: str) -> None:
    module = getattr(rnnfast, name)(5, 6)
    x = torch.randn(4, 3, 5)
    expected = module(x)[0]
    with pytest.raises(
        Exception, match=r"torch.nn's layers only: give it rnnfast.revert\(module\)"
    ):
        Scripted(module)
    assert_same(expected, Scripted(rnnfast.revert(module))(x))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.*")
@every_class
def test_jit_trace_records_torchs_operator(name: str) -> None:
    model = model_of(name)
    traced = torch.jit.trace(model, batch(name))
    operators = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not any(kind.startswith("rnnfast") for kind in operators)
    if name in LAYERS:  # torch traces through the operators of cells
        assert "aten::" + {"RNN": "rnn_tanh"}.get(name, name.lower()) in operators
    other = batch(name, steps=9)
    assert_same(model(other), traced(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.*")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1")
@layers
def test_onnx_graph_is_that_of_torchs_module(name: str) -> None:
    onnx = pytest.importorskip("onnx")

    def nodes(model: nn.Module, x: Tensor) -> list[str]:
        buffer, axes = io.BytesIO(), {"x": {0: "time", 1: "batch"}}
        torch.onnx.export(
            model.eval(), (x,), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
        return [node.op_type for node in onnx.load_from_string(buffer.getvalue()).graph.node]

    theirs, ours = (nodes(model_of(name, library=m), batch(name)) for m in (nn, rnnfast))
    assert name in theirs
    assert ours == theirs
    theirs, ours = (nodes(getattr(m, name)(3, 4), torch.randn(5, 2, 3)) for m in (nn, rnnfast))
    assert ours == theirs


@layers
def test_own_arguments_have_no_place_but_in_an_export(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.onnx gives a layer by itself the defaults of its signature, by position."""
    layer, x = getattr(rnnfast, name)(3, 4), torch.randn(5, 2, 3)
    with pytest.raises(TypeError, match=f"{name}.* from 2 to 3 positional arguments but 6 were"):
        layer(x, None, None, None, None)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert_same(layer(x, None, None, None, None), layer(x))
    with pytest.raises(TypeError, match="positional arguments"):
        layer(x, None, torch.zeros(5, 2, dtype=torch.bool))


@every_class
def test_fx_takes_ours_for_a_leaf(name: str) -> None:
    model = model_of(name)
    traced = fx.symbolic_trace(Chain(model.embed, model.rnn))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["first", "second"]
    assert traced.second is not None
    assert type(traced.second) is getattr(rnnfast, name)
    x = batch(name)
    assert_same(model.rnn(model.embed(x)), traced(x))


class Chain(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Any:
        return self.second(self.first(x))


class WithState(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        output, h_n = self.rnn(x, h * 2)
        return output.sum(0) + h_n.sum(0)


def test_fx_passes_the_state_on() -> None:
    model = WithState(rnnfast.GRU(5, 6))
    x, h = torch.randn(4, 3, 5), torch.randn(1, 3, 6)
    assert_same(model(x, h), fx.symbolic_trace(model)(x, h))


def test_fx_refuses_what_it_would_record_twice() -> None:
    hooked = rnnfast.GRU(5, 6)
    hooked.register_forward_hook(lambda *_: None)
    for model in (Chain(nn.Identity(), hooked), rnnfast.GRU(5, 6)):
        with pytest.raises(fx.proxy.TraceError, match=r"rnnfast.revert\(model\)"):
            fx.symbolic_trace(model)
    with pytest.raises(fx.proxy.TraceError):  # a user's forward is traced, as for torch.nn's
        fx.symbolic_trace(Chain(nn.Identity(), Residual(5)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ["GRU", "LSTM", "GRUCell", "LSTMCell"])
def test_quantize_dynamic_warns_and_works_after_revert(name: str) -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    model = model_of(name)
    with pytest.warns(UserWarning, match=rf"{name} in floating point.*rnnfast.revert\(model\)"):
        left = quantize(model, {getattr(nn, name), nn.Linear})
    assert type(left.rnn) is getattr(rnnfast, name)
    x = batch(name)
    assert_same(model.rnn(model.embed(x)), left.rnn(model.embed(x)))
    quantized = quantize(rnnfast.revert(model), {getattr(nn, name)})
    assert "quantized" in type(quantized.rnn).__module__
    torch.testing.assert_close(quantized(x), model(x), atol=0.1, rtol=0.1)


def test_qconfig_is_an_attribute_like_another() -> None:
    module = rnnfast.GRU(5, 6)
    assert not hasattr(module, "qconfig")
    with pytest.warns(UserWarning, match="rnnfast.revert"):
        module.qconfig = "q"
    assert module.qconfig == "q"
    assert copy.deepcopy(module).qconfig == "q"
    del module.qconfig
    assert not hasattr(module, "qconfig")
