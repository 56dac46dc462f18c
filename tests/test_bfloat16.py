"""Inference in bfloat16, where the CPU multiplies it and where it is widened.

Catches a product that loses the last of an odd number, a state rounded where it should be kept, a
row that reads its neighbour, and an error above torch.nn's own in that type.
"""

from typing import Any

import pytest
import torch
from precision import assert_no_less_precise, relative_errors
from problems import MODES, Problem
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


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def exact(problem: Problem, shape: dict[str, Any]) -> list[Tensor]:
    """torch.nn in float64, from the same numbers."""
    wide = Problem(problem.mode, dtype=torch.float64, **shape)
    with torch.no_grad():
        for a, b in zip(wide.leaves, problem.leaves, strict=True):
            a.copy_(b)
        return wide.torch()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_error_is_at_most_torchs(mode: str, shape: dict[str, Any]) -> None:
    our_errors, their_errors = [], []
    for seed in range(64 if shape.get("T") == 1 else 8):  # one step gives few numbers
        problem = Problem(mode, dtype=torch.bfloat16, seed=seed, **shape)
        truth = exact(problem, {**shape, "seed": seed})
        with torch.no_grad():
            ours, theirs = problem.rnnfast(), problem.torch()
        assert [(t.dtype, t.shape) for t in ours] == [(t.dtype, t.shape) for t in theirs]
        our_errors.append(relative_errors(ours, truth))
        their_errors.append(relative_errors(theirs, truth))
    half_a_unit = torch.finfo(torch.bfloat16).eps / 2
    assert_no_less_precise(our_errors, their_errors, factor=1.2, floor=half_a_unit)


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


@pytest.mark.skipif(
    _library.INSTRUCTION_SET != "avx512bf16", reason="no products of bfloat16 are loaded"
)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("B", [1, 16])
def test_inference_multiplies_bfloat16_and_training_does_not(mode: str, B: int) -> None:
    """The state that training multiplies has more digits; the outputs are close all the same."""
    problem = Problem(mode, dtype=torch.bfloat16, T=30, B=B, I=64, H=64)
    inference, training = problem.layer(train=False), problem.layer(train=True)
    assert not torch.equal(inference[0], training[0])
    torch.testing.assert_close(inference[0], training[0], rtol=2e-2, atol=2e-2)
    assert [t.dtype for t in training[2]] == [torch.float32] * len(training[2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("B", [3, 12])
@pytest.mark.parametrize("H", [31, 33])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_in_their_row(mode: str, B: int, H: int, poison: float) -> None:
    """And spread there as in training, which calculates in float32."""
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
