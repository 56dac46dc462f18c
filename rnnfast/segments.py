"""Sequences that begin anew inside a row (`resets`) and end before it does (`lengths`).

The stretches between are sequences of their own: they run side by side, as one packed sequence, so
that many short ones take no more steps than the longest. That is exact, for every cell, layer and
direction, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn.utils.rnn import PackedSequence

Layers = Callable[[Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, Sequence[Tensor]]]


def flat_resets(resets: Any, input: Any, leading: int) -> Tensor:
    """Checked, a value for each row of the input, which its `leading` dimensions count."""
    data = input.data if isinstance(input, PackedSequence) else input
    if isinstance(resets, PackedSequence) and isinstance(input, PackedSequence):
        a, b = input.sorted_indices, resets.sorted_indices
        same = torch.equal(resets.batch_sizes, input.batch_sizes) and (
            a is b or (a is not None and b is not None and torch.equal(a, b))
        )
        if not same:
            raise ValueError("resets: they are packed otherwise than the input")
        resets = resets.data
    if not isinstance(resets, Tensor):
        raise TypeError(
            f"resets: expected a tensor in the form of input, got {type(resets).__name__}"
        )
    if resets.dtype != torch.bool:
        raise TypeError(
            f"resets: expected a tensor of dtype torch.bool, got {resets.dtype}: resets.bool()"
        )
    _check_shared("resets", resets)
    if resets.shape != data.shape[:leading]:
        raise RuntimeError(
            f"resets: expected a value for each step, {tuple(data.shape[:leading])}, "
            f"got {tuple(resets.shape)}"
        )
    return resets.reshape(-1)


def as_lengths(lengths: Any, batch: int | None) -> Tensor:
    """``[B]`` of a tensor or list, on the CPU unless it was given elsewhere; ``[1]`` of a number
    where there is no batch.
    """
    if isinstance(lengths, Tensor):
        found = lengths
    else:
        try:
            found = torch.as_tensor(lengths, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            text = f"lengths: expected a tensor or list of integers, got {type(lengths).__name__}"
            raise TypeError(f"{text}: {error}") from error
        found = found if found.numel() else found.long()
    _check_shared("lengths", found)
    wanted = "a number" if batch is None else f"a number for each of {batch} sequences"
    if batch is None and found.numel() == 1:
        batch, found = 1, found.reshape(1)
    if found.dtype != torch.int64 or found.shape != (batch,):
        raise RuntimeError(
            f"lengths: expected {wanted}, of dtype torch.int64, "
            f"got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found


def _check_shared(name: str, given: Tensor) -> None:
    """The stretches of a call are counted: no two members of a `vmap` might have as many."""
    if torch.compiler.is_compiling():
        return
    while _functorch.is_functorch_wrapped_tensor(given):
        if _functorch.is_batchedtensor(given):
            raise RuntimeError(
                f"{name}: the members of torch.func.vmap must share them; for gradients of each "
                "sequence, call the layer on one after the other"
            )
        given = _functorch.get_unwrapped(given)


class Segments(NamedTuple):
    """Where the stretches of a batch lie; `S` of them, the longest first.

    rows: ``[N]``, of each row of the packed sequence its place in the batch's. batch_sizes:
    ``[longest]``. elements: ``[S]``, the element of the batch that each belongs to. carries:
    ``[2, S]``, whether it begins with what that one was given, not with the states of a reset,
    forward and backward in time. first, last: ``[B]``, the first and last of each element.
    """

    rows: Tensor
    batch_sizes: Tensor
    elements: Tensor
    carries: Tensor
    first: Tensor
    last: Tensor


_segments = torch.ops.rnnfast.segments.default


def find(
    resets: Tensor | None,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    sizes: tuple[int, int],
    batch_first: bool,
    device: torch.device,
) -> Segments:
    """The segments of a batch of `sizes` T and B.

    They are found on the CPU: masks and lengths from another device are waited for. `resets` is
    flat, a number for each row.
    """
    given = (None if t is None else t.to("cpu") for t in (resets, lengths))
    found = Segments(*_segments(*given, batch_sizes, *sizes, batch_first))
    moved = (t.to(device, non_blocking=True) for t in found[2:])
    return Segments(found.rows.to(device, non_blocking=True), found.batch_sizes, *moved)


def initial_states(
    segments: Segments,
    states: Sequence[Tensor],
    reset_states: Sequence[Tensor],
    directions: int,
) -> list[Tensor]:
    """``[L*D, S, H]`` of each state; nothing where all begin with zeros.

    A segment begins with its element's state of `states`, or after a reset of `reset_states`.
    """
    if not states and not reset_states:
        return []
    given = states or [torch.zeros_like(r) for r in reset_states]
    other = reset_states or [torch.zeros_like(s) for s in states]
    count = given[0].shape[0]
    carries = segments.carries if directions == 2 else segments.carries[:1]
    carries = carries.repeat(count // directions, 1)
    return [
        torch.where(
            carries.view(*carries.shape, *[1] * (s.dim() - 2)),
            s.index_select(1, segments.elements),
            r.index_select(1, segments.elements),
        )
        for s, r in zip(given, other, strict=True)
    ]


def final_states(
    segments: Segments, states_n: Sequence[Tensor], directions: int
) -> tuple[Tensor, ...]:
    """``[L*D, B, H]`` of each state: those of the segment that each element ends with, in time."""
    if directions == 1:
        return tuple(s.index_select(1, segments.last) for s in states_n)
    ends = (segments.last, segments.first)
    return tuple(
        torch.stack([s[d::2].index_select(1, ends[d]) for d in range(2)], 1).flatten(0, 1)
        for s in states_n
    )


def run(
    layers: Layers,
    input: Tensor,
    segments: Segments,
    states: Sequence[Tensor],
    reset_states: Sequence[Tensor],
    directions: int,
    leading: int,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Runs `layers` on the segments of `input`, whose first one or two, `leading`, dimensions count
    its rows.

    layers: ``(x [N, *], batch_sizes, states) -> (output [N, *], states_n)``.

    Returns:
        ``(output, states_n)`` in the layouts of ``input`` and ``states``; rows past the ends of
        their sequences are zeros.
    """
    flat = input.reshape(-1, *input.shape[leading:])
    x = flat.index_select(0, segments.rows)
    initial = initial_states(segments, states, reset_states, directions)
    output, states_n = layers(x, segments.batch_sizes, initial)
    # No row comes twice; to add them is faster than to copy them.
    rows = output.new_zeros(flat.shape[0], *output.shape[1:])
    output = rows.index_add(0, segments.rows, output)
    output = output.view(*input.shape[:leading], *output.shape[1:])
    return output, final_states(segments, states_n, directions)


