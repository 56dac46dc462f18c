"""What is done to the recurrence beside the cell: layer normalisation, zoneout, dropout of the
states and of the recurrent weights, clipped gradients; and units that see their own state alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnnfast import recurrence, reference
from rnnfast.reference import Extras
from rnnfast.spec import CELLS, CellSpec


class Regularisation(NamedTuple):
    """The options of a layer, checked.

    layer_norm: the products of both sides, and c of an LSTM, are normalised over their rows (Ba et
    al. 2016, arXiv 1607.06450). zoneout: of each state the probability that a unit stays as it was
    (Krueger et al. 2017, arXiv 1606.01305). state_dropout: that a unit of h is hidden from the
    recurrent product, for a whole sequence (Gal and Ghahramani 2016, arXiv 1512.05287).
    weight_dropout: that a recurrent weight is zero in a call (Merity et al. 2018, arXiv
    1708.02182). clip_gradients: what no gradient of a state exceeds between two steps.
    """

    layer_norm: bool = False
    zoneout: tuple[float, ...] = ()
    state_dropout: float = 0.0
    weight_dropout: float = 0.0
    clip_gradients: float | None = None

    def __str__(self) -> str:
        """As the layers print themselves."""
        options: dict[str, Any] = {
            "layer_norm": self.layer_norm,
            "zoneout": self.zoneout if len(set(self.zoneout)) > 1 else sum(self.zoneout[:1]),
            "state_dropout": self.state_dropout,
            "weight_dropout": self.weight_dropout,
            "clip_gradients": self.clip_gradients,
        }
        return ", ".join(f"{name}={value}" for name, value in options.items() if value)

    def at(self, training: bool) -> Regularisation:
        """What is left of it here and now, in training or outside."""
        norm, zoneout, state_dropout, weight_dropout, clip = self
        if not training:
            state_dropout = weight_dropout = 0.0
        if not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
            clip = None
        return Regularisation(norm, zoneout, state_dropout, weight_dropout, clip)

    def left(self, training: bool) -> Regularisation | None:
        """The same; None where nothing is."""
        found = self.at(training)
        return found if found.sees_rows or found.weight_dropout else None

    @property
    def sees_rows(self) -> bool:
        """Whether a step is more than its cell and a product."""
        own = self.layer_norm or self.state_dropout or self.clip_gradients is not None
        return bool(own or any(self.zoneout))


RATES = ("zoneout", "state_dropout", "weight_dropout", "clip_gradients")
"""The options that add no parameters."""


def checked(spec: CellSpec, options: dict[str, Any]) -> Regularisation | None:
    """The options as they are given to a layer; None where all are off."""
    norm, zoneout = options["layer_norm"], options["zoneout"]
    if not isinstance(norm, bool):
        raise TypeError(f"layer_norm should be of type bool, got: {type(norm).__name__}")
    if not isinstance(zoneout, (tuple, list)):
        zoneout = [zoneout] * spec.states
    if len(zoneout) != spec.states:
        states = "a number" if spec.states == 1 else f"a number or {spec.states} of them"
        raise ValueError(f"zoneout: expected {states}, got {len(zoneout)} of them")
    rates = [("zoneout", rate) for rate in zoneout]
    rates += [(name, options[name]) for name in ("state_dropout", "weight_dropout")]
    for name, rate in rates:
        _check_rate(name, rate)
    clip = options["clip_gradients"]
    if clip is not None and (not _is_number(clip) or not clip > 0):
        raise ValueError(f"clip_gradients: expected a number above 0 or None, got {clip!r}")
    kept = tuple(map(float, zoneout)) if any(zoneout) else ()
    found = Regularisation(
        norm,
        kept,
        float(options["state_dropout"]),
        float(options["weight_dropout"]),
        None if clip is None else float(clip),
    )
    return None if found == Regularisation() else found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_rate(name: str, rate: Any) -> None:
    """As torch.nn checks `dropout`, but that 1 leaves nothing to learn from."""
    if not _is_number(rate) or not 0 <= rate < 1:
        raise ValueError(f"{name} should be a number in range [0, 1), got {rate!r}")


def norm_names(spec: CellSpec) -> tuple[str, ...]:
    """The parameters of layer normalisation, without the suffix of their layer."""
    return ("norm_ih", "norm_hh", *(("norm_c", "norm_bias_c") if spec.emit else ()))


def layer(
    options: Regularisation,
    plain: Any,
    by_kernels: bool,
    training: bool,
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    """:func:`rnnfast.ops.layer` with a regularisation.

    Args:
        options: the regularisation, as it is `at` this call
        plain: what runs a layer without, where nothing else is left of it
        by_kernels: by ours, or by torch's operations
        training: whether there is dropout
        cell: its name
        x: ``[T, B, I]`` or ``[rows, I]``
        batch_sizes: of a packed sequence, or None
        states: empty for zeros, or each ``[D, B, H]``
        weights: as `ops.layer` takes them, for each direction followed by those of `norm_names`;
            of units that see their own state alone ``w_hh`` is ``[G*H]``
        bidirectional: D = 2 directions instead of one

    Returns:
        ``(output, states_n)`` as :func:`rnnfast.ops.layer` gives them
    """
    directions = 1 + bidirectional
    per_direction = len(weights) // directions
    if options.weight_dropout:
        weights = [
            F.dropout(w, options.weight_dropout) if i % per_direction == 1 else w
            for i, w in enumerate(weights)
        ]
    if not options.sees_rows and weights[1].dim() == 2:
        return plain(cell, x, batch_sizes, states, weights, bidirectional)  # type: ignore[no-any-return]
    batch, rows = _batch(x, batch_sizes, states), x.reshape(-1, x.shape[-1])
    outputs, finals = [], []
    for d in range(directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        inputs = _inputs(options, CELLS[cell], rows, batch, own, training)
        call = (cell, inputs, batch_sizes, batch, [s[d] for s in states], d == 1)
        output, states_n = _recurrence(by_kernels, *call)
        outputs.append(output)
        finals.append(states_n)
    if directions == 1:
        output, states_n = outputs[0], [s.unsqueeze(0) for s in finals[0]]
    else:
        output = torch.cat(outputs, -1)
        states_n = [torch.stack(parts) for parts in zip(*finals, strict=True)]
    return output.view(*x.shape[:-1], output.shape[-1]), states_n


class _Inputs(NamedTuple):
    """Of a recurrence, all that is made of the input and the weights."""

    x_gates: Tensor
    w_hh: Tensor
    b_hh: Tensor | None
    extras: Extras


def _inputs(
    options: Regularisation,
    spec: CellSpec,
    x: Tensor,
    batch: int,
    weights: Sequence[Tensor],
    training: bool,
) -> _Inputs:
    """Of one direction; `x` is ``[rows, I]``."""
    count = len(norm_names(spec)) if options.layer_norm else 0
    weights, norm = weights[: len(weights) - count], weights[len(weights) - count :]
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:] if len(weights) > 2 else (None, None)
    hidden = w_ih.shape[0] // spec.gates
    if norm:
        products = F.linear(x, w_ih)
        x_gates = torch.layer_norm(products, products.shape[-1:], norm[0], b_ih, reference.EPSILON)
    else:
        x_gates = F.linear(x, w_ih, b_ih)
    extras = Extras(
        tuple(norm[1:]),
        _keep(x_gates, hidden, options.zoneout, training),
        _drop(x_gates, (batch, hidden), options.state_dropout),
        options.clip_gradients,
    )
    return _Inputs(x_gates, w_hh, b_hh, extras)


def _recurrence(
    by_kernels: bool,
    cell: str,
    inputs: _Inputs,
    batch_sizes: Tensor | None,
    batch: int,
    states: Sequence[Tensor],
    reverse: bool,
) -> tuple[Tensor, Sequence[Tensor]]:
    x_gates, w_hh, b_hh, extras = inputs
    if by_kernels:
        rows = (x_gates, batch_sizes, batch)
        return recurrence.fused(cell, *rows, states, w_hh, b_hh, extras, reverse)
    spec, sizes = CELLS[cell], reference.batch_sizes_of(batch_sizes, x_gates.shape[0], batch)
    initial = tuple(states) or tuple(spec.zeros(x_gates, (batch,), x_gates.shape[-1] // spec.gates))
    return reference.recurrence(cell, x_gates, sizes, initial, w_hh, b_hh, extras, reverse)


def _batch(x: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor]) -> int:
    """B; a compiled program cannot read it from the values of `batch_sizes`."""
    if states:
        return states[0].shape[1]
    if batch_sizes is None:
        return x.shape[1]
    return int(batch_sizes[0]) if len(batch_sizes) else 0


def _keep(like: Tensor, hidden: int, zoneout: Sequence[float], training: bool) -> Tensor | None:
    """Of every row which units stay as they were; outside of training, how much of each does."""
    if not any(zoneout):
        return None
    rates = torch.cat([like.new_full((hidden,), rate) for rate in zoneout])
    if not training:
        return rates
    drawn = torch.rand(like.shape[0], len(rates), dtype=torch.float32, device=like.device)
    return (drawn < rates).to(like.dtype)


def _drop(like: Tensor, sizes: tuple[int, int], rate: float) -> Tensor | None:
    return F.dropout(like.new_ones(sizes), rate) if rate else None
