"""``explain`` and ``python -m rnnfast`` tell the truth.

Catches an explanation of another route than the call takes, and a self-check that cannot fail.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from rnnfast import __main__, installation, routes
from rnnfast._library import HAS_BFLOAT16, INSTRUCTION_SET


def test_explain_names_route_kernel_plan_and_reason() -> None:
    explanation = rnnfast.explain(rnnfast.LSTM(4, 5, 2, bidirectional=True), torch.ones(3, 2, 4))
    assert [layer.name for layer in explanation.layers] == ["layer 0", "layer 1"]
    for layer in explanation.layers:
        assert (layer.route, layer.kernel) == ("fused", f"cpu/{INSTRUCTION_SET}")
        assert 1 <= layer.plan["threads"] <= torch.get_num_threads()
    text = str(explanation)
    assert text.startswith("LSTM(4, 5, num_layers=2, bidirectional=True)\n  layer 0: fused (cpu/")
    assert "because plain tensors" in text


def test_explain_follows_the_call() -> None:
    x = torch.ones(3, 2, 4)
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 4), torch.ones(1, 4)])
    (projected,) = rnnfast.explain(rnnfast.LSTM(4, 5, proj_size=2), packed).layers
    assert (projected.route, projected.kernel) == ("torch", "torch.lstm")
    (ragged,) = rnnfast.explain(rnnfast.GRU(4, 5), packed, torch.zeros(1, 2, 5)).layers
    assert ragged.route == "fused"
    (mixed,) = rnnfast.explain(rnnfast.RNN(4, 5), x.double()).layers
    assert (mixed.route, mixed.kernel) == ("torch", "torch.rnn_tanh")
    (meta,) = rnnfast.explain(rnnfast.GRU(4, 5, device="meta"), x.to("meta")).layers
    assert (meta.route, meta.kernel) == ("fused", "meta")
    assert ragged.plan["dtype"] == "float32"
    (half,) = rnnfast.explain(rnnfast.GRU(4, 5).bfloat16(), x.bfloat16()).layers
    assert half.plan["dtype"] == "bfloat16"
    for name, back in (("GRU", "float32"), ("RNN", "bfloat16")):
        with torch.autocast("cpu"):
            layer = getattr(rnnfast, name)(4, 5)
            (low,) = rnnfast.explain(layer, x).layers
            assert str(layer(x)[0].dtype) == f"torch.{back}"
        assert low.reason.startswith("autocast")
        assert low.reason.endswith(f"; {back} comes back, as from torch.nn")
        assert low.plan["dtype"] == ("bfloat16" if HAS_BFLOAT16 else back)
    with torch.autocast("cpu", torch.float16):
        (same,) = rnnfast.explain(rnnfast.GRU(4, 5), x).layers
    assert same.reason.startswith("autocast, for which nothing is cast here; float32 comes back")
    (wide,) = rnnfast.explain(rnnfast.GRU(4, 5).half(), x.half()).layers
    assert wide.reason.endswith("; calculated in float32")
    seen = []
    gru = rnnfast.GRU(4, 5)

    def spy(x: torch.Tensor) -> torch.Tensor:
        seen.extend(rnnfast.explain(gru, x).layers)
        return gru(x)[0]

    torch.func.vmap(spy)(torch.stack([x, x]))
    torch.func.jvp(spy, (x,), (x,))
    assert [layer.route for layer in seen] == ["fused", "reference"]
    assert all("torch.func" in layer.reason for layer in seen)


@pytest.mark.parametrize("batch_first", [False, True])
def test_explain_plans_for_the_sizes_of_the_call(batch_first: bool) -> None:
    x = torch.ones(1, 7, 4)  # one step of seven rows, or seven steps of one
    (layer,) = rnnfast.explain(rnnfast.GRU(4, 5, batch_first=batch_first), x).layers
    assert layer.plan["chunk_steps"] == (7 if batch_first else 1)
    (unbatched,) = rnnfast.explain(rnnfast.GRU(4, 5, batch_first=batch_first), x[0]).layers
    assert unbatched.plan["chunk_steps"] == 7


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_explain_cells(name: str) -> None:
    state = torch.ones(2, 5)
    hx = (state, state) if name == "LSTMCell" else state
    for x, given in ((torch.ones(2, 4), hx), (torch.ones(4), None)):
        (cell,) = rnnfast.explain(getattr(rnnfast, name)(4, 5), x, given).layers
        assert (cell.name, cell.route) == ("cell", "fused")
        assert cell.kernel.startswith("cpu/")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (cell,) = rnnfast.explain(getattr(rnnfast, name)(4, 5), x, given).layers
        assert (cell.name, cell.route) == ("cell", "torch")
        assert cell.kernel.endswith("_cell")


def test_explain_counts_the_stretches_between_resets() -> None:
    layer, x = rnnfast.GRU(4, 5), torch.ones(6, 2, 4)
    resets = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 0], [0, 0], [0, 0]], dtype=torch.bool)
    (explained,) = rnnfast.explain(layer, x, resets=resets, lengths=[6, 5]).layers
    assert explained.route == "fused"
    assert explained.reason.endswith("; 3 stretches, the longest of 5")
    (alone,) = rnnfast.explain(layer, x[:, 0], lengths=4).layers
    assert alone.reason.endswith("; 1 stretches, the longest of 4")
    (step,) = rnnfast.explain(layer, x[:1], resets=resets[:1]).layers
    assert step.reason.endswith("; one step, whose states are chosen before")
    with pytest.raises(ValueError, match="a PackedSequence has its own"):
        rnnfast.explain(layer, pack_padded_sequence(x, torch.tensor([6, 5])), lengths=[6, 5])


def test_explain_takes_layers_of_torch_and_nothing_else() -> None:
    for theirs, x in ((nn.GRU(4, 5), torch.ones(3, 2, 4)), (nn.GRUCell(4, 5), torch.ones(2, 4))):
        explained = rnnfast.explain(theirs, x)
        assert explained.layers[0].route == "fused"
        assert explained.module == f"{theirs} of torch.nn, as if it were converted"
        with rnnfast.patched():
            made = type(theirs)(4, 5)
        assert rnnfast.explain(made, x).module == str(made)
        ours = rnnfast.convert(theirs)
        assert rnnfast.explain(ours, x) == replace(explained, module=str(ours))
    x = torch.ones(3, 2, 4)
    normed = parametrizations.weight_norm(nn.GRU(4, 5), "weight_hh_l0")
    assert rnnfast.explain(normed, x).module.endswith("of torch.nn, as if it were converted")
    (held,) = rnnfast.explain(nn.Sequential(normed), x).layers
    assert held.reason.endswith("rnnfast.convert(model) makes it rnnfast's")
    own = Own(4, 5)
    how = "of a subclass of torch.nn's, as under rnnfast.patch(): convert leaves it alone"
    assert rnnfast.explain(own, x).module == f"{own} {how}"
    rnnfast.patch()
    try:
        assert rnnfast.explain(own, x).module == str(own)
    finally:
        rnnfast.unpatch()
    with pytest.raises(TypeError, match=r"explain: module must be .*, got Linear"):
        rnnfast.explain(nn.Linear(2, 2), torch.ones(2))
    with pytest.raises(TypeError, match="explain: got an unexpected keyword argument 'legnths'"):
        rnnfast.explain(rnnfast.GRU(4, 5), x, legnths=[3, 3])
    with pytest.raises(TypeError, match=r"explain: the input .* is missing"):
        rnnfast.explain(rnnfast.GRU(4, 5))
    with pytest.raises(TypeError, match=r"explain: expected a tensor or .* as input, got str"):
        rnnfast.explain(rnnfast.GRU(4, 5), "x")


class Own(nn.LSTM):
    def forward(self, input: Any, hx: Any = None) -> Any:
        return super().forward(input, hx)


class Model(nn.Module):
    """An encoder, a loop over a cell, a layer of torch.nn, a user's own, and one for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = rnnfast.GRU(4, 5, 2), rnnfast.GRUCell(5, 6)
        self.theirs, self.own = nn.LSTM(6, 2), Own(2, 3)
        self.unused = rnnfast.RNN(2, 2)

    def forward(self, x: Tensor, *, begins: Tensor) -> Tensor:
        states = [torch.zeros(x.size(1), 6)]
        for x_t in self.encoder(x, resets=begins)[0]:
            states.append(self.cell(x_t, states[-1]))
        return cast("Tensor", self.own(self.theirs(torch.stack(states))[0])[0])


