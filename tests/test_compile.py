"""torch.compile, export, tracing and fake tensors.

Catches a graph break, a fake kernel with other sizes than the real one, a gradient lost on the way.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from problems import MODES, Problem, assert_close, gradients
from test_autograd import as_function
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

import rnnfast
from rnnfast import _library, functional

SHAPES: list[dict[str, Any]] = [
    {"layers": 2, "bidirectional": True, "states_given": False},
    {"lengths": (5, 3, 1)},
    {"T": 1},
]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def compiled(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return torch.compile(call, fullgraph=True, backend="aot_eager", **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compiles_without_graph_breaks(mode: str, shape: dict[str, Any]) -> None:
    problem = Problem(mode, **shape)
    call = as_function(problem)
    ours, expected = compiled(call)(*problem.leaves), call(*problem.leaves)
    assert_close(ours, expected, 1e-12)
    assert_close(gradients(ours, problem.leaves), gradients(expected, problem.leaves), 1e-11)
    with torch.no_grad():
        assert_close(compiled(call)(*problem.leaves), [e.detach() for e in expected], 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_compiles_with_dynamic_sizes(mode: str) -> None:
    call = compiled(as_function(Problem(mode)), dynamic=True)
    for changes in ({}, {"T": 7}, {"B": 2}, {"T": 3, "B": 5}):
        problem = Problem(mode, **changes)
        ours, theirs = call(*problem.leaves), problem.torch()
        assert_close(ours, theirs, 1e-12)
        assert_close(gradients(ours, problem.leaves), gradients(theirs, problem.leaves), 1e-11)


def test_compiles_with_the_default_backend() -> None:
    problem = Problem("GRU", layers=2)
    call = as_function(problem)

    def model(*leaves: Tensor) -> Tensor:
        return torch.relu(call(*leaves)[0]) * 2  # something for inductor to do

    ours = torch.compile(model, fullgraph=True)(*problem.leaves)
    expected = torch.relu(problem.torch()[0]) * 2
    assert_close([ours], [expected], 1e-12)
    assert_close(gradients([ours], problem.leaves), gradients([expected], problem.leaves), 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_cells_compile(mode: str) -> None:
    problem = Problem(mode, T=1)

    def step(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return functional.cell(mode, x, tensors[:-4], *tensors[-4:])

    steps = [t.detach()[0].requires_grad_() for t in (problem.x, *problem.states)]
    leaves = [*steps, *problem.weights]
    ours, expected = compiled(step)(*leaves), step(*leaves)
    assert_close(ours, expected, 1e-12)
    assert_close(gradients(ours, leaves), gradients(expected, leaves), 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_transforms_inside_a_compiled_function(mode: str) -> None:
    problem = Problem(mode)
    leaves = [leaf.detach() for leaf in problem.leaves]
    call = as_function(problem)

    def gradient(*leaves: Tensor) -> Tensor:
        return torch.func.grad(lambda *leaves: call(*leaves)[0].sum())(*leaves)

    def batched(xs: Tensor, *others: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: call(x, *others)[0])(xs)

    expected = torch.autograd.grad(problem.torch()[0].sum(), problem.x)
    assert_close([compiled(gradient)(*leaves)], expected, 1e-11)
    ours = compiled(batched)(torch.stack([leaves[0], -leaves[0]]), *leaves[1:])
    assert_close([ours[1]], [call(-leaves[0], *leaves[1:])[0]], 1e-12)


def operators(program: torch.export.ExportedProgram) -> list[Any]:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


LAYER = torch.ops.rnnfast.layer.default
exported = pytest.mark.parametrize("strict", [True, False])


def inference_model(name: str) -> nn.Module:
    return nn.Sequential(getattr(rnnfast, name)(4, 5, 2, bidirectional=True)).eval()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@exported
def test_an_exported_program_holds_torchs_operators(name: str, strict: bool) -> None:
    model, x = inference_model(name), torch.randn(5, 3, 4)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
        assert not any("rnnfast" in str(op) for op in operators(program))
        for one in (program, program.run_decompositions()):
            assert_close([one.module()(x)[0]], [model(x)[0]], 1e-6)


LOAD_PROGRAM = """
import sys, torch
program = torch.export.load("program.pt2")
x, expected = torch.load("values.pt")
torch.testing.assert_close(program.module()(x)[0], expected)
assert "rnnfast" not in sys.modules
"""


def test_an_exported_program_loads_without_rnnfast(tmp_path: Path) -> None:
    model, x = inference_model("GRU"), torch.randn(5, 3, 4)
    with torch.no_grad():
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "program.pt2")
        torch.save((x, model(x)[0]), tmp_path / "values.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD_PROGRAM]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@exported
def test_export_fused_holds_our_operator(name: str, strict: bool) -> None:
    model, x = inference_model(name), torch.randn(5, 3, 4)
    dynamic = {"input": {0: torch.export.Dim("T"), 1: torch.export.Dim("B")}}
    with rnnfast.export_fused():
        program = torch.export.export(model[0], (x,), dynamic_shapes=dynamic, strict=strict)
    assert operators(program).count(LAYER) == 2
    longer = torch.cat([x, -x])[:, :2]
    with torch.no_grad():
        ours, expected = program.module()(longer), model(longer)
    assert_close([ours[0]], [expected[0]], 1e-6)
    program = torch.export.export(model, (x,), strict=strict)
    assert LAYER not in operators(program)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = rnnfast.GRU(4, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.gru(x, lengths=lengths)[0]
        return output


def test_lengths_are_exported_by_our_operators_or_not_at_all() -> None:
    model, example = Padded().eval(), (torch.randn(5, 3, 4), torch.tensor([5, 2, 3]))
    with pytest.raises(RuntimeError, match=r"lengths: .* a block of rnnfast.export_fused\(\)"):
        torch.export.export(model, example)
    with rnnfast.export_fused():
        program = torch.export.export(model, example)
    assert_close([program.module()(*example)], [model(*example)], 1e-6)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_our_operator_in_a_program_decomposes(name: str) -> None:
    model, x = inference_model(name), torch.randn(5, 3, 4)
    with rnnfast.export_fused(), torch.no_grad():
        program = torch.export.export(model, (x,))
        plain = program.run_decompositions({LAYER: rnnfast.ops.decomposed})
        assert not any("rnnfast" in str(op) for op in operators(plain))
        assert_close([plain.module()(x)[0]], [model(x)[0]], 1e-6)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_an_exported_program_becomes_onnx(name: str) -> None:
    pytest.importorskip("onnxscript")
    model, x = inference_model(name), torch.randn(5, 3, 4)
    program = torch.export.export(model, (x,))
    assert torch.onnx.export(program, dynamo=True, verbose=False) is not None


LOAD_LIBRARIES = """
import sys, torch
for path in sys.argv[1:]:
    torch.ops.load_library(path)
