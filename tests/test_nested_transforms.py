"""What differentiates or batches a vmapped layer from outside: forward mode, batched gradients.

Catches a tangent that is lost in silence, and an operator of ours that meets a batch it has no rule
for. The kernels' rules are compared with the same calls by the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from problems import assert_close
from torch import Tensor
from torch.autograd.functional import hessian, jacobian
from torch.func import grad, jacfwd, jvp, linearize, vjp, vmap

import rnnfast
from rnnfast import routes

LAYERS = ["RNN", "GRU", "LSTM"]
Layer = Callable[[Tensor], Tensor]


def primal_and_tangent(call: Layer, x: Tensor) -> list[Tensor]:
    with fwAD.dual_level():
        found = fwAD.unpack_dual(call(fwAD.make_dual(x, x.cos())))
        return [found.primal, found.tangent]


def dual_cotangent(call: Layer, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = call(x)
    with fwAD.dual_level():
        given = fwAD.make_dual(torch.ones_like(value), value.detach())
        return [fwAD.unpack_dual(torch.autograd.grad(value, x, given)[0]).tangent]


def batched_cotangents(call: Layer, x: Tensor, *, create_graph: bool, order: int) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = call(x)
    for _ in range(order - 1):
        (value,) = torch.autograd.grad(value.square().sum(), x, create_graph=True)
    given = torch.stack([torch.ones_like(value), value.detach()])
    return list(
        torch.autograd.grad(value, x, given, is_grads_batched=True, create_graph=create_graph)
    )


def of_graph(call: Layer, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    value = call(x)

    def backward(given: Tensor) -> Tensor:
        return torch.autograd.grad(value, x, given, retain_graph=True)[0]

    given = value.detach()
    return [*jvp(backward, (given,), (given,)), vmap(backward)(torch.stack([given, -given]))]


def of_pullback(call: Layer, x: Tensor) -> list[Tensor]:
    value, pull = vjp(call, x)

    def backward(given: Tensor) -> Tensor:
        return pull(given)[0]  # type: ignore[no-any-return]

    tangents = linearize(backward, value)[1](value)
    return [*jvp(backward, (value,), (value,)), jacfwd(backward)(value), tangents, backward(value)]


def second(strategy: str, vectorize: bool) -> Callable[[Layer, Tensor], list[Tensor]]:
    def run(call: Layer, x: Tensor) -> list[Tensor]:
        options: dict[str, Any] = {"vectorize": vectorize, "outer_jacobian_strategy": strategy}
        return [hessian(lambda x: call(x).square().sum(), x, **options)]

    return run


WAYS: dict[str, Callable[[Layer, Tensor], list[Tensor]]] = {
    "tangent": primal_and_tangent,
    "tangent of grad": lambda call, x: primal_and_tangent(
        grad(lambda x: call(x).square().sum()), x
    ),
    "dual cotangent": dual_cotangent,
    "batched": lambda call, x: batched_cotangents(call, x, create_graph=False, order=1),
    "batched, graph": lambda call, x: batched_cotangents(call, x, create_graph=True, order=1),
    "batched, second": lambda call, x: batched_cotangents(call, x, create_graph=False, order=2),
    "graph": of_graph,
    "pullback": of_pullback,
    "jacobian, reverse": lambda call, x: [jacobian(call, x, vectorize=True)],
    "jacobian, forward": lambda call, x: [
        jacobian(call, x, vectorize=True, strategy="forward-mode")
    ],
    "hessian, reverse": second("reverse-mode", vectorize=True),
    "hessian, forward": second("forward-mode", vectorize=True),
    "hessian, one by one": second("reverse-mode", vectorize=False),
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's linearize
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("inner", ["vmap", "vmap of grad"])
def test_around_a_vmapped_layer(
    name: str, way: str, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = getattr(rnnfast, name)(2, 3, bidirectional=True, dtype=torch.float64)
    layer.requires_grad_(False)  # torch's linearize folds constants, and fails where these need it

    def member(x: Tensor) -> Tensor:
        return layer(x)[0]  # type: ignore[no-any-return]

    def slope(x: Tensor) -> Tensor:
        return grad(lambda x: member(x).square().sum())(x)  # type: ignore[no-any-return]

    call: Layer = vmap(member if inner == "vmap" else slope)
    x = torch.randn(2, 3, 1, 2, dtype=torch.float64)
    found = WAYS[way](call, x)
    monkeypatch.setattr(routes, "all_have_rules", lambda: False)
    expected = WAYS[way](call, x)
    assert any(value.abs().max() > 1e-3 for value in expected)
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize("name", LAYERS)
def test_no_members(name: str) -> None:
    layer = getattr(rnnfast, name)(2, 3, dtype=torch.float64)
    x = torch.zeros(0, 4, 5, 2, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return layer(x)[0].sum()  # type: ignore[no-any-return]

    assert vmap(lambda x: layer(x)[0])(x).shape == (0, 4, 5, 3)
    assert vmap(grad(loss))(x).shape == x.shape
    assert grad(lambda x: vmap(loss)(x).sum())(x).shape == x.shape
    weights = [w.detach().expand(0, *w.shape) for w in layer.parameters()]

    def of_weights(*weights: Tensor) -> Tensor:
        names = [name for name, _ in layer.named_parameters()]
        pairs = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, pairs, (torch.zeros(4, 5, 2).double(),))[0]  # type: ignore[no-any-return]

    assert vmap(of_weights)(*weights).shape == (0, 4, 5, 3)


@pytest.mark.parametrize("argument", ["resets", "lengths"])
def test_members_share_their_stretches(argument: str) -> None:
    layer, x = rnnfast.GRU(2, 3), torch.randn(4, 5, 2)
    given = torch.rand(4, 5) < 0.5 if argument == "resets" else torch.tensor([1, 2, 3, 4])

    def call(x: Tensor, given: Tensor) -> Tensor:
        return layer(x, **{argument: given})[0]  # type: ignore[no-any-return]

    with pytest.raises(RuntimeError, match=f"{argument}: the members of torch.func.vmap must"):
        vmap(call)(x, given)
    shared = given[0]
    expected = torch.stack([call(part, shared) for part in x])
    assert_close([vmap(call, (0, None))(x, shared)], [expected], 1e-6)