def test_explain_of_a_model_goes_through_its_layers() -> None:
    """With the arguments that each of them gets, which a user cannot know."""
    model, x, begins = Model(), torch.ones(3, 2, 4), torch.zeros(3, 2, dtype=torch.bool)
    explained = rnnfast.explain(model, x, begins=begins)
    assert explained.module == "Model, not called: unused"
    assert [(layer.name, layer.route) for layer in explained.layers] == [
        ("encoder, layer 0", "fused"),
        ("encoder, layer 1", "fused"),
        ("cell, 3 calls", "fused"),
        ("theirs, all layers", "torch"),
        ("own, all layers", "torch"),
    ]
    assert explained.layers[0].reason.endswith("; 2 stretches, the longest of 3")
    assert "rnnfast.convert(model)" in explained.layers[3].reason
    assert "rnnfast.patch()" in explained.layers[4].reason
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_explain_of_a_compiled_model_and_of_one_made_under_patched() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return cast("Tensor", self.gru(x)[0])

    with rnnfast.patched():
        model = Net()
    compiled, x = torch.compile(model, backend="eager"), torch.ones(3, 2, 4)
    with torch.no_grad():
        compiled(x)
        (layer,) = rnnfast.explain(compiled, x).layers
    assert (layer.name, layer.route) == ("_orig_mod.gru, layer 0", "fused")


