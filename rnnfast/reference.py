"""The specification: the time loop in plain PyTorch, over the steps of the cells (spec.py).

Any dtype and device, any order of derivative, forward and backward mode, ``vmap``: nothing is
written in place and no tensor decides the control flow. The fused kernels are tested against it,
and it serves what they cannot.
"""

from __future__ import annotations  # Dynamo runs definitions, and cannot those of types

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnfast.ops import compute_dtype
from rnnfast.routes import without_autocast
from rnnfast.spec import CELLS, CellSpec, States, Step


def layer(
    cell: str,
    x: Tensor,
    batch_sizes: Sequence[int] | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool = False,
) -> tuple[Tensor, States]:
    """One layer, in one or both directions: :func:`rnnfast.ops.layer` by its definition.

    ``weights`` may end, per direction, with ``w_hr [P, H]``, the projection of an LSTM: then h is
    ``[.., P]``, c stays ``[.., H]``. ``batch_sizes`` is a list of numbers here.

    Returns:
        ``(output, states_n)`` as :func:`rnnfast.ops.layer` gives them.
    """
    spec, directions = CELLS[cell], 1 + bidirectional
    per_direction = len(weights) // directions
    outputs, finals = [], []
    for d in range(directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        initial = tuple(s[d] for s in states) or _zeros(spec, x, batch_sizes, own)
        output, states_n = _direction(spec.step, x, batch_sizes, initial, own, d == 1)
        outputs.append(output)
        finals.append(states_n)
    output = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    return output, tuple(torch.stack(states_n) for states_n in zip(*finals, strict=True))


def _projection(weights: Sequence[Tensor]) -> Tensor | None:
    return weights[-1] if len(weights) % 2 else None


def _zeros(
    spec: CellSpec, x: Tensor, batch_sizes: Sequence[int] | None, weights: Sequence[Tensor]
) -> States:
    batch = x.shape[1] if batch_sizes is None else (*batch_sizes, 0)[0]
    w_hr = _projection(weights)
    width = weights[1].shape[1]
    if w_hr is None:
        return tuple(spec.zeros(x, (batch,), width))
    return tuple(spec.zeros(x, (batch,), w_hr.shape[1], width))


def _direction(
    step: Step,
    x: Tensor,
    batch_sizes: Sequence[int] | None,
    initial: States,
    weights: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, States]:
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if len(weights) > 3 else (None, None)
    w_hr = _projection(weights)

    def whole_step(x_gates: Tensor, states: States) -> tuple[Tensor, States]:
        states = step(x_gates, F.linear(states[0], w_hh, b_hh), states)
        if w_hr is not None:
            states = (F.linear(states[0], w_hr), *states[1:])
        return states[0], states

    x_gates = F.linear(x, w_ih, b_ih)
    steps = x_gates.unbind(0) if batch_sizes is None else torch.split(x_gates, list(batch_sizes))
    outputs, states = loop(whole_step, steps[::-1] if reverse else steps, initial)
    if not outputs:
        return x.new_zeros(*x.shape[:-1], initial[0].shape[-1]), initial
    if reverse:
        outputs.reverse()
    return (torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)), states


def loop(
    step: Callable[[Tensor, States], tuple[Tensor, States]],
    inputs: Sequence[Tensor],
    initial: States,
) -> tuple[list[Tensor], States]:
    """The time loop: ``step(input, states) -> (output, states)`` for each of `inputs`.

    An input holds the first rows of the batch. Their number only shrinks, as rows are done, or, for
    a loop backward in time, only grows, as rows come alive with their states of `initial`.

    Returns:
        the outputs of all steps, and of each state the last one of every row
    """
    outputs: list[Tensor] = []
    finished: list[States] = []
    states = tuple(s[: inputs[0].shape[0]] for s in initial) if inputs else initial
    for x in inputs:
        alive, size = states[0].shape[0], x.shape[0]
        if size > alive:
            states = tuple(
                torch.cat([s, s_0[alive:size]]) for s, s_0 in zip(states, initial, strict=True)
            )
        elif size < alive:
            finished.append(tuple(s[size:] for s in states))
            states = tuple(s[:size] for s in states)
        output, states = step(x, states)
        outputs.append(output)
    if finished:
        states = tuple(torch.cat(parts) for parts in zip(states, *reversed(finished), strict=True))
    return outputs, states


def differentiable_gradients(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
    grads: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of a layer as a graph over torch's operations: runs the reference again.

    `csrc/autograd.cpp` calls it where the gradients must themselves be differentiable. The
    reference runs on aliases of the saved tensors: differentiating with respect to these ends at
    this layer, where the tensors themselves may depend on one another (weights made of x, say).

    Args:
        cell: as :func:`rnnfast.ops.layer` was given, and so all arguments up to `bidirectional`.
        x: see ``cell``.
        batch_sizes: see ``cell``.
        states: see ``cell``.
        weights: see ``cell``.
        bidirectional: see ``cell``.
        grads: of the output and of each state; None counts as zero.
        needs: flags for x, ``states`` and ``weights``.

    Returns:
        The gradients of what ``needs`` names, in its order; None is zero.
    """
    create_graph = torch.is_grad_enabled()
    dtype = compute_dtype(x.dtype)
    with torch.enable_grad(), without_autocast(x):
        aliases = [t.view_as(t) for t in (x, *states, *weights)]
        own_x, *own = (t.to(dtype) for t in aliases)
        sizes = None if batch_sizes is None else batch_sizes.tolist()
        own_states, own_weights = own[: len(states)], own[len(states) :]
        output, states_n = layer(cell, own_x, sizes, own_states, own_weights, bidirectional)
        results = [
            (value.to(x.dtype), grad)
            for value, grad in zip((output, *states_n), grads, strict=True)
            if grad is not None and value.requires_grad
        ]
        wanted = [t for t, needed in zip(aliases, needs, strict=True) if needed]
        if not results:
            return [None] * len(wanted)
        values, value_grads = zip(*results, strict=True)
        return list(
            torch.autograd.grad(
                values, wanted, value_grads, create_graph=create_graph, allow_unused=True
            )
        )
