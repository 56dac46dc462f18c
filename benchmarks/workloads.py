"""A problem made concrete: the layers of both libraries, their input, a pass to time, its values.

*Inference* is a call under `torch.inference_mode()`. *Training* is a call, then the backward pass
from a fixed gradient of the output to every parameter; the input itself requires no gradient, as
in the first layer of any model, and the parameters' gradients are None before each call, as
`optimizer.zero_grad()` leaves them. The initial state is the default, zeros. Packing a batch of
sequences happens before, once: it is not the layer's work.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.problems import Problem

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
"""Cell -> the class of torch.nn (and of rnnfast) that holds it, with its arguments."""

PASSES = ("inference", "training")

ERROR_FACTOR = 4.0
"""A right layer's error is at most this many times torch.nn's own ..."""

ERROR_FLOOR = 64.0
"""... plus this many units of rounding: torch.nn may happen to be exact. A wrong weight, gate or
step shows at 1e-3 and above; both together stay below 1e-4 in float32."""


class WrongValuesError(AssertionError):
    """A layer's output or gradient is not torch.nn's: there is nothing to time."""


def make_layer(
    library: ModuleType, cell: str, problem: Problem, dtype: torch.dtype, device: str = "cpu"
) -> nn.Module:
    """The layer of `cell` in `library` (torch.nn, rnnfast) for `problem`, initialised by torch's
    generator.
    """
    class_name, arguments = CELLS[cell]
    layer: nn.Module = getattr(library, class_name)(
        problem.I,
        problem.H,
        problem.layers,
        bidirectional=problem.bidirectional,
        dtype=dtype,
        device=device,
        **arguments,
    )
    return layer


@dataclass(frozen=True)
class Workload:
    """One cell on one problem: input `[T, B, I]` or packed, gradient of the output, two layers
    with the same weights.
    """

    problem: Problem
    cell: str
    x: Tensor | PackedSequence
    grad_output: Tensor
    baseline: nn.Module
    candidate: nn.Module

    @cached_property
    def truth(self) -> dict[str, Tensor]:
        """All values of the training pass as torch.nn computes them in float64."""
        exact = copy.deepcopy(self.baseline).double()
        return values(exact, self.x.to(torch.float64), self.grad_output.double(), "training")


def make_workload(
    problem: Problem,
    cell: str,
    dtype: torch.dtype,
    baseline: ModuleType,
    candidate: ModuleType,
    seed: int = 0,
    device: str = "cpu",
) -> Workload:
    """Draws the weights of `baseline`'s layer, copies them to `candidate`'s, draws the input."""
    torch.manual_seed(seed)
    first = make_layer(baseline, cell, problem, dtype, device)
    second = make_layer(candidate, cell, problem, dtype, device)
    second.load_state_dict(first.state_dict())
    dense = torch.randn(problem.T, problem.B, problem.I, dtype=dtype, device=device)
    x: Tensor | PackedSequence = dense
    width = problem.H * (2 if problem.bidirectional else 1)
    if problem.lengths:
        x = pack_padded_sequence(dense, torch.tensor(problem.lengths))
        grad_output = torch.randn(sum(problem.lengths), width, dtype=dtype, device=device)
    else:
        grad_output = torch.randn(problem.T, problem.B, width, dtype=dtype, device=device)
    return Workload(problem, cell, x, grad_output, first, second)


def make_pass(workload: Workload, layer: nn.Module, name: str) -> Callable[[], Tensor]:
    """The call to time: "inference" or "training" of `layer` on the workload's input. It returns
    the layer's output.
    """
    x, grad_output = workload.x, workload.grad_output

    def forward() -> Tensor:
        output: Tensor | PackedSequence = layer(x)[0]
        return output.data if isinstance(output, PackedSequence) else output

    def inference() -> Tensor:
        with torch.inference_mode():
            return forward()

    parameters = list(layer.parameters())

    def training() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        output = forward()
        output.backward(grad_output)
        return output

    return {"inference": inference, "training": training}[name]


def values(
    layer: nn.Module, x: Tensor | PackedSequence, grad_output: Tensor, name: str
) -> dict[str, Tensor]:
    """Everything that pass `name` computes: output, final states and, in training, the gradient of
    every parameter, each under its name.
    """
    with torch.inference_mode(name == "inference"):
        output, states = layer(x)
    output = output.data if isinstance(output, PackedSequence) else output
    states = states if isinstance(states, tuple) else (states,)
    result = {"output": output, **dict(zip(("h_n", "c_n"), states, strict=False))}
    if name == "training":
        parameters = dict(layer.named_parameters())
        grads = torch.autograd.grad(output, list(parameters.values()), grad_output)
        result |= {f"grad of {key}": grad for key, grad in zip(parameters, grads, strict=True)}
    return {key: value.detach() for key, value in result.items()}


@dataclass(frozen=True)
class Errors:
    """The largest error of each side over all values, relative to the largest of its tensor."""

    baseline: float
    candidate: float


def check(workload: Workload, name: str) -> Errors:
    """`compare` of the candidate's values in pass `name`."""
    return compare(
        workload,
        name,
        values(workload.candidate, workload.x, workload.grad_output, name),
        values(workload.baseline, workload.x, workload.grad_output, name),
    )


def compare(
    workload: Workload, name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> Errors:
    """Compares our values in pass `name`, and torch.nn's (theirs), with torch.nn's in float64.

    Raises WrongValuesError where our error exceeds ERROR_FACTOR times torch.nn's plus ERROR_FLOOR
    roundings, or where a value is missing, misshapen or of another dtype.
    """
    where = f"{workload.cell} {workload.problem.name} {name}"
    if ours.keys() != theirs.keys():
        raise WrongValuesError(f"{where}: wanted {list(theirs)}, got {list(ours)}")
    worst = Errors(0.0, 0.0)
    for key, peer in theirs.items():
        got, truth = ours[key], workload.truth[key]
        if got.shape != peer.shape or got.dtype != peer.dtype:
            raise WrongValuesError(
                f"{where}: {key} must be {peer.dtype} {list(peer.shape)}, "
                f"got {got.dtype} {list(got.shape)}"
            )
        error, own = relative_error(got, truth), relative_error(peer, truth)
        limit = ERROR_FACTOR * own + ERROR_FLOOR * torch.finfo(peer.dtype).eps
        if not error <= limit:  # also catches NaN
            raise WrongValuesError(
                f"{where}: error of {key} is {error:.2e}; torch.nn's own is {own:.2e}, "
                f"the limit {limit:.2e}"
            )
        worst = Errors(max(worst.baseline, own), max(worst.candidate, error))
    return worst


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Largest absolute difference over the largest absolute value of the truth."""
    scale = truth.abs().max().clamp_min(torch.finfo(truth.dtype).tiny)
    return ((got.double() - truth).abs().max() / scale).item()


def what_ran(workload: Workload, library: ModuleType, name: str) -> str:
    """The kernel behind the candidate in pass `name`, as `rnnfast.explain` names it."""
    if library is nn:
        return "torch.nn"
    with torch.inference_mode(name == "inference"):
        return str(library.explain(workload.candidate, workload.x))
