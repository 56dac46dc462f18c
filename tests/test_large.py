"""Sizes at which other code runs than on small ones.

Several chunks of steps, both ways to split the work over threads.

Catches a chunk that begins at the wrong row (in one direction only, say), a thread that leaves its
share undone, a sum whose order depends on how the work is shared.
"""

from typing import Any

import pytest
import torch
from precision import assert_no_less_precise, relative_errors
from problems import MODES, TOLERANCE, Problem, assert_close, gradients
from torch import Tensor

from rnnfast import _C

LENGTHS = (80, 80, 77, *range(30, 0, -1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("features", [1, 65])
@pytest.mark.parametrize("mode", MODES)
def test_several_chunks(
    mode: str,
    features: int,
    bidirectional: bool,
    lengths: tuple[int, ...] | None,
    threads: int,
) -> None:
    """A chunk forward, and one backward, begins where the one before it ended."""
    problem = Problem(
        mode, T=80, B=33, I=features, H=130, bidirectional=bidirectional, lengths=lengths
    )
    plan = _C.plan(problem.cell, "float64", 80, 33, features, 130, 1 + bidirectional, threads)
    assert max(plan["chunk_steps"], plan["grad_chunk_steps"]) < 80, "several chunks, please"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = problem.rnnfast(), problem.torch()
        assert_close(ours, theirs, TOLERANCE[torch.float64])
        grads = [gradients(values, problem.leaves) for values in (ours, theirs)]
        assert_close(*grads, TOLERANCE[torch.float64])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("B", "H"), [(9, 7), (3, 21), (9, 100), (40, 21)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_one_step_from_states(mode: str, bidirectional: bool, B: int, H: int) -> None:
    """With T = 1, weights are used as they stand for few rows, and packed for 40."""
    problem = Problem(mode, T=1, B=B, I=5, H=H, bidirectional=bidirectional)
    ours, theirs = problem.rnnfast(), problem.torch()
    assert_close(ours, theirs, TOLERANCE[torch.float64])
    grads = [gradients(values, problem.leaves) for values in (ours, theirs)]
    assert_close(*grads, TOLERANCE[torch.float64])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_long_sums(mode: str, bidirectional: bool) -> None:
    """Sums of 253 to 2240 products in float32: their error stays torch's."""
    shape: dict[str, Any] = {"T": 70, "B": 32, "I": 253, "H": 384, "bidirectional": bidirectional}

    def results(values: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
        return [t.detach().double() for t in (*values, *gradients(values, leaves)) if t is not None]

    errors: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for seed in range(1 if bidirectional else 2):
        problem = Problem(mode, dtype=torch.float32, seed=seed, **shape)
        exact = Problem(mode, seed=seed, **shape)
        with torch.no_grad():
            for own, other in zip(exact.leaves, problem.leaves, strict=True):
                own.copy_(other)
        truth = results(exact.torch(), exact.leaves)
        theirs = results(problem.torch(), problem.leaves)
        ours = results(problem.rnnfast(), problem.leaves)
        for i, (t, b, a) in enumerate(zip(truth, theirs, ours, strict=True)):
            our_errors, their_errors = errors.setdefault(i, ([], []))
            our_errors.append(relative_errors([a], [t]))
            their_errors.append(relative_errors([b], [t]))
    half_a_unit = torch.finfo(torch.float32).eps / 2
    for i, pair in errors.items():
        assert_no_less_precise(*pair, factor=2, floor=half_a_unit, name=f"tensor {i}")


@pytest.mark.parametrize("rows", [(1, 40), (2, 9), (3, 1), (40, 1), (24, 11), (4, 33)], ids=str)
@pytest.mark.parametrize("H", [32, 300])
@pytest.mark.parametrize("mode", MODES)
def test_results_do_not_depend_on_the_number_of_threads(
    mode: str, H: int, rows: tuple[int, int]
) -> None:
    """How many threads share a call may change from one call to the next: no bit may."""
    T, B = rows
    problem = Problem(mode, T=T, B=B, I=70, H=H)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            values = problem.rnnfast()
            results.append([*values, *gradients(values, problem.leaves)])
        finally:
            torch.set_num_threads(before)
    for alone, shared in zip(*results, strict=True):
        assert torch.equal(alone, shared)
