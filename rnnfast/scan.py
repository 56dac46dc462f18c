"""``scan``: a step of one's own over a sequence, dense or packed, with resets and lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import segments
from rnnfast.layers import check_length
from rnnfast.reference import loop
from rnnfast.spec import States

__all__ = ["scan"]

Step: TypeAlias = Callable[[Tensor, States], tuple[Tensor, States]]


def scan(
    step: Step,
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
    if resets is None and reset_states is not None:
        raise ValueError("reset_states: there are no resets to begin anew with them")
    if not callable(step):
        raise TypeError(f"step: expected a function of (x, states), got {type(step).__name__}")
    if isinstance(step, (nn.RNNCell, nn.GRUCell, nn.LSTMCell)):
        layer = type(step).__name__.removesuffix("Cell")
        raise TypeError(
            f"step: a {type(step).__name__} takes and gives its states alone, not (x, states) and"
            f" (output, states): take the layer rnnfast.{layer}, faster by far, or a function that"
            " calls the cell"
        )
    states, others = _check(x, states, reset_states, batch_first)
    step = _checked(step, len(states))
    if not isinstance(x, PackedSequence):
        return _scan(step, x, None, states, resets, others, lengths, batch_first)
    if lengths is not None:
        raise ValueError("lengths: a PackedSequence has its own")
    data, batch_sizes, order, back = x
    B, states = states[0].shape[0], _ordered(states, order)
    others = [s if s.shape[0] != B else _ordered([s], order)[0] for s in others]
    if resets is not None:
        resets = segments.flat_resets(resets, x, 1)
    output, last = _scan(step, data, batch_sizes, states, resets, others, None, False)
    return PackedSequence(output, batch_sizes, order, back), tuple(_ordered(last, back))


def _check(
    x: Any, states: Any, reset_states: Any, batch_first: bool
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Both kinds of states, as they are or none, if they and `x` have as many rows."""
    if isinstance(x, PackedSequence):
        B = int(x.batch_sizes[0])
    elif not isinstance(x, Tensor) or x.dim() < 2:
        found = f"{x.dim()}D" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"scan: expected x [T, B, *] or a PackedSequence, got {found}")
    else:
        check_length(x, None, batch_first)
        B = x.shape[0 if batch_first else 1]
    _check_states("states", states)
    if not states:
        raise ValueError("scan: there must be a state at least")
    for i, state in enumerate(states):
        if state.dim() == 0 or state.shape[0] != B:
            raise RuntimeError(
                f"states[{i}]: expected a row for each of x, ({B}, *), got {tuple(state.shape)}"
            )
    if reset_states is None:
        return states, ()
    _check_states("reset_states", reset_states)
    if len(reset_states) != len(states):
        raise ValueError(f"reset_states: expected {len(states)} as states, got {len(reset_states)}")
    for i, (other, state) in enumerate(zip(reset_states, states, strict=True)):
        if other.shape not in (state.shape, (1, *state.shape[1:])):
            raise RuntimeError(
                f"reset_states[{i}]: expected {tuple(state.shape)} as states[{i}], or one row,"
                f" got {tuple(other.shape)}"
            )
    return states, reset_states


def _check_states(name: str, states: Any) -> None:
    if not isinstance(states, (tuple, list)):
        one = f"; for one state write [{name}]" if isinstance(states, Tensor) else ""
        raise TypeError(f"{name}: expected a sequence of tensors, got {type(states).__name__}{one}")
    for state in states:
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected tensors, got {type(state).__name__}")


def _checked(step: Callable[[Tensor, States], Any], count: int) -> Step:
    """`step`, whose results are what scan goes on with."""

    def run(x: Tensor, states: States) -> tuple[Tensor, States]:
        found = step(x, states)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise TypeError(
                f"scan: step must return (output, states), got {type(found).__name__}"
                + (f" of {len(found)}" if isinstance(found, (tuple, list)) else "")
            )
        output, after = found
        if not isinstance(after, (tuple, list)) or len(after) != count:
            got = f"{len(after)}" if isinstance(after, (tuple, list)) else type(after).__name__
            raise TypeError(
                f"scan: step must return (output, states), states a tuple of {count} as it was"
                f" given, got {got}"
            )
        for name, value in (
            ("output", output),
            *((f"states[{i}]", s) for i, s in enumerate(after)),
        ):
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"scan: step must return tensors, got {type(value).__name__}, {name}"
                )
            if value.dim() == 0 or value.shape[0] != x.shape[0]:
                raise RuntimeError(
                    f"scan: step must return a row for each of x, ({x.shape[0]}, *), got "
                    f"{tuple(value.shape)}, {name}"
                )
        return output, tuple(after)

    return run


def _keeping_sizes(step: Step) -> Step:
    """`step` for rows of which some end before others: their states are brought together."""

    def run(x: Tensor, states: States) -> tuple[Tensor, States]:
        output, after = step(x, states)
        for i, (one, other) in enumerate(zip(states, after, strict=True)):
            if one.shape != other.shape:
                raise RuntimeError(
                    "scan: where rows end at different steps, states keep their sizes: states"
                    f"[{i}] was {tuple(one.shape)}, step returned {tuple(other.shape)}"
                )
        return output, after

    return run


def _scan(
    step: Step,
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
        outputs, last = loop(_keeping_sizes(step), torch.split(rows, sizes.tolist()), begin)
        return torch.cat(outputs), [s.unsqueeze(0) for s in last]

    B, own = states[0].shape[0], [s.unsqueeze(0) for s in states]
    ends = None if lengths is None else segments.as_lengths(lengths, B)
    if (resets is None and ends is None) or B == 0:
        if batch_sizes is not None:
            output, last = layers(x, batch_sizes, own)
            return output, tuple(s[0] for s in last)
        time = 1 if batch_first else 0
        outputs, last = loop(step, x.unbind(time), tuple(states))
        return torch.stack(outputs, time), last
    if batch_sizes is None:
        leading, T = 2, x.shape[1 if batch_first else 0]
        resets = None if resets is None else segments.flat_resets(resets, x, leading)
    else:
        leading, T = 1, len(batch_sizes)
    others = [s.expand(B, *s.shape[1:]).unsqueeze(0) for s in reset_states]
    found = segments.find(resets, ends, batch_sizes, (T, B), batch_first, x.device)
    output, last = segments.run(layers, x, found, own, others, 1, leading)
    return output, tuple(s[0] for s in last)


def _ordered(states: Sequence[Tensor], order: Tensor | None) -> Sequence[Tensor]:
    return states if order is None else [s.index_select(0, order) for s in states]
