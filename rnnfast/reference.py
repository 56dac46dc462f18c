"""The specification: the time loop in plain PyTorch, over the steps of the cells (spec.py).

Any dtype and device, any order of derivative, forward and backward mode, ``vmap``: nothing is
written in place and no tensor decides the control flow. The fused kernels are tested against it,
and it serves what they cannot.
"""

from __future__ import annotations  # Dynamo runs definitions, and cannot those of types

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnfast import segments
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


EPSILON = 1e-5
"""Of variances: torch.nn.LayerNorm's, and the kernels'."""


class Extras(NamedTuple):
    """What a step does beside the cell; all of it may be missing.

    norm: empty, or gains ``[G*H]`` of the normalised product, and of a cell that emits (LSTM)
    gain and bias ``[H]`` of the normalised c. keep: of each unit of each state the part that stays
    as it was, ``[rows, K*H]``, or for all rows ``[K*H]``. drop: ``[B, H]``, what h is multiplied by
    before its product. clip: what no gradient of a state exceeds, on its way back.
    """

    norm: tuple[Tensor, ...] = ()
    keep: Tensor | None = None
    drop: Tensor | None = None
    clip: float | None = None


NONE = Extras()


def recurrence(
    cell: str,
    x_gates: Tensor,
    batch_sizes: Sequence[int],
    states: States,
    w_hh: Tensor,
    b_hh: Tensor | None,
    extras: Extras,
    reverse: bool,
) -> tuple[Tensor, States]:
    """The recurrence by its definition.

    Args:
        cell: its name
        x_gates: ``[rows, G*H]``, the input's product with its bias
        batch_sizes: rows of each step, never increasing
        states: the initial ones, each ``[B, H]``
        w_hh: ``[G*H, H]``; of independent units ``[G*H]``: each unit sees its own state alone
        b_hh: ``[G*H]`` or None; it is added to what is normalised
        extras: see there
        reverse: backward in time

    Returns:
        ``(output [rows, H], states_n)``
    """
    spec, gates = CELLS[cell], x_gates.shape[-1]
    gain_c, bias_c = extras.norm[1:] if len(extras.norm) > 1 else (None, None)

    def step(inputs: Tensor, states: States) -> tuple[Tensor, States]:
        x_t, keep_t, drop_t = _split(inputs, gates, extras)
        h = states[0] if drop_t is None else states[0] * drop_t
        product = F.linear(h, w_hh) if w_hh.dim() == 2 else w_hh * h.repeat(1, spec.gates)
        if extras.norm:
            product = F.layer_norm(product, (gates,), extras.norm[0], None, EPSILON)
        if b_hh is not None:
            product = product + b_hh
        fresh = spec.step(x_t, product, states)
        if gain_c is not None:
            c = F.layer_norm(fresh[1], fresh[1].shape[-1:], gain_c, bias_c, EPSILON)
            fresh = (spec.emit(x_t, product, c), fresh[1])
        if keep_t is not None:
            keeps = keep_t.chunk(spec.states, -1)
            fresh = tuple(k * s + (1 - k) * f for k, s, f in zip(keeps, states, fresh, strict=True))
        if extras.clip is not None:
            fresh = tuple(_clip(s, extras.clip) for s in fresh)
        return fresh[0], fresh

    steps = _steps(x_gates, batch_sizes, extras)
    outputs, states_n = loop(step, steps[::-1] if reverse else steps, states)
    if reverse:
        outputs.reverse()
    return torch.cat(outputs), states_n


def _steps(x_gates: Tensor, batch_sizes: Sequence[int], extras: Extras) -> Sequence[Tensor]:
    """The inputs of each step, and what comes row by row, side by side."""
    inputs = [x_gates]
    if extras.keep is not None and extras.keep.dim() == 2:
        inputs.append(extras.keep)
    if extras.drop is not None:
        inputs.append(torch.cat([extras.drop[:size] for size in batch_sizes]))
    joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
    return torch.split(joined, list(batch_sizes))


