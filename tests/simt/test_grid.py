"""The kernels of the grid family on the emulator.

Thousands of threads at a time are slow there, so sizes and steps are few; what a shape of kernel
differs in from the others is run for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from covering import covering
from emulated import Simt, unit_by_unit
from problems import MODES, TOLERANCE, Problem, assert_close
from test_parity import (
    TF32_TOLERANCE,
    assert_gradients_close,
    backward_arguments,
    check,
    expected,
    kept,
    name,
)

from rnnfast import _C, ops
from rnnfast.spec import CELLS

DTYPES = [torch.bfloat16, torch.float16]
HOPPER = {"arch": 90, "shared_bytes": 227 << 10, "max_cluster": 16}
# On 8 processors an instance for H <= 256 has one group of CTAs per direction, which takes the
# batch in parts of 16 rows: one direction on 8, both on 16. Ends of rows within and between parts.
SMALL: list[tuple[int, dict[str, Any]]] = [
    (8, {"T": 3, "B": 9, "H": 30}),
    (8, {"T": 2, "B": 1, "H": 1, "I": 1, "states_given": False}),
    (8, {"T": 1, "B": 17, "H": 33, "bias": False}),
    (16, {"T": 3, "B": 19, "H": 34, "bidirectional": True, "states_given": False}),
    (16, {"lengths": (4, 3) + (2,) * 15 + (1,) * 16, "H": 7, "bidirectional": True}),
    (32, {"lengths": (3,) * 16 + (2,) * 17, "H": 18, "bidirectional": True}),
]


class Instance(NamedTuple):
    """A shape of kernel: H at most, the CTAs of a group, and the rows of a part."""

    hidden: int
    peers: int
    part: int


INSTANCES = {
    Instance(256, 8, 16),
    Instance(512, 32, 16),
    Instance(512, 16, 16),
    Instance(768, 48, 8),
    Instance(768, 48, 16),
    Instance(768, 24, 8),
    Instance(768, 24, 16),
    Instance(1024, 64, 8),
    Instance(1024, 64, 16),
    Instance(1024, 32, 8),
    Instance(1024, 32, 16),
    Instance(2048, 128, 16),
}
# Dtype, and whether products may round their operands to TF32.
RUNS = [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)]
RUNS += [(torch.float32, False)]


@pytest.fixture(autouse=True)
def _processors(_library: None) -> Iterator[None]:
    yield
    torch.ops.rnnfast_simt.set_processors(132)


def grids(problem: Problem, processors: int, backward: bool) -> list[dict[str, Any]]:
    """The plan's entries of the family, in its order."""
    plans = _C.cuda_plan(
        problem.cell,
        name(problem.dtype),
        5,
        problem.B,
        problem.H,
        1 + problem.bidirectional,
        backward=backward,
        tf32=torch.backends.cudnn.allow_tf32,
        kernel="grid",
        processors=processors,
        **HOPPER,
    )
    return [plan for plan in plans if plan["kernel"] == "grid"]


def entry_of(problem: Problem, instance: Instance, backward: bool) -> int | None:
    """Which of the entries has that shape."""
    for i, plan in enumerate(grids(problem, 132, backward)):
        if instance == (plan["hidden"], plan["peers"], plan["part"]):
            return i
    return None


@covering("dtype, mode, size", DTYPES, MODES, SMALL, ids=name)
def test_values_and_gradients(
    dtype: torch.dtype, mode: str, size: tuple[int, dict[str, Any]]
) -> None:
    processors, shape = size
    torch.ops.rnnfast_simt.set_processors(processors)
    check(Problem(mode, dtype=dtype, **shape), Simt("grid"))


# On 32 processors H <= 512 has one group, which takes the batch in parts of 16 rows.
IN_TWO_PARTS: list[tuple[int, dict[str, Any]]] = [
    (32, {"T": 2, "B": 19, "H": 30}),
    (32, {"T": 2, "B": 1, "H": 1, "I": 1, "states_given": False}),
    (64, {"lengths": (2,) + (1,) * 17, "H": 7, "bidirectional": True}),
]


@covering("mode, size", MODES, IN_TWO_PARTS, ids=name)
def test_float32_as_two_parts(mode: str, size: tuple[int, dict[str, Any]]) -> None:
    processors, shape = size
    torch.ops.rnnfast_simt.set_processors(processors)
    problem = Problem(mode, dtype=torch.float32, **shape)
    forward, backward = (
        Simt(f"grid/{[p['part'] for p in grids(problem, processors, way)].index(16)}")
        for way in (False, True)
    )
    values, gradients = expected(problem)
    torch.ops.rnnfast_simt.launched()
    found = kept(problem, forward)
    grads = backward.layer_backward(*backward_arguments(problem, forward, found))
    assert torch.ops.rnnfast_simt.launched() == ["grid", "grid"]
    assert_close(
        [v.double() for v in found[0]], [v.detach() for v in values], TOLERANCE[torch.float32]
    )
    if not problem.states:
        del grads[1 : len(values)]
    assert_gradients_close(grads, gradients, TOLERANCE[torch.float32])


