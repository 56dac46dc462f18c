"""Calls of layers with `resets` or `lengths`: their arguments checked, and which way they go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import segments
from rnnfast.layers import (
    batched_states,
    check_dim,
    check_length,
    current_weights,
    recomputes,
    run,
    run_stack,
    torch_lacks,
)
from rnnfast.routes import TRANSFORMED, exports_torchs, route
from rnnfast.spec import MODES

_is_compiling = torch.compiler.is_compiling

DEVICE = "cuda"
"""Whose kernels take lengths and resets that lie there: what they are, a call need not know."""


def run_in_segments(
    module: nn.RNNBase,
    input: Any,
    hx: Any,
    resets: Any = None,
    reset_states: Any = None,
    lengths: Any = None,
) -> Any:
    """As :func:`run`, for sequences that begin anew where `resets` says, or end by `lengths`.

    See :meth:`rnnfast.GRU.forward` on the arguments.
    """
    if resets is None and reset_states is not None:
        raise ValueError("reset_states: there are no resets to begin anew with them")
    if exports_torchs():
        raise RuntimeError(
            "resets and lengths: torch's operators do not know them; export the model in a block of"
            " rnnfast.export_fused(), or pack the sequences"
        )
    packed = isinstance(input, PackedSequence)
    data = input.data if packed else input
    if not packed:
        check_dim(module, input.dim())
    if resets is not None:
        resets = segments.flat_resets(resets, input, data.dim() - 1)
    if reset_states is not None:
        _check_states(module, reset_states, 2 if data.dim() == 2 and not packed else 3)
    if packed:
        return _run_packed_in_segments(module, input, hx, resets, reset_states, lengths)
    if lengths is not None:
        batch = input.size(0 if module.batch_first else 1) if input.dim() == 3 else None
        lengths = segments.as_lengths(lengths, batch)
    if input.dim() == 3:
        return _run_in_segments(module, input, None, hx, resets, reset_states, lengths)
    batch_dim = 0 if module.batch_first else 1
    if hx is not None:
        hx = batched_states(module, hx, 2)
    if reset_states is not None:
        reset_states = batched_states(module, reset_states, 2)
    output, hidden = _run_in_segments(
        module, input.unsqueeze(batch_dim), None, hx, resets, reset_states, lengths
    )
    spec = MODES[module.mode]
    return output.squeeze(batch_dim), spec.hx_of([s.squeeze(1) for s in spec.states_of(hidden)])


def _run_packed_in_segments(
    module: nn.RNNBase,
    packed: PackedSequence,
    hx: Any,
    resets: Tensor | None,
    reset_states: Any,
    lengths: Any,
) -> Any:
    input, batch_sizes, sorted_indices, unsorted_indices = packed
    if lengths is not None:
        raise ValueError("lengths: a PackedSequence has its own")
    if hx is not None:
        hx = module.permute_hidden(hx, sorted_indices)
    if reset_states is not None and sorted_indices is not None:
        spec = MODES[module.mode]
        reset_states = spec.hx_of(
            [  # one for all rows stays, and a wrong number of rows, which is refused below
                s.index_select(1, sorted_indices) if s.size(1) == len(sorted_indices) else s
                for s in spec.states_of(reset_states)
            ]
        )
    output, hidden = _run_in_segments(module, input, batch_sizes, hx, resets, reset_states, None)
    hidden = module.permute_hidden(hidden, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hidden


def _run_in_segments(
    module: nn.RNNBase,
    input: Tensor,
    batch_sizes: Tensor | None,
    hx: Any,
    resets: Tensor | None,
    reset_states: Any,
    lengths: Tensor | None,
) -> Any:
    spec, weights = MODES[module.mode], current_weights(module)
    batch_first = module.batch_first and batch_sizes is None
    module.check_input(input, batch_sizes)
    check_length(input, batch_sizes, batch_first)
    _check_have_values(input, resets=resets, lengths=lengths)
    if batch_sizes is not None:
        T, B = len(batch_sizes), int(batch_sizes[0])
    else:
        T, B = input.shape[1 if batch_first else 0], input.shape[0 if batch_first else 1]
    states: tuple[Tensor, ...] = ()
    if hx is not None:
        _check_states(module, hx, 3)
        module.check_forward_args(input, hx, batch_sizes)
        states = spec.states_of(hx)
    others: tuple[Tensor, ...] = ()
    if reset_states is not None:
        given = spec.states_of(reset_states)
        others = tuple(s.expand(-1, B, -1) if s.size(1) == 1 else s for s in given)
        module.check_forward_args(input, spec.hx_of(others), batch_sizes)
        for state, other in zip(states, others, strict=False):
            if state.dtype != other.dtype:
                raise RuntimeError(f"reset_states: expected {state.dtype} as hx, got {other.dtype}")
    directions = 1 + bool(module.bidirectional)
    if resets is not None and lengths is None and is_one_step(T, batch_sizes):
        begins, ours = resets.to(input.device), cast("Any", module)
        initial = segments.states_of_first_step(begins, states, others, directions)
        hx = spec.hx_of(initial) if initial else None
        return run(module, input, hx, plain=ours._checks_are_torchs)
    if stay(module, input, resets, others, lengths, (*states, *weights)):
        output, states_n = _run_where_they_are(
            lambda x, sizes, initial: run_stack(module, x, sizes, initial, weights),
            *(input, resets, lengths, states, directions, batch_first),
        )
        return output, spec.hx_of(states_n)
    found = segments.find(resets, lengths, batch_sizes, (T, B), batch_first, input.device)

    def layers(x: Tensor, sizes: Tensor, initial: Sequence[Tensor]) -> Any:
        if not initial and _is_compiling() and torch_lacks(module):  # what tells the rows' number
            count = module.num_layers * (1 + bool(module.bidirectional))
            initial = spec.zeros(x, (count, len(found.elements)), module.hidden_size)
        return run_stack(module, x, sizes, initial, weights)

    output, states_n = segments.run(
        layers,
        input,
        found,
        states,
        others,
        directions,
        input.dim() - 1,
    )
    return output, spec.hx_of(states_n)


def _run_where_they_are(
    layers: segments.Layers,
    input: Tensor,
    resets: Tensor | None,
    lengths: Tensor | None,
    states: Sequence[Tensor],
    directions: int,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    if resets is not None:
        return segments.run_where_resets_are(layers, input, resets, states, directions, batch_first)
    assert lengths is not None
    return segments.run_where_lengths_are(layers, input, lengths, states, batch_first)


def is_one_step(T: int, batch_sizes: Tensor | None) -> bool:
    """Whether a layer begins with its only step, so that there are no stretches to be found."""
    return T == 1 and batch_sizes is None and not _is_compiling()


def stay(
    module: nn.RNNBase,
    input: Tensor,
    resets: Tensor | None,
    reset_states: Sequence[Tensor],
    lengths: Tensor | None,
    others: Sequence[Tensor],
) -> bool:
    """Whether the kernels of the device find for themselves where rows begin anew, or end."""
    given = [t for t in (resets, lengths) if t is not None]
    if len(given) != 1 or reset_states or input.dim() != 3 or _is_compiling():
        return False
    if input.device.type != DEVICE or given[0].device != input.device:
        return False
    if recomputes(module) or torch_lacks(module):
        return False
    chosen = route(input, others, module.proj_size)
    return chosen.kind == "fused" and chosen is not TRANSFORMED


def _check_have_values(input: Tensor, **given: Tensor | None) -> None:
    for name, values in given.items():
        if values is not None and values.is_meta and not input.is_meta:
            raise RuntimeError(f"{name}: expected a tensor that has values, got one on meta")


def _check_states(module: nn.RNNBase, hx: Any, dim: int) -> None:
    """Refuse what is not the tensor, or the pair of them, that the states of `module` are."""
    count = MODES[module.mode].states
    given = (hx,) if count == 1 else hx
    if not isinstance(given, (tuple, list)) or len(given) != count:
        raise TypeError(f"{module.mode}: expected a pair of states, got {type(hx).__name__}")
    for state in given:
        if not isinstance(state, Tensor):
            raise TypeError(f"{module.mode}: expected a tensor, got {type(state).__name__}")
    batched_states(module, hx, dim)
