"""torch.func and forward-mode AD: what torch.nn can do, and what it cannot.

Catches a tangent that is lost in silence, a batch that reads another's weights, a route that misses
a transform.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from problems import MODES, Problem, assert_close
from test_autograd import as_function
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

import rnnfast
from rnnfast import functional

LENGTHS = [None, (4, 3, 1)]
IDS = ["dense", "packed"]


def plain(problem: Problem) -> list[Tensor]:
    return [leaf.detach() for leaf in problem.leaves]


def loss_of(call: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    return lambda *leaves: sum((value.square().sum() for value in call(*leaves)), torch.tensor(0.0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=IDS)
def test_grad_vjp_jvp_agree_with_autograd(mode: str, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(mode, layers=2, bidirectional=True, lengths=lengths)
    call, leaves = as_function(problem), plain(problem)
    everything = tuple(range(len(leaves)))
    loss = loss_of(call)
    expected = torch.autograd.grad(loss(*problem.leaves), problem.leaves)
    assert_close(grad(loss, argnums=everything)(*leaves), expected, 1e-11)
    value, pullback = vjp(loss, *leaves)
    assert_close(pullback(torch.ones_like(value)), expected, 1e-11)
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    _, slope = jvp(loss, tuple(leaves), tuple(tangents))
    inner = sum((g * t).sum() for g, t in zip(expected, tangents, strict=True))
    assert_close([slope], [inner], 1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_mode_gives_tangents(mode: str, dtype: torch.dtype) -> None:
    problem = Problem(mode, bidirectional=True, dtype=dtype)
    leaves = plain(problem)
    tangents = [torch.randn_like(leaf) for leaf in leaves]
    call = as_function(problem)
    _, expected = jvp(call, tuple(leaves), tuple(tangents))
    with fwAD.dual_level():
        duals = [fwAD.make_dual(a, t) for a, t in zip(leaves, tangents, strict=True)]
        assert functional.route(duals[0], duals[1:]).kind == "reference"
        results = [fwAD.unpack_dual(value) for value in call(*duals)]
        assert functional.route(leaves[0], leaves[1:]).kind == "fused"
    assert_close([r.tangent for r in results], expected, 1e-6)
    primals = [r.primal for r in results]
    assert_close(primals, call(*leaves), 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_forward_gradcheck(mode: str) -> None:
    problem = Problem(mode, T=3, B=2, I=2, H=3)
    assert torch.autograd.gradcheck(
        as_function(problem), problem.leaves, check_forward_ad=True, fast_mode=True
    )


@pytest.mark.parametrize("mode", MODES)
def test_forward_over_reverse(mode: str) -> None:
    """A tangent that enters only in the gradients of the results must come out of backward."""
    problem = Problem(mode)
    values = problem.rnnfast()
    directions = [torch.randn_like(value) for value in values]
    with fwAD.dual_level():
        duals = [fwAD.make_dual(torch.zeros_like(d), d) for d in directions]
        grads = torch.autograd.grad(values, problem.leaves, duals, retain_graph=True)
        tangents = [fwAD.unpack_dual(g).tangent for g in grads]
    assert_close(tangents, torch.autograd.grad(values, problem.leaves, directions), 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_hessian_matches_reverse_over_reverse(mode: str) -> None:
    problem = Problem(mode, T=2, B=1, I=2, H=2)
    leaves = plain(problem)
    loss = loss_of(as_function(problem))
    expected = jacrev(grad(loss))(*leaves)
    assert_close([hessian(loss)(*leaves)], [expected], 1e-10)
    autograd = torch.autograd.functional.hessian(lambda x: loss(x, *leaves[1:]), leaves[0])
    assert_close([autograd], [expected], 1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=IDS)
def test_vmap_over_everything(mode: str, lengths: tuple[int, ...] | None) -> None:
    members = [Problem(mode, bidirectional=True, lengths=lengths, seed=i) for i in range(3)]
    call = as_function(members[0])
    stacked = [torch.stack(leaves) for leaves in zip(*map(plain, members), strict=True)]
    together = vmap(call)(*stacked)
    alone = zip(*(call(*plain(member)) for member in members), strict=True)
    assert_close(together, [torch.stack(values) for values in alone], 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_per_sample_gradients(mode: str) -> None:
    problem = Problem(mode, states_given=False)
    call, (x, *weights) = as_function(problem), plain(problem)
    loss = loss_of(call)
    weight_positions = tuple(range(1, 1 + len(weights)))
    per_sample = vmap(grad(loss, argnums=weight_positions), in_dims=(1, *[None] * len(weights)))(
        x.unsqueeze(2), *weights
    )
    for b in range(problem.B):
        alone = grad(loss, argnums=weight_positions)(x[:, b : b + 1], *weights)
        assert_close([g[b] for g in per_sample], alone, 1e-11)


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_ensemble_of_modules(name: str) -> None:
    modules = [getattr(rnnfast, name)(4, 5, 2).double() for _ in range(3)]
    x = torch.randn(6, 2, 4, dtype=torch.float64)
    parameters, buffers = stack_module_state(modules)

    def run(weights: dict[str, Tensor], others: dict[str, Tensor], x: Tensor) -> Any:
        return functional_call(modules[0], (weights, others), (x,))[0]

    together = vmap(run, in_dims=(0, 0, None))(parameters, buffers, x)
    assert_close([together], [torch.stack([m(x)[0] for m in modules]).detach()], 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_cells_take_transforms(mode: str) -> None:
    problem = Problem(mode, T=1)
    states = [s.detach()[0] for s in problem.states]
    weights = [w.detach() for w in problem.weights]

    def step(x: Tensor) -> tuple[Tensor, ...]:
        return functional.cell(mode, x, states, *weights)

    x, tangent = problem.x.detach()[0], torch.randn_like(problem.x[0])
    value, slope = jvp(step, (x,), (tangent,))
    assert_close(value, step(x), 1e-12)
    epsilon = 1e-6
    steps = zip(step(x + epsilon * tangent), step(x - epsilon * tangent), strict=True)
    assert_close(slope, [(a - b) / (2 * epsilon) for a, b in steps], 1e-7)
    batched = vmap(step)(torch.stack([x, 2 * x]))
    assert_close([b[1] for b in batched], step(2 * x), 1e-12)


def test_a_projection_takes_transforms() -> None:
    lstm = rnnfast.LSTM(3, 4, proj_size=2, bidirectional=True).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    batched = vmap(lambda x: lstm(x)[0])(torch.stack([x, -x]))
    assert_close([batched[1]], [lstm(-x)[0]], 1e-12)


def test_a_cell_with_one_bias_keeps_it_under_a_transform() -> None:
    x, h, w_ih, w_hh, bias = (torch.randn(*s) for s in ((3, 4), (3, 5), (15, 4), (15, 5), (15,)))
    for biases in ((bias, None), (None, bias)):
        plain = functional.cell("GRU", x, (h,), w_ih, w_hh, *biases)[0]
        step = torch.func.vmap(
            lambda x, h, b=biases: functional.cell("GRU", x[None], (h[None],), w_ih, w_hh, *b)[0][0]
        )
        torch.testing.assert_close(step(x, h), plain)
