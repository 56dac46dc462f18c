"""Layers and cells as functions: the stack of layers, dropout between them, second derivatives.

The classes of :mod:`rnnfast.modules` and :mod:`rnnfast.cells` check their arguments as torch.nn
does and then call :func:`stack` or :func:`cell`. :func:`route` says what will serve a call.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import _VF, Tensor

from rnnfast import ops, reference
from rnnfast.routes import (
    FUSED,
    Route,
    autocast_dtype,
    autocast_products,
    casts,
    exporting,
    route,
    route_cell,
    without_autocast,
)

__all__ = ["Route", "cell", "route", "route_cell", "stack"]

_OTHER_WEIGHTS = Route("torch", "more or fewer weights than the options want: torch's to judge")
_CELLS = {mode: mode.lower() for mode in ("RNN_TANH", "RNN_RELU", "GRU", "LSTM")}
_TORCH_LAYERS = {mode: getattr(_VF, name) for mode, name in _CELLS.items()}
_TORCH_CELLS = {mode: getattr(_VF, f"{name}_cell") for mode, name in _CELLS.items()}


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
    dtype = ops.compute_dtype(x.dtype)
    with torch.enable_grad(), without_autocast(x):
        aliases = [t.view_as(t) for t in (x, *states, *weights)]
        own_x, *own = (t.to(dtype) for t in aliases)
        output, states_n = _reference_layer(
            cell, own_x, batch_sizes, own[: len(states)], own[len(states) :], bidirectional
        )
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


def is_pair(hx: Any) -> bool:
    """Whether torch's operators of LSTMs take `hx` for their two states."""
    return isinstance(hx, (tuple, list)) and len(hx) == 2


def _fused_layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    return ops.layer(cell, x, batch_sizes, states, weights, bidirectional)[:2]


def _reference_layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    return reference.layer(cell, x, sizes, states, weights, bidirectional)


