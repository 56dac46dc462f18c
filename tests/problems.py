"""Random layers, and what torch.nn, the ops and the reference make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import functional, ops

MODES = ("RNN_TANH", "RNN_RELU", "GRU", "LSTM")
CELLS = tuple(mode.lower() for mode in MODES)
# Absolute and relative, for values of order one; float64 is for parity, the others for storage.
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 2e-5,
    torch.bfloat16: 4e-2,
    torch.float16: 6e-3,
}


class OpDevice(NamedTuple):
    """Where tensors are for an op, the most precise type that its kernels run there, and whether
    they are those of a GPU, which keep gates unit by unit.
    """

    name: str
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-12
    by_unit: bool = False


def assert_close(actual: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    """Compares tensors, or Nones, one by one: sizes, dtypes and values."""
    assert len(actual) == len(expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (b is None), f"tensor {i}: {a} against {b}"
        if a is not None:
            torch.testing.assert_close(
                a, b, rtol=tolerance, atol=tolerance, msg=lambda text, i=i: f"tensor {i}: {text}"
            )


def assert_gradients_close(
    actual: list[Tensor], wanted: list[Tensor | None], tolerance: float
) -> None:
    """A gradient of a weight is a sum over all rows: it errs with its size. None is zero."""
    for i, (grad, want) in enumerate(zip(actual, wanted, strict=True)):
        want = torch.zeros_like(grad) if want is None else want
        size = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        torch.testing.assert_close(
            grad.double(),
            want.double(),
            rtol=0,
            atol=tolerance * size,
            msg=lambda text, i=i: f"gradient {i}: {text}",
        )


def strided(t: Tensor) -> Tensor:
    """The same values, every other element in memory, the last two dimensions exchanged."""
    apart = torch.stack([t, t], -1)[..., 0]
    return apart.mT.contiguous().mT if t.dim() > 1 else apart


def displaced(t: Tensor) -> Tensor:
    """The same, contiguous, at an address that is a multiple of its numbers' size alone."""
    memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return memory[1:].view(t.shape).copy_(t)


@dataclass
class Problem:
    """A torch.nn layer with its arguments: dense, or packed if there are batch sizes."""

    mode: str
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 6
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    lengths: tuple[int, ...] | None = None  # sorted; makes it packed
    states_given: bool = True
    dropout: float = 0.0
    proj_size: int = 0
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    seed: int = 0
    module: Any = field(init=False)
    x: Tensor = field(init=False)
    batch_sizes: Tensor | None = field(init=False, default=None)
    states: tuple[Tensor, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        options: dict[str, Any] = {
            "num_layers": self.layers,
            "bidirectional": self.bidirectional,
            "bias": self.bias,
            "dropout": self.dropout,
            "device": self.device,
            "dtype": self.dtype,
        }
        if self.proj_size:
            options["proj_size"] = self.proj_size
        name = self.mode.partition("_")[0]
        if name == "RNN":
            options["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        self.module = getattr(nn, name)(self.I, self.H, **options)
        shape = (self.T, self.B, self.I)
        if self.lengths is not None:
            self.B = len(self.lengths)
            self.batch_sizes = torch.tensor(
                [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]
            )
            shape = (sum(self.lengths), self.I)
        self.x = self.random(*shape)
        if self.states_given:
            count = self.layers * (1 + self.bidirectional)
            sizes = [self.proj_size or self.H, self.H][: 1 + (self.mode == "LSTM")]
            self.states = tuple(self.random(count, self.B, size) for size in sizes)

    def random(self, *shape: int) -> Tensor:
        """Leaves of order one that require gradients."""
        values = torch.randn(*shape, dtype=torch.float64)
        return values.to(self.device, self.dtype).requires_grad_()

    @property
    def cell(self) -> str:
        return self.mode.lower()

    @property
    def weights(self) -> list[Tensor]:
        return list(self.module._flat_weights)

    @property
    def leaves(self) -> list[Tensor]:
        """All that gradients are taken of."""
        return [self.x, *self.states, *self.weights]

    def torch(self) -> list[Tensor]:
        """``[output, *states_n]`` of torch.nn."""
        hx: Any = None
        if self.states:
            hx = self.states if self.mode == "LSTM" else self.states[0]
        x: Any = self.x
        if self.batch_sizes is not None:
            x = PackedSequence(x, self.batch_sizes)
        output, states_n = self.module(x, hx)
        if self.batch_sizes is not None:
            output = output.data
        return [output, *(states_n if self.mode == "LSTM" else [states_n])]

    def rnnfast(self, x: Tensor | None = None, **options: Any) -> list[Tensor]:
        """``[output, *states_n]`` of ours, by :func:`rnnfast.functional.stack`."""
        output, states_n = functional.stack(
            self.mode,
            self.x if x is None else x,
            self.batch_sizes,
            self.states,
            self.weights,
            has_biases=self.bias,
            num_layers=self.layers,
            dropout=self.dropout,
            training=self.module.training,
            bidirectional=self.bidirectional,
            proj_size=self.proj_size,
            **options,
        )
        return [output, *states_n]

    def layer(self, train: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """What the raw op gives, without autograd."""
        with torch.no_grad():
            return ops.layer(*self.layer_arguments(train))

    def layer_arguments(self, train: bool) -> tuple[Any, ...]:
        """The arguments of ``rnnfast::layer``."""
        plain = [t.detach() for t in self.leaves]
        states = plain[1 : 1 + len(self.states)]
        weights = plain[1 + len(self.states) :]
        return (self.cell, plain[0], self.batch_sizes, states, weights, self.bidirectional, train)

    def backward_arguments(self) -> tuple[Any, ...]:
        """The arguments of ``rnnfast::layer_backward``, with random gradients of everything."""
        output, states_n, reserve = self.layer(train=True)
        cell, x, batch_sizes, _, weights, bidirectional, _ = self.layer_arguments(True)
        grads = [torch.randn_like(t) for t in states_n]
        needs = [True] * (1 + len(states_n) + len(weights))
        output = torch.randn_like(output)
        return (cell, output, grads, x, batch_sizes, weights, bidirectional, reserve, needs)


def cotangents(values: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """Random gradients of these values."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.device, v.dtype)
        for v in values
    ]


def gradients(
    values: Sequence[Tensor], leaves: Sequence[Tensor], **options: Any
) -> tuple[Tensor | None, ...]:
    """The gradients of random functions of all values."""
    return torch.autograd.grad(values, leaves, cotangents(values), allow_unused=True, **options)


def assert_same_as_torch(problem: Problem, leaves: list[Tensor]) -> None:
    """Values of ours and of torch.nn, and the gradients of these leaves."""
    tolerance = TOLERANCE[problem.dtype]
    ours, theirs = problem.rnnfast(), problem.torch()
    assert_close(ours, theirs, tolerance)
    assert [t.requires_grad for t in ours] == [t.requires_grad for t in theirs]
    if leaves:
        assert_close(gradients(ours, leaves), gradients(theirs, leaves), 10 * tolerance)
