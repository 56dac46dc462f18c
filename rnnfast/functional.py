"""Layers and cells as functions: the stack of layers, dropout between them.

The classes of :mod:`rnnfast.modules` and :mod:`rnnfast.cells` check their arguments as torch.nn
does and then call :func:`stack` or :func:`cell`. :func:`route` says what will serve a call.
"""

from __future__ import annotations  # Dynamo runs definitions, and cannot those of types

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnfast import ops, reference, regularisation, transforms
from rnnfast import recompute as recomputed
from rnnfast.routes import (
    FUSED,
    TRANSFORMED,
    Route,
    autocast_dtype,
    autocast_products,
    casts,
    exporting,
    route,
    route_cell,
    without_autocast,
)
from rnnfast.spec import CELLS, MODES, CellSpec

__all__ = ["Route", "cell", "route", "route_cell", "stack"]

_OTHER_WEIGHTS = Route("torch", "more or fewer weights than the options want: torch's to judge")


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
    return reference.any_layer(cell, x, batch_sizes, states, weights, bidirectional)


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
    heads: int = 1,
    recompute: bool = False,
    regularised: regularisation.Regularisation | None = None,
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
        heads: n equal parts of the units that do not see each other's states: ``w_hh`` is
            ``[n, G*H/n, H/n]``, its block k that of units ``[k*H/n, (k+1)*H/n)``.
        recompute: our kernels keep the states alone for backward, which computes the gates again.
        regularised: what is done to the recurrence; with layer normalisation ``weights`` holds
            those of it after the biases of each direction.

    Returns:
        ``(output, states_n)`` in the layouts of ``input`` and ``states``.
    """
    spec, directions = MODES[mode], 1 + bidirectional
    if regularised is not None:
        regularised = regularised.left(training)
    plain = heads == 1 and regularised is None
    operator: Any = spec.operator if plain else None
    if operator is None:
        _check_devices(input, (*states, *weights))
    chosen = _available(operator, route(input, (*states, *weights), proj_size))
    per_direction = (4 if has_biases else 2) + (proj_size > 0)
    if regularised is not None and regularised.layer_norm:
        per_direction += len(regularisation.norm_names(spec))
    if len(weights) != num_layers * directions * per_direction:
        chosen = _OTHER_WEIGHTS
        if spec.states > 1 and num_layers * directions > 1 and not has_biases:
            # torch.nn reads past the end of biases, taken for matrices
            raise RuntimeError("Expected more weights in stacked_rnn")
    # AOTInductor's runtime takes an empty list of tensors for None, and fails.
    if not states and (chosen.kind == "torch" or exporting()):
        B = input.size(0 if batch_first else 1) if batch_sizes is None else batch_sizes[0]
        hidden = _hidden_size(spec, weights, of_gates=proj_size > 0 or heads > 1)
        states = spec.zeros(input, (num_layers * directions, B), hidden, proj_size)
    if chosen.kind == "torch":
        hx = spec.hx_of(states)
        data = (input, hx) if batch_sizes is None else (input, batch_sizes, hx)
        options = (has_biases, num_layers, dropout, training, bidirectional)
        order = (batch_first,) if batch_sizes is None else ()
        output, *states_n = operator(*data, list(weights), *options, *order)
        return output, tuple(states_n)
    dtype = input.dtype
    casting = chosen is not FUSED and casts((input, *states, *weights))
    if casting:
        dtype = autocast_dtype(spec, input, states, onednn=batch_sizes is None and not proj_size)
        products = autocast_products(input, dtype)
        input, states = input.to(products), [s.to(products) for s in states]
        weights = [w.to(products) for w in weights]
    if batch_first:
        input = input.transpose(0, 1)
    between = dropout if training else 0.0
    with without_autocast(input) if casting else nullcontext():
        output, states_n = _layers(
            _layer(chosen, recompute)
            if plain
            else _own_layer(chosen, recompute, heads, weights[1], regularised, training),
            spec,
            input,
            batch_sizes,
            states,
            weights,
            num_layers,
            between,
            bidirectional,
        )
    if casting:
        output, states_n = output.to(dtype), [s.to(dtype) for s in states_n]
    if batch_first:  # as torch's operators: the LSTM's alone gives a view
        in_place = chosen.kind == "fused" and spec.states == 1
        output = output.transpose_(0, 1) if in_place else output.transpose(0, 1)
    return output, tuple(states_n)


def _check_devices(input: Tensor, others: Sequence[Tensor]) -> None:
    """As torch's operators, for what none of them serves: its operations let some pairs pass."""
    for t in others:
        if t.device != input.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, found input tensor at "
                f"{input.device} and parameter tensor at {t.device}"
            )


