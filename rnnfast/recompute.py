"""A layer whose backward pass computes the gates again: less memory between the passes, more time.

Backward needs the states before and after every step, and of GRU and LSTM four gates besides. The
gates follow from the input and the states without the recurrence, so that the states are enough to
keep: all rows of all steps are then the batch of a single step. (Chen et al. 2016, arXiv
1604.06174, keep less still, and run the recurrence twice.)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from rnnfast import ops, reference
from rnnfast.routes import batched_by_autograd, transformed
from rnnfast.spec import CELLS, CellSpec

_NUMBERS = 1 << 21
"""Of the gates that are computed at a time, which bounds what stands beside them."""

_is_compiling = torch.compiler.is_compiling


def layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`rnnfast.ops.layer`, its gates not kept.

    Those of this one layer are there until it has run. In a compiled program the compiler decides
    what is kept, and there they are kept as ever.
    """
    tensors = (x, *states, *weights)
    differentiates = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not CELLS[cell].reserve or not differentiates or _is_compiling():
        return ops.layer(cell, x, batch_sizes, states, weights, bidirectional)[:2]
    apply: Any = _Layer.apply
    output, *states_n = apply(cell, bidirectional, len(states), batch_sizes, x, *states, *weights)
    return output, states_n


class _Layer(torch.autograd.Function):
    """Saves x, states, weights and the timelines of the states."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: str,
        bidirectional: bool,
        given: int,
        batch_sizes: Tensor | None,
        x: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        states, weights = others[:given], others[given:]
        output, states_n, reserve = ops.layer(
            cell, x, batch_sizes, states, weights, bidirectional, train=True
        )
        ctx.options = cell, bidirectional, given
        ctx.save_for_backward(batch_sizes, x, *others, *reserve[: CELLS[cell].states])
        ctx.set_materialize_grads(False)
        return output, *states_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        cell, bidirectional, given = ctx.options
        spec = CELLS[cell]
        batch_sizes, x, *others = ctx.saved_tensors
        others, timelines = others[: -spec.states], others[-spec.states :]
        states, weights = others[:given], others[given:]
        needs = ctx.needs_input_grad[4:]
        wanted: Sequence[Tensor | None]
        if needs_graph([g for g in grads if g is not None]):
            wanted = reference.differentiable_gradients(
                cell, x, batch_sizes, states, weights, bidirectional, grads, needs
            )
        else:
            gates = _gates(spec, x, batch_sizes, weights, timelines, bidirectional)
            of_states = needs[1 : 1 + given] or [False] * spec.states
            wanted = ops.layer_backward(
                cell,
                grads[0],
                grads[1:],
                x,
                batch_sizes,
                weights,
                bidirectional,
                [*timelines, gates],
                [needs[0], *of_states, *needs[1 + given :]],
            )
        found = iter(wanted)
        return None, None, None, None, *(next(found) if needed else None for needed in needs)


def needs_graph(grads: Sequence[Tensor]) -> bool:
    """Whether someone differentiates or batches the operations of the backward pass."""
    return torch.is_grad_enabled() or transformed(grads) is not None or batched_by_autograd(grads)


def _gates(
    spec: CellSpec,
    x: Tensor,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    timelines: Sequence[Tensor],
    bidirectional: bool,
) -> Tensor:
    """``[D, rows, reserve*H]``, as the kernels keep them."""
    h, rows = timelines[0], prod(x.shape[:-1])
    directions, _, H = h.shape
    flat = x.reshape(rows, x.shape[-1])
    gates = h.new_empty(directions, rows, spec.reserve * H)
    per_direction = len(weights) // directions
    at_once = max(1, _NUMBERS // (spec.reserve * max(H, 1)))
    for d in range(directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        before = states_before(h[d], batch_sizes, rows, reverse=d == 1)
        for first in range(0, rows, at_once):
            some = slice(first, first + at_once)
            h_0 = before[some].to(x.dtype).unsqueeze(0)
            # Gates follow from the first state alone.
            reserve = ops.layer(
                spec.name, flat[some].unsqueeze(0), None, [h_0] * spec.states, own, train=True
            )[2]
            gates[d, some] = reserve[-1][0]
    return gates


def states_before(timeline: Tensor, batch_sizes: Tensor | None, rows: int, reverse: bool) -> Tensor:
    """``[rows, H]``: the state before each step, of a timeline ``[rows + B, H]``.

    Where it lies is what `Walk` of ``csrc/recurrence.h`` says.
    """
    B = timeline.shape[0] - rows
    if batch_sizes is None:
        return timeline[B:] if reverse else timeline[:rows]
    T = batch_sizes.shape[0]  # which may be a symbol, where len() must be a number
    begins = batch_sizes.cumsum(0) - batch_sizes
    t = torch.arange(T).repeat_interleave(batch_sizes, output_size=rows)
    b = torch.arange(rows) - begins[t]
    if reverse:
        after = (t + 1).clamp(max=T - 1)
        alive = (t + 1 < T) & (b < batch_sizes[after])
        places = torch.where(alive, begins[after] + b, rows + b)
    else:
        places = torch.where(t == 0, b, begins[(t - 1).clamp(min=0)] + b + B)
    return timeline.index_select(0, places.to(timeline.device))
