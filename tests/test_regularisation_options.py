"""The options of regularised layers: what is refused, what torch.nn lacks, what `explain` says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_regularisation import B, H, I, T, every_class, every_option, make
from torch import nn

import rnnfast
from rnnfast import regularisation

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"zoneout": 1.0}, ValueError, r"zoneout should be a number in range \[0, 1\), got 1.0"),
    ({"zoneout": -0.1}, ValueError, "zoneout should be"),
    ({"zoneout": True}, ValueError, "zoneout should be"),
    ({"zoneout": (0.1, 0.2, 0.3)}, ValueError, "zoneout: expected a number.*, got 3 of them"),
    ({"state_dropout": "a"}, ValueError, "state_dropout should be"),
    ({"weight_dropout": 2}, ValueError, "weight_dropout should be"),
    ({"clip_gradients": 0}, ValueError, "clip_gradients: expected a number above 0 or None"),
    ({"clip_gradients": float("nan")}, ValueError, "clip_gradients: expected"),
    ({"layer_norm": 1}, TypeError, "layer_norm should be of type bool, got: int"),
    ({"layer_norm": True, "heads": 3}, ValueError, "layer_norm goes with one head"),
]


@every_class
@pytest.mark.parametrize(("options", "kind", "message"), BAD, ids=str)
def test_bad_options(
    name: str, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        getattr(rnnfast, name)(I, H, **options)


def test_no_projection() -> None:
    with pytest.raises(ValueError, match=r"takes no zoneout=0\.1"):
        rnnfast.LSTM(I, H, proj_size=3, zoneout=0.1)


@every_class
@every_option
def test_torch_has_none(
    name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(name, **options)
    with caplog.at_level(logging.WARNING, logger="rnnfast"):
        assert type(rnnfast.revert(layer)) is getattr(rnnfast, name)
    assert "torch.nn has no layers with" in caplog.text
    with pytest.raises(RuntimeError, match="none with"):
        torch.jit.script(layer)


@every_class
@every_option
def test_explain(name: str, options: dict[str, Any]) -> None:
    layer, x = make(name, **options), torch.randn(T, B, I, dtype=torch.float64)
    (explained,) = rnnfast.explain(layer, x).layers
    assert explained.route == "fused"
    plain = set(options) == {"weight_dropout"} or set(options) == {"heads"}
    assert plain or "over the rows of a step" in explained.reason
    if options.get("heads") == H:
        assert "units on their own" in explained.reason


def test_a_layer_without_options_is_as_before() -> None:
    layer = rnnfast.GRU(I, H, zoneout=0.0, state_dropout=0)
    assert layer._regularisation is None
    assert set(vars(layer)) == set(vars(nn.GRU(I, H)))


def test_new_parameters() -> None:
    layer = rnnfast.LSTM(I, H, layer_norm=True, num_layers=2, bidirectional=True)
    assert (layer.norm_ih_l1_reverse == 1).all()
    assert (layer.norm_bias_c_l0 == 0).all()
    assert len(layer.all_weights) == 4
    assert [len(w) for w in layer.all_weights] == [8] * 4


@pytest.mark.parametrize("options", [{"zoneout": 0.1}, {"heads": H}], ids=str)
def test_compiled_with_resets_and_lengths(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    layer = make("LSTM", num_layers=2, bidirectional=True, **options).eval()
    x, resets = torch.randn(T, B, I).double(), torch.rand(T, B) < 0.3
    lengths = torch.tensor([7, 3, 5, 1])
    for given in ({"resets": resets}, {"lengths": lengths}):
        compiled = torch.compile(lambda x, kw: layer(x, **kw)[0], fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, given), layer(x, **given)[0])


@every_class
@pytest.mark.parametrize(
    "options", [{"layer_norm": True}, {"clip_gradients": 0.1}, {"heads": H}], ids=str
)
@pytest.mark.parametrize("given", ["resets", "lengths"])
def test_compiled_training_with_resets_and_lengths(
    name: str, options: dict[str, Any], given: str
) -> None:
    """How many steps the stretches have, no program that is compiled knows."""
    torch._dynamo.reset()
    layer = make(name, bidirectional=True, **options)
    x = torch.randn(T, B, I).double().requires_grad_()
    values = torch.rand(T, B) < 0.3 if given == "resets" else torch.tensor([7, 3, 5, 1])
    results = []
    for call in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        output = call(x, **{given: values})[0]
        results.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_without_clipping(tmp_path: Path) -> None:
    layer, x = make("GRU", clip_gradients=0.1), torch.randn(T, B, I).double()
    traced = torch.jit.trace(layer, (x,))
    torch.jit.save(traced, tmp_path / "traced.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "traced.pt")(x)[0], layer(x)[0])


def test_a_weight_without_numbers_is_refused() -> None:
    layer = make("RNN", zoneout=0.1)
    layer.weight_hh_l0 = nn.Parameter(layer.weight_hh_l0.detach().to("meta"))
    with pytest.raises(RuntimeError, match="not at the same device, found input tensor at cpu"):
        layer(torch.randn(T, B, I).double())


def test_rates_of_other_types_and_of_another_default() -> None:
    layer, like = rnnfast.GRU(I, H, zoneout=np.float32(0.01)), torch.zeros(20000, 1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        keep = regularisation._keep(like, H, layer._regularisation.zoneout, True)
    finally:
        torch.set_default_dtype(before)
    assert float(keep.mean()) == pytest.approx(0.01, abs=0.001)


def test_explain_tells_what_is_left() -> None:
    x = torch.randn(T, B, I, dtype=torch.float64)

    def reason(layer: Any) -> str:
        (found,) = rnnfast.explain(layer, x).layers
        return f"{found.route}: {found.reason}, {found.plan.get('weights')}"

    noisy = make("LSTM", zoneout=0.1, weight_dropout=0.2, recompute=True)
    assert "weight_dropout" in reason(noisy)
    assert "weight_dropout" not in reason(noisy.eval())
    assert "computes the gates again" not in reason(noisy)
    assert "over the rows" not in reason(make("GRU", state_dropout=0.2).eval())
    assert reason(rnnfast.freeze(make("RNN", heads=H))).endswith("None")
    for layer in (noisy, make("GRU", heads=H)):
        seen: list[str] = []
        torch.func.vmap(lambda v, m=layer, s=seen: s.append(_explained(m, v)) or m(v)[0])(x[None])
        assert seen[0].startswith("reference: torch.func, which such layers have no rules for")


def _explained(layer: Any, x: torch.Tensor) -> str:
    (found,) = rnnfast.explain(layer, x).layers
    return f"{found.route}: {found.reason}"


def test_what_does_nothing_in_evaluation_is_exported_as_torchs() -> None:
    layer = make("LSTM", weight_dropout=0.3, state_dropout=0.2).eval()
    program = torch.export.export(layer, (torch.randn(T, B, I).double(),))
    assert "aten.lstm" in str(program.graph)


def test_parameters_of_a_users_class_are_reset_as_torchs() -> None:
    class Own(rnnfast.GRU):
        def __init__(self) -> None:
            super().__init__(I, H, layer_norm=True)
            self.norm_of_mine = nn.Parameter(torch.zeros(50))

    layer = Own()
    layer.reset_parameters()
    assert len(layer.norm_of_mine.unique()) > 10
    assert (layer.norm_hh_l0 == 1).all()