def test_explain_of_a_model_raises_what_its_layer_raises() -> None:
    model, begins = Model(), torch.zeros(3, 2, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="Expected 4, got 9"):
        rnnfast.explain(model, torch.ones(3, 2, 9), begins=begins)
    assert not any(module._forward_pre_hooks for module in model.modules())


class Wrapped(torch.Tensor):
    pass


def test_explain_of_a_layer_with_heads() -> None:
    layer = rnnfast.GRU(4, 6, heads=3)
    (explained,) = rnnfast.explain(layer, torch.ones(6, 2, 4)).layers
    assert explained.route == "fused"
    assert explained.reason.endswith("; 3 heads, one after the other")
    wrapped = torch.ones(6, 2, 4).as_subclass(Wrapped)
    (other,) = rnnfast.explain(layer, wrapped).layers
    assert other.route == "reference"  # torch has no operator for it


WRONG = {
    "1-D": ((4,), None),
    "4-D": ((1, 2, 3, 4), None),
    "a wrong feature size": ((3, 2, 7), None),
    "a wrong feature size without a batch": ((3, 7), None),
    "no step": ((0, 2, 4), None),
    "states for another batch": ((3, 2, 4), (1, 3, 5)),
    "states of another size": ((3, 2, 4), (1, 2, 6)),
    "states without a batch": ((3, 2, 4), (1, 5)),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("library", [nn, rnnfast])
def test_explain_of_a_wrong_size_says_so_as_the_call_does(
    library: ModuleType, name: str, wrong: str
) -> None:
    x_shape, h_shape = WRONG[wrong]
    arguments: list[object] = [torch.ones(x_shape)]
    if h_shape is not None:
        h = torch.zeros(h_shape)
        arguments.append((h, h) if name == "LSTM" else h)
    layer = getattr(library, name)(4, 5)
    with pytest.raises((ValueError, RuntimeError)) as called:
        layer(*arguments)
    with pytest.raises(called.type) as explained:
        rnnfast.explain(layer, *arguments)
    assert str(explained.value) == str(called.value)


def test_explain_of_a_packed_sequence_of_a_wrong_feature_size_says_so() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3, 7), torch.ones(1, 7)])
    with pytest.raises(RuntimeError, match=r"Expected 4, got 7"):
        rnnfast.explain(rnnfast.GRU(4, 5), packed)


