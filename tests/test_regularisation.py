"""Layers with layer normalisation, zoneout, dropout of states and weights, clipped gradients, and
units on their own: against loops over torch.nn's cells.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import assert_close, cotangents
from side_by_side import LAYERS, states, tensors
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import regularisation

T, B, I, H = 7, 4, 5, 12  # noqa: E741
every_class = pytest.mark.parametrize("name", LAYERS)
OPTIONS: list[dict[str, Any]] = [
    {"layer_norm": True},
    {"zoneout": 0.3},
    {"state_dropout": 0.3},
    {"weight_dropout": 0.3},
    {"clip_gradients": 0.05},
    {"layer_norm": True, "zoneout": 0.2, "state_dropout": 0.2, "clip_gradients": 0.1},
    {"heads": H},
    {"heads": H, "layer_norm": True, "zoneout": 0.2},
    {"heads": 3, "zoneout": 0.2, "clip_gradients": 0.1},
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
Layer = Any


def make(name: str, **options: Any) -> Layer:
    torch.manual_seed(0)
    layer = getattr(rnnfast, name)(I, H, dtype=torch.float64, **options)
    with torch.no_grad():  # gains and biases that show
        for key, parameter in layer.named_parameters():
            if key.startswith("norm"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


class Masks:
    """Those that layers draw, in the order in which they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keep: list[Tensor] = []
        self.drop: list[Tensor] = []
        self._record(monkeypatch, "_keep", self.keep)
        self._record(monkeypatch, "_drop", self.drop)

    @staticmethod
    def _record(monkeypatch: pytest.MonkeyPatch, name: str, into: list[Any]) -> None:
        draw = getattr(regularisation, name)

        def record(*args: Any) -> Any:
            into.append(draw(*args))
            return into[-1]

        monkeypatch.setattr(regularisation, name, record)


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    return Masks(monkeypatch)


def cell_of(layer: Layer) -> Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """One step of a layer without normalisation, by torch.nn's cell."""
    name = type(layer).__name__
    options = {"nonlinearity": layer.nonlinearity} if name == "RNN" else {}
    cell = getattr(nn, f"{name}Cell")(I, H, dtype=torch.float64, **options)
    weights = {
        "weight_ih": layer.weight_ih_l0,
        "weight_hh": layer.weight_hh_l0,
        "bias_ih": layer.bias_ih_l0,
        "bias_hh": layer.bias_hh_l0,
    }

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hx: Any = states if name == "LSTM" else states[0]
        result = torch.func.functional_call(cell, weights, (x, hx))
        return result if name == "LSTM" else (result,)

    return step


def loop(
    layer: Layer, x: Tensor, keep: Tensor | None, drop: Tensor | None, clip: float | None = None
) -> list[Tensor]:
    """What the layer should give, in a loop as one would write it."""
    step, count = cell_of(layer), 2 if type(layer).__name__ == "LSTM" else 1
    now = tuple(x.new_zeros(B, H) for _ in range(count))
    outputs = []
    for t in range(T):
        h = now[0] if drop is None else now[0] * drop
        if drop is not None and count == 1 and type(layer).__name__ == "GRU":
            new = (gru_step(layer, x[t], h, now[0]),)
        else:
            new = step(x[t], (h, *now[1:]))
        if keep is not None:
            rows = keep.expand(T * B, -1).view(T, B, -1)[t].chunk(count, -1)
            new = tuple(torch.lerp(n, s, k) for n, s, k in zip(new, now, rows, strict=True))
        if clip is not None:
            new = tuple(state.view_as(state) for state in new)  # not what h is made of
            for state in new:
                state.register_hook(lambda grad: grad.clamp(-clip, clip))
        now = new
        outputs.append(now[0])
    return [torch.stack(outputs), *now]


def gru_step(layer: Layer, x: Tensor, hidden: Tensor, h: Tensor) -> Tensor:
    """A GRU's where the product sees another h than the rest of the step."""
    x_r, x_z, x_n = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).chunk(3, -1)
    h_r, h_z, h_n = F.linear(hidden, layer.weight_hh_l0, layer.bias_hh_l0).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h


