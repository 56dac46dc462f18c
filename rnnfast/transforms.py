"""Layers by our kernels under ``torch.func``: `vmap`, `grad` and `vjp`, in any order and depth.

Members of a `vmap` that share their weights are one call of the kernels, over the rows of all. With
weights of their own (ensembles), or gradients of the weights of their own (per-sample gradients),
each is a call. Forward mode, and what is compiled, is the reference's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import Function

from rnnfast import ops, reference
from rnnfast.routes import all_have_rules, batched_by_autograd
from rnnfast.spec import CELLS

Dims = Sequence[int | None]
"""Where the dimension of a `vmap` is in each of several tensors; None: it has not got it."""

_transforms_active = torch._C._are_functorch_transforms_active


@dataclass(frozen=True)
class _Call:
    """What of a call is no tensor, and where its tensors stand in a flat sequence of them.

    given_states, weights: their numbers. train: whether it keeps what backward needs.
    """

    cell: str
    bidirectional: bool
    given_states: int
    weights: int
    train: bool

    @property
    def states(self) -> int:
        return CELLS[self.cell].states

    @property
    def rows(self) -> int:
        """The number of inputs that have a batch, which are the first ones: x and states."""
        return 1 + self.given_states

    def parts(self, flat: Sequence[Any]) -> tuple[Any, Sequence[Any], Sequence[Any]]:
        """x, states and weights."""
        return flat[0], flat[1 : self.rows], flat[self.rows :]

    def backward_parts(
        self, flat: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
        """Gradients of the output and the states, inputs of the layer, reserve."""
        inputs = 1 + self.states
        reserve = inputs + self.rows + self.weights
        return flat[:inputs], flat[inputs:reserve], flat[reserve:]


def layer(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bidirectional: bool = False,
) -> tuple[Tensor, Sequence[Tensor]]:
    """As :func:`rnnfast.ops.layer`, without the reserve."""
    tensors = (x, *states, *weights)
    train = torch.is_grad_enabled() and any(map(_is_differentiated, tensors))
    call = _Call(cell, bidirectional, len(states), len(weights), train)
    output, *others = _run(_Layer, call, batch_sizes, *tensors)
    return output, others[: call.states]


def _is_differentiated(t: Tensor) -> bool:
    """By any transform, or by autograd around them all."""
    while not t.requires_grad:
        if not _functorch.is_functorch_wrapped_tensor(t):
            return False
        t = _functorch.get_unwrapped(t)
    return True


def _run(function: Any, *arguments: Any) -> Any:
    """``function.apply``, which takes longer than a short call of ours: only where it is asked."""
    recorded = torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in arguments
    )
    run = function.apply if recorded or _transforms_active() else function.forward
    return run(*arguments)


def _one_by_one(function: Any, size: int, fixed: Sequence[Any], flat: Any, dims: Dims) -> Any:
    """The rule of a `vmap` that calls `function` for each member, or for one of zeros if there is
    none, whose results have the sizes.
    """

    def member(t: Any, dim: int | None, i: int) -> Any:
        if dim is None:
            return t
        return t.select(dim, i) if size else t.sum(dim)

    members = []
    for i in range(max(size, 1)):
        own = [member(t, dim, i) for t, dim in zip(flat, dims, strict=True)]
        members.append(_run(function, *fixed, *own))
    results = tuple(torch.stack(parts)[:size] for parts in zip(*members, strict=True))
    return results, (0,) * len(results)


def _merged(tensors: Sequence[Any], dims: Dims, size: int, at: int) -> list[Any]:
    """The dimension of a `vmap` put into the batch of each tensor, which is at `at`."""

    def one(t: Tensor, dim: int | None) -> Tensor:
        if dim is not None:
            return t.movedim(dim, at).flatten(at, at + 1)
        return t.unsqueeze(at).expand(*t.shape[:at], size, *t.shape[at:]).flatten(at, at + 1)

    pairs = zip(tensors, dims, strict=True)
    return [None if t is None else one(t, dim) for t, dim in pairs]


def _split(t: Tensor, at: int, *sizes: int) -> Tensor:
    """Dimension `at` as several."""
    return t.view(*t.shape[:at], *sizes, *t.shape[at + 1 :])


class _Layer(Function):
    """``(call, batch_sizes, x, *states, *weights) -> (output, *states_n, *reserve)``.

    The reserve of a dense sequence is ``[D, steps, B, ..]``, so that members can share a batch.
    """

    @staticmethod
    def forward(call: _Call, batch_sizes: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, states, weights = call.parts(inputs)
        output, states_n, reserve = ops.layer(
            call.cell, x, batch_sizes, states, weights, call.bidirectional, call.train
        )
        if batch_sizes is None:
            B = x.shape[1]
            reserve = [_split(t, 1, t.shape[1] // B if B else 0, B) for t in reserve]
        return output, *states_n, *reserve

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, *tensors = inputs
        reserve = output[1 + ctx.call.states :]
        ctx.mark_non_differentiable(*reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *reserve)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch_sizes, *saved = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[2:])
        given = grads[: 1 + ctx.call.states]
        if all(grad is None for grad in given):
            return (None,) * (2 + len(needs))
        if all_have_rules() and not batched_by_autograd([g for g in given if g is not None]):
            results = _run(_LayerBackward, ctx.call, needs, batch_sizes, *given, *saved)
        else:
            inputs = saved[: len(needs)]
            results = _gradients(ctx.call, needs, batch_sizes, given, inputs)
        found = iter(results)
        return None, None, *(next(found) if needed else None for needed in needs)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, call: _Call, batch_sizes: Tensor | None, *inputs: Tensor
    ) -> Any:
        dims, size = in_dims[2:], info.batch_size
        if not size or batch_sizes is not None or any(d is not None for d in dims[call.rows :]):
            return _one_by_one(_Layer, size, (call,), (batch_sizes, *inputs), in_dims[1:])
        rows = _merged(inputs[: call.rows], dims[: call.rows], size, 1)
        results = _run(_Layer, call, None, *rows, *inputs[call.rows :])
        places = tuple(1 if i <= call.states else 2 for i in range(len(results)))
        split = [
            _split(t, at, size, t.shape[at] // size) for t, at in zip(results, places, strict=True)
        ]
        return tuple(split), places


class _LayerBackward(Function):
    """``(call, needs, batch_sizes, *grads, x, *states, *weights, *reserve)`` to the gradients that
    are needed. `grads` are those of the output and of the states, or None.
    """

    @staticmethod
    def forward(
        call: _Call, needs: tuple[bool, ...], batch_sizes: Tensor | None, *flat: Any
    ) -> tuple[Tensor, ...]:
        (grad_output, *grad_states), inputs, reserve = call.backward_parts(flat)
        x, _, weights = call.parts(inputs)
        if batch_sizes is None:
            reserve = [t.flatten(1, 2).contiguous() for t in reserve]
        of_states = needs[1 : call.rows] or (False,) * call.states
        return tuple(
            ops.layer_backward(
                call.cell,
                grad_output,
                grad_states,
                x,
                batch_sizes,
                weights,
                call.bidirectional,
                reserve,
                [needs[0], *of_states, *needs[call.rows :]],
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.call, ctx.needs, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch_sizes, *flat = ctx.saved_tensors
        given, inputs, reserve = ctx.call.backward_parts(flat)
        of_given, of_inputs = _second_gradients(
            ctx.call, ctx.needs, batch_sizes, given, inputs, grads
        )
        return None, None, None, *of_given, *of_inputs, *[None] * len(reserve)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        call: _Call,
        needs: tuple[bool, ...],
        batch_sizes: Tensor | None,
        *flat: Any,
    ) -> Any:
        size = info.batch_size
        grad_dims, dims, reserve_dims = call.backward_parts(in_dims[3:])
        of_weights = any(needs[call.rows :]) or any(d is not None for d in dims[call.rows :])
        if not size or batch_sizes is not None or of_weights or None in reserve_dims:
            fixed, tensors = (call, needs), (batch_sizes, *flat)
            return _one_by_one(_LayerBackward, size, fixed, tensors, in_dims[2:])
        grads, inputs, reserve = call.backward_parts(flat)
        rows = _merged(inputs[: call.rows], dims[: call.rows], size, 1)
        results = _run(
            _LayerBackward,
            call,
            needs,
            None,
            *_merged(grads, grad_dims, size, 1),
            *rows,
            *inputs[call.rows :],
            *_merged(reserve, reserve_dims, size, 2),
        )
        split = tuple(_split(t, 1, size, t.shape[1] // size) for t in results)
        return split, (1,) * len(split)


def _gradients(
    call: _Call,
    needs: Sequence[bool],
    batch_sizes: Tensor | None,
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Those that are needed, by the reference under ``torch.func.vjp``."""
    given = [i for i, grad in enumerate(grads) if grad is not None]

    def values(*inputs: Tensor) -> tuple[Tensor, ...]:
        x, states, weights = call.parts(inputs)
        arguments = (x, batch_sizes, states, weights, call.bidirectional)
        output, states_n = reference.any_layer(call.cell, *arguments)
        return tuple((output, *states_n)[i] for i in given)

    found = torch.func.vjp(values, *inputs)[1](tuple(grads[i] for i in given))
    return tuple(grad for grad, needed in zip(found, needs, strict=True) if needed)


def _second_gradients(
    call: _Call,
    needs: Sequence[bool],
    batch_sizes: Tensor | None,
    grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    grads_of_gradients: Sequence[Tensor | None],
) -> tuple[list[Tensor | None], list[Tensor]]:
    """What reaches `grads` and `inputs` through the gradients."""
    given = [grad for grad in grads if grad is not None]

    def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
        left = iter(tensors)
        own = [None if grad is None else next(left) for grad in grads]
        return _gradients(call, needs, batch_sizes, own, list(left))

    differentiated: Any = torch.func.vjp(gradients, *given, *inputs)
    results, pull = differentiated
    found = iter(
        pull(
            tuple(
                torch.zeros_like(result) if grad is None else grad
                for result, grad in zip(results, grads_of_gradients, strict=True)
            )
        )
    )
    of_grads = [None if grad is None else next(found) for grad in grads]
    return of_grads, list(found)
