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
from rnnfast import functional, ops

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


def members_of(mode: str, batched: str, lengths: tuple[int, ...] | None, **options: Any) -> Any:
    """The layer as a function, its leaves, and what `in_dims` says that each member has of its own.

    The dimension of the members is not the first one.
    """
    problem = Problem(mode, bidirectional=True, lengths=lengths, **options)
    leaves, first_weight = plain(problem), 1 + len(problem.states)
    own = {"inputs": range(first_weight), "x": range(1), "weights": range(first_weight, 99)}[
        batched
    ]
    dims = tuple(leaf.dim() if i in own else None for i, leaf in enumerate(leaves))
    stacked = [
        leaf if d is None else torch.stack([leaf, leaf.sin(), -leaf], d)
        for leaf, d in zip(leaves, dims, strict=True)
    ]
    alone = [
        [t if d is None else t.select(d, i) for t, d in zip(stacked, dims, strict=True)]
        for i in range(3)
    ]
    return as_function(problem), stacked, dims, alone


def stacked_results(results: Any) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


BATCHED = ["inputs", "x", "weights"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=IDS)
@pytest.mark.parametrize("batched", BATCHED)
def test_vmap_of_a_part(mode: str, lengths: tuple[int, ...] | None, batched: str) -> None:
    call, stacked, dims, alone = members_of(mode, batched, lengths)
    together = vmap(call, in_dims=dims)(*stacked)
    assert_close(together, stacked_results(call(*member) for member in alone), 1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=IDS)
