"""Gradients that reach back so many steps and no further (`detach_every`): truncated
backpropagation through time (Williams and Peng 1990).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Layers = Callable[[Tensor, "Tensor | None", Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]


def check(every: Any, bidirectional: bool) -> None:
    """Raises TypeError or ValueError for what `detach_every` cannot be."""
    if not isinstance(every, int) or isinstance(every, bool):
        raise TypeError(f"detach_every: expected a number of steps, got {type(every).__name__}")
    if every < 1:
        raise ValueError(f"detach_every: expected a number of steps from 1 on, got {every}")
    if bidirectional:
        raise ValueError(
            "detach_every: of a bidirectional layer one direction begins at the end; there is no "
            "state to go on from"
        )


def run(
    layers: Layers,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    every: int,
    time: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs `layers` on `every` steps after the other, each of which begins with the states that the
    one before ended with, detached.

    layers: ``(x, batch_sizes, states) -> (output, states_n)``, forward in time. time: the dimension
    of the steps of `input` where it is not packed.

    Returns:
        ``(output, states_n)`` as of one call of `layers`.
    """
    if batch_sizes is None:
        outputs = []
        for x in torch.split(input, every, time):
            output, states_n = layers(x, None, states)
            outputs.append(output)
            states = [state.detach() for state in states_n]
        return torch.cat(outputs, time), tuple(states_n)
    return _run_packed(layers, input, batch_sizes, states, every)


def _run_packed(
    layers: Layers, input: Tensor, batch_sizes: Tensor, states: Sequence[Tensor], every: int
) -> tuple[Tensor, tuple[Tensor, ...]]:
    if torch.compiler.is_compiling():  # with fullgraph=True it says so, else it goes on
        torch._dynamo.graph_break(
            msg="detach_every: sequences that a mask, lengths or a PackedSequence tell the ends of"
            " are cut as their values say, which a program that is compiled cannot look at"
        )
    outputs, ended = [], []
    parts = torch.split(batch_sizes, every)
    rows = torch.split(input, [int(sizes.sum()) for sizes in parts])
    for i, (x, sizes) in enumerate(zip(rows, parts, strict=True)):
        output, states_n = layers(x, sizes, states)
        going_on = int(parts[i + 1][0]) if i + 1 < len(parts) else 0
        outputs.append(output)
        ended.append([state[:, going_on:] for state in states_n])
        states = [state[:, :going_on].detach() for state in states_n]
    # The longest sequences, which end last, come first.
    final = (torch.cat(pieces, 1) for pieces in zip(*reversed(ended), strict=True))
    return torch.cat(outputs), tuple(final)
