"""What rnnfast's classes have beyond torch.nn's, on a GPU: the same numbers as on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_gpu import DEVICE, MARKS, flat, flat_states, needs_gpu
from problems import assert_close, gradients
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

pytestmark = MARKS

T, B, I, H = 9, 4, 10, 48  # noqa: E741
LENGTHS = [5, 9, 1, 7]
LAYERS = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-11), (torch.float32, 1e-4), (torch.bfloat16, 0.06)],
    ids=["float64", "float32", "bfloat16"],
)


def mask() -> Tensor:
    """``[T, B]``: one row without a reset, one with one at every step, two at random."""
    resets = torch.rand(T, B, generator=torch.Generator().manual_seed(1)) < 0.3
    resets[:, 0], resets[:, 1] = False, True
    return resets


def states(name: str, count: int, **options: Any) -> Any:
    made = tuple(torch.randn(count, B, H, **options) for _ in range(2))
    return made if name == "LSTM" else made[0]


def moved(tree: Any, dtype: torch.dtype) -> Any:
    """On the device, in `dtype` where it is a number of the layer's; leaves of autograd."""
    if isinstance(tree, Tensor) and tree.is_floating_point():
        return tree.detach().to(DEVICE, dtype).requires_grad_()
    if isinstance(tree, Tensor):
        return tree.to(DEVICE)
    if isinstance(tree, tuple):
        return tuple(moved(t, dtype) for t in tree)
    return tree


def results(layer: nn.Module, x: Tensor, options: dict[str, Any]) -> tuple[list[Tensor], ...]:
    """Values and gradients of one call."""
    values = flat(layer(x, **options))
    given = [t for o in options.values() if isinstance(o, tuple | Tensor) for t in flat_states(o)]
    leaves = [x, *layer.parameters(), *(t for t in given if t.is_floating_point())]
    return values, list(gradients(values, leaves))


def assert_alike(found: list[Tensor], exact: list[Tensor], tolerance: float) -> None:
    """Each tensor within `tolerance` of its largest value."""
    for a, b in zip(found, (e.detach() for e in exact), strict=True):
        bound = tolerance * float(b.abs().max().clamp(min=1e-6))
        assert (a.detach().double().cpu() - b).abs().max() <= bound


WAYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "resets": lambda name: {"resets": mask()},
    "lengths": lambda name: {"lengths": LENGTHS},
    "all": lambda name: {
        "hx": states(name, 2, dtype=torch.float64, requires_grad=True),
        "reset_states": states(name, 2, dtype=torch.float64, requires_grad=True),
        "resets": mask(),
        "lengths": LENGTHS,
    },
}


@LAYERS
@DTYPES
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", [1, 3])
def test_resets_lengths_and_heads(
    name: str, dtype: torch.dtype, tolerance: float, way: str, heads: int
) -> None:
    options = WAYS[way](name)
    exact = getattr(rnnfast, name)(I, H, 2, heads=heads, dtype=torch.float64)
    layer = copy.deepcopy(exact).to(DEVICE, dtype)
    exact.load_state_dict({k: v.double().cpu() for k, v in layer.state_dict().items()})
    x = torch.randn(T, B, I, dtype=torch.float64).to(dtype).double().requires_grad_()
    expected = results(exact, x, options)
    found = results(layer, moved(x, dtype), {k: moved(v, dtype) for k, v in options.items()})
    for values, right in zip(found, expected, strict=True):
        assert_alike(values, right, tolerance)


@LAYERS
@DTYPES
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_gates_computed_again(
    name: str, dtype: torch.dtype, tolerance: float, packed: bool
) -> None:
    layer = getattr(rnnfast, name)(I, H, 2, bidirectional=True, device=DEVICE, dtype=dtype)
    x = torch.randn(T, B, I, device=DEVICE, dtype=dtype, requires_grad=True)
    found = []
    for layer.recompute in (False, True):
        options = {"lengths": LENGTHS} if packed else {}
        values, grads = results(layer, x, options)
        found.append([v.detach().double().cpu() for v in (*values, *grads)])
    assert_alike(found[1], found[0], tolerance)


