"""A call of a layer, an object of ours or of torch.nn's: its checks, then the kernels.

The checks are torch.nn's, in its order and words, by the methods that the object has for them. All
that is read here is what torch.nn's layers hold, too: that is how :func:`rnnfast.patch` works.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import truncated
from rnnfast._interop import Interop
from rnnfast._library import _C
from rnnfast.functional import is_pair, stack
from rnnfast.regularisation import Regularisation
from rnnfast.spec import MODES

_is_tracing = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling  # a constant, elsewhere
_CHECKS = (
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
)


def has_checks_of(cls: type, torch_class: type) -> bool:
    """Whether `cls` checks arguments as `torch_class` does, not in ways of a user's own."""
    return all(getattr(cls, name, None) is getattr(torch_class, name, None) for name in _CHECKS)


def run(module: nn.RNNBase, input: Any, hx: Any, *, plain: bool) -> Any:
    """Run the layers of `module` on a tensor or a PackedSequence, with `hx` in torch.nn's form.

    `plain`: its checks are torch.nn's, and may be made in C++, in one step where nothing about the
    call is special or wrong.
    """
    x, batch_sizes = input, None
    if type(input) is not Tensor and isinstance(input, PackedSequence):
        x, batch_sizes = input.data, input.batch_sizes
        if hx is not None:
            hx = module.permute_hidden(hx, input.sorted_indices)
    result = _C.layers(module, x, batch_sizes, hx) if plain and not _is_dynamo_compiling() else None
    if result is None:
        result = _run(module, x, batch_sizes, hx)
    return result if batch_sizes is None else _packed_as(module, input, result)


