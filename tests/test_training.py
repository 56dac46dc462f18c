"""Training: hooks, reparametrised weights, optimizers, data parallelism go on as with torch.nn.

A failure is a training script that runs and learns something else after changing one word.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from side_by_side import (
    LAYERS,
    assert_same,
    batch,
    build,
    loss_gradients,
    model_of,
    states,
    tensors,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

layers = pytest.mark.parametrize("name", LAYERS)


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