def _available(operator: Any, chosen: Route) -> Route:
    """The reference in the place of an operator that torch has not."""
    if chosen.kind == "torch" and operator is None:
        return Route("reference", chosen.reason)
    return chosen


def _layer(chosen: Route, recompute: bool) -> Any:
    """What runs one layer as torch.nn has them."""
    if chosen is TRANSFORMED:
        return transforms.layer
    if chosen.kind == "fused":
        return recomputed.layer if recompute else _fused_layer
    return _reference_layer


def _own_layer(
    chosen: Route,
    recompute: bool,
    heads: int,
    w_hh: Tensor,
    regularised: regularisation.Regularisation | None,
    training: bool,
) -> Any:
    """What runs one layer with options that torch.nn has not."""
    layer, single_units = _layer(chosen, recompute), heads > 1 and w_hh.shape[-1] == 1
    if regularised is not None or single_units:
        options = regularised or regularisation.Regularisation()
        by_kernels = chosen.kind == "fused" and chosen is not TRANSFORMED
        layer = functools.partial(regularisation.layer, options, layer, by_kernels, training)
    if single_units:
        return functools.partial(_layer_of_single_units, layer)
    return layer if heads == 1 else functools.partial(_layer_of_heads, layer, heads)


def _layers(
    layer: Any,
    spec: CellSpec,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_layers: int,
    dropout: float,
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer on the output of the other, by our operator or the reference."""
    per_layer, directions = len(weights) // num_layers, 1 + bidirectional
    output, finals = input, []
    for i in range(num_layers):
        own = states
        if num_layers > 1:
            own = [s[i * directions : (i + 1) * directions] for s in states]
        own_weights = weights[i * per_layer : (i + 1) * per_layer]
        output, states_n = layer(spec.name, output, batch_sizes, own, own_weights, bidirectional)
        finals.append(states_n)
        if dropout and i + 1 < num_layers:
            output = F.dropout(output, dropout, training=True)
    if num_layers == 1:
        return output, finals[0]
    return output, [torch.cat(parts) for parts in zip(*finals, strict=True)]


def _layer_of_heads(
    layer: Any,
    heads: int,
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer whose heads are layers of their own, side by side."""
    gates, directions, size = CELLS[cell].gates, 1 + bidirectional, weights[1].shape[-1]
    per_direction = len(weights) // directions

    def rows_of(w: Tensor) -> Sequence[Tensor]:
        """Those of each head: they stand gate by gate, in each gate head by head."""
        parts = w.reshape(gates, heads, size, *w.shape[1:]).transpose(0, 1)
        return parts.reshape(heads, gates * size, *w.shape[1:]).unbind()

    own_weights = [
        w.unbind() if i % per_direction == 1 else rows_of(w) for i, w in enumerate(weights)
    ]
    own_states = [s.chunk(heads, -1) for s in states]
    outputs, finals = [], []
    for k in range(heads):
        own = ([s[k] for s in own_states], [w[k] for w in own_weights])
        output, states_n = layer(cell, x, batch_sizes, *own, bidirectional)
        outputs.append(output.reshape(*output.shape[:-1], directions, size))
        finals.append(states_n)
    output = torch.cat(outputs, -1)
    output = output.reshape(*output.shape[:-2], directions * heads * size)
    return output, [torch.cat(parts, -1) for parts in zip(*finals, strict=True)]


def _layer_of_single_units(
    layer: Any,
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """One layer with as many heads as units: each sees its own state alone."""
    per_direction = len(weights) // (1 + bidirectional)
    own = [  # [H, G, 1] as [G*H]
        w[:, :, 0].t().reshape(-1) if i % per_direction == 1 else w for i, w in enumerate(weights)
    ]
    return layer(cell, x, batch_sizes, states, own, bidirectional)  # type: ignore[no-any-return]


def _hidden_size(spec: CellSpec, weights: Sequence[Tensor], of_gates: bool) -> Any:
    # In a trace, a size that is read and used as it is stays dynamic without a warning.
    return weights[0].shape[0] // spec.gates if of_gates else weights[1].shape[1]


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
    spec = MODES[mode]
    chosen = _available(spec.cell_operator, route_cell(spec, input, states, weights))
    if chosen.kind == "torch":
        if not states:
            states = spec.zeros(input, (input.size(0),), w_hh.shape[1])
        result = spec.cell_operator(input, spec.hx_of(states), w_ih, w_hh, b_ih, b_hh)
        return spec.states_of(result)
    initial = [s.unsqueeze(0) for s in states]
    layer = _fused_layer if chosen.kind == "fused" else _reference_layer
    _, states_n = layer(spec.name, input.unsqueeze(0), None, initial, weights, False)
    return tuple(s.squeeze(0) for s in states_n)