def assert_same(layer: Layer, x: Tensor, expected: list[Tensor], found: Any) -> None:
    values = tensors(found)
    values = [values[0], *(s[0] for s in values[1:])]
    assert_close(values, expected, 1e-11)
    leaves = [x, *layer.parameters()]
    weights = cotangents(values)
    grads, expected_grads = (
        torch.autograd.grad(v, leaves, weights, retain_graph=True, allow_unused=True)
        for v in (values, expected)
    )
    assert_close(grads, expected_grads, 1e-10)


@every_class
@pytest.mark.parametrize("training", [True, False])
def test_zoneout(name: str, training: bool, masks: Masks) -> None:
    layer = make(name, zoneout=0.3).train(training)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    (keep,) = masks.keep
    assert (keep.dim() == 2) == training
    assert_same(layer, x, loop(layer, x, keep, None), found)
    if training:
        assert set(keep.unique().tolist()) == {0.0, 1.0}
    else:
        assert torch.equal(keep, torch.full_like(keep, 0.3))


@every_class
def test_rates_may_be_set_later(name: str) -> None:
    """As `dropout`: the next call has them, copies and pickles too; checked as at the beginning."""
    x = torch.randn(T, B, I)
    layer = make(name, zoneout=0.5).eval().float()
    plain = make(name).eval().float()
    plain.load_state_dict(layer.state_dict())
    other = make(name, zoneout=0.25, clip_gradients=0.1).eval().float()
    other.load_state_dict(layer.state_dict())
    assert layer.zoneout == 0.5
    layer.zoneout = 0.0
    assert_close(tensors(layer(x)), tensors(plain(x)), 0)
    assert "zoneout" not in repr(layer)
    layer.zoneout, layer.clip_gradients = 0.25, 0.1
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(tensors(copied(x)), tensors(other(x)), 0)
        assert copied.zoneout == 0.25
    assert repr(layer) == repr(other)
    with pytest.raises(ValueError, match="zoneout should be a number in range"):
        layer.zoneout = 1.5
    assert layer.zoneout == 0.25
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_close(tensors(compiled(x)), tensors(other(x)), 0)
    layer.zoneout = 0.125
    assert_close(tensors(compiled(x)), tensors(layer(x)), 0)


def test_attributes_of_a_plain_layer_are_the_users() -> None:
    class Mine(rnnfast.GRU):
        def __init__(self) -> None:
            super().__init__(I, H)
            self.weight_dropout = nn.Dropout(0.5)
            self.zoneout = "mine"

    layer = Mine()
    assert isinstance(layer.weight_dropout, nn.Dropout)
    assert layer.zoneout == "mine"
    layer(torch.randn(T, B, I))


def test_zoneout_of_h_and_c(masks: Masks) -> None:
    layer = make("LSTM", zoneout=(0.1, 0.6)).eval()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    assert masks.keep[0].tolist() == pytest.approx([0.1] * H + [0.6] * H)
    assert_same(layer, x, loop(layer, x, masks.keep[0], None), found)
    assert "zoneout=(0.1, 0.6)" in repr(layer)


@every_class
def test_state_dropout(name: str, masks: Masks) -> None:
    layer = make(name, state_dropout=0.4)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    found = layer(x)
    (drop,) = masks.drop
    assert drop.shape == (B, H)
    assert drop.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert_same(layer, x, loop(layer, x, None, drop), found)
    layer.eval()
    assert_same(layer, x, loop(layer, x, None, None), layer(x))


