"""Gradients of every order, and what autograd promises around them.

Catches a wrong derivative, one that is not asked for, a double backward that counts a path twice,
a stale weight, a backward that reads what the user has overwritten since.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import MODES, Problem, assert_close, cotangents, gradients
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rnnfast import functional, ops, reference

PROBLEMS: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "bias": False, "states_given": False},
    {"lengths": (3, 2, 2), "bidirectional": True},
    {"T": 1},
]
SMALL = {"T": 3, "B": 2, "I": 2, "H": 3}


def as_function(problem: Problem) -> Callable[..., tuple[Tensor, ...]]:
    """The stack as a function of its leaves."""

    def call(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(problem.states)
        output, states_n = functional.stack(
            problem.mode,
            x,
            problem.batch_sizes,
            tensors[:count],
            tensors[count:],
            has_biases=problem.bias,
            num_layers=problem.layers,
            dropout=0.0,
            training=True,
            bidirectional=problem.bidirectional,
        )
        return output, *states_n

    return call


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", PROBLEMS, ids=str)
def test_gradcheck(mode: str, shape: dict[str, Any], device: str) -> None:
    problem = Problem(mode, device=device, **SMALL | shape)
    assert torch.autograd.gradcheck(
        as_function(problem), problem.leaves, fast_mode=True, check_batched_grad=True
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", PROBLEMS, ids=str)
def test_gradgradcheck(mode: str, shape: dict[str, Any], device: str) -> None:
    problem = Problem(mode, device=device, **SMALL | shape)
    assert torch.autograd.gradgradcheck(as_function(problem), problem.leaves, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (4, 3, 1)], ids=["dense", "packed"])
def test_second_and_third_order_match_torch(mode: str, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(mode, layers=2, bidirectional=True, lengths=lengths)
    orders = []
    for values in (problem.rnnfast(), problem.torch()):
        results: list[Any] = []
        for order in range(3):
            grads = gradients(values, problem.leaves, create_graph=order < 2)
            results += grads
            values = [g for g in grads if g is not None and g.requires_grad]
        orders.append(results)
    assert_close(*orders, 1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_paths_between_the_arguments_count_once(mode: str) -> None:
    """Weights and states made from x: the gradient of x has paths outside the layer too."""
    problem = Problem(mode)
    x = problem.x
    weights = [w.detach() * x.square().mean() for w in problem.weights]
    states = [s.detach() * x.sum() for s in problem.states]
    problem.module._flat_weights = weights
    problem.states = tuple(states)
    orders = []
    for values in (problem.rnnfast(), problem.torch()):
        (grad,) = gradients(values, [x], create_graph=True)
        assert grad is not None
        orders.append([grad, *gradients([grad], [x], retain_graph=True)])
    assert_close(*orders, 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_create_graph_changes_no_gradient(mode: str) -> None:
    problem = Problem(mode, bidirectional=True)
    values = problem.rnnfast()
    assert_close(
        gradients(values, problem.leaves, create_graph=True),
        gradients(values, problem.leaves),
        1e-12,
    )


@pytest.mark.parametrize("mode", MODES)
def test_gradient_penalty_trains(mode: str) -> None:
    problem = Problem(mode)
    penalties = []
    for values in (problem.rnnfast(), problem.torch()):
        (grad,) = torch.autograd.grad(values[0].sum(), problem.x, create_graph=True)
        penalty = (grad.norm() - 1).square()
        penalties.append(torch.autograd.grad(penalty, problem.weights, allow_unused=True))
    assert_close(*penalties, 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_batched_gradients(mode: str) -> None:
    problem = Problem(mode, bidirectional=True)
    results = []
    for values in (problem.rnnfast(), problem.torch()):
        grads = [torch.stack([g, -2 * g, g * g]) for g in cotangents(values)]
        results.append(torch.autograd.grad(values, problem.leaves, grads, is_grads_batched=True))
    assert_close(*results, 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_one_result_alone(mode: str) -> None:
    """Only the output is used, only h_n, only c_n: the others have no gradient."""
    problem = Problem(mode, layers=2, bidirectional=True)
    ours, theirs = problem.rnnfast(), problem.torch()
    for i in range(len(ours)):
        assert_close(
            gradients(ours[i : i + 1], problem.leaves, retain_graph=True),
            gradients(theirs[i : i + 1], problem.leaves, retain_graph=True),
            1e-11,
        )


@pytest.mark.parametrize("mode", MODES)
def test_exactly_the_leaves_that_require_it_get_gradients(mode: str) -> None:
    problem = Problem(mode, layers=2)
    leaves = problem.leaves
    for wanted in range(len(leaves)):
        for i, leaf in enumerate(leaves):
            leaf.requires_grad_(i == wanted)
            leaf.grad = None
        sum(value.sum() for value in problem.rnnfast()).backward()
        assert [leaf.grad is not None for leaf in leaves] == [
            i == wanted for i in range(len(leaves))
        ]
        expected = torch.autograd.grad(sum(v.sum() for v in problem.torch()), leaves[wanted])
        assert_close([leaves[wanted].grad], expected, 1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layers", [1, 2])
def test_output_may_be_edited_before_backward(mode: str, layers: int) -> None:
    problem = Problem(mode, layers=layers)
    output, *states_n = problem.rnnfast()
    for value in (output, *states_n):
        value += 1
        value *= 2
    expected = [(v + 1) * 2 for v in problem.torch()]
    assert_close([output, *states_n], expected, 1e-12)
    assert_close(
        gradients([output, *states_n], problem.leaves), gradients(expected, problem.leaves), 1e-11
    )


@pytest.mark.parametrize("mode", MODES)
def test_overwritten_arguments_raise_in_backward(mode: str) -> None:
    problem = Problem(mode)
    for i in range(len(problem.leaves)):
        values = problem.rnnfast()
        with torch.no_grad():
            problem.leaves[i].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            gradients(values, problem.leaves)


@pytest.mark.parametrize("mode", MODES)
def test_weights_changed_behind_autograd_are_seen(mode: str) -> None:
    problem = Problem(mode, layers=2)
    first = problem.rnnfast()
    for weight in problem.weights:
        weight.data.mul_(1.5)
    second = problem.rnnfast()
    assert not torch.allclose(first[0], second[0])
    assert_close(second, problem.torch(), 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_backward_twice(mode: str) -> None:
    problem = Problem(mode, layers=2, bidirectional=True)
    values = problem.rnnfast()
    first = gradients(values, problem.leaves, retain_graph=True)
    second = gradients(values, problem.leaves)
    assert_close(first, second, 0)
    with pytest.raises(RuntimeError, match="second time"):
        gradients(values, problem.leaves)


@pytest.mark.parametrize("mode", MODES)
def test_saved_tensors_hooks_see_all_that_is_saved(mode: str) -> None:
    problem = Problem(mode)
    expected = gradients(problem.rnnfast(), problem.leaves)
    packed = []

    def pack(t: Tensor) -> int:
        packed.append(t.clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: packed[i]):
        values = problem.rnnfast()
    assert packed
    assert_close(gradients(values, problem.leaves), expected, 0)
    # x, the weights, the states and the reserve, and no more: the output is not saved.
    reserve = problem.layer(train=True)[2]
    assert sum(t.numel() for t in packed) <= sum(t.numel() for t in (*problem.leaves, *reserve))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint(mode: str, use_reentrant: bool) -> None:
    problem = Problem(mode)
    values = checkpoint(as_function(problem), *problem.leaves, use_reentrant=use_reentrant)
    for leaf in problem.leaves:
        leaf.grad = None
    torch.autograd.backward(values, cotangents(values))
    expected = gradients(problem.torch(), problem.leaves)
    assert_close([leaf.grad for leaf in problem.leaves], expected, 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_anomaly_mode(mode: str) -> None:
    problem = Problem(mode)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        grads = gradients(problem.rnnfast(), problem.leaves)
    assert_close(grads, gradients(problem.torch(), problem.leaves), 1e-11)


@pytest.mark.parametrize("train", [True, False])
def test_the_operator_has_gradients_its_reserve_none(train: bool) -> None:
    problem = Problem("GRU")
    output, states_n, reserve = ops.layer(
        "gru", problem.x, None, problem.states, problem.weights, train=train
    )
    assert [t.requires_grad for t in (output, *states_n, *reserve)] == [True, True] + [False] * (
        2 * train
    )
    values = [output, *states_n]
    assert_close(
        gradients(values, problem.leaves), gradients(problem.torch(), problem.leaves), 1e-11
    )


def test_a_tangent_given_to_the_operator_is_refused() -> None:
    problem = Problem("GRU")
    with forward_ad.dual_level():
        x = forward_ad.make_dual(problem.x, torch.ones_like(problem.x))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            ops.layer("gru", x, None, problem.states, problem.weights)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_handed_over_without_a_copy(mode: str) -> None:
    """What the backward pass gives becomes ``.grad`` itself: no second tensor of that size."""
    problem = Problem(mode, bidirectional=True)
    seen: list[int] = []
    for leaf in problem.leaves:
        leaf.grad = None
        leaf.register_hook(lambda grad: seen.append(grad.data_ptr()))
    sum(value.sum() for value in problem.rnnfast()).backward()
    assert sorted(seen) == sorted(leaf.grad.data_ptr() for leaf in problem.leaves)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_computed_for_inputs_of_backward_that_nobody_named(mode: str) -> None:
    problem = Problem(mode, bidirectional=True)
    values = problem.rnnfast()
    needs: list[list[bool]] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.rnnfast.layer_backward.default:
                needs.append(args[-1])
            return func(*args, **kwargs or {})

    with Spy():
        grads = torch.autograd.grad(values, problem.weights[1], cotangents(values))
    expected = torch.autograd.grad(problem.torch(), problem.weights[1], cotangents(values))
    assert_close(grads, expected, 1e-11)
    wanted = [leaf is problem.weights[1] for leaf in problem.leaves]
    assert needs == [wanted]


def test_an_error_below_the_double_backward_reaches_the_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise ArithmeticError("below")

    problem = Problem("GRU")
    values = problem.rnnfast()
    monkeypatch.setattr(reference, "differentiable_gradients", fail)
    with pytest.raises(ArithmeticError, match="below"):
        gradients(values, problem.leaves, create_graph=True)


def test_memory_is_freed_without_a_garbage_collection() -> None:
    problem = Problem("LSTM")
    kept: list[weakref.ref[Any]] = []

    class Packed:
        def __init__(self, t: Tensor) -> None:
            self.tensor = t
            kept.append(weakref.ref(self))

    with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.tensor):
        values = problem.rnnfast()
    assert kept
    assert all(packed() is not None for packed in kept)
    gc.disable()
    try:
        del values
        assert all(packed() is None for packed in kept)
    finally:
        gc.enable()
