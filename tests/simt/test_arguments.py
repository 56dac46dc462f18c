"""The arguments of the CUDA driver, on the emulator: any strides, any alignment, refusals.

Catches an argument that is taken for contiguous or aligned, that is written, or that a kernel would
read past the end of.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulated import Simt
from problems import MODES, Problem, assert_close
from test_ops import BAD_BACKWARD, BAD_LAYER, BAD_STEPS, STEPS, assert_refused
from test_parity import KEPT, backward_arguments, kept, name, strided
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rnnfast import ops


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", KEPT, ids=name)
def test_any_strides(mode: str, shape: dict[str, Any], simt: Simt) -> None:
    problem = Problem(mode, bidirectional=True, dtype=simt.dtype, **shape)
    values, reserve = kept(problem, simt)
    cell, x, batch_sizes, states, weights, bidirectional, _ = problem.layer_arguments(True)
    sizes = None if batch_sizes is None else torch.stack([batch_sizes, batch_sizes], -1)[:, 0]
    x, states, weights = strided(x), list(map(strided, states)), list(map(strided, weights))
    output, states_n, again = simt.layer(cell, x, sizes, states, weights, bidirectional, True)
    assert_close([output, *states_n, *again], [*values, *reserve], 0)
    assert all(t.is_contiguous() for t in (output, *states_n, *again))
    _, grad, grads, *_, needs = given = backward_arguments(problem, simt)
    assert_close(
        simt.layer_backward(
            cell,
            strided(grad),
            [strided(g) for g in grads],
            x,
            sizes,
            weights,
            bidirectional,
            reserve,
            needs,
        ),
        simt.layer_backward(*given),
        0,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=name)
def test_gradients_that_begin_anywhere(mode: str, dtype: torch.dtype, simt: Simt) -> None:
    """Not where copies of 16 bytes may begin, though the rows would be apart for them."""
    cell, grad, *rest = backward_arguments(Problem(mode, T=6, B=3, H=16, dtype=dtype), simt)
    moved = torch.cat([grad.new_zeros(1), grad.flatten()])[1:].view_as(grad)
    assert moved.is_contiguous()
    assert moved.data_ptr() % 16 != 0
    assert_close(simt.layer_backward(cell, moved, *rest), simt.layer_backward(cell, grad, *rest), 0)


@pytest.mark.parametrize("mode", MODES)
def test_arguments_are_not_written(mode: str, simt: Simt) -> None:
    problem = Problem(mode, bidirectional=True, dtype=simt.dtype)
    arguments = [*problem.layer_arguments(True), *backward_arguments(problem, simt)]
    tensors = [t for a in arguments for t in (a if isinstance(a, list) else [a])]
    tensors = [t for t in tensors if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    simt.layer(*arguments[:7])
    simt.layer_backward(*arguments[7:])
    assert_close(tensors, before, 0)


@pytest.mark.parametrize("bad", BAD_LAYER)
def test_layer_refuses(bad: str, simt: Simt) -> None:
    arguments = Problem("LSTM").layer_arguments(True)
    assert_refused(simt.layer, arguments, BAD_LAYER[bad])


@pytest.mark.parametrize("bad", BAD_STEPS)
def test_layer_refuses_batch_sizes(bad: str, simt: Simt) -> None:
    problem = Problem("GRU", lengths=(5, 3, 1))
    assert problem.batch_sizes is not None
    assert problem.batch_sizes.tolist() == STEPS
    assert_refused(simt.layer, problem.layer_arguments(True), BAD_STEPS[bad])


@pytest.mark.parametrize("bad", BAD_BACKWARD)
def test_backward_refuses(bad: str, simt: Simt) -> None:
    arguments = tuple(backward_arguments(Problem("LSTM"), simt))
    assert_refused(simt.layer_backward, arguments, BAD_BACKWARD[bad])


def test_the_reserve_of_half_types_is_half(simt: Simt) -> None:
    arguments = tuple(backward_arguments(Problem("GRU", dtype=torch.bfloat16), simt))

    def widen(changed: list[Any]) -> None:
        changed[7] = [t.float() for t in changed[7]]

    text = assert_refused(simt.layer_backward, arguments, widen)
    assert "reserve must be of dtype BFloat16" in text


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_fake_reserve_has_the_dtype_of_the_device(device: str) -> None:
    with FakeTensorMode():
        x, w_ih, w_hh = (
            torch.empty(*sizes, dtype=torch.bfloat16, device=device)
            for sizes in ((3, 2, 4), (18, 4), (18, 6))
        )
        _, _, reserve = ops.layer("gru", x, None, [], [w_ih, w_hh], train=True)
    wanted = torch.bfloat16 if device == "cuda" else torch.float32
    assert [t.dtype for t in reserve] == [wanted, wanted]
