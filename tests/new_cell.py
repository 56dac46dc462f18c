"""What test_new_cell.py runs where the package has one more cell, ``ugrnn``: the kernels of a
backend beside a plain loop over the step of ``rnnfast.spec``.

    python new_cell.py cpu
    python new_cell.py LIBRARY      on the emulator of a GPU
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rnnfast import functional
from rnnfast.spec import CELLS

NAME, T, B, I, H = "ugrnn", 4, 3, 6, 19  # noqa: E741
SPEC = CELLS[NAME]
Run = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]


def weights(layers: int, directions: int, dtype: torch.dtype) -> list[Tensor]:
    rows = SPEC.gates * H
    shapes = [
        shape
        for layer in range(layers)
        for _ in range(directions)
        for shape in ((rows, directions * H if layer else I), (rows, H), (rows,), (rows,))
    ]
    return [(torch.randn(*s, dtype=dtype) / 3).requires_grad_() for s in shapes]


def one_layer(x: Tensor, h_0: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """A loop in Python, both directions where there are weights for two: ``[T, B, D*H]``."""
    outputs = []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(zip(*[iter(weights)] * 4, strict=True)):
        h, steps = h_0[d], []
        for x_t in x.flip(0) if d else x:
            (h,) = SPEC.step(x_t @ w_ih.T + b_ih, h @ w_hh.T + b_hh, (h,))
            steps.append(h)
        outputs.append(torch.stack(steps).flip(0) if d else torch.stack(steps))
    return torch.cat(outputs, -1)


def loop(x: Tensor, h_0: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """All layers of two directions."""
    for layer in range(len(h_0) // 2):
        x = one_layer(x, h_0[2 * layer : 2 * layer + 2], weights[8 * layer : 8 * layer + 8])
    return x


def stack(x: Tensor, h_0: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return functional.stack(
        SPEC.mode,
        x,
        None,
        (h_0,),
        weights,
        has_biases=True,
        num_layers=len(h_0) // 2,
        dropout=0.0,
        training=True,
        bidirectional=True,
    )[0]


class Emulated(torch.autograd.Function):
    """A layer of two directions by the CUDA kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h_0: Tensor, *weights: Tensor) -> Tensor:
        output, _, ctx.reserve = torch.ops.rnnfast_simt.layer(
            NAME, x, None, [h_0], weights, True, True, "auto", 0
        )
        ctx.save_for_backward(x, *weights)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, *weights = ctx.saved_tensors
        needs = [True] * (2 + len(weights))
        found = torch.ops.rnnfast_simt.layer_backward(
            NAME, grads[0], [None], x, None, weights, True, ctx.reserve, needs, "auto", 0
        )
        return tuple(found)


def emulated(x: Tensor, h_0: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for layer in range(len(h_0) // 2):
        x = Emulated.apply(x, h_0[2 * layer : 2 * layer + 2], *weights[8 * layer : 8 * layer + 8])
    return x


def train(run: Run, epochs: int) -> list[float]:
    """The losses of two layers that learn to give their input back a step later."""
    torch.manual_seed(0)
    x, leaves = torch.randn(T, B, I).double(), weights(2, 2, torch.float64)
    h_0 = torch.randn(4, B, H).double().requires_grad_()
    optimizer, losses = torch.optim.Adam([h_0, *leaves], 0.02), []
    for _ in range(epochs):
        loss = (run(x, h_0, leaves)[1:, :, :I] - x[:-1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def check(run: Run, dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(1)
    x, h_0, leaves = torch.randn(T, B, I), torch.randn(4, B, H), weights(2, 2, torch.float64)
    wanted = loop(x.double(), h_0.double(), leaves)
    found = run(x.to(dtype), h_0.to(dtype), [w.detach().to(dtype) for w in leaves])
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


def check_cpu() -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        check(stack, dtype, tolerance)
    losses, wanted = train(stack, 20), train(loop, 20)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=0)
    assert losses[-1] < losses[0] / 2, losses
    arguments = [torch.randn(2, 2, I).double(), torch.randn(2, 2, H).double()]
    leaves = [a.requires_grad_() for a in arguments] + weights(1, 2, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x, h_0, *w: stack(x, h_0, w), leaves, fast_mode=True, nondet_tol=1e-12
    )
    # What torch's operator serves of its own cells.
    x, h_0 = torch.randn(T, B, I).to(torch.complex128), torch.randn(2, B, H).to(torch.complex128)
    assert functional.route(x, (h_0, *leaves[2:])).kind == "torch"
    complex_weights = [w.to(torch.complex128) for w in leaves[2:]]
    found, wanted_ = stack(x, h_0, complex_weights), loop(x, h_0, complex_weights)
    torch.testing.assert_close(found, wanted_)


def check_emulator(library: str) -> None:
    torch.ops.load_library(library)
    torch.ops.rnnfast_simt.launched()
    check(emulated, torch.float64, 1e-11)
    check(emulated, torch.bfloat16, 0.05)
    assert torch.ops.rnnfast_simt.launched() == []  # no kernel of a whole sequence
    losses, wanted = train(emulated, 4), train(loop, 4)
    torch.testing.assert_close(losses, wanted, rtol=1e-9, atol=0)


if __name__ == "__main__":
    check_cpu() if sys.argv[1] == "cpu" else check_emulator(sys.argv[1])
