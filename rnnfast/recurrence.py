"""The op ``rnnfast::recurrence``: one direction of a layer without its input product, and with what
a step may do between its own product and the next one: normalise, keep, drop, clip.

:func:`rnnfast.reference.recurrence` is its specification, in plain PyTorch;
``csrc/check_recurrence.h`` says the same of the kernels.
"""

from __future__ import annotations  # Dynamo runs definitions, and cannot those of types

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnnfast import reference
from rnnfast._fakes import check_devices, register_fake
from rnnfast.ops import compute_dtype
from rnnfast.recompute import needs_graph, states_before
from rnnfast.reference import Extras
from rnnfast.routes import needs_gradients
from rnnfast.spec import CELLS, CellSpec

_is_compiling = torch.compiler.is_compiling
_without_autograd = torch._C._AutoDispatchBelowAutograd
_recurrence = torch.ops.rnnfast.recurrence.default
_recurrence_backward = torch.ops.rnnfast.recurrence_backward.default


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
    """:func:`rnnfast.reference.recurrence` by the kernels; without `batch_sizes` all steps are of
    `batch` rows.
    """
    norm, keep, drop, clip = extras
    tensors = [x_gates, *states, w_hh, *norm, *([] if b_hh is None else [b_hh])]
    train = needs_gradients(tensors)
    # Autograd of this op is Python's, and takes longer than a step.
    with nullcontext() if train or _is_compiling() else _without_autograd():
        return _recurrence(  # type: ignore[no-any-return]
            cell, x_gates, batch_sizes, batch, states, w_hh, b_hh, norm, keep, drop, reverse, clip,
            train,
        )[:2]  # fmt: skip


def _reserve_shapes(
    spec: CellSpec, rows: Any, batch: Any, hidden: Any, norm: bool, keep: bool
) -> list[tuple[Any, Any]]:
    """As ``csrc/check_recurrence.h`` says."""
    shapes = [(rows + batch, hidden)] * spec.states
    if spec.reserve:
        shapes.append((rows, spec.reserve * hidden))
    if norm:
        shapes += [(rows, spec.gates * hidden), (rows, 3 if spec.emit else 1)]
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
    tensors = [*states, w_hh, b_hh, *norm, keep, drop]
    check_devices("rnnfast::recurrence", x_gates, batch_sizes, tensors)
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
    tensors = [grad_output, *grad_states_n, *norm, keep, drop, *reserve]
    check_devices("rnnfast::recurrence_backward", w_hh, batch_sizes, tensors)
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
    for name, noise in (("keep", keep), ("drop", drop)):
        if noise is not None and noise.requires_grad:
            raise RuntimeError(f"rnnfast::recurrence: {name} has no gradient")
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
    grad_x, grad_states, grad_w, grad_norm, grad_b = grads
    return None, grad_x, None, None, grad_states, grad_w, grad_b, grad_norm, *[None] * 5


def _fused_gradients(
    saved: _Saved,
    reserve: Sequence[Tensor],
    grad_output: Tensor | None,
    grad_states_n: Sequence[Tensor | None],
    backward: Callable[..., list[Tensor]] = _recurrence_backward,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor], Tensor | None]:
    """The loop by the op; what it leaves at each row makes the gradients of the weights."""
    spec, dtype, w_hh = CELLS[saved.cell], saved.x_gates.dtype, saved.w_hh
    norm, keep, drop, clip = saved.extras
    found = backward(
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
        [grad.to(dtype) for grad in grad_norm],
        None if saved.b_hh is None else grad_h.sum(0).to(dtype),
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
) -> tuple[Tensor | None, list[Any], Tensor | None, list[Any], Tensor | None]:
    grad_x, *others = reference.recurrence_gradients(*saved, grads)
    states = len(saved.states)
    of_states, (grad_w, *others) = others[:states], others[states:]
    grad_b = others.pop() if saved.b_hh is not None else None
    return grad_x, of_states, grad_w, others, grad_b


if not torch._C._dispatch_has_kernel_for_dispatch_key("rnnfast::recurrence", "AutogradCPU"):
    torch.library.register_autograd("rnnfast::recurrence", _backward, setup_context=_setup)
