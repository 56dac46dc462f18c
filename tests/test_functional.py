"""Stacks and cells against torch.nn in float64, over the space of configurations.

Catches a wrong gate, a row of a packed batch that comes alive or ends at the wrong step, a
direction or layer that reads another's weights, SIMD tails, other draws of dropout, a wrong route.
"""

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import MODES, TOLERANCE, Problem, assert_close, assert_same_as_torch, gradients
from torch import Tensor

from rnnfast import functional

# Around the widths of the registers: 2, 4 and 8 doubles, 4, 8 and 16 floats.
SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33])
BATCHES = st.sampled_from([1, 2, 3, 4, 5, 8, 9, 17])
LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=9).map(
    lambda lengths: tuple(sorted(lengths, reverse=True))
)


@st.composite
def problems(draw: st.DrawFn, dtype: torch.dtype) -> Problem:
    return Problem(
        draw(st.sampled_from(MODES)),
        T=draw(st.integers(1, 9)),
        B=draw(BATCHES),
        I=draw(SIZES),
        H=draw(SIZES),
        layers=draw(st.integers(1, 3)),
        bidirectional=draw(st.booleans()),
        bias=draw(st.booleans()),
        lengths=draw(st.none() | LENGTHS),
        states_given=draw(st.booleans()),
        dtype=dtype,
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=120)
@given(problem=problems(torch.float64), subset=st.integers(0, 2**30))
def test_any_configuration_matches_torch(problem: Problem, subset: int) -> None:
    leaves = [leaf for i, leaf in enumerate(problem.leaves) if subset >> i & 1]
    for leaf in problem.leaves:
        leaf.requires_grad_(any(leaf is wanted for wanted in leaves))
    assert_same_as_torch(problem, leaves)


@settings(max_examples=30)
@given(problem=problems(torch.float32))
def test_any_configuration_matches_torch_in_float32(problem: Problem) -> None:
    assert_same_as_torch(problem, problem.leaves)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "changes",
    [
        {"T": 1},
        {"T": 1, "states_given": False},
        {"T": 1, "bidirectional": True, "layers": 2},
        {"B": 0},
        {"B": 0, "lengths": None, "bidirectional": True, "states_given": False},
        {"lengths": (5, 5, 5)},
        {"lengths": (1,)},
        {"lengths": (4, 2, 1), "bidirectional": True, "layers": 2, "states_given": False},
        {"B": 70, "H": 48, "T": 12, "I": 20},
        {"B": 33, "H": 40, "T": 11, "bidirectional": True},
    ],
    ids=str,
)
def test_edges_match_torch(mode: str, changes: dict[str, Any], device: str) -> None:
    problem = Problem(mode, device=device, **changes)
    assert_same_as_torch(problem, problem.leaves)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 4, 4, 1)], ids=["dense", "packed"])
def test_strides_do_not_matter(mode: str, lengths: tuple[int, ...] | None, device: str) -> None:
    problem = Problem(mode, lengths=lengths, bidirectional=True, device=device)
    contiguous = problem.rnnfast()
    expected = gradients(contiguous, problem.leaves)
    problem.x = strided(problem.x)
    problem.states = tuple(strided(s) for s in problem.states)
    weights = problem.module._flat_weights
    problem.module._flat_weights = [strided(w) for w in weights]
    results = problem.rnnfast()
    assert_close(results, contiguous, 0)
    assert_close(gradients(results, problem.leaves), expected, 1e-12)


def strided(t: Tensor) -> Tensor:
    """The same values in another layout: dimensions reversed in memory, gaps, an offset."""
    wide = torch.zeros([2 * n + 1 for n in reversed(t.shape)], dtype=t.dtype, device=t.device)
    view = wide[tuple(slice(1, None, 2) for _ in t.shape)].permute(*reversed(range(t.dim())))
    view.copy_(t.detach())
    return view.requires_grad_()


@pytest.mark.parametrize("mode", MODES)
def test_expanded_arguments(mode: str, device: str) -> None:
    problem = Problem(mode, device=device)
    row, state = problem.random(1, 1, problem.I), problem.random(1, 1, problem.H)
    problem.x = row.expand(problem.T, problem.B, -1)
    problem.states = tuple(state.expand(1, problem.B, -1) for _ in problem.states)
    leaves = [row, state, *problem.weights]
    ours, theirs = problem.rnnfast(), problem.torch()
    assert_close(ours, theirs, 1e-12)
    assert_close(gradients(ours, leaves), gradients(theirs, leaves), 1e-11)