@pytest.mark.parametrize("shapes", [((2, 3, 4), None), ((2, 7), None), ((2, 4), (3, 5))])
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("library", [nn, rnnfast])
def test_explain_of_a_cell_with_a_wrong_size_says_so_as_the_call_does(
    library: ModuleType, name: str, shapes: tuple[tuple[int, ...], tuple[int, ...] | None]
) -> None:
    x_shape, h_shape = shapes
    arguments: list[object] = [torch.ones(x_shape)]
    if h_shape is not None:
        h = torch.zeros(h_shape)
        arguments.append((h, h) if name == "LSTMCell" else h)
    cell = getattr(library, name)(4, 5)
    with pytest.raises((ValueError, RuntimeError)) as called:
        cell(*arguments)
    with pytest.raises(called.type) as explained:
        rnnfast.explain(cell, *arguments)
    assert str(explained.value) == str(called.value)


def test_main_ends_quietly_where_nobody_reads_on() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does once it has its lines
    command = [sys.executable, "-m", "rnnfast"]
    folder = Path(rnnfast.__file__).parents[1]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=folder)
    os.close(writer)
    assert result.stderr == ""


def test_main_prints_the_facts_and_checks_every_cell() -> None:
    command = [sys.executable, "-W", "error", "-m", "rnnfast"]
    folder = Path(rnnfast.__file__).parents[1]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    for word in ("torch:", "compiler:", INSTRUCTION_SET, "threads:", "devices:"):
        assert word in result.stdout
    assert result.stdout.count("agrees with torch.nn") == 4


def test_self_check_finds_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = rnnfast.ops.layer

    def wrong(*arguments: object) -> object:
        output, states_n, reserve = layer(*arguments)  # type: ignore[arg-type]
        return output + 1e-6, states_n, reserve

    before = torch.get_rng_state()
    assert max(installation.self_check().values()) < __main__.TOLERANCE
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(rnnfast.ops, "layer", wrong)
    assert min(installation.self_check().values()) > __main__.TOLERANCE
    assert __main__.main() == 1
    assert capsys.readouterr().out.count("DIFFERS") == 4


def test_explain_plans_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel and its size are those of the plan for the properties of the device."""
    hopper = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, shared_memory_per_block_optin=232448
    )
    turing = SimpleNamespace(
        major=7, minor=5, multi_processor_count=40, shared_memory_per_block_optin=65536
    )
    problem = {"T": 128, "B": 32, "I": 9, "H": 256, "directions": 1, "uniform": True}
    arguments = ("gru", "bfloat16", torch.device("cuda"), problem)
    monkeypatch.delenv("RNNFAST_CUDA_KERNEL", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: hopper)
    plan = routes.cuda_plan(*arguments)
    assert (plan["kernel"], plan["hidden"], plan["tiles"]) == ("cluster", 256, 4)
    small = ("gru", "bfloat16", torch.device("cuda"), {**problem, "H": 64})
    assert routes.cuda_plan(*small)["kernel"] == "small"
    assert routes.cuda_plan(*small, True)["kernel"] in ("cta", "cluster")
    monkeypatch.setenv("RNNFAST_CUDA_KERNEL", "step")
    assert routes.cuda_plan(*arguments)["kernel"] == "step"
    monkeypatch.delenv("RNNFAST_CUDA_KERNEL")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: turing)
    assert routes.cuda_plan(*arguments)["kernel"] == "step"