def _split(
    inputs: Tensor, gates: int, extras: Extras
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x_t, keep, drop = inputs[:, :gates], extras.keep, None
    if keep is not None and keep.dim() == 2:
        keep = inputs[:, gates : gates + keep.shape[1]]
    if extras.drop is not None:
        drop = inputs[:, -extras.drop.shape[1] :]
    return x_t, keep, drop


class _Clip(torch.autograd.Function):
    """The same, whose gradient is clipped."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, clip: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.clip = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-ctx.clip, ctx.clip), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


def _clip(x: Tensor, clip: float) -> Tensor:
    apply: Any = _Clip.apply
    return apply(x, clip) if torch.is_grad_enabled() else x


def batch_sizes_of(batch_sizes: Tensor | None, rows: int, batch: int) -> list[int]:
    """Rows of each step, of a packed or a dense sequence."""
    if batch_sizes is not None:
        return batch_sizes.tolist()
    return [batch] * (rows // max(batch, 1))


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
        own_states, own_weights = own[: len(states)], own[len(states) :]
        output, states_n = any_layer(
            cell, own_x, batch_sizes, own_states, own_weights, bidirectional
        )
        wanted = [t for t, needed in zip(aliases, needs, strict=True) if needed]
        return _gradients(x.dtype, (output, *states_n), grads, wanted, create_graph)


def any_layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """:func:`layer` for all that ``rnnfast::layer`` takes: with an ``x`` of three dimensions
    `batch_sizes` may say where rows begin anew, or how many of the first rows of each step are
    alive: all of them at the first step, and none comes alive later.
    """
    if batch_sizes is not None and x.dim() == 2:
        return layer(cell, x, batch_sizes.tolist(), states, weights, bidirectional)
    if batch_sizes is None or x.shape[0] <= 1:
        return layer(cell, x, None, states, weights, bidirectional)
    if batch_sizes.dtype == torch.bool:
        return segments.run_by_steps(layer, cell, x, batch_sizes, states, weights, bidirectional)
    T, B = x.shape[:2]
    counts = batch_sizes.cummin(0).values.clamp(0, B).index_fill(0, batch_sizes.new_zeros(1), B)
    alive = torch.arange(B, device=x.device) < counts.unsqueeze(1)
    rows = alive.flatten().nonzero().squeeze(1)
    sizes = [count for count in counts.tolist() if count > 0]
    packed = x.flatten(0, 1).index_select(0, rows)
    output, states_n = layer(cell, packed, sizes, states, weights, bidirectional)
    output = output.new_zeros(T * B, output.shape[1]).index_add(0, rows, output)
    return output.view(T, B, -1), states_n


def recurrence_gradients(
    cell: str,
    x_gates: Tensor,
    batch_sizes: Tensor | None,
    batch: int,
    states: Sequence[Tensor],
    w_hh: Tensor,
    b_hh: Tensor | None,
    extras: Extras,
    reverse: bool,
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of :func:`recurrence` as a graph over torch's operations.

    Args:
        cell: as it was given
        x_gates: see ``cell``
        batch_sizes: of a packed sequence
        batch: B
        states: see ``cell``; empty for zeros
        w_hh: see ``cell``
        b_hh: see ``cell``
        extras: see ``cell``
        reverse: see ``cell``
        grads: of the output and of each state; None counts as zero

    Returns:
        those of x_gates, the given `states`, w_hh, the tensors of norm and b_hh where there is one;
        None is zero
    """
    norm, keep, drop, clip = extras
    tensors = [x_gates, *states, w_hh, *norm, *([] if b_hh is None else [b_hh])]
    create_graph, dtype = torch.is_grad_enabled(), compute_dtype(x_gates.dtype)
    with torch.enable_grad(), without_autocast(x_gates):
        aliases = [t.view_as(t) for t in tensors]
        x, *others = (t.to(dtype) for t in aliases)
        own, (w, *others) = others[: len(states)], others[len(states) :]
        own = own or CELLS[cell].zeros(x, (batch,), x.shape[-1] // CELLS[cell].gates)
        keep, drop = (None if t is None else t.to(dtype) for t in (keep, drop))
        wide = Extras(tuple(others[: len(norm)]), keep, drop, clip)
        bias = others[-1] if b_hh is not None else None
        sizes = batch_sizes_of(batch_sizes, x.shape[0], batch)
        output, states_n = recurrence(cell, x, sizes, tuple(own), w, bias, wide, reverse)
        return _gradients(x_gates.dtype, (output, *states_n), grads, aliases, create_graph)


def _gradients(
    dtype: torch.dtype,
    values: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    wanted: Sequence[Tensor],
    create_graph: bool,
) -> list[Tensor | None]:
    """Of `wanted`, where they require any, from those of `values` as they are in `dtype`."""
    pairs = zip(values, grads, strict=True)
    results = [(v.to(dtype), g) for v, g in pairs if g is not None and v.requires_grad]
    required = [t for t in wanted if t.requires_grad]
    if not results or not required:
        return [None] * len(wanted)
    found = iter(
        torch.autograd.grad(
            [v for v, _ in results],
            required,
            [g for _, g in results],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if t.requires_grad else None for t in wanted]