@pytest.mark.parametrize("mode", MODES)
def test_batch_first_gives_a_transposed_view(mode: str) -> None:
    problem = Problem(mode, layers=2)
    transposed = problem.x.transpose(0, 1).contiguous()
    output, *states_n = problem.rnnfast(x=transposed, batch_first=True)
    expected, *expected_n = problem.torch()
    assert_close([output, *states_n], [expected.transpose(0, 1), *expected_n], 1e-12)
    assert output.stride() == expected.transpose(0, 1).stride()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 3, 3, 1)], ids=["dense", "packed"])
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_dropout_draws_as_torch_does(mode: str, lengths: tuple[int, ...] | None, p: float) -> None:
    problem = Problem(mode, layers=3, dropout=p, lengths=lengths, bidirectional=True)
    torch.manual_seed(5)
    theirs, after_theirs = problem.torch(), torch.get_rng_state()
    torch.manual_seed(5)
    ours, after_ours = problem.rnnfast(), torch.get_rng_state()
    assert_close(ours, theirs, 1e-12)
    assert_close(gradients(ours, problem.leaves), gradients(theirs, problem.leaves), 1e-11)
    assert torch.equal(after_ours, after_theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_that_does_nothing_draws_nothing(training: bool, layers: int) -> None:
    problem = Problem("GRU", layers=layers)
    problem.dropout = 0.0 if training and layers > 1 else 0.5
    problem.module.train(training)
    before = torch.get_rng_state()
    problem.rnnfast()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_stored_but_not_computed_in(
    mode: str, dtype: torch.dtype, device: str
) -> None:
    half = Problem(mode, bidirectional=True, dtype=dtype, device=device)
    exact = Problem(mode, bidirectional=True, device=device)
    with torch.no_grad():
        for a, b in zip(exact.leaves, half.leaves, strict=True):
            a.copy_(b)
    ours, expected = half.rnnfast(), exact.rnnfast()
    assert [t.dtype for t in ours] == [dtype] * len(ours)
    # One rounding of the result is all: half a unit in the last place of values up to one.
    for a, b in zip(ours, expected, strict=True):
        assert ((a.double() - b).abs() <= torch.finfo(dtype).eps * b.abs().clamp(min=0.01)).all()
    grads = gradients(ours, half.leaves)
    assert [g.dtype for g in grads if g is not None] == [dtype] * len(half.leaves)
    wanted = [w.to(dtype) for w in gradients(expected, exact.leaves) if w is not None]
    assert_close(grads, wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("states_given", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B", [0, 1, 5])
def test_cells_match_torch(mode: str, states_given: bool, bias: bool, B: int, device: str) -> None:
    problem = Problem(mode, T=1, B=B, bias=bias, states_given=states_given, device=device)
    biases = problem.weights[2:] or [None, None]
    states = [s[0] for s in problem.states]
    ours = functional.cell(mode, problem.x[0], states, *problem.weights[:2], *biases)
    theirs = [s[0] for s in problem.torch()[1:]]
    assert_close(ours, theirs, 1e-12)
    assert_close(gradients(ours, problem.leaves), gradients(theirs, problem.leaves), 1e-11)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [None, (5, 2)], ids=["dense", "packed"])
def test_meta_tensors_get_sizes_and_gradients(mode: str, lengths: tuple[int, ...] | None) -> None:
    problem = Problem(mode, layers=2, bidirectional=True, lengths=lengths, states_given=False)
    real = problem.rnnfast()
    problem.module.to("meta")
    problem.x = problem.x.detach().to("meta").requires_grad_()
    values = problem.rnnfast()
    assert [v.device.type for v in values] == ["meta"] * len(values)
    assert [(v.shape, v.stride(), v.dtype) for v in values] == [
        (v.shape, v.stride(), v.dtype) for v in real
    ]
    for create_graph in (True, False):
        grads = gradients(values, problem.leaves, create_graph=create_graph)
        assert [g.shape for g in grads if g is not None] == [t.shape for t in problem.leaves]


def test_gradients_under_no_grad_are_not_prepared() -> None:
    problem = Problem("LSTM", layers=2)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            values = problem.rnnfast()
        assert not any(v.requires_grad for v in values)
        assert [v.is_inference() for v in values] == [mode is torch.inference_mode] * 3
        assert_close(values, [v.detach() for v in problem.torch()], 1e-12)


def test_two_threads_at_once() -> None:
    problems = [Problem(mode, T=6, B=9, H=33, seed=i) for i, mode in enumerate(MODES)]
    expected = [gradients(p.torch(), p.leaves) for p in problems]
    results: list[Any] = [None] * len(problems)

    def work(i: int) -> None:
        for _ in range(5):
            results[i] = gradients(problems[i].rnnfast(), problems[i].leaves)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(results, expected, strict=True):
        assert_close(ours, theirs, 1e-10)
