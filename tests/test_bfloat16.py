"""Layers in bfloat16, where the CPU multiplies it, by vectors or tiles, and where it is widened.

Catches a product that loses the last of an odd number, a state rounded where it should be kept, a
row that reads its neighbour, and an error above torch.nn's own in that type.
"""

from typing import Any

import pytest
import torch
from precision import assert_no_less_precise, relative_errors, seeds
from problems import MODES, Problem, cotangents
from torch import Tensor, nn

import rnnfast
from rnnfast import _library

SHAPES: list[dict[str, Any]] = [
    {"T": 1, "B": 1, "I": 1, "H": 1},
    {"T": 1, "B": 1, "I": 33, "H": 40},
    {"T": 1, "B": 40, "I": 7, "H": 31},
    {"T": 2, "B": 4, "I": 130, "H": 65, "bidirectional": True},  # few rows
    {"T": 60, "B": 1, "I": 24, "H": 48},
    {"T": 60, "B": 1, "I": 31, "H": 1, "bias": False},
    {"T": 300, "B": 4, "I": 5, "H": 129},  # several chunks
    {"T": 20, "B": 33, "I": 32, "H": 64},  # split by batch
    {"T": 12, "B": 16, "I": 65, "H": 131, "bidirectional": True},
    {"T": 9, "B": 17, "I": 64, "H": 272, "layers": 2},
    {"lengths": (40, 31, 17, 2), "I": 10, "H": 33, "bidirectional": True},
    {"lengths": (3, 1), "I": 9, "H": 17},
    {"lengths": (9, 9, 9, 4, 1, 1), "I": 16, "H": 80, "states_given": False},
]


needs_products = pytest.mark.skipif(
    not _library.HAS_BFLOAT16, reason="the kernels multiply no bfloat16"
)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def widened(problem: Problem, shape: dict[str, Any]) -> Problem:
    """The same numbers in float64."""
    wide = Problem(problem.mode, dtype=torch.float64, **shape)
    with torch.no_grad():
        for a, b in zip(wide.leaves, problem.leaves, strict=True):
            a.copy_(b)
    return wide


def exact(problem: Problem, shape: dict[str, Any]) -> list[Tensor]:
    """torch.nn in float64."""
    with torch.no_grad():
        return widened(problem, shape).torch()


def gradients(problem: Problem, values: list[Tensor]) -> list[Tensor]:
    """Of all leaves, the cotangents being exact in bfloat16."""
    grads = [g.bfloat16().to(values[0].dtype) for g in cotangents(values)]
    return list(torch.autograd.grad(values, problem.leaves, grads))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_at_most_torchs(mode: str, shape: dict[str, Any]) -> None:
    our_errors, their_errors = [], []
    for seed in seeds(shape, most=64):
        problem = Problem(mode, dtype=torch.bfloat16, seed=seed, **shape)
        truth = exact(problem, {**shape, "seed": seed})
        with torch.no_grad():
            ours, theirs = problem.rnnfast(), problem.torch()
        assert [(t.dtype, t.shape) for t in ours] == [(t.dtype, t.shape) for t in theirs]
        our_errors.append(relative_errors(ours, truth))
        their_errors.append(relative_errors(theirs, truth))
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    assert_no_less_precise(our_errors, their_errors, factor=1.2, floor=half_a_unit)


