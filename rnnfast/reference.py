"""The specification: the cells and the time loop in plain PyTorch.

Any dtype and device, any order of derivative, forward and backward mode, ``vmap``: nothing is
written in place and no tensor decides the control flow. The fused kernels are tested against it,
and it serves what they cannot.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

States = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, States], States]


def rnn_tanh(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Elman 1990: ``h' = tanh(x + h)``."""
    return (torch.tanh(x_gates + h_gates),)


def rnn_relu(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Elman's network with a rectifier: ``h' = relu(x + h)``."""
    return (torch.relu(x_gates + h_gates),)


def gru(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Cho et al. 2014, arXiv 1406.1078v1: the reset gate acts after the product.

    ``r, z = sigmoid(x + h)``, ``n = tanh(x_n + r * h_n)``, ``h' = (1 - z) * n + z * h``.
    """
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    h_r, h_z, h_n = h_gates.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (states[0] - n),)


def lstm(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.

    ``i, f, o = sigmoid(x + h)``, ``g = tanh(x + h)``, ``c' = f * c + i * g``,
    ``h' = o * tanh(c')``.
    """
    i, f, g, o = (x_gates + h_gates).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Step] = {"rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu, "gru": gru, "lstm": lstm}
"""Per cell: ``(x_gates [B, G*H], h_gates [B, G*H], states) -> states``, each state ``[B, H]``."""


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
    directions = 1 + bidirectional
    per_direction = len(weights) // directions
    outputs, finals = [], []
    for d in range(directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        initial = tuple(s[d] for s in states) or _zeros(cell, x, batch_sizes, own)
        output, states_n = _direction(STEPS[cell], x, batch_sizes, initial, own, d == 1)
        outputs.append(output)
        finals.append(states_n)
    output = outputs[0] if directions == 1 else torch.cat(outputs, -1)
    return output, tuple(torch.stack(states_n) for states_n in zip(*finals, strict=True))


def _projection(weights: Sequence[Tensor]) -> Tensor | None:
    return weights[-1] if len(weights) % 2 else None


def _zeros(
    cell: str, x: Tensor, batch_sizes: Sequence[int] | None, weights: Sequence[Tensor]
) -> States:
    batch = x.shape[1] if batch_sizes is None else (*batch_sizes, 0)[0]
    h_0 = x.new_zeros(batch, weights[1].shape[1])
    if cell != "lstm":
        return (h_0,)
    w_hr = _projection(weights)
    return h_0, h_0 if w_hr is None else x.new_zeros(batch, w_hr.shape[1])


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
    x_gates = F.linear(x, w_ih, b_ih)
    steps = x_gates.unbind(0) if batch_sizes is None else torch.split(x_gates, list(batch_sizes))
    if reverse:
        steps = steps[::-1]
    outputs: list[Tensor] = []
    finished: list[States] = []
    states = tuple(s[: steps[0].shape[0]] for s in initial) if steps else initial
    for gates in steps:
        alive, size = states[0].shape[0], gates.shape[0]
        if size > alive:  # backward in time, rows come alive with their initial state
            states = tuple(
                torch.cat([s, s_0[alive:size]]) for s, s_0 in zip(states, initial, strict=True)
            )
        elif size < alive:  # forward in time, rows are done
            finished.append(tuple(s[size:] for s in states))
            states = tuple(s[:size] for s in states)
        states = step(gates, F.linear(states[0], w_hh, b_hh), states)
        if w_hr is not None:
            states = (F.linear(states[0], w_hr), *states[1:])
        outputs.append(states[0])
    if not outputs:
        return x.new_zeros(*x.shape[:-1], initial[0].shape[-1]), initial
    if finished:
        states = tuple(torch.cat(parts) for parts in zip(states, *reversed(finished), strict=True))
    if reverse:
        outputs.reverse()
    return (torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)), states
