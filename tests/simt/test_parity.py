"""The CUDA driver and its kernels, on the emulator, against the reference in float64: beside the
tests of test_ops.py, which run there too.

Catches whatever a kernel or the driver computes wrongly: a wrong offset, a row of a packed sequence
taken for another, a state or a gradient left out, sums whose order follows the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from covering import covering
from emulated import KERNELS, Simt, gate_by_gate
from problems import (
    CELLS,
    MODES,
    TOLERANCE,
    Problem,
    assert_close,
    assert_gradients_close,
    cotangents,
)
from torch import Tensor

from rnnfast import _C, ops, reference, spec

# A layer of one unit or input, of more units than a block has threads, a batch at and beside the
# tiles of 8 rows, sequences of one step, packed ones in all forms; rows that can be copied 16 bytes
# at a time, for more steps than are under way at once.
SHAPES: list[dict[str, Any]] = [
    {},
    {"bidirectional": True, "states_given": False},
    {"bias": False, "T": 2, "B": 8, "H": 17},
    {"T": 1, "B": 9, "H": 5, "bidirectional": True},
    {"T": 1, "B": 1, "H": 1, "I": 1, "states_given": False},
    {"T": 2, "B": 17, "H": 33, "I": 1},
    {"T": 2, "B": 3, "H": 131, "bidirectional": True},
    {"lengths": (5, 4, 4, 1), "bidirectional": True},
    {"lengths": (5, 4, 4, 1), "bidirectional": True, "states_given": False, "bias": False},
    {"lengths": (5, 2, 1)},
    {"lengths": (3, 3, 3), "bidirectional": True},
    {"lengths": (4,), "bidirectional": True, "H": 7},
    {"lengths": (1, 1, 1, 1, 1, 1, 1, 1, 1), "states_given": False},
    {"lengths": (9, 8, 8, 7, 5, 5, 5, 2, 1, 1), "bidirectional": True, "H": 9},
    {"lengths": (9, 8, 8, 7, 5, 5, 5, 2, 1, 1), "bidirectional": True, "H": 40},
    {"T": 6, "B": 9, "H": 24, "bidirectional": True},
]
KEPT = [{}, {"lengths": (5, 4, 4, 1)}]  # where one dense and one packed sequence say enough
# Kernel, dtype, and whether its products may round their operands to TF32.
RUNS = [("step", torch.float64, False)]
RUNS += [(kernel, dtype, False) for kernel in KERNELS for dtype in [*TOLERANCE][1:]]
RUNS += [(kernel, torch.float32, True) for kernel in KERNELS if kernel != "step"]
TF32_TOLERANCE = 2e-3


def name(value: object) -> str:
    return str(value).replace("torch.", "")


def kept(problem: Problem, simt: Simt) -> tuple[list[Tensor], list[Tensor]]:
    """The values ``[output, *states_n]`` and the reserve."""
    output, states_n, reserve = simt.layer(*problem.layer_arguments(True))
    return [output, *states_n], reserve


def backward_arguments(
    problem: Problem, simt: Simt, found: tuple[list[Tensor], list[Tensor]] | None = None
) -> list[Any]:
    """As ``Problem.backward_arguments``, with the reserve of the emulator: of ``kept``."""
    values, reserve = found or kept(problem, simt)
    cell, x, batch_sizes, _, weights, bidirectional, _ = problem.layer_arguments(True)
    output, *grads = cotangents(values)
    needs = [True] * (len(values) + len(weights))
    return [cell, output, grads, x, batch_sizes, weights, bidirectional, reserve, needs]


def expected(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Values and gradients of the reference, in float64 from the numbers of the problem."""
    leaves = [t.detach().double().requires_grad_() for t in problem.leaves]
    x, *rest = leaves
    states, weights = rest[: len(problem.states)], rest[len(problem.states) :]
    sizes = None if problem.batch_sizes is None else problem.batch_sizes.tolist()
    output, states_n = reference.layer(
        problem.cell, x, sizes, states, weights, problem.bidirectional
    )
    values = [output, *states_n]
    grads = [c.double() for c in cotangents([v.to(problem.dtype) for v in values])]
    if not any(v.requires_grad for v in values):
        return values, []
    return values, list(torch.autograd.grad(values, leaves, grads, allow_unused=True))


def check(problem: Problem, simt: Simt, tolerance: float | None = None) -> None:
    tolerance = tolerance or TOLERANCE[problem.dtype]
    values, gradients = expected(problem)
    given, reserve = kept(problem, simt)
    assert_close([v.double() for v in given], [v.detach() for v in values], tolerance)
    arguments = backward_arguments(problem, simt)
    grads = simt.layer_backward(*arguments)
    assert all(g.dtype == problem.dtype and g.is_contiguous() for g in grads)
    if problem.cell == "rnn_relu" and tolerance >= TF32_TOLERANCE:
        # Its slope jumps: only from the same states the gradients are the same.
        arguments[7] = gate_by_gate([t.float() for t in reserve])
        assert_gradients_close(grads, list(ops.layer_backward(*arguments)), tolerance)
        return
    if not problem.states:
        del grads[1 : len(given)]
    assert_gradients_close(grads, gradients, tolerance)


