"""Patched layers under torch.compile.

Each test is named after what someone saw who had other classes in the place of torch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config
from patch_ways import X, every_class, leave_as_they_were, make, run_python, ways
from side_by_side import assert_same, batch, loss_gradients, model_of
from torch import Tensor, fx, nn

import rnnfast


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield from leave_as_they_were()


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