def _packed_as(module: nn.RNNBase, input: PackedSequence, result: Any) -> Any:
    _, batch_sizes, sorted_indices, unsorted_indices = input
    output, hidden = result
    hidden = module.permute_hidden(hidden, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hidden


def _run(module: nn.RNNBase, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> Any:
    """``(output, hidden)``, with or without a batch; `hx` None counts as zeros."""
    if batch_sizes is not None:
        return _run_batch(module, input, batch_sizes, hx)
    dim = input.dim()
    check_dim(module, dim)
    if hx is not None:
        hx = batched_states(module, hx, dim)
    if dim == 3:
        return _run_batch(module, input, None, hx)
    batch_dim = 0 if module.batch_first else 1
    output, hidden = _run_batch(module, input.unsqueeze(batch_dim), None, hx)
    spec = MODES[module.mode]
    states = [s.squeeze(1) for s in spec.states_of(hidden)]
    return output.squeeze(batch_dim), spec.hx_of(states)


def _run_batch(module: nn.RNNBase, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> Any:
    weights = current_weights(module)
    # A compiled program cannot read B from the values of batch_sizes; the operator does.
    if hx is None or (batch_sizes is not None and _is_compiling()):
        module.check_input(input, batch_sizes)
    else:
        module.check_forward_args(input, hx, batch_sizes)
    spec = MODES[module.mode]
    states = () if hx is None else spec.states_of(hx)
    if len(states) == 2 and not is_pair(hx):  # torch's operator says what it is not
        order = (module.batch_first,) if batch_sizes is None else ()
        data: Any = (input,) if batch_sizes is None else (input, batch_sizes)
        flags = (module.bias, module.num_layers, 0.0, False, bool(module.bidirectional), *order)
        return spec.operator(*data, hx, weights, *flags)
    batch_first = module.batch_first and batch_sizes is None
    if not _is_tracing():  # then no value may be looked at, and torch's own operator checks
        check_length(input, batch_sizes, batch_first)
    output, states = run_stack(module, input, batch_sizes, states, weights, batch_first)
    return output, spec.hx_of(states)


def run_stack(
    module: nn.RNNBase,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_first: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    every = detaches_every(module)
    if every is None or not torch.is_grad_enabled():
        return _whole_stack(module, input, batch_sizes, states, weights, batch_first)
    return truncated.run(
        lambda x, sizes, begin: _whole_stack(module, x, sizes, begin, weights, batch_first),
        input,
        batch_sizes,
        states,
        every,
        1 if batch_first else 0,
    )


def _whole_stack(
    module: nn.RNNBase,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    return stack(
        module.mode,
        input,
        batch_sizes,
        states,
        weights,
        has_biases=module.bias,
        num_layers=module.num_layers,
        dropout=module.dropout,
        training=module.training,
        bidirectional=bool(module.bidirectional),
        batch_first=batch_first,
        proj_size=module.proj_size,
        heads=heads_of(module),
        recompute=recomputes(module),
        regularised=regularisation_of(module),
    )


def heads_of(module: nn.RNNBase) -> int:
    """Of a layer of ours; torch.nn's have one."""
    ours: Any = module
    return int(ours._heads) if isinstance(module, Interop) else 1


def regularisation_of(module: nn.RNNBase) -> Regularisation | None:
    """Of a layer of ours; torch.nn's have none."""
    ours: Any = module
    return ours._regularisation if isinstance(module, Interop) else None


def recomputes(module: nn.RNNBase) -> bool:
    """Whether a layer of ours computes its gates again in backward; torch.nn's do not."""
    ours: Any = module
    return isinstance(module, Interop) and ours.recompute is True


def detaches_every(module: nn.RNNBase) -> int | None:
    """After how many steps a layer of ours cuts its gradient off; torch.nn's never do."""
    ours: Any = module
    every = ours.detach_every if isinstance(module, Interop) else None
    if every is not None:
        truncated.check(every, bool(module.bidirectional))
    return every


def torch_lacks(module: nn.RNNBase) -> str | None:
    """What a layer of ours does that torch.nn's cannot, and that changes results."""
    if heads_of(module) > 1:
        return "heads"
    if (regularisation := regularisation_of(module)) is not None:
        return str(regularisation)
    return None if detaches_every(module) is None else "detach_every"


def check_sizes(module: nn.RNNBase, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> None:
    """Raise what a call would raise for the sizes of its arguments: for `explain`."""
    batch_first = module.batch_first and batch_sizes is None
    if batch_sizes is None:
        dim = input.dim()
        check_dim(module, dim)
        if hx is not None:
            hx = batched_states(module, hx, dim)
        if dim == 2:
            input = input.unsqueeze(0 if batch_first else 1)
    if hx is None:
        module.check_input(input, batch_sizes)
    else:
        module.check_forward_args(input, hx, batch_sizes)
    check_length(input, batch_sizes, batch_first)


def check_dim(module: nn.RNNBase, dim: int) -> None:
    if dim != 3 and dim != 2:
        kind = module.mode.partition("_")[0]
        unit = " tensor" if kind == "RNN" else ""
        raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {dim}D{unit} instead")


def current_weights(module: nn.RNNBase) -> list[Tensor]:
    """``_flat_weights``, brought up to date with the attributes as torch.nn does.

    Parametrisations, weight normalisation, pruning, ``functional_call``, replicas and sharding
    put other tensors in the place of the parameters between two calls.
    """
    if _is_compiling():  # no tensor of this call may outlive it in `_flat_weights`
        return [getattr(module, name) for name in module._flat_weights_names]
    parameters = module._parameters
    for name, weight in zip(module._flat_weights_names, module._flat_weights, strict=True):
        if weight is None or parameters.get(name) is not weight:
            module._update_flat_weights()
            _check_no_weight_is_missing(module)
            break
    return module._flat_weights  # type: ignore[return-value]


def _check_no_weight_is_missing(module: nn.RNNBase) -> None:
    """A deleted weight is an error here; torch.nn computes with the copy that it has kept."""
    places = (module._parameters, module.__dict__, module._buffers)
    for name, weight in zip(module._flat_weights_names, module._flat_weights, strict=True):
        found = any(name in place for place in places) or hasattr(type(module), name)
        if weight is None or not found:
            raise AttributeError(f"'{type(module).__name__}' object has no attribute '{name}'")


def batched_states(module: nn.RNNBase, hx: Any, dim: int) -> Any:
    """Check the dimensions of the states given with an input of `dim`; add the batch's."""
    spec = MODES[module.mode]
    states = spec.states_of(hx)
    if any(state.dim() != dim for state in states):
        if spec.states == 1:
            _raise_dim("hx should", dim, f"{hx.dim()}-D tensor")
        h, c = states
        _raise_dim("hx and cx should", dim, f"({h.dim()}-D, {c.dim()}-D) tensors")
    return hx if dim == 3 else spec.hx_of([state.unsqueeze(1) for state in states])


def _raise_dim(subject: str, dim: int, got: str) -> NoReturn:
    form = "batched 3-D" if dim == 3 else "unbatched 2-D"
    raise RuntimeError(f"For {form} input, {subject} also be {dim}-D but got {got}")


def check_length(input: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> None:
    """Refuse no steps, and a PackedSequence that does not fit together, of which torch.nn cuts the
    rest off in silence.

    A program that is compiled cannot look at the values of batch_sizes; there the operator does.
    """
    if input.size(1 if batch_first else 0) == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if batch_sizes is None or _is_compiling():
        return
    rows = int(batch_sizes.sum())
    if rows != input.size(0):
        raise RuntimeError(
            "PackedSequence: batch_sizes must add up to the number of rows of data, "
            f"{input.size(0)}, got {rows}"
        )
