"""patch, unpatch and patched: torch's own classes run our kernels, and nothing changes its type.

Each test is named after what someone saw who had other classes in the place of torch's.
"""

from __future__ import annotations

import copy
import functools
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo.config
from side_by_side import CELLS, LAYERS, assert_same, batch, loss_gradients, model_of, tensors
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import patching

layers = pytest.mark.parametrize("name", LAYERS)
every_class = pytest.mark.parametrize("name", [*LAYERS, *CELLS])
ways = pytest.mark.parametrize("way", ["patch", "patched"])
X = torch.randn(4, 3, 5)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    """Leaves torch's classes as they were."""
    functions = [(c, c.forward, c.__init__) for c in (*patching._LAYERS, *patching._CELLS)]
    torch._dynamo.reset()
    yield
    patching._made_some = False
    rnnfast.unpatch()
    for cls, forward, init in functions:
        # A user who puts back what there was before may put back ours: switched off by now.
        assert getattr(cls.forward, "_torchs", cls.forward) is forward._torchs
        cls.forward = forward
        assert cls.__init__ is init
    torch._dynamo.reset()


class _Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **kwargs or {})


def runs_ours(call: Callable[[], Any]) -> bool:
    with _Operators() as operators:
        call()
    return "rnnfast::layer" in operators.names


def make(way: str, build: Callable[[], Any]) -> Any:
    """What `build` makes, patched in either way."""
    if way == "patched":
        with rnnfast.patched():
            return build()
    rnnfast.patch()
    return build()


# What runs ours


@every_class
def test_layers_that_exist_already_run_ours(name: str) -> None:
    model = model_of(name, library=nn)
    x = batch(name)
    expected, gradients = model(x), loss_gradients(model, x)
    rnnfast.patch()
    assert type(model.rnn) is getattr(nn, name)
    assert_same(expected, model(x))
    assert_same(tuple(gradients), tuple(loss_gradients(model, x)))
    assert runs_ours(lambda: model(x)) is (name in LAYERS)
    rnnfast.unpatch()
    assert not runs_ours(lambda: model(x))
    assert_same(expected, model(x))


@pytest.mark.parametrize("name", CELLS)
@ways
def test_cells_take_what_ours_take(name: str, way: str) -> None:
    cell = make(way, lambda: getattr(nn, name)(5, 6))
    for mapped, row in zip(tensors(torch.vmap(cell)(X)), tensors(cell(X[1])), strict=True):
        assert_same(row, mapped[1])


class Base(nn.Module):
    def encode(self, x: Tensor) -> Tensor:
        return self(x)[0]


class ForecastGRU(Base, nn.GRU):
    """As a forecasting library has it."""

    def forward(self, x: Tensor, hx: Any = None, lengths: Any = None) -> Any:
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return super().forward(x, hx)


@ways
def test_a_subclass_that_calls_super_forward_is_accelerated(way: str) -> None:
    expected = (module := ForecastGRU(5, 6)).encode(X)
    patched = make(way, lambda: ForecastGRU(5, 6))
    patched.load_state_dict(module.state_dict())
    assert type(patched) is ForecastGRU
    assert runs_ours(lambda: patched(X))
    assert_same(expected, patched.encode(X))
    assert runs_ours(lambda: patched(X, lengths=[2, 4, 1]))


class Checked(nn.LSTM):
    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        raise ArithmeticError


@ways
def test_checks_of_a_users_subclass_are_called(way: str) -> None:
    with pytest.raises(ArithmeticError):
        make(way, lambda: Checked(5, 6))(X)


@layers
@ways
def test_copies_and_pickles_run_ours(name: str, way: str) -> None:
    module = make(way, lambda: getattr(nn, name)(5, 6))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert type(other) is getattr(nn, name)
        assert runs_ours(lambda other=other: other(X))


# Compiled code


