"""Sequences of one step and cells on a GPU."""

import copy
from typing import Any

import pytest
import torch
from on_gpu import DEVICE, MARKS, assert_equal, flat_states, needs_gpu
from problems import MODES, TOLERANCE, Problem, assert_close
from torch import Tensor, nn

import rnnfast

pytestmark = MARKS


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3,), (), (0,), (40,)], ids=str)
def test_cells(name: str, dtype: torch.dtype, bias: bool, batch: tuple[int, ...]) -> None:
    theirs = getattr(nn, name)(5, 66, bias=bias, device=DEVICE, dtype=dtype)
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(*batch, 5, device=DEVICE, dtype=dtype)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            values = [flat_states(cell(x)) for cell in (ours, theirs)]
            values = [
                flat_states(cell(x, _hx(v))) for cell, v in zip((ours, theirs), values, strict=True)
            ]
        assert_close(*values, TOLERANCE[dtype])
        assert all(v.requires_grad == (context is torch.enable_grad) for v in values[0])


def _hx(states: list[Tensor]) -> Any:
    return states[0] if len(states) == 1 else tuple(states)


@needs_gpu
@pytest.mark.filterwarnings("ignore")  # the profiler's own
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_a_cell_is_one_launch(name: str) -> None:
    cell, x = getattr(rnnfast, name)(64, 64, device=DEVICE), torch.randn(3, 64, device=DEVICE)
    with torch.no_grad():
        cell(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            cell(x)
            torch.cuda.synchronize()
    kernels = [e.name for e in profiler.events() if "memset" not in e.name.lower()]
    assert sum("single_step" in kernel for kernel in kernels) == 1


@needs_gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_steps_wait_for_what_they_read(mode: str, dtype: torch.dtype, graph: bool) -> None:
    """Launches of one step begin early: yet they see inputs, states and weights that the kernel
    before them stored, and store nothing that it still reads.
    """
    problem = Problem(mode, T=1, B=4, I=256, H=256, dtype=dtype, device=DEVICE)
    cell, x, _, states, weights, *_ = problem.layer_arguments(False)
    others = [w.neg() for w in weights]
    sources = [torch.randn_like(x) for _ in range(6)]
    own_x, own = torch.empty_like(x), [torch.empty_like(w) for w in weights]

    def steps(wait: bool) -> list[Tensor]:
        now, outputs = list(states), []
        for i, source in enumerate(sources * 4):
            for to, a, b in zip(own, weights, others, strict=True):
                if i % 3 == 0:
                    to.copy_(a if i % 2 else b)
            own_x.copy_(source)
            for _ in range(3):  # one right after the other
                if wait:
                    torch.cuda.synchronize()
                output, now, _ = torch.ops.rnnfast.layer(cell, own_x, None, now, own, False, False)
                outputs.append(output)
        return [*outputs, *now]

    wanted = steps(wait=True)
    for _ in range(5):
        if graph:
            recorded = torch.cuda.CUDAGraph()
            with torch.cuda.graph(recorded):
                found = steps(wait=False)
            for _ in range(3):
                recorded.replay()
        else:
            found = steps(wait=False)
        assert_equal(found, wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_at_any_address(mode: str, dtype: torch.dtype) -> None:
    """In one flat buffer, one element off, as fully sharded models keep them."""
    problem = Problem(mode, T=1, B=4, I=64, H=64, dtype=dtype, device=DEVICE)
    cell, x, _, states, weights, *_ = problem.layer_arguments(False)
    flat = torch.cat([weights[0].new_empty(1), *(w.flatten() for w in weights)])
    moved = [
        piece.view(w.shape)
        for piece, w in zip(flat[1:].split([w.numel() for w in weights]), weights, strict=True)
    ]
    for wanted, found in zip(
        torch.ops.rnnfast.layer(cell, x, None, states, weights, False, False),
        torch.ops.rnnfast.layer(cell, x, None, states, moved, False, False),
        strict=True,
    ):
        assert_close(*([t] if isinstance(t, Tensor) else t for t in (found, wanted)), 1e-6)