@every_class
def test_weight_dropout(name: str) -> None:
    layer = make(name, weight_dropout=0.4)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    found = layer(x)
    torch.manual_seed(1)
    w_hh = F.dropout(layer.weight_hh_l0, 0.4)
    plain = make(name)
    values, _ = torch.func.functional_call(plain, {"weight_hh_l0": w_hh}, (x,))
    assert_close([found[0]], [values], 1e-12)
    (grad,) = torch.autograd.grad(found[0].sum(), layer.weight_hh_l0)
    assert (grad == 0)[w_hh == 0].all()
    assert_close(tensors(layer.eval()(x)), tensors(plain(x)), 1e-12)


@every_class
@pytest.mark.parametrize("clip", [0.01, 0.3])
def test_clip_gradients(name: str, clip: float) -> None:
    layer = make(name, clip_gradients=clip)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    assert_same(layer, x, loop(layer, x, None, None, clip), layer(x))


@every_class
def test_layer_norm(name: str) -> None:
    """Beside a loop with torch.nn.LayerNorm."""
    layer, options = make(name, layer_norm=True), {"dtype": torch.float64}
    x = torch.randn(T, B, I, requires_grad=True, **options)
    gates = layer.weight_ih_l0.size(0)

    def normalise(values: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
        norm = nn.LayerNorm(values.size(-1), **options)
        weights = {"weight": gain, "bias": torch.zeros_like(gain) if bias is None else bias}
        return torch.func.functional_call(norm, weights, (values,))

    h, c, outputs = x.new_zeros(B, H), x.new_zeros(B, H), []
    for t in range(T):
        x_gates = normalise(F.linear(x[t], layer.weight_ih_l0), layer.norm_ih_l0, layer.bias_ih_l0)
        h_gates = normalise(F.linear(h, layer.weight_hh_l0), layer.norm_hh_l0, layer.bias_hh_l0)
        assert x_gates.shape == (B, gates)
        if name == "RNN":
            h = torch.tanh(x_gates + h_gates)
        elif name == "GRU":
            r, z = torch.sigmoid(x_gates + h_gates)[:, : 2 * H].chunk(2, -1)
            n = torch.tanh(x_gates[:, 2 * H :] + r * h_gates[:, 2 * H :])
            h = (1 - z) * n + z * h
        else:
            i, f, g, o = (x_gates + h_gates).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            of_c = normalise(c, layer.norm_c_l0, layer.norm_bias_c_l0)
            h = torch.sigmoid(o) * torch.tanh(of_c)
        outputs.append(h)
    expected = [torch.stack(outputs), h, *([c] if name == "LSTM" else [])]
    assert_same(layer, x, expected, layer(x))


def test_independent_units_are_indrnn() -> None:
    """Li et al. 2018, arXiv 1803.04831: h' = relu(W x + b + u * h)."""
    layer = make("RNN", heads=H, nonlinearity="relu")
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    h, outputs, u = x.new_zeros(B, H), [], layer.weight_hh_l0.view(H)
    for t in range(T):
        x_gates = F.linear(x[t], layer.weight_ih_l0, layer.bias_ih_l0)
        h = torch.relu(x_gates + u * h + layer.bias_hh_l0)
        outputs.append(h)
    assert_same(layer, x, [torch.stack(outputs), h], layer(x))


@every_class
@every_option
def test_packed_lengths_and_resets_are_sequences_one_by_one(
    name: str, options: dict[str, Any]
) -> None:
    layer = make(name, num_layers=2, bidirectional=True, batch_first=True, **options).eval()
    x = torch.randn(B, T, I, dtype=torch.float64)
    lengths = torch.tensor([3, 7, 1, 5])
    expected = x.new_zeros(B, T, 2 * H)
    for b, n in enumerate(lengths.tolist()):
        expected[b, :n] = layer(x[b, :n])[0]
    assert_close([layer(x, lengths=lengths)[0]], [expected], 1e-11)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    assert_close([pad_packed_sequence(layer(packed)[0], batch_first=True)[0]], [expected], 1e-11)
    resets = torch.zeros(B, T, dtype=torch.bool)
    resets[1, 4] = resets[3, 2] = True
    found, expected = layer(x, resets=resets)[0], layer(x)[0].clone()
    for b, cut in ((1, 4), (3, 2)):
        expected[b] = torch.cat([layer(part)[0] for part in x[b].split([cut, T - cut])])
    assert_close([found], [expected], 1e-11)


@every_class
@every_option
def test_every_way_to_call(name: str, options: dict[str, Any]) -> None:
    layer = make(name, num_layers=2, **options).eval()
    x, hx = torch.randn(T, B, I).double(), states(name, 2, B, H, dtype=torch.float64)
    expected = tensors(layer(x, hx))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(tensors(other(x, hx)), expected, 0)
        assert repr(other) == repr(layer)
    again = make(name, num_layers=2, **options).eval()
    again.load_state_dict(layer.state_dict())
    assert_close(tensors(again(x, hx)), expected, 0)
    one = tensors(layer(x[:, 0], tuple(s[:, 0] for s in hx) if name == "LSTM" else hx[:, 0]))
    assert_close([one[0]], [expected[0][:, 0]], 1e-12)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    assert_close(tensors(compiled(x, hx)), expected, 1e-11)
    with torch.no_grad():
        assert_close(tensors(layer(x, hx)), [t.detach() for t in expected], 1e-12)
        steps, now = [], hx
        for x_t in x:
            y_t, now = layer(x_t.unsqueeze(0), now)
            steps.append(y_t)
    assert_close([torch.cat(steps)], [expected[0].detach()], 1e-11)


@every_class
@pytest.mark.parametrize("options", [OPTIONS[i] for i in (1, 5, 6)], ids=str)
def test_compiled_training(name: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    quiet = {k: v for k, v in options.items() if k not in ("state_dropout", "weight_dropout")}
    layer = make(name, **quiet).eval()
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    grads = []
    for call in (layer, torch.compile(layer, fullgraph=True)):
        output, _ = call(x)
        grads.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
    assert_close(grads[1], grads[0], 1e-10)


@every_class
@every_option
def test_transforms_and_second_derivatives(name: str, options: dict[str, Any]) -> None:
    layer = make(name, **options).eval()
    x = torch.randn(3, 2, B, I, dtype=torch.float64)
    expected = torch.stack([layer(member)[0] for member in x])
    assert_close([torch.func.vmap(lambda v: layer(v)[0])(x)], [expected], 1e-11)
    if "clip_gradients" in options:
        return
    small = x[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda v: layer(v)[0], small)
    assert torch.autograd.gradgradcheck(lambda v: layer(v)[0][:, :2, :2], small[:, :2])


@every_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_types(name: str, dtype: torch.dtype) -> None:
    layer = getattr(rnnfast, name)(I, H, layer_norm=True, zoneout=0.1).eval()
    x = torch.randn(T, B, I)
    expected = layer(x)[0]
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert torch.allclose(layer(x)[0].float(), expected, atol=0.05)
    assert torch.allclose(layer.to(dtype)(x.to(dtype))[0].float(), expected, atol=0.05)


@every_class
def test_masks_are_what_they_should_be(name: str, masks: Masks) -> None:
    layer = make(name, zoneout=0.25, state_dropout=0.25, bidirectional=True, num_layers=2)
    layer(torch.randn(400, 40, I, dtype=torch.float64))
    assert len(masks.keep) == len(masks.drop) == 4
    for keep, drop in zip(masks.keep, masks.drop, strict=True):
        assert float(keep.mean()) == pytest.approx(0.25, abs=0.01)
        assert float((drop == 0).double().mean()) == pytest.approx(0.25, abs=0.1)
    assert not torch.equal(masks.keep[0], masks.keep[1])


@every_class
def test_detach_every_and_dropout_between_layers(name: str) -> None:
    layer = make(name, layer_norm=True, num_layers=2, dropout=0.5, detach_every=3)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    output, _ = layer(x)
    (grad,) = torch.autograd.grad(output[5].sum(), x)
    assert (grad[:3] == 0).all()
    assert (grad[3:6] != 0).any()