def run_where_lengths_are(
    layers: Layers,
    input: Tensor,
    lengths: Tensor,
    states: Sequence[Tensor],
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As :func:`run`, of ``[T, B, *]`` by `lengths` alone, without a look at them on the CPU.

    The longest come first, and how many are alive at each step the device keeps to itself. What
    stands past an end may be anything, NaN too, so it is taken for zeros. Lengths that are none
    fail where they are found, as a bad index does on a GPU.
    """
    x = input.transpose(0, 1) if batch_first else input
    T = x.shape[0]
    good = ((lengths >= 1) & (lengths <= T)).all()
    torch._assert_async(good, f"lengths must be from 1 to the number of steps, {T}")
    ends, order = lengths.sort(descending=True)
    alive = torch.arange(T, device=x.device).unsqueeze(1) < ends
    x = x.index_select(1, order).masked_fill(~alive.unsqueeze(2), 0)
    initial = [s.index_select(1, order) for s in states]
    output, states_n = layers(x, alive.sum(1), initial)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    output = output.index_select(1, back)
    if batch_first:
        output = output.transpose(0, 1)
    return output, tuple(s.index_select(1, back) for s in states_n)


def run_by_steps(
    layer: Any,
    cell: str,
    x: Tensor,
    begins: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer over rows of ``[T, B, *]`` that begin anew, with zeros, where `begins` says so.

    Of the first step it says nothing. `layer`, :func:`rnnfast.reference.layer`, runs each step of
    a direction on its own.
    """
    T, per_direction = x.shape[0], len(weights) // (1 + bidirectional)
    outputs, finals = [], []
    for d in range(1 + bidirectional):
        own = weights[d * per_direction : (d + 1) * per_direction]
        current: Sequence[Tensor] = [s[d : d + 1] for s in states]
        steps: list[Tensor] = []
        for t in reversed(range(T)) if d else range(T):
            if steps:  # the border lies before the later one of two steps
                border = begins[t + d].unsqueeze(1)
                current = [s.masked_fill(border, 0) for s in current]
            output, current = layer(cell, x[t : t + 1], None, current, own)
            steps.append(output)
        outputs.append(torch.cat(steps[::-1] if d else steps))
        finals.append(current)
    states_n = (torch.cat(parts) for parts in zip(*finals, strict=True))
    return torch.cat(outputs, -1), tuple(states_n)


def states_of_first_step(
    begins: Tensor, states: Sequence[Tensor], reset_states: Sequence[Tensor], directions: int
) -> list[Tensor]:
    """What the rows ``[B]`` of a first step begin with: of `states`, or where `begins` says so of
    `reset_states`; nothing stands for zeros. The direction backward in time begins elsewhere.
    """
    if not states and not reset_states:
        return []
    given = states or [torch.zeros_like(r) for r in reset_states]
    lost = begins.unsqueeze(0)
    if directions == 2:
        lost = torch.stack([begins, torch.zeros_like(begins)]).repeat(len(given[0]) // 2, 1)
    lost = lost.unsqueeze(2)
    if not reset_states:
        return [s.masked_fill(lost, 0) for s in given]
    return [torch.where(lost, r, s) for r, s in zip(reset_states, given, strict=True)]


def run_where_resets_are(
    layers: Layers,
    input: Tensor,
    resets: Tensor,
    states: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """As :func:`run`, of ``[T, B, *]`` by `resets` alone, without a look at them on the CPU.

    The layers begin anew by themselves after the first step. What stands before that one, the
    states of the direction forward in time, is seen to here.
    """
    resets = resets.view(input.shape[:2])
    x, begins = (t.transpose(0, 1) if batch_first else t for t in (input, resets))
    states = states_of_first_step(begins[0], states, (), directions)
    output, states_n = layers(x, begins, states)
    if batch_first:
        output = output.transpose(0, 1)
    return output, tuple(states_n)