class Asks(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(x)[0]
        if isinstance(self.rnn, (nn.LSTM, nn.GRU)):
            out = out * 2
        if isinstance(self.rnn, nn.Linear | nn.GRU):
            out = out + 1
        if issubclass(self.rnn.__class__, nn.GRU):
            out = out * 3
        if type(self.rnn) is nn.GRU:
            out = out + 5
        return out


@ways
def test_compiled_code_takes_the_branch_that_eager_code_takes(way: str) -> None:
    model = make(way, lambda: Asks(nn.GRU(5, 6)))
    expected = (model.rnn(X)[0] * 2 + 1) * 3 + 5
    assert_same(expected, model(X))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(expected, compiled(X))


@every_class
@ways
def test_compiles_without_a_graph_break(name: str, way: str) -> None:
    model = make(way, lambda: model_of(name, library=nn))
    x = batch(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(model(x), compiled(x))
    assert_same(tuple(loss_gradients(model, x)), tuple(loss_gradients(compiled, x)))


@ways
def test_compiles_with_inductor(way: str) -> None:
    module = make(way, lambda: nn.GRU(5, 6, batch_first=True))
    compiled = torch.compile(module, fullgraph=True)
    assert_same(module(X), compiled(X))
    weights = list(module.parameters())
    eager, traced = (torch.autograd.grad(m(X)[0].sum(), weights) for m in (module, compiled))
    assert_same(eager, traced)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", [{"proj_size": 3}, {"dtype": torch.complex64}], ids=str)
def test_a_layer_that_torch_runs_breaks_the_graph_and_is_not_unrolled(options: Any) -> None:
    rnnfast.patch()
    name = nn.LSTM if "proj_size" in options else nn.GRU
    model = nn.Sequential(nn.Identity(), name(5, 6, **options))
    x = X.to(options.get("dtype", torch.float32))
    seen: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    assert_same(model(x), torch.compile(model, backend=backend)(x))
    assert not any("lstm" in str(n) or "gru" in str(n) for g in seen for n in g.graph.nodes)
    torch._dynamo.reset()
    sentence = "layer_of_torch_is_not_compiled"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=sentence):
        torch.compile(model, backend="eager", fullgraph=True)(x)


def test_a_layer_made_outside_of_the_block_breaks_the_graph_as_ever() -> None:
    with rnnfast.patched():
        inside = nn.GRU(5, 6)
    outside = nn.GRU(5, 6)
    torch.compile(Asks(inside), backend="eager", fullgraph=True)(X)
    model = Asks(outside)
    assert_same(model(X), torch.compile(model, backend="eager")(X))
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(model, backend="eager", fullgraph=True)(X)


def test_a_compiled_model_follows_patch_and_unpatch() -> None:
    model = Asks(nn.GRU(5, 6))
    expected = model(X)
    rnnfast.patch()
    compiled = torch.compile(model, backend="aot_eager")
    assert_same(expected, compiled(X))
    rnnfast.unpatch()
    assert_same(expected, compiled(X))
    rnnfast.patch()
    assert_same(expected, compiled(X))


IMPORTED_LATER = """
import sys, torch, rnnfast
assert "torch._dynamo" not in sys.modules
rnnfast.patch()
assert "torch._dynamo" not in sys.modules
rnnfast.unpatch()
import torch._dynamo
x = torch.randn(4, 3, 5)
for module in (rnnfast.GRU(5, 6), torch.nn.GRU(5, 6)):
    expected = module(x)
    rnnfast.patch()
    result = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(result, expected)
    rnnfast.unpatch()
try:
    torch.compile(torch.nn.GRU(5, 6), fullgraph=True, backend="eager")(x)
except torch._dynamo.exc.Unsupported:
    pass
else:
    raise AssertionError("unrolled")
"""
UNPATCHED_BEFORE = """
import torch
before = [(cls, cls.forward) for cls in (torch.nn.GRU, torch.nn.LSTMCell)]
import rnnfast
assert all(cls.forward is forward for cls, forward in before)
rnnfast.patch()
assert not any(cls.forward is forward for cls, forward in before)
rnnfast.unpatch()
assert all(cls.forward is forward for cls, forward in before)
"""
ALLOWED_BEFORE = """
import torch
import torch._dynamo.config
torch._dynamo.config.allow_rnn = True
import rnnfast
x = torch.randn(4, 3, 5)
module = torch.nn.GRU(5, 6)
result = torch.compile(module, fullgraph=True, backend="eager")(x)
torch.testing.assert_close(result, module(x))
"""
IMPORTED_AGAIN = """
import sys, torch, rnnfast
rnnfast.patch()
first = torch.nn.GRU.forward._torchs
for name in [name for name in sys.modules if name.partition(".")[0] == "rnnfast"]:
    del sys.modules[name]
import rnnfast
rnnfast.patch()
assert torch.nn.GRU.forward._torchs is first
assert "CppFunction" in str(torch.nn.GRU(5, 6)(torch.randn(4, 3, 5))[0].grad_fn)
rnnfast.unpatch()
assert torch.nn.GRU.forward is first or "torch._dynamo" in sys.modules
"""


@pytest.mark.parametrize(
    "program", [IMPORTED_LATER, UNPATCHED_BEFORE, ALLOWED_BEFORE, IMPORTED_AGAIN]
)
def test_imports_in_any_order(program: str, tmp_path: Path) -> None:
    run_python(program, tmp_path, Path(rnnfast.__file__).parents[1])


def run_python(program: str, folder: Path, path: Path | None = None) -> None:
    environment = dict(os.environ, PYTHONPATH=str(path) if path else "")
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


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


# What the calls mean


@every_class
def test_objects_made_in_a_block_run_ours_after_it(name: str) -> None:
    cls = getattr(nn, name)
    torch.manual_seed(0)
    expected, their_next = cls(5, 6), torch.rand(1)
    torch.manual_seed(0)
    with rnnfast.patched():
        inside = cls(5, 6)
        assert torch.equal(torch.rand(1), their_next)
        by_another_name = getattr(nn.modules.rnn, name)(5, 6)
    x = X[0] if name in CELLS else X
    assert type(inside) is type(by_another_name) is cls
    assert_same(expected(x), inside(x))
    if name in LAYERS:
        assert runs_ours(lambda: inside(x))
        assert runs_ours(lambda: by_another_name(x))
        assert not runs_ours(lambda: expected(x))
        assert not runs_ours(lambda: cls(5, 6)(x))


def test_revert_ends_it_for_a_model_and_convert_goes_on() -> None:
    with rnnfast.patched():
        model = nn.Sequential(nn.GRU(5, 6))
    assert runs_ours(lambda: model(X))
    rnnfast.revert(model)
    assert not runs_ours(lambda: model(X))
    rnnfast.convert(model)
    assert type(model[0]) is rnnfast.GRU
    assert runs_ours(lambda: model(X))


@ways
def test_freeze_takes_them(way: str) -> None:
    model = make(way, lambda: nn.Sequential(nn.GRU(5, 6)))
    expected = model(X)
    rnnfast.freeze(model)
    assert rnnfast.ops.is_frozen(model[0].weight_hh_l0)
    with torch.no_grad():
        assert_same(expected, model(X))
    rnnfast.unfreeze(model)
    rnnfast.unpatch()
    if way == "patch":
        with pytest.raises(ValueError, match="no RNN, GRU or LSTM of rnnfast"):
            rnnfast.freeze(model)


@ways
def test_parametrized_and_weight_normed_layers(way: str) -> None:
    module = nn.GRU(5, 5)
    parametrizations.orthogonal(module, "weight_ih_l0")
    expected = module(X)
    if way == "patch":
        rnnfast.patch()
        assert runs_ours(lambda: module(X))
        assert_same(expected, module(X))
    other = make(way, lambda: nn.LSTM(5, 5))
    parametrizations.weight_norm(other, "weight_hh_l0")
    assert runs_ours(lambda: other(X))


def test_calls_nest() -> None:
    module = nn.GRU(5, 6)
    rnnfast.patch()
    rnnfast.patch()
    with rnnfast.patched():
        with pytest.raises(ZeroDivisionError), rnnfast.patched():
            raise ZeroDivisionError
        rnnfast.unpatch()
        assert not runs_ours(lambda: module(X))
        inside = nn.GRU(5, 6)
        with pytest.raises(ValueError, match="num_layers must be greater than zero"):
            nn.GRU(5, 6, 0)
    rnnfast.unpatch()
    assert runs_ours(lambda: inside(X))
    assert not runs_ours(lambda: nn.GRU(5, 6)(X))


def test_rnnfasts_own_classes_are_not_touched() -> None:
    with rnnfast.patched():
        for name in (*LAYERS, *CELLS):
            ours = getattr(rnnfast, name)(5, 6)
            assert type(ours) is getattr(rnnfast, name)
            assert vars(ours).keys() == vars(getattr(nn, name)(5, 6)).keys() - {"_runs_rnnfast"}
        layer = nn.TransformerEncoderLayer(4, 2)
    assert not any(isinstance(m, nn.RNNBase) for m in layer.modules())


def test_patched_as_a_decorator() -> None:
    @rnnfast.patched()
    def build() -> nn.Module:
        return nn.Sequential(nn.GRU(5, 6))

    for _ in range(2):
        model = build()
        assert runs_ours(lambda model=model: model(X))


def test_blocks_of_several_threads_overlap() -> None:
    first_in, second_out = threading.Event(), threading.Event()
    built: list[nn.Module] = []

    def hold() -> None:
        with rnnfast.patched():
            first_in.set()
            second_out.wait(10)
            built.append(nn.GRU(5, 6))

    thread = threading.Thread(target=hold)
    thread.start()
    first_in.wait(10)
    with rnnfast.patched():
        pass
    second_out.set()
    thread.join()
    assert runs_ours(lambda: built[0](X))
    assert not runs_ours(lambda: nn.GRU(5, 6)(X))


def test_calls_go_on_in_threads_while_another_patches() -> None:
    module = nn.GRU(5, 6)
    expected = module(X)
    stop = threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            while not stop.is_set():
                assert_same(expected, module(X))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        rnnfast.patch()
        rnnfast.unpatch()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


@layers
def test_errors_are_torchs(name: str) -> None:
    module = getattr(nn, name)(5, 6)
    bad: list[Callable[[], Any]] = [
        lambda: module(X[..., :4]),
        lambda: module(X.double()),
        lambda: module(X[None]),
        lambda: module(),
        lambda: module(X, h0=1),
        lambda: module(X[:0]),
        lambda: module(X, 1.0),
    ]

    def texts() -> list[str]:
        found = []
        for call in bad:
            with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)) as caught:
                call()
            found.append(f"{caught.type}: {caught.value}")
        return found

    expected = texts()
    rnnfast.patch()
    assert texts() == expected