def stack(
    mode: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool = False,
    proj_size: int = 0,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs all layers of an RNN, GRU or LSTM over a sequence.

    Args:
        mode: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``, torch's names.
        input: ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or with ``batch_sizes`` the data
            ``[rows, I]`` of a PackedSequence.
        batch_sizes: of the PackedSequence, or None.
        states: empty for zeros, or per state ``[L*D, B, H]``: h_0 (``[.., P]`` with a projection),
            for LSTM also c_0.
        weights: of all layers and directions, flat, in torch's order (``_flat_weights``).
        has_biases: whether ``weights`` holds biases.
        num_layers: L.
        dropout: probability of a zero in the output of each layer but the last, with the same
            draws from the generator as torch.nn on the CPU.
        training: without it there is no dropout.
        bidirectional: D = 2 directions instead of one.
        batch_first: see ``input``; of no effect on ``states``.
        proj_size: P of an LSTM with a projection, or 0.

    Returns:
        ``(output, states_n)`` in the layouts of ``input`` and ``states``.
    """
    chosen = route(input, (*states, *weights), proj_size)
    per_direction = (4 if has_biases else 2) + (proj_size > 0)
    directions = 1 + bidirectional
    if len(weights) != num_layers * directions * per_direction:
        chosen = _OTHER_WEIGHTS
        if mode == "LSTM" and num_layers * directions > 1 and not has_biases:
            # torch.nn reads past the end of biases, taken for matrices
            raise RuntimeError("Expected more weights in stacked_rnn")
    # AOTInductor's runtime takes an empty list of tensors for None, and fails.
    if not states and (chosen.kind == "torch" or exporting()):
        batch_size = input.size(0 if batch_first else 1) if batch_sizes is None else batch_sizes[0]
        states = _zero_states(mode, input, batch_size, num_layers * directions, weights, proj_size)
    if chosen.kind == "torch":
        hx = tuple(states) if mode == "LSTM" else states[0]
        data = (input, hx) if batch_sizes is None else (input, batch_sizes, hx)
        options = (has_biases, num_layers, dropout, training, bidirectional)
        order = (batch_first,) if batch_sizes is None else ()
        output, *states_n = _TORCH_LAYERS[mode](*data, list(weights), *options, *order)
        return output, tuple(states_n)
    if chosen is not FUSED and casts((input, *states, *weights)):
        dtype = autocast_dtype(mode, input, states, onednn=batch_sizes is None and not proj_size)
        products = autocast_products(input, dtype)
        with without_autocast(input):
            output, states_n = stack(
                mode,
                input.to(products),
                batch_sizes,
                [s.to(products) for s in states],
                [w.to(products) for w in weights],
                has_biases=has_biases,
                num_layers=num_layers,
                dropout=dropout,
                training=training,
                bidirectional=bidirectional,
                batch_first=batch_first,
                proj_size=proj_size,
            )
            return output.to(dtype), tuple(s.to(dtype) for s in states_n)
    layer = _fused_layer if chosen.kind == "fused" else _reference_layer
    name = _CELLS[mode]
    if batch_first:
        input = input.transpose(0, 1)
    if num_layers == 1:
        output, states_n = layer(name, input, batch_sizes, states, weights, bidirectional)
    else:
        output, finals = input, []
        per_layer = len(weights) // num_layers
        for i in range(num_layers):
            own = [s[i * directions : (i + 1) * directions] for s in states]
            own_weights = weights[i * per_layer : (i + 1) * per_layer]
            output, states_n = layer(name, output, batch_sizes, own, own_weights, bidirectional)
            finals.append(states_n)
            if dropout and training and i + 1 < num_layers:
                output = F.dropout(output, dropout, training=True)
        states_n = [torch.cat(parts) for parts in zip(*finals, strict=True)]
    if batch_first:  # as torch's operators: the LSTM's alone gives a view
        in_place = chosen.kind == "fused" and mode != "LSTM"
        output = output.transpose_(0, 1) if in_place else output.transpose(0, 1)
    return output, tuple(states_n)


def _zero_states(
    mode: str, input: Tensor, batch_size: Any, count: int, weights: Sequence[Tensor], proj_size: int
) -> list[Tensor]:
    """The states that torch.nn starts from, `count` of them for all layers and directions."""
    # In a trace, a size that is read and used as it is stays dynamic without a warning.
    hidden = weights[0].shape[0] // 4 if proj_size else weights[1].shape[1]
    sizes = [proj_size or hidden, hidden] if mode == "LSTM" else [hidden]
    return [
        torch.zeros(count, batch_size, size, dtype=input.dtype, device=input.device)
        for size in sizes
    ]


def cell(
    mode: str,
    input: Tensor,
    states: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
) -> tuple[Tensor, ...]:
    """One step of a cell: torch's operator, our kernel, or the reference under a transform.

    Args:
        mode: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
        input: ``[B, I]``.
        states: empty for zeros, or ``(h,)``, for LSTM ``(h, c)``, each ``[B, H]``.
        w_ih: ``[G*H, I]``.
        w_hh: ``[G*H, H]``.
        b_ih: ``[G*H]``, or None.
        b_hh: ``[G*H]``, or None.

    Returns:
        The new states, as many as the cell has, each ``[B, H]``.
    """
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:  # one alone is as good as both, the other being zero
        weights += [w_hh.new_zeros(w_hh.size(0)) if b is None else b for b in (b_ih, b_hh)]
    chosen = route_cell(mode, input, states, weights)
    if chosen.kind == "torch":
        if not states:
            states = [s[0] for s in _zero_states(mode, input, input.size(0), 1, weights, 0)]
        hx = tuple(states) if mode == "LSTM" else states[0]
        result = _TORCH_CELLS[mode](input, hx, w_ih, w_hh, b_ih, b_hh)
        return result if mode == "LSTM" else (result,)
    initial = [s.unsqueeze(0) for s in states]
    layer = _fused_layer if chosen.kind == "fused" else _reference_layer
    _, states_n = layer(_CELLS[mode], input.unsqueeze(0), None, initial, weights, False)
    return tuple(s.squeeze(0) for s in states_n)
