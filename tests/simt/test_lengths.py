"""How many rows are alive at each step, known to the device alone, on the emulator.

Catches a row that is read or written past its end, an end that another row is given, memory that
nobody wrote in a product, and a look at the lengths where none is needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from covering import covering
from emulated import Simt
from problems import MODES, TOLERANCE, Problem, assert_close, assert_gradients_close, cotangents
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import reference, segmented

pytestmark = pytest.mark.usefixtures("_library")

KERNELS = ("step", "small", "fma", "cta", "cluster", "auto")
# Rows alive at each step: all, none in the end, one alone, more than a tile; as they may be given.
ALIVE: list[tuple[int, ...]] = [
    (3, 3, 3, 3, 3),
    (5, 4, 4, 1, 1),
    (5, 4, 4, 1, 0, 0),
    (2, 1, 0),
    (1, 1, 1, 0),
    (10, 9, 8, 8, 5, 5, 2, 1, 1, 0),
    (19, 17, 17, 9, 3, 1),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def name(value: object) -> str:
    return str(value).replace("torch.", "")


def run(
    simt: Simt, problem: Problem, alive: Tensor
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Values, gradients of them, and those of the reference in float64."""
    cell, x, _, states, weights, both, _ = problem.layer_arguments(True)
    output, states_n, reserve = simt.layer(cell, x, alive, states, weights, both, True)
    again, again_n, nothing = simt.layer(cell, x, alive, states, weights, both, False)
    assert nothing == []
    assert_close([again, *again_n], [output, *states_n], 0)
    values = [output, *states_n]
    grad, *grads = cotangents(values)
    needs = [True] * (1 + len(states_n) + len(weights))
    found = simt.layer_backward(cell, grad, grads, x, alive, weights, both, reserve, needs)
    return values, found, [grad, *grads]


@covering(
    "mode, kernel, dtype, alive, bidirectional, H",
    *(MODES, KERNELS, DTYPES, ALIVE, [False, True], [6, 16, 70]),
    ids=name,
)
def test_values_and_gradients(
    mode: str,
    kernel: str,
    dtype: torch.dtype,
    alive: tuple[int, ...],
    bidirectional: bool,
    H: int,
) -> None:
    T, B = len(alive), alive[0]
    problem = Problem(mode, T=T, B=B, H=H, bidirectional=bidirectional, dtype=dtype)
    sizes = torch.tensor(alive)
    values, found, given = run(Simt(kernel), problem, sizes)
    leaves = [t.detach().double().requires_grad_() for t in problem.leaves]
    x, *rest = leaves
    count = len(problem.states)
    arguments = (problem.cell, x, sizes, rest[:count], rest[count:], bidirectional)
    output, states_n = reference.any_layer(*arguments)
    wanted = [output, *states_n]
    tolerance = TOLERANCE[dtype]
    assert_close([v.double() for v in values], [v.detach() for v in wanted], tolerance)
    dead = torch.arange(B) >= sizes.unsqueeze(1)
    assert not values[0][dead].any()
    if problem.cell == "rnn_relu" and dtype == torch.bfloat16:
        return  # its slope jumps
    grads = torch.autograd.grad(wanted, leaves, [g.double() for g in given])
    assert_gradients_close(found, list(grads), tolerance)
    assert not found[0][dead].any()


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
def test_a_grid(mode: str, dtype: torch.dtype) -> None:
    """Against the packed sequence of the same rows, to the bit."""
    alive, simt = torch.tensor([9, 7, 3, 0]), Simt("grid")
    problem = Problem(mode, T=4, B=9, H=30, I=2, bidirectional=True, dtype=dtype)
    values, found, (grad, *grads) = run(simt, problem, alive)
    cell, x, _, states, weights, both, _ = problem.layer_arguments(True)
    living = torch.arange(9) < alive.unsqueeze(1)
    sizes = alive[:3]
    output, states_n, reserve = simt.layer(cell, x[living], sizes, states, weights, both, True)
    assert_close([values[0][living], *values[1:]], [output, *states_n], 0)
    needs = [True] * len(found)
    packed = simt.layer_backward(
        cell, grad[living], grads, x[living], sizes, weights, both, reserve, needs
    )
    assert_close([found[0][living]], packed[:1], TOLERANCE[dtype])
    assert_gradients_close(found[1:], packed[1:], TOLERANCE[dtype])


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "auto"])
@pytest.mark.parametrize(
    "bad", [(9, -5, 10, 3), (0, 0, 0, 0), (-(2**62), 2**62, 5, 0), (1, 3, 3, 3)], ids=str
)
def test_no_number_leads_out_of_memory(kernel: str, bad: tuple[int, ...]) -> None:
    """All rows are alive at the first step, and none comes alive later."""
    problem = Problem("GRU", T=4, B=3, H=16, bidirectional=True, dtype=torch.float32)
    sizes = torch.tensor(bad).cummin(0)[0].clamp(0, 3)
    sizes[0] = 3
    found = run(Simt(kernel), problem, torch.tensor(bad))[:2]
    wanted = run(Simt(kernel), problem, sizes)[:2]
    assert_close([*found[0], *found[1]], [*wanted[0], *wanted[1]], 0)
    cell, x, _, states, weights, both, _ = problem.layer_arguments(True)
    output, states_n = reference.any_layer(cell, x, torch.tensor(bad), states, weights, both)
    assert_close([output, *states_n], found[0], TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    "bad",
    [torch.tensor([3, 2]), torch.tensor([3, 2, 2], dtype=torch.int32), torch.zeros(3, 1).long()],
    ids=str,
)
def test_refuses(bad: Tensor) -> None:
    cell, x, _, states, weights, both, _ = Problem("GRU", T=3).layer_arguments(True)
    with pytest.raises(RuntimeError, match="rnnfast::layer: batch_sizes must"):
        Simt("auto").layer(cell, x, bad, states, weights, both, True)


