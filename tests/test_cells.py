"""RNNCell, GRUCell and LSTMCell are torch.nn's: built, called, differentiated and kept alike."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from side_by_side import CELLS, assert_same, build, gradients, states
from torch import nn

import rnnfast

cells = pytest.mark.parametrize("name", CELLS)
CONFIGURATIONS: list[dict[str, Any]] = [{}, {"bias": False}, {"dtype": torch.float64}]


@cells
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_built_alike(name: str, options: dict[str, Any]) -> None:
    theirs, ours = build(name, 5, 6, **options)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for their, our in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert torch.equal(their, our)
        assert their.dtype == our.dtype
    assert (ours.bias_hh is None) == (options.get("bias") is False)
    assert type(ours).__constants__ == type(theirs).__constants__
    assert isinstance(ours, getattr(nn, name))
    assert issubclass(type(ours), nn.RNNCellBase)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@cells
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(3,), (), (0,)], ids=["batched", "unbatched", "nothing"])
def test_call_gives_what_torch_gives(
    name: str, options: dict[str, Any], given: bool, batch: tuple[int, ...]
) -> None:
    theirs, ours = build(name, 5, 6, **options)
    x = torch.randn(*batch, 5, dtype=ours.weight_hh.dtype, requires_grad=True)
    hx = states(name, *batch, 6, like=x) if given else None
    expected, result = theirs(x, hx), ours(x, hx)
    assert_same(expected, result)
    for their, our in zip(
        gradients(expected, [x, *theirs.parameters()]),
        gradients(result, [x, *ours.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nonlinearity(nonlinearity: str) -> None:
    theirs, ours = build("RNNCell", 5, 6, nonlinearity=nonlinearity)
    assert repr(ours) == repr(theirs)
    x, hx = torch.randn(3, 5), torch.randn(3, 6)
    assert_same(theirs(x, hx), ours(x, hx))
    ours.nonlinearity = theirs.nonlinearity = "relu" if nonlinearity == "tanh" else "tanh"
    assert_same(theirs(x, hx), ours(x, hx))


@cells
def test_options_that_torch_takes(name: str) -> None:
    for arguments in ((5, 6, 1), (5, 6, None)):
        theirs, ours = build(name, *arguments)
        assert repr(ours) == repr(theirs)
        x = torch.randn(3, 5)
        assert_same(theirs(x), ours(x))


@cells
def test_a_loop_of_cells_trains_as_torchs(name: str) -> None:
    losses = []
    for module in build(name, 5, 6):
        torch.manual_seed(1)
        optimizer = torch.optim.Adam(module.parameters(), 0.05)
        steps, target = torch.randn(7, 3, 5), torch.randn(3, 6)
        losses.append([])
        for _ in range(5):
            hx = None
            for x in steps:
                hx = module(x, hx)
            loss = ((hx[0] if name == "LSTMCell" else hx) - target).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1][-1] < losses[1][0]


@cells
def test_copies_and_conversions(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    x = torch.randn(3, 5)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(other) is type(ours)
        assert_same(ours(x), other(x))
    weight = ours.weight_ih
    assert ours.double().weight_ih is weight
    assert_same(getattr(nn, name).forward(ours, x.double()), ours(x.double()))
    assert nn.utils.skip_init(type(ours), 5, 6).weight_hh.shape == (*weight.shape[:1], 6)


@cells
def test_forms_that_a_layer_takes_agree_with_the_layer(name: str) -> None:
    cell = getattr(rnnfast, name)(5, 6)
    layer = getattr(rnnfast, name.removesuffix("Cell"))(5, 6)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    steps, hx, outputs = torch.randn(4, 3, 5), None, []
    for x in steps:
        hx = cell(x, hx)
        outputs.append(hx[0] if name == "LSTMCell" else hx)
    torch.testing.assert_close(torch.stack(outputs), layer(steps)[0])


@cells
@pytest.mark.parametrize("shape", [(), (1,), (1, -1), (3, -1)], ids=str)
def test_biases_that_are_broadcast(name: str, shape: tuple[int, ...]) -> None:
    theirs, ours = build(name, 5, 6)
    rows = theirs.bias_ih.numel()
    bias = torch.nn.Parameter(torch.randn([rows if n < 0 else n for n in shape]))
    theirs.bias_ih = ours.bias_ih = bias
    x = torch.randn(3, 5)
    assert_same(theirs(x), ours(x))


@cells
def test_weights_that_an_attribute_hides(name: str) -> None:
    theirs, ours = build(name, 5, 6)
    x, hx = torch.randn(3, 5), states(name, 3, 6)
    for module in (theirs, ours):
        module.__dict__["weight_hh"] = module._parameters["weight_hh"] * 2
    assert_same(theirs(x, hx), ours(x, hx))

    def doubled(self: Any, key: str) -> Any:
        value = nn.Module.__getattr__(self, key)
        return value * 2 if key == "weight_ih" else value

    for module in (theirs, ours):
        module.__class__ = type("Doubled", (type(module),), {"__getattr__": doubled})
    assert_same(theirs(x, hx), ours(x, hx))
