"""One step in one launch, on the emulator: every instance, every alignment, and what is launched.

Catches a row of weights taken for another, the end of a row read past or left out, warps that get
nothing of a side, a kernel that reads what the one before it has not finished, and launches and
allocations for what nobody needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from emulated import Simt, gate_by_gate
from problems import MODES, TOLERANCE, Problem, assert_close
from test_parity import backward_arguments, check, kept, name
from torch import Tensor

from rnnfast import _C, ops

pytestmark = pytest.mark.usefixtures("_library")

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SINGLE = Simt("single")
# Sides that are wide and narrow, absent, at and beside the widths of loads and of mma.
SHAPES: list[dict[str, Any]] = [
    {"B": 1, "I": 1, "H": 1, "states_given": False},
    {"B": 1, "I": 64, "H": 64},
    {"B": 2, "I": 300, "H": 5, "bidirectional": True},
    {"B": 3, "I": 1, "H": 130, "bias": False},
    {"B": 4, "I": 33, "H": 17, "bidirectional": True},
    {"B": 8, "I": 36, "H": 20, "states_given": False},
    {"B": 9, "I": 2, "H": 34, "bidirectional": True, "bias": False, "states_given": False},
    {"B": 33, "I": 40, "H": 24, "bidirectional": True},
    {"lengths": (1, 1, 1), "I": 7, "H": 16, "bidirectional": True},
]


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Counts from zero, on a device of the usual size."""
    torch.ops.rnnfast_simt.count_launches()
    yield
    torch.ops.rnnfast_simt.set_processors(132)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("shape", SHAPES, ids=name)
