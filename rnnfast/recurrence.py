"""The op ``rnnfast::recurrence``: one direction of a layer without its input product, and with what
a step may do between its own product and the next one: normalise, keep, drop, clip.

:func:`reference` is its specification, in plain PyTorch. ``csrc/check_recurrence.h`` says the same
of the kernels.
"""

from __future__ import annotations  # Dynamo runs definitions, and cannot those of types

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnfast.ops import compute_dtype, register_fake
from rnnfast.recompute import needs_graph, states_before
from rnnfast.reference import loop
from rnnfast.routes import needs_gradients, without_autocast
from rnnfast.spec import CELLS, CellSpec, States

_recurrence = torch.ops.rnnfast.recurrence.default
_recurrence_backward = torch.ops.rnnfast.recurrence_backward.default
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


def reference(
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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.clamp(-ctx.clip, ctx.clip), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)


def _clip(x: Tensor, clip: float) -> Tensor:
    return _Clip.apply(x, clip) if torch.is_grad_enabled() else x  # type: ignore[no-any-return]


def fused(
    cell: str,
    x_gates: Tensor,
    batch_sizes: Tensor | None,
    batch: int,
    states: Sequence[Tensor],
    w_hh: Tensor,
    b_hh: Tensor | None,
    extras: Extras,
    reverse: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`reference` by the kernels; a dense sequence has no `batch_sizes`, but a `batch`, B."""
    norm, keep, drop, clip = extras
    tensors = [x_gates, *states, w_hh, *norm, *([] if b_hh is None else [b_hh])]
    return _recurrence(  # type: ignore[no-any-return]
        cell, x_gates, batch_sizes, batch, states, w_hh, b_hh, norm, keep, drop, reverse, clip,
        needs_gradients(tensors),
    )[:2]  # fmt: skip


def _reserve_shapes(
    spec: CellSpec, rows: Any, batch: Any, hidden: Any, norm: bool, keep: bool
) -> list[tuple[Any, Any]]:
    """As ``csrc/check_recurrence.h`` says."""
    shapes = [(rows + batch, hidden)] * spec.states
    if spec.reserve:
        shapes.append((rows, spec.reserve * hidden))
    if norm:
        shapes += [(rows, spec.gates * hidden), (rows, 3)]
    if keep and spec.reads_after:
        shapes.append((rows, spec.states * hidden))
    return shapes


def _hidden(spec: CellSpec, w_hh: Tensor) -> Any:
    return w_hh.shape[1] if w_hh.dim() == 2 else w_hh.shape[0] // spec.gates


@register_fake("rnnfast::recurrence")  # type: ignore[untyped-decorator]
def _recurrence_fake(
    cell: str,
    x_gates: Tensor,
    batch_sizes: Tensor | None,
    B: Any,
    states: Sequence[Tensor],
    w_hh: Tensor,
    b_hh: Tensor | None,
    norm: Sequence[Tensor],
    keep: Tensor | None,
    drop: Tensor | None,
    reverse: bool,
    clip: float | None,
    train: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    spec, rows = CELLS[cell], x_gates.shape[0]
    hidden, dtype = _hidden(spec, w_hh), compute_dtype(x_gates.dtype)
    output = x_gates.new_empty(rows, hidden)
    states_n = [x_gates.new_empty(B, hidden) for _ in range(spec.states)]
    if not train:
        return output, states_n, []
    shapes = _reserve_shapes(spec, rows, B, hidden, bool(norm), keep is not None)
    return output, states_n, [x_gates.new_empty(shape, dtype=dtype) for shape in shapes]


@register_fake("rnnfast::recurrence_backward")  # type: ignore[untyped-decorator]
def _recurrence_backward_fake(
    cell: str,
    grad_output: Tensor | None,
    grad_states_n: Sequence[Tensor | None],
    batch_sizes: Tensor | None,
    B: Any,
    w_hh: Tensor,
    norm: Sequence[Tensor],
    keep: Tensor | None,
    drop: Tensor | None,
    reverse: bool,
    reserve: Sequence[Tensor],
    clip: float | None,
) -> list[Tensor]:
    spec = CELLS[cell]
    rows, hidden = reserve[0].shape[0] - B, _hidden(spec, w_hh)
    own_h = bool(norm) or spec.shared_gates < spec.gates
    shapes = [(rows, spec.gates * hidden)] * (1 + own_h + bool(norm))
    if norm and spec.emit is not None:
        shapes.append((rows, hidden))
    shapes += [(B, hidden)] * spec.states
    return [reserve[0].new_empty(shape) for shape in shapes]


class _Saved(NamedTuple):
    """Of a call what backward needs besides the reserve."""

    cell: str
    x_gates: Tensor
    batch_sizes: Tensor | None
    batch: int
    states: Sequence[Tensor]
    w_hh: Tensor
    b_hh: Tensor | None
    extras: Extras
    reverse: bool


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    cell, x_gates, batch_sizes, batch, states, w_hh, b_hh, norm, keep, drop = inputs[:10]
    reserve = output[2]
    ctx.plain = (cell, batch, *inputs[10:])
    ctx.counts = (len(states), len(norm), len(reserve))
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_gates, batch_sizes, w_hh, b_hh, keep, drop, *states, *norm, *reserve)


def _restore(ctx: Any) -> tuple[_Saved, Sequence[Tensor]]:
    x_gates, batch_sizes, w_hh, b_hh, keep, drop, *lists = ctx.saved_tensors
    cell, batch, reverse, clip, train = ctx.plain
    if not train:
        raise RuntimeError("rnnfast::recurrence: there are no gradients without train=True")
    states, norm, _ = ctx.counts
    extras = Extras(tuple(lists[states : states + norm]), keep, drop, clip)
    saved = _Saved(cell, x_gates, batch_sizes, batch, lists[:states], w_hh, b_hh, extras, reverse)
    return saved, lists[states + norm :]


def _backward(
    ctx: Any, grad_output: Tensor | None, grad_states_n: Any, grad_reserve: Any
) -> tuple[Any, ...]:
    saved, reserve = _restore(ctx)
    spec = CELLS[saved.cell]
    of_states = grad_states_n or [None] * spec.states
    if needs_graph([g for g in (grad_output, *of_states) if g is not None]):
        grads = _differentiable_gradients(saved, [grad_output, *of_states])
    else:
        grads = _fused_gradients(saved, reserve, grad_output, of_states)
    grad_x, grad_states, grad_w, grad_b, grad_norm = grads
    return None, grad_x, None, None, grad_states, grad_w, grad_b, grad_norm, *[None] * 5


def _fused_gradients(
    saved: _Saved,
    reserve: Sequence[Tensor],
    grad_output: Tensor | None,
    grad_states_n: Sequence[Tensor | None],
) -> tuple[Tensor, list[Tensor], Tensor, Tensor | None, list[Tensor]]:
    """The loop by the op; what it leaves at each row makes the gradients of the weights."""
    spec, dtype, w_hh = CELLS[saved.cell], saved.x_gates.dtype, saved.w_hh
    norm, keep, drop, clip = saved.extras
    found = _recurrence_backward(
        saved.cell, grad_output, grad_states_n, saved.batch_sizes, saved.batch, w_hh, norm, keep,
        drop, saved.reverse, reserve, clip,
    )  # fmt: skip
    rows, of_states = found[: -spec.states], found[-spec.states :]
    grad_x, of_rows = rows[0], list(rows[1:])
    grad_h = of_rows.pop(0) if norm or spec.shared_gates < spec.gates else grad_x
    grad_p = of_rows.pop(0) if norm else grad_h
    before = states_before(
        reserve[0], saved.batch_sizes, saved.x_gates.shape[0], reverse=saved.reverse
    )
    if drop is not None:
        before = before * _of_rows(drop, saved.batch_sizes, before.shape[0]).to(before.dtype)
    if w_hh.dim() == 2:
        grad_w = grad_p.t() @ before
    else:
        shape = (-1, spec.gates, before.shape[1])
        grad_w = (grad_p.view(shape) * before.unsqueeze(1)).sum(0).flatten()
    grad_norm = []
    if norm:
        place = spec.states + (spec.reserve > 0)
        grad_norm.append((grad_h * reserve[place]).sum(0))
        if of_rows:
            c = (
                reserve[-1].chunk(spec.states, -1)[1]
                if keep is not None
                else _after(saved, reserve)
            )
            mean, rstd = reserve[place + 1][:, 1:2], reserve[place + 1][:, 2:3]
            grad_norm += [(of_rows[0] * (c - mean) * rstd).sum(0), of_rows[0].sum(0)]
    return (
        grad_x.to(dtype),
        [grad.to(dtype) for grad in of_states[: len(saved.states)]],
        grad_w.to(dtype),
        None if saved.b_hh is None else grad_h.sum(0).to(dtype),
        [grad.to(dtype) for grad in grad_norm],
    )


def _of_rows(of_batch: Tensor, batch_sizes: Tensor | None, rows: int) -> Tensor:
    """``[rows, *]`` of ``[B, *]``."""
    if batch_sizes is None:
        return of_batch.repeat(rows // max(of_batch.shape[0], 1), 1)
    begins = (batch_sizes.cumsum(0) - batch_sizes).repeat_interleave(batch_sizes, output_size=rows)
    return of_batch.index_select(0, (torch.arange(rows) - begins).to(of_batch.device))


def _after(saved: _Saved, reserve: Sequence[Tensor]) -> Tensor:
    """``[rows, H]``: c after each step; in its timeline the initial ones come first, or last."""
    timeline, batch = reserve[1], saved.batch
    return timeline[:-batch] if saved.reverse else timeline[batch:]


def _differentiable_gradients(
    saved: _Saved, grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, list[Any], Tensor | None, Tensor | None, list[Any]]:
    """As a graph over torch's operations: runs the reference again, on aliases of the tensors."""
    states, (norm, keep, drop, clip) = saved.states, saved.extras
    own = [saved.x_gates, saved.w_hh, saved.b_hh, *states, *norm]
    create_graph, dtype = torch.is_grad_enabled(), compute_dtype(saved.x_gates.dtype)
    with torch.enable_grad(), without_autocast(saved.x_gates):
        aliases = [None if t is None else t.view_as(t) for t in own]
        x_gates, w_hh, b_hh, *lists = (None if t is None else t.to(dtype) for t in aliases)
        wide: Any = [None if t is None else t.to(dtype) for t in (keep, drop)]
        extras = Extras(tuple(lists[len(states) :]), *wide, clip)
        initial = tuple(lists[: len(states)]) or tuple(
            CELLS[saved.cell].zeros(x_gates, (saved.batch,), _hidden(CELLS[saved.cell], w_hh))
        )
        sizes = batch_sizes_of(saved.batch_sizes, x_gates.shape[0], saved.batch)
        output, states_n = reference(
            saved.cell, x_gates, sizes, initial, w_hh, b_hh, extras, saved.reverse
        )
        results = [
            (value.to(saved.x_gates.dtype), grad)
            for value, grad in zip((output, *states_n), grads, strict=True)
            if grad is not None and value.requires_grad
        ]
        wanted = [t for t in aliases if t is not None and t.requires_grad]
        found: Any = [None] * len(wanted)
        if results and wanted:
            values, of_values = zip(*results, strict=True)
            found = torch.autograd.grad(
                values, wanted, of_values, create_graph=create_graph, allow_unused=True
            )
    by_alias = dict(zip(map(id, wanted), found, strict=True))
    grad_x, grad_w, grad_b, *of_lists = (by_alias.get(id(t)) for t in aliases)
    return grad_x, of_lists[: len(states)], grad_w, grad_b, of_lists[len(states) :]


def batch_sizes_of(batch_sizes: Tensor | None, rows: int, batch: int) -> list[int]:
    """Rows of each step, of a packed or a dense sequence."""
    if batch_sizes is not None:
        return batch_sizes.tolist()  # type: ignore[no-any-return]
    return [batch] * (rows // max(batch, 1))


if not torch._C._dispatch_has_kernel_for_dispatch_key("rnnfast::recurrence", "AutogradCPU"):
    torch.library.register_autograd("rnnfast::recurrence", _backward, setup_context=_setup)
