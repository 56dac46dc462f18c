"""``scan``: a step of one's own over a sequence, dense or packed, with resets and lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnfast import segments
from rnnfast.layers import as_lengths, flat_resets
from rnnfast.reference import loop
from rnnfast.spec import States

__all__ = ["scan"]


def scan(
    step: Callable[[Tensor, States], tuple[Tensor, States]],
    x: Any,
    states: Sequence[Tensor],
    *,
    resets: Any = None,
    reset_states: Sequence[Tensor] | None = None,
    lengths: Any = None,
    batch_first: bool = False,
) -> tuple[Any, States]:
    """Run any step over a sequence, step after step in Python.

    Each step runs on the rows that are alive, in one call for all of them. Gradients are those that
    autograd finds; a step that is compiled (``torch.compile(step, dynamic=True)``) stays so. It is
    as fast as the step: for the cells of torch.nn use the layers of rnnfast, which are faster by
    far.

    Args:
        step: ``(x_t [b, *], states, each [b, *]) -> (output [b, *], states)``; it must treat rows
            alike, as they are brought together in another order
        x: ``[T, B, *]`` or a PackedSequence
        states: the initial ones, each ``[B, *]``
        resets: where true, the states before that step are `reset_states`: bool, a value for each
            step of each row, in the form of `x`
        reset_states: as `states`, or ``[1, *]`` for all rows; None: zeros
        lengths: of the rows of a tensor `x`, from 1 to T: int64 ``[B]``; past them outputs are
            zeros
        batch_first: `x`, `resets` and the output are ``[B, T, *]``

    Returns:
        ``(output, states)``: the outputs of all steps, in the form of `x`; the states of each row
        after its last step

    Raises:
        ValueError, TypeError, RuntimeError: arguments that do not fit together
    """
    if not states:
        raise ValueError("scan: there must be a state at least")
    if resets is None and reset_states is not None:
        raise ValueError("reset_states: there are no resets to begin anew with them")
    if not isinstance(x, PackedSequence):
        return _scan(step, x, None, states, resets, reset_states or (), lengths, batch_first)
    if lengths is not None:
        raise ValueError("lengths: a PackedSequence has its own")
    data, batch_sizes, order, back = x
    states, others = _ordered(states, order), reset_states or ()
    if any(s.shape[0] > 1 for s in others):
        others = _ordered(others, order)
    if resets is not None:
        resets = flat_resets(resets, x, 1)
    output, last = _scan(step, data, batch_sizes, states, resets, others, None, False)
    return PackedSequence(output, batch_sizes, order, back), tuple(_ordered(last, back))


def _scan(
    step: Callable[[Tensor, States], tuple[Tensor, States]],
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    resets: Any,
    reset_states: Sequence[Tensor],
    lengths: Any,
    batch_first: bool,
) -> tuple[Tensor, States]:
    def layers(rows: Tensor, sizes: Tensor, initial: Sequence[Tensor]) -> Any:
        begin = tuple(s[0] for s in initial)
        outputs, last = loop(step, torch.split(rows, sizes.tolist()), begin)
        return torch.cat(outputs), [s.unsqueeze(0) for s in last]

    B, own = states[0].shape[0], [s.unsqueeze(0) for s in states]
    if resets is None and lengths is None:
        if batch_sizes is not None:
            output, last = layers(x, batch_sizes, own)
            return output, tuple(s[0] for s in last)
        time = 1 if batch_first else 0
        outputs, last = loop(step, x.unbind(time), tuple(states))
        return torch.stack(outputs, time), last
    if batch_sizes is None:
        leading, T = 2, x.shape[1 if batch_first else 0]
        resets = None if resets is None else flat_resets(resets, x, leading)
    else:
        leading, T = 1, len(batch_sizes)
    others = [s.expand(B, *s.shape[1:]).unsqueeze(0) for s in reset_states]
    ends = None if lengths is None else as_lengths(lengths)
    found = segments.find(resets, ends, batch_sizes, (T, B), batch_first, x.device)
    output, last = segments.run(layers, x, found, own, others, 1, leading)
    return output, tuple(s[0] for s in last)


def _ordered(states: Sequence[Tensor], order: Tensor | None) -> Sequence[Tensor]:
    return states if order is None else [s.index_select(0, order) for s in states]