@LAYERS
def test_a_mask_of_a_packed_sequence(name: str) -> None:
    exact = getattr(rnnfast, name)(I, H, bidirectional=True, dtype=torch.float64)
    layer, x = copy.deepcopy(exact).to(DEVICE), torch.randn(T, B, I, dtype=torch.float64)
    lengths = torch.tensor(LENGTHS)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    resets = pack_padded_sequence(mask(), lengths, enforce_sorted=False)
    output, states_n = exact(packed, resets=resets)
    found, found_n = layer(packed.to(DEVICE), resets=resets.to(DEVICE))
    assert_close([found.data.cpu()], [output.data], 1e-11)
    assert_close([s.cpu() for s in flat_states(found_n)], flat_states(states_n), 1e-11)


def test_scan() -> None:
    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h = torch.tanh(x + states[0])
        return h, (h,)

    x = torch.randn(T, B, H, dtype=torch.float64)
    h, options = torch.randn(B, H, dtype=torch.float64), {"lengths": LENGTHS}
    output, last = rnnfast.scan(step, x, [h], resets=mask(), **options)
    found, found_n = rnnfast.scan(
        step, x.to(DEVICE), [h.to(DEVICE)], resets=mask().to(DEVICE), **options
    )
    assert_close([found.cpu(), found_n[0].cpu()], [output, last[0]], 1e-12)


@LAYERS
def test_a_frozen_model_computes_and_learns_of_new_weights(name: str) -> None:
    layer = getattr(rnnfast, name)(I, H, device=DEVICE)
    x = torch.randn(T, B, I, device=DEVICE)
    with torch.no_grad():
        before = flat(layer(x))
        rnnfast.freeze(layer)
        assert_close(flat(layer(x)), before, 1e-6)
        layer.weight_hh_l0.mul_(2)
        changed = flat(layer(x))
        rnnfast.unfreeze(layer)
        assert_close(flat(layer(x)), changed, 1e-6)
    assert not torch.equal(changed[0], before[0])


@LAYERS
def test_cells(name: str) -> None:
    exact = getattr(nn, f"{name}Cell")(I, H, dtype=torch.float64)
    cell = rnnfast.convert(copy.deepcopy(exact)).to(DEVICE)
    x = torch.randn(B, I, dtype=torch.float64, requires_grad=True)
    expected = flat_states(exact(x))
    right = gradients(expected, [x, *exact.parameters()])
    y = moved(x, torch.float64)
    found = flat_states(cell(y))
    grads = gradients(found, [y, *cell.parameters()])
    assert_alike([*found, *grads], [*expected, *right], 1e-11)
    with torch.no_grad():
        low = cell.float()(x.float().to(DEVICE))
    assert_alike(flat_states(low), expected, 1e-5)


@needs_gpu
@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nobody_waits_for_lengths_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    layer = getattr(rnnfast, name)(I, H, 2, bidirectional=True, device=DEVICE, dtype=dtype)
    x = torch.randn(T, B, I, device=DEVICE, dtype=dtype, requires_grad=True)
    expected = results(layer, x, {"lengths": LENGTHS})
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    results(layer, x, {"lengths": lengths})  # what waits the first time only
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = results(layer, x, {"lengths": lengths})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for values, right in zip(found, expected, strict=True):
        right = [t.detach().double().cpu() for t in right]
        assert_alike(values, right, 1e-4 if dtype == torch.float32 else 0.06)