@pytest.fixture
def layers_on_the_emulator(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`lengths` of layers stay where they are, as on a GPU."""
    monkeypatch.setattr(segmented, "DEVICE", "cpu")
    simt = Simt("auto")
    with simt.in_place_of_the_cpu():
        yield simt


@pytest.mark.usefixtures("layers_on_the_emulator")
@pytest.mark.parametrize("cls", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_layers(cls: str, batch_first: bool, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As packing and padding torch.nn's, with what stands in the padding being no number."""
    monkeypatch.setattr(segmented.segments, "find", None)  # nobody looks at them
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    theirs = getattr(nn, cls)(5, 7, **options).double()
    ours = getattr(rnnfast, cls)(5, 7, **options).double()
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.tensor([2, 6, 1, 6, 3])
    x = torch.randn(5, 7, 5, dtype=torch.float64)
    padding = torch.arange(7) >= lengths.unsqueeze(1)
    x[padding] = torch.nan
    x = (x if batch_first else x.transpose(0, 1)).detach().requires_grad_()
    hx: Any = None
    if given:
        h = torch.randn(4, 5, 7, dtype=torch.float64)
        hx = (h, 2 * h) if cls == "LSTM" else h
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    expected, hidden = theirs(packed, hx)
    expected, _ = pad_packed_sequence(expected, batch_first, total_length=7)
    output, found = ours(x, hx, lengths=lengths)
    pair = cls == "LSTM"
    values, wanted = (
        [output, *(found if pair else [found])],
        [expected, *(hidden if pair else [hidden])],
    )
    assert_close(values, wanted, 1e-12)
    weights = cotangents(values)
    grads = torch.autograd.grad(values, [x, *ours.parameters()], weights)
    theirs_grads = torch.autograd.grad(wanted, [x, *theirs.parameters()], weights)
    assert_close(grads, theirs_grads, 1e-11)


@pytest.mark.usefixtures("layers_on_the_emulator")
@pytest.mark.parametrize("bad", [[0, 3], [3, 6], [-1, 2]])
def test_lengths_that_are_none_fail(bad: list[int]) -> None:
    layer = rnnfast.GRU(5, 7)
    with pytest.raises(RuntimeError, match="lengths must be from 1 to the number of steps, 5"):
        layer(torch.randn(5, 2, 5), lengths=torch.tensor(bad))


@pytest.mark.usefixtures("layers_on_the_emulator")
def test_explain_says_that_nobody_waits() -> None:
    layer, x = rnnfast.GRU(5, 7), torch.randn(5, 3, 5)
    explained = rnnfast.explain(layer, x, lengths=torch.tensor([5, 2, 4])).layers[0]
    assert explained.route == "fused"
    assert "lengths that nobody waits for" in explained.reason
    layer.recompute = True
    explained = rnnfast.explain(layer, x, lengths=torch.tensor([5, 2, 4])).layers[0]
    assert "3 stretches" in explained.reason


@pytest.mark.usefixtures("layers_on_the_emulator")
def test_second_derivatives() -> None:
    layer = rnnfast.GRU(2, 3, bidirectional=True).double()
    lengths, x = torch.tensor([1, 3]), torch.randn(4, 2, 2, dtype=torch.float64)

    def function(x: Tensor) -> tuple[Tensor, ...]:
        return layer(x, lengths=lengths)

    assert torch.autograd.gradcheck(function, x.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.usefixtures("layers_on_the_emulator")
def test_autocast_and_dropout_between_layers() -> None:
    layer = rnnfast.LSTM(5, 7, num_layers=2, dropout=0.5)
    x, lengths = torch.randn(5, 3, 5), torch.tensor([5, 2, 4])
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x, lengths=lengths)
    assert not output[torch.arange(5).unsqueeze(1) >= lengths].any()
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
