"""Parameters of RNN, GRU and LSTM: saved, copied and moved as torch.nn's.

A failure is a checkpoint or a copy that means something else than in torch.nn.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from side_by_side import LAYERS, assert_same, build, copies, tensors
from torch import nn

import rnnfast

CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "bias": False, "batch_first": True},
    {"bidirectional": True, "batch_first": True, "dtype": torch.float64},
]
layers = pytest.mark.parametrize("name", LAYERS)
configurations = pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)


# Parameters in and out


@layers
@configurations
def test_state_dicts_load_both_ways(name: str, options: dict[str, Any]) -> None:
    theirs = getattr(nn, name)(5, 6, **options)
    ours = getattr(rnnfast, name)(5, 6, **options)
    back = getattr(nn, name)(5, 6, **options)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    back.load_state_dict(ours.state_dict(), assign=True)
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.parameters(), back.parameters(), strict=True)
    )
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(4, 3, 5, dtype=theirs.weight_hh_l0.dtype)
    assert_same(theirs(x), ours(x))


@layers
def test_state_dict_that_does_not_fit_names_the_class(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"Error\(s\) in loading state_dict for {name}:"):
        getattr(rnnfast, name)(5, 6).load_state_dict(getattr(nn, name)(5, 7).state_dict())


@layers
def test_copies_compute_the_same(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6, 2, bidirectional=True)
    ours.extra = {"kept": 1}
    x = torch.randn(4, 3, 5)
    expected = ours(x)
    for way, other in copies(ours).items():
        assert type(other) is type(ours), way
        assert other.extra == {"kept": 1}
        assert all(w is p for w, p in zip(other._flat_weights, other.parameters(), strict=True))
        for a, b in zip(tensors(expected), tensors(other(x)), strict=True):
            assert torch.equal(a, b), way


@layers
def test_whole_module_loads_with_weights_only_when_the_class_is_allowed(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(buffer, weights_only=True)
    buffer.seek(0)
    with torch.serialization.safe_globals([type(ours)]):
        loaded = torch.load(buffer, weights_only=True)
    assert torch.equal(loaded.weight_hh_l0, ours.weight_hh_l0)


@layers
@pytest.mark.parametrize("version", ["before 1.8", "0.4"])
def test_old_pickles_are_understood(name: str, version: str) -> None:
    ours = getattr(rnnfast, name)(5, 6, 2)
    state = ours.__getstate__()
    assert "_flat_weight_refs" not in state
    del state["proj_size"]
    state["all_weights"] = state.pop("_all_weights")
    if version == "0.4":
        state["all_weights"] = ours.all_weights
        del state["_flat_weights"], state["_flat_weights_names"]
    old = type(ours).__new__(type(ours))
    old.__setstate__(state)
    x = torch.randn(4, 3, 5)
    assert_same(ours(x), old(x))


@layers
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_conversions_keep_the_parameter_objects(name: str, dtype: torch.dtype) -> None:
    theirs, ours = build(name, 5, 6)
    before = list(ours.parameters())
    assert ours.to(dtype) is ours
    theirs.to(dtype)
    for parameter, kept, flat in zip(ours.parameters(), before, ours._flat_weights, strict=True):
        assert parameter is kept is flat
    x = torch.randn(4, 3, 5, dtype=dtype)
    assert ours(x)[0].dtype == dtype
    assert_same(theirs(x), ours(x), atol=0.02, rtol=0.02)


@layers
def test_complex_numbers_work_as_in_torch(name: str) -> None:
    theirs, ours = build(name, 5, 6, dtype=torch.complex64)
    x = torch.randn(4, 3, 5, dtype=torch.complex64)
    assert_same(theirs(x), ours(x))


@layers
def test_meta_device(name: str) -> None:
    with torch.device("meta"):
        ours = getattr(rnnfast, name)(5, 6, 2)
        output = ours(torch.randn(4, 3, 5))[0]
    assert output.shape == (4, 3, 6)
    assert output.is_meta
    output.sum().backward()
    assert ours.weight_hh_l0.grad.is_meta
    empty = ours.to_empty(device="cpu")
    assert empty._flat_weights[0] is empty.weight_ih_l0
    assert not empty.weight_ih_l0.is_meta


@layers
def test_weights_written_in_place_are_seen(name: str) -> None:
    theirs, ours = build(name, 5, 6)
    x = torch.randn(4, 3, 5)
    ours(x)
    for module in (theirs, ours):
        module.weight_ih_l0.data.mul_(0.5)
        module.weight_hh_l0.data = torch.full_like(module.weight_hh_l0, 0.1)
        module.bias_ih_l0 = nn.Parameter(torch.ones_like(module.bias_ih_l0))
        module._parameters["bias_hh_l0"] = nn.Parameter(torch.zeros_like(module.bias_hh_l0))
    assert_same(theirs(x), ours(x))


@layers
def test_swapped_params_on_conversion(name: str) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        theirs, ours = (m.double() for m in build(name, 5, 6))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    assert_same(theirs(x), ours(x))


@layers
def test_data_parallel_replicas_have_their_own_lists(name: str) -> None:
    ours = getattr(rnnfast, name)(5, 6)
    replica = ours._replicate_for_data_parallel()
    assert type(replica) is type(ours)
    assert replica._flat_weights is not ours._flat_weights
    for key, parameter in ours._parameters.items():
        setattr(replica, key, parameter * 2)
    doubled = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    x = torch.randn(4, 3, 5)
    assert_same(doubled(x), replica(x))
    assert ours._flat_weights[0] is ours.weight_ih_l0