TRAINED: list[dict[str, Any]] = [
    {"T": 2, "B": 7, "I": 9, "H": 17},  # in float32
    {"T": 3, "B": 7, "I": 9, "H": 17},  # too few rows for tiles
    {"T": 300, "B": 1, "I": 33, "H": 18},
    {"T": 2, "B": 16, "I": 16, "H": 33},
    {"T": 1, "B": 33, "I": 70, "H": 16, "states_given": False},
    {"T": 30, "B": 8, "I": 31, "H": 48},
    {"T": 12, "B": 17, "I": 65, "H": 131, "bidirectional": True},
    {"T": 21, "B": 25, "I": 1, "H": 1, "bias": False},
    {"T": 9, "B": 64, "I": 40, "H": 96},  # split by batch
    {"T": 2, "B": 300, "I": 33, "H": 20},  # more rows in a step than are summed at once
    {"lengths": (21, 20, *[9] * 15, 8, 2, 1), "I": 10, "H": 35, "bidirectional": True},
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", TRAINED, ids=str)
def test_the_error_of_training_is_at_most_torchs(mode: str, shape: dict[str, Any]) -> None:
    errors: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for seed in seeds(shape, most=6):
        problem = Problem(mode, dtype=torch.bfloat16, seed=seed, **shape)
        wide = widened(problem, {**shape, "seed": seed})
        results = [problem.rnnfast(), problem.torch(), wide.torch()]
        grads = [
            gradients(owner, values)
            for owner, values in zip((problem, problem, wide), results, strict=True)
        ]
        assert [(g.dtype, g.shape) for g in grads[0]] == [(g.dtype, g.shape) for g in grads[1]]
        count = len(problem.states) + 1
        for name, part in {
            "results": [[v.detach() for v in values] for values in results],
            "gradients of inputs": [g[:count] for g in grads],
            "gradients of weights": [g[count:] for g in grads],
        }.items():
            ours, theirs = errors.setdefault(name, ([], []))
            ours.append(relative_errors(part[0], part[2]))
            theirs.append(relative_errors(part[1], part[2]))
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    for name, (ours, theirs) in errors.items():
        assert_no_less_precise(ours, theirs, factor=1.2, floor=half_a_unit, name=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("B", [1, 7, 8, 17, 33, 65])
def test_training_gives_the_same_bits_with_any_number_of_threads(mode: str, B: int) -> None:
    """And so does a row in whatever batch it stands, where the batch fills tiles."""
    problem = Problem(mode, dtype=torch.bfloat16, T=4, B=B, I=37, H=80, bidirectional=True)
    before, found = torch.get_num_threads(), []
    for count in (before, 1, 2, 3):
        torch.set_num_threads(count)
        values = problem.rnnfast()
        found.append([*values, *gradients(problem, values)])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_stays_in_its_row_in_training(mode: str, poison: float) -> None:
    """Of all gradients but those of the weights, which are sums over the rows."""
    problem = Problem(mode, dtype=torch.bfloat16, T=4, B=19, I=9, H=33, bidirectional=True)
    count = 1 + len(problem.states)

    def run() -> list[Tensor]:
        values = problem.rnnfast()
        return [*values, *gradients(problem, values)[:count]]

    clean = run()
    with torch.no_grad():
        problem.x[2, 5, 8] = poison
    others = [b for b in range(19) if b != 5]
    for before, after in zip(clean, run(), strict=True):
        assert torch.equal(after[:, others], before[:, others])
        assert not torch.equal(after[:, 5], before[:, 5])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("H", [15, 16, 48])
def test_batch_first_and_odd_addresses(mode: str, H: int) -> None:
    """Tensors that start between two numbers of 4 bytes, and rows that lie apart."""
    problem = Problem(mode, dtype=torch.bfloat16, T=6, B=10, I=17, H=H)
    name, options = mode.partition("_")[0], {}
    if name == "RNN":
        options["nonlinearity"] = mode.removeprefix("RNN_").lower()
    layer = getattr(rnnfast, name)(17, H, batch_first=True, dtype=torch.bfloat16, **options)
    layer.load_state_dict(problem.module.state_dict())
    hx: Any = problem.states if mode == "LSTM" else problem.states[0]
    with torch.no_grad():
        plain = problem.rnnfast()[0]
        shifted = torch.empty(problem.x.numel() + 1, dtype=torch.bfloat16)[1:]
        shifted = shifted.view(10, 6, 17).copy_(problem.x.transpose(0, 1))
        for x in (shifted, problem.x.transpose(0, 1)):
            assert torch.equal(layer(x, hx)[0].transpose(0, 1), plain)
        for weight in layer.parameters():
            memory = torch.empty(weight.numel() + 1, dtype=torch.bfloat16)[1:]
            weight.data = memory.view(weight.shape).copy_(weight.data)
        assert torch.equal(layer(shifted, hx)[0].transpose(0, 1), plain)


@needs_products
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("B", [1, 7, 16])
def test_training_multiplies_the_rounded_state(mode: str, B: int) -> None:
    """So it gives inference's output, to the bit; in a call of few rows all is float32."""
    problem = Problem(mode, dtype=torch.bfloat16, T=30, B=B, I=64, H=64)
    (output, states_n, reserve), inference = problem.layer(train=True), problem.layer(train=False)
    assert all(map(torch.equal, [output, *states_n], [inference[0], *inference[1]]))
    assert [t.dtype for t in reserve] == [torch.float32] * len(reserve)
    few = Problem(mode, dtype=torch.bfloat16, T=4, B=5, I=64, H=64)
    wide, narrow = few.layer(train=True)[0], few.layer(train=False)[0]
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(wide, narrow, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("B", [3, 12])
@pytest.mark.parametrize("H", [31, 33])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_in_their_row(mode: str, B: int, H: int, poison: float) -> None:
    """And spread there as they do in training."""
    problem = Problem(mode, dtype=torch.bfloat16, T=4, B=B, I=9, H=H, bidirectional=True)
    with torch.no_grad():
        clean, _, _ = problem.layer()
        problem.x[2, 1, 8] = poison
        problem.states[0][0, 1, H - 1] = poison
    (output, states_n, _), (expected, expected_n, _) = problem.layer(), problem.layer(train=True)
    others = [b for b in range(B) if b != 1]
    assert torch.equal(output[:, others], clean[:, others])
    for ours, wide in zip([output, *states_n], [expected, *expected_n], strict=True):
        torch.testing.assert_close(ours, wide, equal_nan=True, rtol=4e-2, atol=4e-2)


@pytest.mark.parametrize("mode", ["RNN_TANH", "RNN_RELU"])
def test_numbers_below_the_normal_ones_may_count_as_zero(mode: str) -> None:
    tiny = torch.finfo(torch.bfloat16).tiny
    problem = Problem(mode, dtype=torch.bfloat16, T=3, B=12, I=8, bias=False, states_given=False)
    with torch.no_grad():
        problem.x.copy_(torch.linspace(0, tiny, problem.x.numel()).view_as(problem.x))
        for ours, theirs in zip(problem.rnnfast(), problem.torch(), strict=True):
            assert (ours.double() - theirs.double()).abs().max() <= 8 * tiny


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [30.0, 1e4, 1e30])
def test_saturated_gates_stay_finite(mode: str, size: float) -> None:
    problem = Problem(mode, dtype=torch.bfloat16, H=19, B=5)
    if mode == "RNN_RELU":
        size = min(size, 1e4)  # it grows with every step
    with torch.no_grad():
        problem.x.mul_(size)
        for ours, theirs in zip(problem.rnnfast(), problem.torch(), strict=True):
            assert ours.isfinite().all()
            largest = theirs.abs().max().item()
            torch.testing.assert_close(ours, theirs, rtol=4e-2, atol=4e-2 * max(1.0, largest))


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_a_call_repeats_bit_by_bit_and_changes_nothing(name: str) -> None:
    """With any number of threads."""
    layer = getattr(rnnfast, name)(33, 96, num_layers=2, bidirectional=True, dtype=torch.bfloat16)
    assert isinstance(layer, nn.RNNBase)
    x = torch.randn(12, 17, 33, dtype=torch.bfloat16)
    before = [t.clone() for t in (x, *layer.parameters())]
    threads = torch.get_num_threads()
    with torch.inference_mode():
        first = layer(x)[0]
        for count in (threads, 1, 2):
            torch.set_num_threads(count)
            assert torch.equal(layer(x)[0], first)
    torch.set_num_threads(threads)
    assert all(map(torch.equal, before, (x, *layer.parameters())))


@needs_products
@pytest.mark.parametrize("mode", MODES)
def test_autocast_multiplies_bfloat16(mode: str) -> None:
    """Whatever dtype the results have, as in torch.nn."""
    problem = Problem(mode, dtype=torch.float32, T=12, B=23, I=65, H=80)
    half = Problem(mode, dtype=torch.bfloat16, T=12, B=23, I=65, H=80)
    with torch.no_grad():
        for a, b in zip(half.leaves, problem.leaves, strict=True):
            a.copy_(b)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        found = problem.rnnfast()
    with torch.no_grad():
        wanted = half.rnnfast()
    assert all(torch.equal(a.bfloat16(), b) for a, b in zip(found, wanted, strict=True))
