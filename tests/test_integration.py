"""What the rest of torch does to a module: compile, export, trace, quantise, reparametrise, shard.

Each tool knows torch.nn's classes in its own way. A failure here is a model that works with
torch.nn and breaks, or silently computes something else, when it holds rnnfast.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from side_by_side import CELLS, LAYERS, assert_same, build, states, tensors
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

layers = pytest.mark.parametrize("name", LAYERS)
every_class = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


class Model(nn.Module):
    """A recurrent module between others, as it stands in people's models."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.rnn = rnn
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(torch.relu(self.embed(x)))
        if isinstance(out, tuple):
            out = out[0]
        return self.head(out)


def model_of(name: str, *args: Any, library: Any = rnnfast, **kwargs: Any) -> Model:
    torch.manual_seed(0)
    return Model(getattr(library, name)(5, 6, *args, **kwargs))


def batch(name: str, steps: int = 4) -> Tensor:
    return torch.randn(7, 3) if name in CELLS else torch.randn(steps, 7, 3)


def loss_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters())))


# torch.compile and torch.export


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@every_class
@pytest.mark.usefixtures("compiler")
def test_compiles_without_a_graph_break(name: str) -> None:
    model = model_of(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = batch(name)
    assert_same(model(x), compiled(x))
    for eager, traced in zip(loss_gradients(model, x), loss_gradients(compiled, x), strict=True):
        torch.testing.assert_close(traced, eager)
    with torch.no_grad():
        assert_same(model(x), compiled(x))


@pytest.mark.usefixtures("compiler")
def test_compiles_with_inductor() -> None:
    module = rnnfast.GRU(5, 6)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(4, 3, 5)
    assert_same(module(x), compiled(x))
    weights = list(module.parameters())
    eager, traced = (torch.autograd.grad(m(x)[0].sum(), weights) for m in (module, compiled))
    assert_same(eager, traced)


@layers
@pytest.mark.usefixtures("compiler")
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
            return out

    model = Asks()
    x = torch.randn(4, 7, 5)
    expected = (model.rnn(x)[0] * 2 + 1) * 3
    assert_same(expected, model(x))
    assert_same(expected, torch.compile(model, fullgraph=True, backend="eager")(x))


@layers
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.usefixtures("compiler")
def test_packed_sequences_compile(name: str, given: bool) -> None:
    module = getattr(rnnfast, name)(5, 6)
    packed = pack_padded_sequence(torch.randn(4, 3, 5), [2, 4, 1], enforce_sorted=False)
    hx = states(name, 1, 3, 6) if given else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(module(packed, hx), compiled(packed, hx))


class Residual(rnnfast.GRU):
    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        output, hidden = super().forward(input, hx)
        return self.norm(output + input), hidden


@pytest.mark.usefixtures("compiler")
def test_subclasses_and_parametrized_modules_compile() -> None:
    parametrized = rnnfast.GRU(5, 5)
    parametrizations.orthogonal(parametrized, "weight_ih_l0")
    x = torch.randn(4, 7, 5)
    for module in (Residual(5), parametrized):
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
        assert_same(module(x), compiled)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_model_follows_its_weights_and_conversions() -> None:
    model = model_of("LSTM")
    compiled = torch.compile(model, backend="eager")
    x = batch("LSTM")
    compiled(x)
    with torch.no_grad():
        model.rnn.weight_hh_l0.mul_(0.5)
    assert_same(model(x), compiled(x))
    model.rnn.weight_ih_l0 = nn.Parameter(torch.ones(24, 5))
    assert_same(model(x), compiled(x))
    rnnfast.revert(model)
    assert_same(model(x), compiled(x))


@every_class
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.usefixtures("compiler")
def test_exports(name: str, strict: bool) -> None:
    model = model_of(name)
    x = batch(name)
    program = torch.export.export(model, (x,), strict=strict)
    assert_same(model(x), program.module()(x))
    assert program.state_dict.keys() == model.state_dict().keys()


# TorchScript, FX, quantisation, ONNX


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
    graphs = []
    for library in (nn, rnnfast):
        buffer = io.BytesIO()
        model = model_of(name, library=library).eval()
        axes = {"x": {0: "time", 1: "batch"}}
        torch.onnx.export(
            model, (batch(name),), buffer, dynamo=False, input_names=["x"], dynamic_axes=axes
        )
        graph = onnx.load_from_string(buffer.getvalue()).graph
        graphs.append([node.op_type for node in graph.node])
    assert name in graphs[0]
    assert graphs[1] == graphs[0]


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


# Hooks


@layers
def test_hooks_see_what_torchs_see(name: str) -> None:
    seen: list[list[Any]] = []
    for module in build(name, 5, 6):
        calls: list[Any] = []
        module.register_forward_pre_hook(lambda m, args, c=calls: c.append(args[0].sum().item()))
        module.register_forward_hook(lambda m, args, out, c=calls: c.append(len(tensors(out))))
        module.register_full_backward_hook(
            lambda m, g_in, g_out, c=calls: c.extend([*g_in, *g_out])
        )
        module.register_full_backward_pre_hook(lambda m, g_out, c=calls: c.append(len(g_out)))
        module.weight_hh_l0.register_hook(lambda g, c=calls: c.append(g))
        module.bias_hh_l0.register_post_accumulate_grad_hook(lambda p, c=calls: c.append(p.grad))
        torch.manual_seed(1)
        x = torch.randn(4, 3, 5, requires_grad=True)
        output, hidden = module(x)
        (output.sum() + sum(h.pow(2).sum() for h in tensors(hidden))).backward()
        seen.append(calls)
    theirs, ours = (sorted(calls, key=_order) for calls in seen)
    assert len(ours) == len(theirs) >= 8
    for their, our in zip(theirs, ours, strict=True):
        if isinstance(their, Tensor):
            torch.testing.assert_close(our, their)
        else:
            assert our == their


def _order(value: Any) -> tuple[str, str]:
    """Hooks of weights run in an order that autograd does not promise: sort by kind and shape."""
    text = str(tuple(value.shape)) if isinstance(value, Tensor) else str(value)
    return type(value).__name__, text


def test_hooks_may_replace_what_goes_in_and_out() -> None:
    module = rnnfast.GRU(5, 6)
    x = torch.randn(4, 3, 5)
    expected = module(x * 2)[0] + 1
    module.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    module.register_forward_hook(lambda m, args, out: (out[0] + 1, out[1]))
    assert torch.equal(module(x)[0], expected)


# Reparametrisation


def reparametrize(module: nn.Module, way: str) -> None:
    torch.manual_seed(3)
    if way == "weight_norm":
        parametrizations.weight_norm(module, "weight_hh_l0")
    elif way == "old weight_norm":
        nn.utils.weight_norm(module, "weight_hh_l0")
    elif way == "spectral_norm":
        parametrizations.spectral_norm(module, "weight_ih_l0")
    elif way == "old spectral_norm":
        nn.utils.spectral_norm(module, "weight_ih_l0")
    elif way == "orthogonal":
        parametrizations.orthogonal(module, "weight_ih_l0")
    elif way == "prune":
        prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    else:
        parametrize.register_parametrization(module, "weight_hh_l0", Halved())


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


WAYS = ("weight_norm", "old weight_norm", "spectral_norm", "old spectral_norm", "orthogonal")


@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
@layers
@pytest.mark.parametrize("way", [*WAYS, "prune", "own"])
def test_reparametrised_weights_train_alike(name: str, way: str) -> None:
    curves = []
    for module in build(name, 5, 6):
        reparametrize(module, way)
        optimizer = torch.optim.SGD(module.parameters(), 0.5)
        torch.manual_seed(1)
        x, y = torch.randn(4, 3, 5), torch.randn(4, 3, 6)
        curve = []
        for _ in range(4):
            loss = (module(x)[0] - y).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert curves[1][-1] < curves[1][0]


def test_parametrizations_can_be_cached_and_removed() -> None:
    module = rnnfast.LSTM(5, 6)
    x = torch.randn(4, 3, 5)
    parametrizations.orthogonal(module, "weight_hh_l0")
    assert type(module).__name__ == "ParametrizedLSTM"
    assert isinstance(module, nn.LSTM)
    assert type(module).__module__ == "torch.nn.utils.parametrize"
    assert parametrize.type_before_parametrizations(module) is rnnfast.LSTM
    expected = module(x)
    with parametrize.cached():
        assert_same(expected, module(x))
        assert_same(expected, module(x))
    with torch.no_grad():
        module(x)
    assert_same(expected, copy.deepcopy(module)(x))
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is rnnfast.LSTM
    assert_same(expected, module(x))


@layers
def test_tied_weights(name: str) -> None:
    outputs, gradients = [], []
    x = torch.randn(4, 3, 6)
    for module in build(name, 6, 6, 2):
        module.weight_hh_l1 = module.weight_hh_l0
        outputs.append(module(x))
        gradients.append(torch.autograd.grad(outputs[-1][0].sum(), module.weight_hh_l0)[0])
    assert_same(*outputs)
    torch.testing.assert_close(gradients[1], gradients[0])


class WeightDrop(nn.Module):
    """As in AWD-LSTM: the recurrent weight is a dropped-out copy, computed anew in every call."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        weight = module._parameters.pop("weight_hh_l0")
        self.raw = nn.Parameter(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        self.module.weight_hh_l0 = F.dropout(self.raw, 0.5, self.training)
        return self.module(x)[0]


@layers
def test_weight_drop(name: str) -> None:
    x = torch.randn(4, 3, 5)
    results = []
    for module in build(name, 5, 6):
        dropped = WeightDrop(module)
        torch.manual_seed(2)
        output = dropped(x), dropped(x)
        results.append((*output, *torch.autograd.grad(output[1].sum(), dropped.raw)))
    assert not torch.equal(results[1][0], results[1][1])
    assert_same(*results)


@layers
def test_functional_call_uses_the_weights_that_it_is_given(name: str) -> None:
    theirs, ours = build(name, 5, 6)
    x = torch.randn(4, 3, 5)
    before = ours(x)
    doubled = {key: value.detach() * 2 for key, value in ours.named_parameters()}
    assert_same(
        torch.func.functional_call(theirs, doubled, (x,)),
        torch.func.functional_call(ours, doubled, (x,)),
    )
    assert_same(before, ours(x))


# Training


@layers
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "LBFGS"])
def test_training_follows_torchs_curve(name: str, optimizer: str) -> None:
    curves = []
    for library in (nn, rnnfast):
        torch.manual_seed(0)
        rnn = getattr(library, name)(5, 6, 2, dropout=0.2, bidirectional=True)
        model = nn.ModuleDict({"rnn": rnn, "head": nn.Linear(12, 1)}).double()
        options = {"max_iter": 3} if optimizer == "LBFGS" else {}
        step = getattr(torch.optim, optimizer)(model.parameters(), lr=0.05, **options)
        x = torch.randn(6, 5, 5, dtype=torch.float64)
        packed = pack_padded_sequence(x, [2, 6, 5, 6, 1], enforce_sorted=False)
        y = torch.randn(5, 1, dtype=torch.float64)
        curve: list[float] = []

        def loss() -> Tensor:
            torch.manual_seed(len(curve))  # noqa: B023  (LBFGS evaluates more than once a step)
            step.zero_grad()  # noqa: B023
            _, hidden = model["rnn"](packed)  # noqa: B023
            last = tensors(hidden)[0][-2:].transpose(0, 1).flatten(1)
            value = (model["head"](last) - y).pow(2).mean()  # noqa: B023
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)  # noqa: B023
            return value.detach()

        for _ in range(6):
            curve.append(float(step.step(loss)))
        curves.append(curve)
    assert curves[1] == pytest.approx(curves[0], rel=1e-7)
    assert curves[1][-1] < curves[1][0]


def test_averaged_models_and_checkpoints() -> None:
    module = rnnfast.LSTM(5, 6)
    average = torch.optim.swa_utils.AveragedModel(module)
    x = torch.randn(4, 3, 5, requires_grad=True)
    average.update_parameters(module)
    assert_same(module(x), average(x))
    plain = torch.autograd.grad(module(x)[0].sum(), x)[0]
    recomputed = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)[0]
    torch.testing.assert_close(torch.autograd.grad(recomputed.sum(), x)[0], plain)


# Data parallelism


@pytest.fixture
def one_process() -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    yield
    torch.distributed.destroy_process_group()


@layers
@pytest.mark.usefixtures("one_process")
def test_distributed_data_parallel(name: str) -> None:
    model = model_of(name, 2)
    x = batch(name)
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(model), static_graph=True)
    parallel(x).pow(2).sum().backward()
    for parameter, grad in zip(parallel.parameters(), loss_gradients(model, x), strict=True):
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@layers
@pytest.mark.usefixtures("one_process")
def test_fully_shard(name: str) -> None:
    model = model_of(name)
    x = batch(name)
    expected = loss_gradients(model, x)
    torch.distributed.fsdp.fully_shard(model.rnn)
    torch.distributed.fsdp.fully_shard(model)
    assert isinstance(model.rnn, getattr(nn, name))
    assert type(model.rnn).__name__ == f"FSDP{name}"
    model(x).pow(2).sum().backward()
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad.full_tensor(), grad)


@layers
def test_data_parallel_without_gpus_passes_through(name: str) -> None:
    model = model_of(name)
    x = batch(name)
    assert_same(model(x), nn.DataParallel(model, device_ids=[])(x))


# Determinism


@layers
def test_deterministic_algorithms_and_repeated_calls(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6, 2, bidirectional=True)
    x, hx = torch.randn(9, 4, 5), states(name, 4, 4, 6)
    expected = ours(x, hx)
    torch.use_deterministic_algorithms(True)
    try:
        again = ours(x, hx)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(tensors(expected), tensors(again), strict=True))


# The checklist


def test_the_checklist_names_tests_that_exist() -> None:
    folder = Path(__file__).parent
    named = set(
        re.findall(r"`(test_\w+)::(test_\w+)`", (folder / "../docs/surface.md").read_text())
    )
    assert len(named) > 80
    sources = {file: (folder / f"{file}.py").read_text() for file, _ in named}
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in sources[file]]
    assert not missing