def check_what_is_not_finite(
    mode: str, simt: Simt, bad: float, dtype: torch.dtype, hidden: int
) -> None:
    """One number of x, and one of the output's gradient, where the CPU keeps what comes of it."""
    problem = Problem(mode, dtype=dtype, T=4, B=6, H=hidden, states_given=False)
    cell, x, sizes, states, weights, both, _ = problem.layer_arguments(False)
    x = x.clone()
    x[1, 2, 0] = bad
    arguments = (cell, x, sizes, states, weights, both, False)
    output, states_n, _ = simt.layer(*arguments)
    wanted, wanted_n, _ = ops.layer(*arguments)
    found, right = [output, *states_n], [wanted, *wanted_n]
    given = backward_arguments(problem, simt)
    given[1] = given[1].clone()
    given[1][2, 2, 0] = bad
    found.append(simt.layer_backward(*given)[0])
    given[7] = gate_by_gate([t.float() for t in given[7]])
    right.append(ops.layer_backward(*given)[0])
    for a, b in zip(found, right, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
        torch.testing.assert_close(
            a.nan_to_num(), b.nan_to_num(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


@covering("mode, run, shape", MODES, RUNS, SHAPES, ids=name)
@pytest.mark.usefixtures("_library")
def test_values_and_gradients(
    mode: str, run: tuple[str, torch.dtype, bool], shape: dict[str, Any]
) -> None:
    kernel, dtype, tf32 = run
    torch.backends.cudnn.allow_tf32 = tf32
    check(Problem(mode, dtype=dtype, **shape), Simt(kernel), TF32_TOLERANCE if tf32 else None)


@pytest.fixture
def _no_grids(_library: None) -> Iterator[None]:
    torch.ops.rnnfast_simt.set_cooperative_blocks(0)
    yield
    torch.ops.rnnfast_simt.set_cooperative_blocks(1 << 20)


@pytest.mark.usefixtures("_no_grids")
@pytest.mark.parametrize("mode", MODES)
def test_what_the_device_refuses_runs_step_by_step(mode: str) -> None:
    problem = Problem(mode, dtype=torch.bfloat16, lengths=(3, 2))
    results = []
    for simt in (Simt("grid"), Simt("step")):
        values, reserve = kept(problem, simt)
        grads = simt.layer_backward(*backward_arguments(problem, simt))
        results.append([*values, *reserve, *grads])
    assert_close(*results, 0)


@pytest.fixture
def _matmul_precision() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("_matmul_precision")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_precision_of_other_products_is_no_matter(precision: str, simt: Simt) -> None:
    """Torch's older questions about TF32 raise an error once somebody has used its newer switch."""
    torch.backends.cuda.matmul.fp32_precision = precision
    check(Problem("GRU", dtype=torch.float32), simt)


GRID = {"T": 3, "B": 9, "H": 30, "I": 2}  # larger ones take the emulator long


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape", [GRID, {"lengths": (4, 2, 1), "bidirectional": True, "H": 9}], ids=name
)
@pytest.mark.usefixtures("_library")
def test_a_grid(mode: str, shape: dict[str, Any]) -> None:
    """Of float32; what runs grids in 16 bits has tests of its own."""
    check(Problem(mode, dtype=torch.float32, **shape), Simt("grid"))


def first_kernel(problem: Problem, tf32: bool, kernel: str, hidden: int, backward: bool) -> str:
    """What the plan runs on the GPU that the emulator stands for."""
    dtype = name(problem.dtype)
    hopper = {"arch": 90, "processors": 132, "shared_bytes": 227 << 10, "max_cluster": 16}
    plan = _C.cuda_plan(
        problem.cell, dtype, 2, 3, hidden, 1, backward=backward, tf32=tf32, kernel=kernel, **hopper
    )[0]
    return plan["kernel"]


KINDS = [
    (torch.float32, False),
    (torch.float32, True),
    (torch.bfloat16, False),
    (torch.float16, False),
]
INSTANCES = [
    *(("cta", size) for size in (64, 128, 256)),
    *(("cluster", size) for size in (128, 256, 384, 512, 768, 1024)),
    *(("grid", size) for size in (256, 512, 1024, 2048)),
]


@covering("mode, kind, instance", MODES, KINDS, INSTANCES, ids=name)
@pytest.mark.usefixtures("_library")
def test_every_size_of_kernel(
    mode: str, kind: tuple[torch.dtype, bool], instance: tuple[str, int]
) -> None:
    """Just below the size that an instance serves, and by the kernel that the plan has for it."""
    (dtype, tf32), (kernel, hidden) = kind, instance
    if kernel == "grid" and (tf32 or dtype != torch.float32):
        pytest.skip("another family of kernels, in test_grid.py")
    torch.backends.cudnn.allow_tf32 = tf32
    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[dtype]
    problem = Problem(mode, T=2, B=3, I=2, H=hidden - 3, dtype=dtype, states_given=False)
    wanted = [first_kernel(problem, tf32, kernel, hidden - 3, b) for b in (False, True)]
    if wanted == ["step", "step"]:
        pytest.skip(f"no {kernel} kernel of that size for this cell and dtype")
    simt = Simt(kernel)
    torch.ops.rnnfast_simt.launched()
    found = kept(problem, simt)
    arguments = backward_arguments(problem, simt, found)
    gradients = simt.layer_backward(*arguments)
    assert torch.ops.rnnfast_simt.launched() == [w for w in wanted if w != "step"]
    # The CPU kernels, which other tests prove, on the same numbers and from the same reserve.
    output, states_n, _ = ops.layer(*problem.layer_arguments(True))
    assert_close(found[0], [output, *states_n], tolerance)
    arguments[7] = gate_by_gate([t.float() for t in arguments[7]])
    assert_gradients_close(gradients, list(ops.layer_backward(*arguments)), tolerance)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(0, 3), (4, 0)], ids=["I=0", "H=0"])