def test_values_and_gradients(mode: str, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    problem = Problem(mode, dtype=dtype, **{"T": 1} | shape)
    SINGLE.layer(*problem.layer_arguments(False))
    assert torch.ops.rnnfast_simt.count_launches() == 1
    check(problem, SINGLE)


def units(mode: str, doublings: int) -> int:
    return (8 if mode.startswith("RNN") else 4) << doublings


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("dtype", "doublings", "batch"),
    [
        *((torch.float32, 0, batch) for batch in (1, 8, 32)),
        *((torch.bfloat16, n, batch) for n in (0, 1, 2) for batch in (8, 32)),
        *((torch.float16, n, batch) for n in (0, 1, 2) for batch in (8, 32)),
    ],
    ids=name,
)
def test_every_instance(mode: str, dtype: torch.dtype, doublings: int, batch: int) -> None:
    """On a device just large enough for it to be the best."""
    H, B = 61, {1: 1, 8: 7, 32: 30}[batch]
    blocks = -(-H // units(mode, doublings))
    hopper = {"arch": 90, "processors": blocks, "shared_bytes": 227 << 10, "max_cluster": 16}
    problem = Problem(mode, T=1, B=B, I=200, H=H, dtype=dtype)
    best = _C.cuda_plan(
        problem.cell, name(dtype), 1, B, H, 1, I=200, backward=False, tf32=False, **hopper
    )[0]
    assert (best["kernel"], best["peers"], best["rows"]) == ("single", blocks, batch)
    torch.ops.rnnfast_simt.set_processors(blocks)
    torch.ops.rnnfast_simt.launched()
    given, reserve = kept(problem, Simt("auto"))
    assert torch.ops.rnnfast_simt.launched() == ["single"]
    output, states_n, expected = ops.layer(*problem.layer_arguments(True))
    wanted = [output, *states_n, *(t.to(dtype) for t in expected)]
    assert_close([*given, *gate_by_gate(reserve)], wanted, TOLERANCE[dtype])


def moved(t: Tensor, elements: int) -> Tensor:
    """The same values, so many elements off the alignment of memory."""
    memory = t.new_empty(t.numel() + elements)
    return memory[elements:].view(t.shape).copy_(t)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("bytes_off", [4, 8])
def test_tensors_at_any_address(mode: str, dtype: torch.dtype, bytes_off: int) -> None:
    """The weights of a flat buffer, say."""
    problem = Problem(mode, T=1, B=2, I=16, H=32, dtype=dtype)
    wanted, wanted_reserve = kept(problem, SINGLE)
    cell, x, sizes, states, weights, both, train = problem.layer_arguments(True)
    off = bytes_off // x.element_size()
    x, states = moved(x, off), [moved(s, off) for s in states]
    weights = [moved(w, off) for w in weights]
    output, states_n, reserve = SINGLE.layer(cell, x, sizes, states, weights, both, train)
    assert_close([output, *states_n, *reserve], [*wanted, *wanted_reserve], TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_infinite_weights_stay_in_their_row(mode: str, dtype: torch.dtype) -> None:
    """What is read beyond the end of a row counts as zero times zero."""
    problem = Problem(mode, T=1, B=2, I=9, H=11, dtype=dtype)
    arguments = problem.layer_arguments(False)
    arguments[4][0][0], arguments[4][1][3] = torch.inf, -torch.inf
    output, states_n, _ = SINGLE.layer(*arguments)
    wanted, wanted_n, _ = ops.layer(*arguments)
    for a, b in zip([output, *states_n], [wanted, *wanted_n], strict=True):
        torch.testing.assert_close(
            a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_every_schedule_gives_the_same_bits(mode: str, dtype: torch.dtype) -> None:
    problem = Problem(mode, T=1, B=5, I=70, H=40, bidirectional=True, dtype=dtype)
    values, reserve = kept(problem, SINGLE)
    inference = SINGLE.layer(*problem.layer_arguments(False))
    assert_close([inference[0], *inference[1]], values, 0)
    for seed in range(1, 6):
        again, again_reserve = kept(problem, SINGLE._replace(seed=seed))
        assert_close([*again, *again_reserve], [*values, *reserve], 0)


# ---- what is launched ----

# Operations of ATen that start nothing on a GPU.
FREE = {
    *("aten::empty", "aten::view", "aten::reshape", "aten::contiguous", "aten::as_strided"),
    *("aten::t", "aten::transpose", "aten::select", "aten::slice", "aten::narrow"),
}


def aten_operations(call: Any) -> set[str]:
    """Those that a call makes, besides what stands for cuBLAS and guarded memory."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    found, ignored = set(), ("emulated product", "guarded memory")
    for event in profiler.events():
        parent, inside = event.cpu_parent, event.name in ignored
        while parent is not None and not inside:
            inside, parent = parent.name in ignored, parent.cpu_parent
        if event.name.startswith("aten::") and not inside:
            found.add(event.name)
    return found


DENSE = [{}, {"bidirectional": True}, {"states_given": False}, {"bias": False}]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", ["cta", "cluster", "single"])
@pytest.mark.parametrize("shape", DENSE, ids=name)
def test_launches_of_an_inference_call(mode: str, kernel: str, shape: dict[str, Any]) -> None:
    """Projections, one for packing, one for the sequence; nothing around them."""
    T = 1 if kernel == "single" else 3
    problem = Problem(mode, T=T, B=3, I=4, H=9, dtype=torch.float16, **shape)
    arguments = problem.layer_arguments(False)
    operations = aten_operations(lambda: Simt(kernel).layer(*arguments))
    assert operations <= FREE
    projections = 1 + problem.bidirectional
    wanted = 1 if kernel == "single" else projections + 2
    assert torch.ops.rnnfast_simt.count_launches() == wanted <= 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", ["cta", "cluster"])
@pytest.mark.parametrize(("T", "launches"), [(3, 6), (30, 7)])
def test_launches_of_a_backward_pass(mode: str, kernel: str, T: int, launches: int) -> None:
    """Packing, the sequence, three products, and for all gradients of biases one, or over many rows
    two.
    """
    problem = Problem(mode, T=T, B=3, I=4, H=9, dtype=torch.float16)
    arguments = backward_arguments(problem, Simt(kernel))
    torch.ops.rnnfast_simt.count_launches()
    operations = aten_operations(lambda: Simt(kernel).layer_backward(*arguments))
    assert operations <= FREE
    assert torch.ops.rnnfast_simt.count_launches() == launches