@covering("mode, run, instance", MODES, RUNS, sorted(INSTANCES), ids=name)
def test_every_instance(mode: str, run: tuple[torch.dtype, bool], instance: Instance) -> None:
    """Just below the size that it serves. From the CPU's reserve, which other tests prove."""
    dtype, torch.backends.cudnn.allow_tf32 = run
    tolerance = TF32_TOLERANCE if run[1] else TOLERANCE[dtype]
    problem = Problem(mode, T=2, B=3, I=2, H=instance.hidden - 3, dtype=dtype, states_given=False)
    entries = [entry_of(problem, instance, backward) for backward in (False, True)]
    if entries == [None, None]:
        pytest.skip("no such kernel for this cell and dtype")
    output, states_n, reserve = ops.layer(*problem.layer_arguments(True))
    torch.ops.rnnfast_simt.launched()
    if entries[0] is not None:
        values, _ = kept(problem, Simt(f"grid/{entries[0]}"))
        assert_close(values, [output, *states_n], tolerance)
        assert torch.ops.rnnfast_simt.launched() == ["grid"]
    if entries[1] is not None:
        stored = [t.to(dtype) for t in reserve]
        found = [output, *states_n], unit_by_unit(stored)
        arguments = backward_arguments(problem, Simt("step"), found)
        gradients = Simt(f"grid/{entries[1]}").layer_backward(*arguments)
        assert torch.ops.rnnfast_simt.launched() == ["grid"]
        arguments[7] = [t.float() for t in stored]
        assert_gradients_close(gradients, list(ops.layer_backward(*arguments)), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_units_that_do_not_exist_make_no_nan_of_infinity(dtype: torch.dtype) -> None:
    """The second one of the last pair; weights without a sign keep infinity what it is."""
    problem = Problem("RNN_RELU", dtype=dtype, T=4, B=3, H=21, bias=False)
    cell, x, sizes, (h_0,), weights, both, _ = problem.layer_arguments(True)
    x, h_0, weights = x.abs(), h_0.abs(), [w.abs() for w in weights]
    h_0[0, 1, 0] = float("inf")
    needs, results = [True] * (2 + len(weights)), []
    for op in (Simt("grid"), ops):
        output, states_n, reserve = op.layer(cell, x, sizes, [h_0], weights, both, True)
        grad = torch.ones_like(output)
        grad[3, 1, 0] = float("inf")
        grads = op.layer_backward(cell, grad, [None], x, sizes, weights, both, reserve, needs)
        results.append([output, *states_n, *grads[:2]])
    assert all(t[..., 1, :].isinf().all() for t in results[1][1:])
    assert [t.isnan().any() for t in results[0]] == [False] * len(results[0])


@pytest.mark.parametrize("run", RUNS, ids=name)
@pytest.mark.parametrize("backward", [False, True])
def test_the_instances_are_those_tested(run: tuple[torch.dtype, bool], backward: bool) -> None:
    for cell in CELLS:
        plans = _C.cuda_plan(
            cell, name(run[0]), 5, 3, 9, 1, backward=backward, tf32=run[1], kernel="grid",
            processors=132, **HOPPER,
        )  # fmt: skip
        grids = [p for p in plans if p["kernel"] == "grid"]
        if run == (torch.float32, False):  # those in parts of 8 rows are test_parity.py's
            grids = [p for p in grids if p["part"] == 16]
        shapes = [(p["hidden"], p["peers"], p["part"]) for p in grids]
        assert set(shapes) <= INSTANCES
        assert len(set(shapes)) == len(shapes)


def test_a_batch_in_parts() -> None:
    """As many rows as a group takes, in several parts, where all CTAs fit at once."""
    problem = Problem("GRU", B=40, H=30, dtype=torch.bfloat16)
    few = {plan["hidden"]: plan for plan in grids(problem, 8, False)}[256]
    assert (few["rows"], few["tiles"], few["part"]) == (48, 1, 16)
    many = {plan["hidden"]: plan for plan in grids(problem, 132, False)}[256]
    assert (many["rows"], many["tiles"], many["part"]) == (16, 3, 16)


@pytest.mark.parametrize("mode", ["GRU", "LSTM"])
@pytest.mark.parametrize("shape", [{"T": 36, "B": 3}, {"lengths": (36, 20, 19) + (18,) * 15}])
def test_the_ring_goes_round(mode: str, shape: dict[str, Any]) -> None:
    """More steps than the exchange has memory for, twice, and the same bits by every schedule."""
    torch.ops.rnnfast_simt.set_processors(8)
    problem = Problem(mode, I=2, H=20, dtype=torch.bfloat16, **shape)
    check(problem, Simt("grid"))
    values, reserve = kept(problem, Simt("grid"))
    arguments = backward_arguments(problem, Simt("grid"), (values, reserve))
    gradients = Simt("grid").layer_backward(*arguments)
    for seed in range(1, 4):
        again, again_reserve = kept(problem, Simt("grid", seed))
        assert_close([*again, *again_reserve], [*values, *reserve], 0)
        assert_close(Simt("grid", seed).layer_backward(*arguments), gradients, 0)


@pytest.mark.parametrize("run", RUNS, ids=name)
def test_a_nan_is_not_a_missing_word(run: tuple[torch.dtype, bool]) -> None:
    """All bits of the words that are awaited are ones before they come, as those of some NaNs."""
    dtype, torch.backends.cudnn.allow_tf32 = run
    problem = Problem("GRU", T=2, B=2, I=2, H=6, dtype=dtype)
    cell, x, sizes, states, weights, both, _ = problem.layer_arguments(True)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    nans = torch.full_like(states[0], -1, dtype=bits).view(dtype)
    assert nans.isnan().all()
    nans[:, 1] = 0  # rows know nothing of each other
    simt = Simt("grid")
    output, _, reserve = simt.layer(cell, x, sizes, [nans], weights, both, True)
    assert output[:, 0].isnan().all()
    assert output[:, 1].isfinite().all()
    grad = torch.zeros_like(output)
    grad[:, 0] = nans[0, 0]
    needs = [True] * (2 + len(weights))
    grads = simt.layer_backward(cell, grad, [None], x, sizes, weights, both, reserve, needs)
    assert grads[0][:, 0].isnan().all()
    assert grads[0][:, 1].isfinite().all()
