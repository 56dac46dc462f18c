"""The two ops, typed, with their fake kernels and FLOP formulas.

They are public, but low: one layer, all its directions, no dropout. ``layer`` has gradients: they
call ``layer_backward`` (see ``csrc/autograd.cpp``). :mod:`rnnfast.functional` stacks layers.
Every argument is checked; a bad one raises RuntimeError or ValueError that names the op, the
argument, what was wanted and what was given.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from rnnfast._fakes import check_devices, register_fake
from rnnfast.spec import CELLS, CellSpec

_layer = torch.ops.rnnfast.layer.default
_layer_backward = torch.ops.rnnfast.layer_backward.default
_set_frozen = torch.ops.rnnfast.set_frozen.default
_is_frozen = torch.ops.rnnfast.is_frozen.default


def layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool = False,
    train: bool = False,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """One layer over a whole sequence, in one or both directions.

    Args:
        cell: ``rnn_tanh``, ``rnn_relu``, ``gru`` or ``lstm``.
        x: ``[T, B, I]``, or packed ``[rows, I]``; any strides; float32, float64, bfloat16 or
            float16, and all other floating tensors too.
        batch_sizes: None, or int64 ``[T]`` on the CPU: positive, never increasing, of sum ``rows``.
            On a GPU ``x`` may be ``[T, B, I]`` with ``batch_sizes`` beside it there: so many of the
            first rows of each step are alive, none is waited for, and others come out as zeros.
            All count as alive at the first step, and none comes alive later. Or they are a bool
            mask ``[T, B]`` there: where it is true, the states before that step are zeros, in
            either direction. Of the first step it says nothing: that one's are ``states``.
        states: empty for zeros, or per state of the cell ``[D, B, H]``: h_0, for ``lstm`` also c_0.
        weights: per direction ``w_ih [G*H, I]``, ``w_hh [G*H, H]`` and, all or none,
            ``b_ih [G*H]``, ``b_hh [G*H]``.
        bidirectional: D = 2 directions instead of one.
        train: keep what :func:`layer_backward` needs.

    Returns:
        ``(output, states_n, reserve)``: ``[T, B, D*H]`` or ``[rows, D*H]``; per state
        ``[D, B, H]``; and the reserve, of :func:`reserve_dtype`: per state a timeline
        ``[D, rows + B, H]``, then for gru and lstm the gates ``[D, rows, 4*H]``: gate by gate, on a
        GPU unit by unit. ``[]`` without ``train``.
    """
    return _layer(cell, x, batch_sizes, states, weights, bidirectional, train)  # type: ignore[no-any-return]


def layer_backward(
    cell: str,
    grad_output: Tensor | None,
    grad_states_n: Sequence[Tensor | None],
    x: Tensor,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    bidirectional: bool,
    reserve: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    """The gradients of :func:`layer`, only those that are needed.

    Args:
        cell: as :func:`layer` was given, and so x, batch_sizes, weights and bidirectional.
        x: see ``cell``.
        batch_sizes: see ``cell``.
        weights: see ``cell``.
        bidirectional: see ``cell``.
        grad_output: gradient of ``output``, or None for zero.
        grad_states_n: per state of the cell the gradient of ``states_n``, or None for zero.
        reserve: what ``layer`` gave with ``train=True``.
        needs: a flag for x, one per state of the cell, one per tensor of ``weights``.

    Returns:
        The gradients of what ``needs`` names, in its order, each contiguous, in the sizes and dtype
        of its tensor.
    """
    return _layer_backward(  # type: ignore[no-any-return]
        cell, grad_output, grad_states_n, x, batch_sizes, weights, bidirectional, reserve, needs
    )


def set_frozen(weight: Tensor, frozen: bool) -> None:
    """Keep what forward passes make of a matrix of weights for the next ones, or stop doing so.

    Args:
        weight: a ``w_ih`` or ``w_hh`` on the CPU. It counts as the tensor that it is: not its
            copies, nor others that share its memory. See :func:`rnnfast.freeze` on changes to it.
        frozen: whether to keep it.

    Raises:
        RuntimeError: `weight` was made in inference mode.
        NotImplementedError: it is not on the CPU, or sparse.
    """
    _set_frozen(weight, frozen)


def can_freeze(weight: Tensor) -> bool:
    """Whether `weight` is a tensor on the CPU, and of no subclass (fake, distributed, ...)."""
    return type(weight) in (Tensor, torch.nn.Parameter) and weight.device.type == "cpu"


def is_frozen(weight: Tensor) -> bool:
    """Whether :func:`set_frozen` holds for `weight`; any other kind of tensor is not frozen."""
    return can_freeze(weight) and _is_frozen(weight)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type the kernels calculate in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def reserve_dtype(x: Tensor) -> torch.dtype:
    """The type of the reserve: that of x on a GPU, where memory is dear; else the one the kernels
    calculate in.
    """
    return x.dtype if x.device.type == "cuda" else compute_dtype(x.dtype)


def _find_cell(op: str, name: str) -> CellSpec:
    """As the kernels do, on whose devices another name does not come here."""
    if name not in CELLS:
        raise ValueError(f"{op}: cell must be one of {', '.join(CELLS)}, got '{name}'")
    return CELLS[name]


def _batch_size(x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor]) -> Any:
    if batch_sizes is None or x.dim() == 3:
        return x.shape[1]
    if states:
        return states[0].shape[1]
    if isinstance(batch_sizes, FakeTensor):
        return torch.library.get_ctx().new_dynamic_size()
    return int(batch_sizes[0]) if len(batch_sizes) else 0


@register_fake("rnnfast::layer")  # type: ignore[untyped-decorator]
def _layer_fake(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
    train: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_devices("rnnfast::layer", x, batch_sizes, [*states, *weights])
    spec = _find_cell("rnnfast::layer", cell)
    directions, hidden = 1 + bidirectional, weights[1].shape[1]
    batch = _batch_size(x, batch_sizes, states)
    output = x.new_empty([*x.shape[:-1], directions * hidden])
    states_n = [x.new_empty([directions, batch, hidden]) for _ in range(spec.states)]
    if not train:
        return output, states_n, []
    rows, dtype = prod(x.shape[:-1]), reserve_dtype(x)
    timeline = [directions, rows + batch, hidden]
    reserve = [x.new_empty(timeline, dtype=dtype) for _ in range(spec.states)]
    if spec.reserve:
        reserve.append(x.new_empty([directions, rows, spec.reserve * hidden], dtype=dtype))
    return output, states_n, reserve


@register_fake("rnnfast::layer_backward")  # type: ignore[untyped-decorator]
def _layer_backward_fake(
    cell: str,
    grad_output: Tensor | None,
    grad_states_n: Sequence[Tensor | None],
    x: Tensor,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    bidirectional: bool,
    reserve: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    tensors = [grad_output, *grad_states_n, *weights, *reserve]
    check_devices("rnnfast::layer_backward", x, batch_sizes, tensors)
    states = _find_cell("rnnfast::layer_backward", cell).states
    directions, timeline, hidden = reserve[0].shape
    state = [directions, timeline - prod(x.shape[:-1]), hidden]
    shapes = [x.shape, *[state] * states, *(w.shape for w in weights)]
    return [x.new_empty(shape) for shape, needed in zip(shapes, needs, strict=True) if needed]


def _products(weights: Sequence[Sequence[int]], bidirectional: bool) -> tuple[int, int]:
    """Elements of all w_ih and of all w_hh, from the shapes of the weights."""
    per_direction = len(weights) // (1 + bidirectional)
    return sum(map(prod, weights[0::per_direction])), sum(map(prod, weights[1::per_direction]))


def decomposed(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
    train: bool,
) -> Any:
    """:func:`layer` by torch's operator, without a reserve: for tools that know torch's alone.

    ``ExportedProgram.run_decompositions`` takes it in its table. It is not in torch's global one,
    from which fake tensors of symbolic sizes would take it.
    """
    if train:
        return NotImplemented
    spec, directions = CELLS[cell], 1 + bidirectional
    if spec.operator is None:
        return NotImplemented
    if not states:
        sizes = (directions, _batch_size(x, batch_sizes, states))
        states = spec.zeros(x, sizes, weights[1].shape[1])
    hx = spec.hx_of(states)
    data = (x, hx) if batch_sizes is None else (x, batch_sizes, hx)
    flags = (len(weights) == 4 * directions, 1, 0.0, False, bidirectional)
    order = (False,) if batch_sizes is None else ()
    output, *states_n = spec.operator(*data, list(weights), *flags, *order)
    return output, states_n, []


for _op in (torch.ops.rnnfast.layer, torch.ops.rnnfast.layer_backward):
    flop_registry.pop(_op, None)


@register_flop_formula(torch.ops.rnnfast.layer)
def _layer_flops(
    cell: str,
    x: Sequence[int],
    batch_sizes: Sequence[int] | None,
    states: Sequence[Sequence[int]],
    weights: Sequence[Sequence[int]],
    bidirectional: bool,
    train: bool,
    **_: Any,
) -> int:
    return 2 * prod(x[:-1]) * sum(_products(weights, bidirectional))


@register_flop_formula(torch.ops.rnnfast.layer_backward)
def _layer_backward_flops(
    cell: str,
    grad_output: Sequence[int] | None,
    grad_states_n: Sequence[Sequence[int] | None],
    x: Sequence[int],
    batch_sizes: Sequence[int] | None,
    weights: Sequence[Sequence[int]],
    bidirectional: bool,
    reserve: Sequence[Sequence[int]],
    needs: Sequence[bool],
    **_: Any,
) -> int:
    rows, (w_ih, w_hh) = prod(x[:-1]), _products(weights, bidirectional)
    per_direction = len(weights) // (1 + bidirectional)
    needs_weights = needs[1 + CELLS[cell].states :]
    # The first step of each direction passes a gradient on only if h_0 wants one.
    recurrent_rows = rows if needs[1] else 2 * rows - reserve[0][1]
    total = recurrent_rows * w_hh + rows * w_ih * needs[0]
    for i, shape in enumerate(weights):
        total += rows * prod(shape) * (needs_weights[i] and i % per_direction < 2)
    return 2 * total


@register_fake("rnnfast::segments")  # type: ignore[untyped-decorator]
def _segments_fake(
    resets: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    T: Any,
    B: Any,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    context, like = torch.library.get_ctx(), resets if resets is not None else lengths
    if like is None:
        raise RuntimeError("rnnfast::segments: resets or lengths must be given")
    count, longest = context.new_dynamic_size(), context.new_dynamic_size()
    rows = like.numel() if lengths is None else context.new_dynamic_size()
    sizes = ((rows,), (longest,), (count,), (2, count), (B,), (B,))
    return tuple(
        like.new_empty(size, dtype=torch.bool if len(size) == 2 else torch.int64) for size in sizes
    )