@pytest.mark.parametrize("bias", [True, False])
def test_no_inputs_or_units(cell: str, sizes: tuple[int, int], bias: bool, simt: Simt) -> None:
    inputs, hidden = sizes
    rows = spec.CELLS[cell].gates * hidden
    shapes = [(rows, inputs), (rows, hidden), *[(rows,)] * (2 * bias)]
    weights = [torch.randn(*shape, dtype=simt.dtype) for shape in shapes]
    arguments = (cell, torch.randn(2, 3, inputs, dtype=simt.dtype), None, [], weights, False)
    output, states_n, reserve = simt.layer(*arguments, True)
    wanted, wanted_n, kept_there = ops.layer(*arguments, True)
    tolerance = simt.tolerance
    assert_close([output, *states_n], [wanted, *wanted_n], tolerance)
    assert_close(gate_by_gate(reserve), kept_there, tolerance)
    grads = [torch.randn_like(s) for s in states_n]
    needs = [True] * (1 + len(states_n) + len(weights))
    given = (cell, output, grads, arguments[1], None, weights, False)
    assert_close(
        simt.layer_backward(*given, reserve, needs),
        ops.layer_backward(*given, gate_by_gate(reserve), needs),
        tolerance,
    )


@pytest.mark.usefixtures("_library")
def test_many_lengths() -> None:
    """More runs of equal batch sizes than one launch writes to the device."""
    lengths = tuple(range(130, 0, -1))
    check(Problem("GRU", lengths=lengths, I=2, H=2, bidirectional=True), Simt("step"))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_reserve_is_that_of_the_cpu(
    mode: str, dtype: torch.dtype, shape: dict[str, Any], simt: Simt
) -> None:
    problem = Problem(mode, bidirectional=True, dtype=dtype, **shape)
    _, reserve = kept(problem, simt)
    _, _, wanted = problem.layer(train=True)
    assert_close(gate_by_gate(reserve), [t.to(dtype) for t in wanted], TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name)
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_every_schedule_gives_the_same_bits(
    mode: str, dtype: torch.dtype, shape: dict[str, Any], simt: Simt
) -> None:
    problem = Problem(mode, bidirectional=True, dtype=dtype, **shape)
    values, reserve = kept(problem, simt)
    arguments = backward_arguments(problem, simt)
    gradients = simt.layer_backward(*arguments)
    for seed in range(1, 4):
        other = simt._replace(seed=seed)
        again, again_reserve = kept(problem, other)
        assert_close([*again, *again_reserve], [*values, *reserve], 0)
        assert_close(other.layer_backward(*arguments), gradients, 0)


def test_the_reserve_of_half_types_is_half(simt: Simt) -> None:
    arguments = backward_arguments(Problem("GRU", dtype=torch.bfloat16), simt)
    arguments[7] = [t.float() for t in arguments[7]]
    with pytest.raises(RuntimeError, match="reserve must be of dtype BFloat16"):
        simt.layer_backward(*arguments)


def test_the_ops_run_here(simt: Simt) -> None:
    """In the place of the CPU's kernels, through autograd too, and only for that long."""
    problem = Problem("GRU", dtype=simt.dtype)
    torch.ops.rnnfast_simt.count_launches()
    with simt.in_place_of_the_cpu():
        problem.layer()
        assert torch.ops.rnnfast_simt.count_launches() > 0
        values = problem.rnnfast()
        assert torch.ops.rnnfast_simt.count_launches() > 0
        torch.autograd.grad(values, problem.leaves, cotangents(values))
        assert torch.ops.rnnfast_simt.count_launches() > 0
    problem.layer()
    assert torch.ops.rnnfast_simt.count_launches() == 0