@needs_gpu
@LAYERS
def test_a_graph_holds_lengths(name: str) -> None:
    layer = getattr(rnnfast, name)(I, H, bidirectional=True, device=DEVICE)
    x, lengths = torch.randn(T, B, I, device=DEVICE), torch.tensor(LENGTHS, device=DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        layer(x, lengths=lengths)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = flat(layer(x, lengths=lengths))
        lengths.copy_(torch.tensor([9, 2, 3, 1]))
        graph.replay()
        expected = flat(layer(x, lengths=lengths.tolist()))
    assert_alike(found, [t.double().cpu() for t in expected], 1e-4)


@needs_gpu
@LAYERS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_nobody_waits_for_resets_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    layer = getattr(rnnfast, name)(I, H, 2, bidirectional=True, device=DEVICE, dtype=dtype)
    x = torch.randn(T, B, I, device=DEVICE, dtype=dtype, requires_grad=True)
    hx = moved(states(name, 4), dtype)
    expected = results(layer, x, {"hx": hx, "resets": mask()})  # a mask on the CPU is copied
    options = {"hx": hx, "resets": mask().to(DEVICE)}
    results(layer, x, options)  # what waits the first time only
    try:
        torch.cuda.set_sync_debug_mode("error")
        found = results(layer, x, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for values, right in zip(found, expected, strict=True):
        right = [t.detach().double().cpu() for t in right]
        assert_alike(values, right, 0.06 if dtype == torch.bfloat16 else 1e-4)


@needs_gpu
@LAYERS
def test_a_graph_holds_resets(name: str) -> None:
    layer = getattr(rnnfast, name)(I, H, bidirectional=True, device=DEVICE)
    x, resets = torch.randn(T, B, I, device=DEVICE), mask().to(DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        layer(x, resets=resets)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = flat(layer(x, resets=resets))
        resets.copy_(resets.flip(0))
        graph.replay()
        expected = flat(layer(x, resets=resets.cpu()))
    assert_alike(found, [t.double().cpu() for t in expected], 1e-4)


@needs_gpu
@LAYERS
def test_a_graph_holds_one_step_whatever_it_begins_with(name: str) -> None:
    layer = getattr(rnnfast, name)(I, H, heads=2, device=DEVICE)
    x, resets = torch.randn(1, B, I, device=DEVICE), mask()[1:2].to(DEVICE)
    options = {key: moved(states(name, 1), torch.float32) for key in ("hx", "reset_states")}
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        layer(x, resets=resets, **options)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            found = flat(layer(x, resets=resets, **options))
        resets.logical_not_()
        graph.replay()
        expected = flat(layer(x, resets=resets, lengths=[1] * B, **options))
    assert_alike(found, [t.double().cpu() for t in expected], 1e-4)


@needs_gpu
def test_a_graph_cannot_hold_stretches() -> None:
    layer = rnnfast.GRU(I, H, device=DEVICE)
    x, begin = torch.randn(T, B, I, device=DEVICE), torch.ones(1, 1, H, device=DEVICE)
    options = {"resets": mask().to(DEVICE), "reset_states": begin}
    graph = torch.cuda.CUDAGraph()
    with (
        pytest.warns(UserWarning, match="Graph is empty"),
        pytest.raises(RuntimeError, match="capture"),
        torch.no_grad(),
        torch.cuda.graph(graph),
    ):
        layer(x, **options)
    with torch.no_grad():  # and nothing is left broken
        right = layer.cpu()(x.cpu(), resets=mask(), reset_states=begin.cpu())
        assert_alike(flat(layer.to(DEVICE)(x, **options)), flat(right), 1e-4)


@LAYERS
def test_transforms(name: str) -> None:
    """Members that share a call, and members that do not."""
    layer = getattr(rnnfast, name)(I, H, 2, bidirectional=True, dtype=torch.float64)
    x = torch.randn(3, T, B, I, dtype=torch.float64)

    def of_device(device: torch.device | str) -> list[Tensor]:
        weights = {n: w.detach().to(device) for n, w in layer.named_parameters()}
        on_device = copy.deepcopy(layer).to(device)

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            value: Tensor = functional_call(on_device, weights, (x,))[0]
            return value.square().sum()

        of_inputs = vmap(grad(loss, argnums=1), (None, 0))(weights, x.to(device))
        of_weights = vmap(grad(loss), (None, 0))(weights, x.to(device))
        return [of_inputs, *of_weights.values()]

    assert_alike(of_device(DEVICE), of_device("cpu"), 1e-11)