run = torch._inductor.aoti_load_package("model.pt2")
x, expected = torch.load("values.pt")
torch.testing.assert_close(run(x)[0], expected)
assert "rnnfast" not in sys.modules
"""


def test_aot_inductor_runs_our_operator_where_our_libraries_are(tmp_path: Path) -> None:
    model, x = inference_model("GRU"), torch.randn(5, 3, 4)
    with rnnfast.export_fused(), torch.no_grad():
        program = torch.export.export(model, (x,))
        path = str(tmp_path / "model.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=path)
        torch.save((x, model(x)[0]), tmp_path / "values.pt")
    names = ("_C", f"_cpu_{_library.INSTRUCTION_SET}")
    libraries = [str(_library._find(name)) for name in names]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD_LIBRARIES, *libraries]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("strict", [True, False])
def test_export_for_training_holds_torchs_operator(strict: bool) -> None:
    module = rnnfast.GRU(4, 5, 2).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    program = torch.export.export(module, (x,), strict=strict)
    assert torch.ops.rnnfast.layer.default not in operators(program)
    exported = program.module()
    ours, expected = exported(x)[0], module(x)[0]
    assert_close([ours], [expected], 1e-12)
    weights = dict(exported.named_parameters())
    names = [name for name, _ in module.named_parameters()]
    assert_close(
        gradients([ours], [weights[name] for name in names]),
        gradients([expected], list(module.parameters())),
        1e-11,
    )


@pytest.mark.parametrize("mode", MODES)
def test_modes_see_the_operator(mode: str) -> None:
    seen = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(func)
            return func(*args, **kwargs or {})

    problem = Problem(mode, layers=2)
    with Spy():
        values = problem.rnnfast()
        gradients(values, problem.leaves)
    assert seen.count(torch.ops.rnnfast.layer.default) == 2
    assert seen.count(torch.ops.rnnfast.layer_backward.default) == 2


@pytest.mark.parametrize("mode", MODES)
def test_make_fx_sees_one_operator(mode: str) -> None:
    problem = Problem(mode)
    call, leaves = as_function(problem), [leaf.detach() for leaf in problem.leaves]
    graph = make_fx(call)(*leaves)
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.rnnfast.layer.default) == 1
    other = [2 * leaf for leaf in leaves]
    assert_close(graph(*other), call(*other), 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("states_given", [True, False])
def test_jit_trace_records_torchs_operator(mode: str, states_given: bool) -> None:
    problem = Problem(mode, states_given=states_given)
    call, leaves = as_function(problem), tuple(leaf.detach() for leaf in problem.leaves)
    traced = torch.jit.trace(call, leaves)
    assert f"aten::{problem.cell}" in str(traced.graph)
    longer = (torch.cat([leaves[0], leaves[0]]), *leaves[1:])
    assert_close(traced(*longer), call(*longer), 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_fake_tensors_forward_and_backward(mode: str) -> None:
    problem = Problem(mode, layers=2, bidirectional=True, states_given=False)
    real = problem.rnnfast()
    with FakeTensorMode() as fake:
        leaves = [fake.from_tensor(leaf) for leaf in problem.leaves]
        values = as_function(problem)(*leaves)
        grads = torch.autograd.grad([v.sum() for v in values], leaves)
    assert [(v.shape, v.stride(), v.dtype) for v in values] == [
        (v.shape, v.stride(), v.dtype) for v in real
    ]
    assert [g.shape for g in grads] == [leaf.shape for leaf in problem.leaves]


class Encoder(nn.Module):
    """A model that takes sequences packed elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 5)
        self.gru = rnnfast.GRU(5, 6, bidirectional=True)

    def forward(self, words: PackedSequence) -> Tensor:
        _, h_n = self.gru(words._replace(data=self.embed(words.data)))
        return h_n.sum(0)


def test_a_sequence_packed_by_the_collate_function_compiles_whole() -> None:
    sentences = [torch.arange(length) for length in (2, 5, 3, 4, 1, 5)]

    def collate(batch: list[Tensor]) -> PackedSequence:
        return pack_sequence(batch, enforce_sorted=False)

    model = Encoder()
    whole = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in DataLoader(sentences, batch_size=3, collate_fn=collate):
        assert_close([whole(batch)], [model(batch)], 1e-6)
