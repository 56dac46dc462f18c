"""What the rest of torch does to a module: compile and export.

Each tool knows torch.nn's classes in its own way. A failure here is a model that works with
torch.nn and breaks, or silently computes something else, when it holds rnnfast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from side_by_side import (
    CELLS,
    LAYERS,
    Residual,
    assert_same,
    batch,
    loss_gradients,
    model_of,
    states,
)
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

layers = pytest.mark.parametrize("name", LAYERS)
every_class = pytest.mark.parametrize("name", [*LAYERS, *CELLS])


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
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.usefixtures("compiler")
def test_packed_sequences_compile(name: str, given: bool) -> None:
    module = getattr(rnnfast, name)(5, 6)
    packed = pack_padded_sequence(torch.randn(4, 3, 5), [2, 4, 1], enforce_sorted=False)
    hx = states(name, 1, 3, 6) if given else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_same(module(packed, hx), compiled(packed, hx))


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