@pytest.mark.parametrize("batched", BATCHED)
@pytest.mark.parametrize("of", ["everything", "inputs"])
def test_gradients_in_and_around_vmap(
    mode: str, lengths: tuple[int, ...] | None, batched: str, of: str
) -> None:
    """Of the inputs alone, all members may go backward together."""
    call, stacked, dims, alone = members_of(mode, batched, lengths)
    wanted = tuple(range(len(stacked) if of == "everything" else 2))
    loss = loss_of(call)
    each = vmap(grad(loss, argnums=wanted), in_dims=dims)(*stacked)
    expected = []
    for member in alone:
        leaves = [leaf.clone().requires_grad_(i in wanted) for i, leaf in enumerate(member)]
        expected.append(torch.autograd.grad(loss(*leaves), [leaves[i] for i in wanted]))
    assert_close(each, stacked_results(expected), 1e-11)

    def total(*leaves: Tensor) -> Tensor:
        return vmap(loss, in_dims=dims)(*leaves).sum()

    summed = [
        torch.stack(grads, dims[i]) if dims[i] is not None else sum(grads)
        for i, grads in zip(wanted, zip(*expected, strict=True), strict=True)
    ]
    assert_close(grad(total, argnums=wanted)(*stacked), summed, 1e-11)
    leaves = [leaf.clone().requires_grad_() for leaf in stacked]
    plainly = torch.autograd.grad(total(*leaves), [leaves[i] for i in wanted])
    assert_close(plainly, summed, 1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batched", BATCHED)
def test_second_derivatives_around_vmap(mode: str, batched: str) -> None:
    call, stacked, dims, _ = members_of(mode, batched, None, T=2, B=1, I=2, H=2)
    leaves = [leaf.clone().requires_grad_() for leaf in stacked]
    assert torch.autograd.gradgradcheck(vmap(call, in_dims=dims), leaves, fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_transforms_within_transforms(mode: str) -> None:
    problem = Problem(mode)
    call, (x, *others) = as_function(problem), plain(problem)
    grid = torch.stack([torch.stack([x * a * b for a in (1, 2, 3)]) for b in (1, -1)])

    def of_x(x: Tensor) -> Tensor:
        return call(x, *others)[0]

    def slope(x: Tensor) -> Tensor:
        return grad(lambda x: of_x(x).square().sum())(x)

    for function in (of_x, slope):
        expected = torch.stack([torch.stack([function(x) for x in row]) for row in grid])
        assert_close([vmap(vmap(function))(grid)], [expected], 1e-11)
        assert_close([vmap(vmap(function, 1, 1), 2, 2)(grid.movedim((0, 1), (2, 1)))],
                     [expected.movedim((0, 1), (2, 1))], 1e-11)  # fmt: skip
    jacobian = torch.autograd.functional.jacobian(of_x, x)
    assert_close([jacrev(of_x)(x)], [jacobian], 1e-11)


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for name in ("layer", "layer_backward"):
        op = getattr(ops, name)

        def counted(*arguments: Any, op: Any = op, name: str = name) -> Any:
            calls.append(name)
            return op(*arguments)

        monkeypatch.setattr(ops, name, counted)
    return calls


def test_members_with_the_same_weights_are_one_call(kernel_calls: list[str]) -> None:
    call, stacked, dims, _ = members_of("GRU", "inputs", None)
    vmap(call, in_dims=dims)(*stacked)
    assert kernel_calls == ["layer"]
    kernel_calls.clear()
    vmap(grad(loss_of(call)), in_dims=dims)(*stacked)
    assert kernel_calls == ["layer", "layer_backward"]
    kernel_calls.clear()
    vmap(grad(loss_of(call), argnums=len(stacked) - 1), in_dims=dims)(*stacked)
    assert kernel_calls == ["layer"] + 3 * ["layer_backward"]


def test_what_serves_a_transform(kernel_calls: list[str]) -> None:
    found: dict[str, str] = {}
    weights = [w.detach() for w in Problem("GRU").weights]

    def look(name: str, x: Tensor) -> Tensor:
        found[name] = functional.route(x, weights).kind
        return x.sum()

    x = torch.randn(3, 2, 4, dtype=torch.float64)
    vmap(lambda x: look("vmap", x))(x.unsqueeze(1))
    grad(lambda x: look("grad", x))(x)
    vmap(grad(lambda x: look("both", x)))(x.unsqueeze(1))
    jvp(lambda x: look("jvp", x), (x,), (x,))
    hessian(lambda x: look("hessian", x))(x)
    vmap(lambda x: look("complex", x))(x.unsqueeze(1).to(torch.complex64))
    assert found == {
        "vmap": "fused", "grad": "fused", "both": "fused",
        "jvp": "reference", "hessian": "reference", "complex": "reference",
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast_in_vmap(dtype: torch.dtype) -> None:
    layer = rnnfast.GRU(4, 5, 2, bidirectional=True)
    x = torch.randn(3, 6, 2, 4)
    with torch.autocast("cpu", dtype):
        together = vmap(lambda x: layer(x)[0])(x)
        alone = torch.stack([layer(part)[0] for part in x])
    assert together.dtype == alone.dtype
    torch.testing.assert_close(together, alone, atol=1e-2, rtol=1e-2)
    layer, x = layer.to(dtype), x.to(dtype)
    together = vmap(lambda x: layer(x)[0])(x)
    torch.testing.assert_close(
        together, torch.stack([layer(part)[0] for part in x]), atol=1e-2, rtol=1e-2
    )


def test_empty_batches_in_vmap() -> None:
    layer = rnnfast.LSTM(3, 4).double()
    x = torch.randn(2, 5, 0, 3, dtype=torch.float64)
    assert vmap(lambda x: layer(x)[0])(x).shape == (2, 5, 0, 4)
    assert vmap(grad(lambda x: layer(x)[0].sum()))(x).shape == x.shape


@pytest.mark.parametrize("mode", MODES)
def test_heads_lengths_and_resets_in_vmap(mode: str) -> None:
    name, kind = mode.partition("_")[::2]
    options = {"nonlinearity": kind.lower()} if kind else {}
    layer = getattr(rnnfast, name)(3, 4, 2, heads=2, bidirectional=True, **options).double()
    x = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    lengths, resets = torch.tensor([5, 2]), torch.rand(5, 2) < 0.3

    def call(x: Tensor) -> Tensor:
        return layer(x, lengths=lengths, resets=resets)[0]

    assert_close([vmap(call)(x)], [torch.stack([call(part) for part in x])], 1e-12)
