"""Random calls of ``rnnfast::recurrence``, and what the reference makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from problems import assert_close, cotangents
from torch import Tensor

from rnnfast import recurrence, reference, spec
from rnnfast.reference import Extras

# What may be done beside the cell.
EXTRAS: list[dict[str, Any]] = [
    {},
    {"norm": True},
    {"keep": "rows"},
    {"drop": True, "clip": 0.3},
    {"units": True},
    {"units": True, "keep": "rows"},
    # Everything at once.
    {"units": True, "keep": "units", "drop": True, "clip": 0.3},
    {"units": True, "norm": True, "drop": True, "keep": "rows"},
    {"norm": True, "keep": "units", "drop": True, "clip": 0.3},
]


@dataclass
class Problem:
    """A random call; `keep`: of each row or one for all ("units")."""

    cell: str
    H: int = 6
    B: int = 3
    T: int = 4
    batch_sizes: tuple[int, ...] | None = None
    norm: bool = False
    keep: str | None = None
    drop: bool = False
    units: bool = False  # that see their own state alone
    clip: float | None = None
    reverse: bool = False
    states_given: bool = True
    bias: bool = True
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    x_gates: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        facts = spec.CELLS[self.cell]
        columns = facts.gates * self.H
        if self.batch_sizes is not None:
            self.B = self.batch_sizes[0]
        rows = sum(self.batch_sizes) if self.batch_sizes is not None else self.T * self.B
        self.x_gates = self.random(rows, columns)
        given = facts.states if self.states_given else 0
        self.states = tuple(self.random(self.B, self.H) for _ in range(given))
        shape = (columns,) if self.units else (columns, self.H)
        self.w_hh = self.random(*shape, scale=min(0.4, max(self.H, 1) ** -0.5))  # no chaos
        self.b_hh = self.random(columns) if self.bias else None
        norm: tuple[Tensor, ...] = ()
        if self.norm:
            norm = (self.random(columns),)
            if facts.emit is not None:
                norm += (self.random(self.H), self.random(self.H))
        keep = None
        if self.keep is not None:
            keep = torch.rand(*([rows] if self.keep == "rows" else []), facts.states * self.H)
            keep = self.given(keep.round() if self.keep == "rows" else keep)
        drop = self.given(torch.rand(self.B, self.H)) if self.drop else None
        self.extras = Extras(norm, keep, drop, self.clip)

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(*shape, dtype=torch.float64)
        return self.given(values).requires_grad_()

    def given(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype)

    @property
    def sizes(self) -> Tensor | None:
        return None if self.batch_sizes is None else torch.tensor(self.batch_sizes)

    @property
    def leaves(self) -> list[Tensor]:
        bias = [] if self.b_hh is None else [self.b_hh]
        return [self.x_gates, *self.states, self.w_hh, *self.extras.norm, *bias]

    def arguments(self, train: bool) -> tuple[Any, ...]:
        norm, keep, drop, clip = self.extras
        return (
            *(self.cell, self.x_gates, self.sizes, self.B, list(self.states), self.w_hh),
            *(self.b_hh, list(norm), keep, drop, self.reverse, clip, train),
        )

    def fused(self) -> list[Tensor]:
        output, states_n = recurrence.fused(
            *(self.cell, self.x_gates, self.sizes, self.B, self.states, self.w_hh, self.b_hh),
            *(self.extras, self.reverse),
        )
        return [output, *states_n]

    def reference(self, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor]]:
        """The results, and the leaves in that type that they are made of."""
        wide = [t.detach().to(dtype).requires_grad_() for t in self.leaves]
        facts, count = spec.CELLS[self.cell], len(self.states)
        x, *others = wide
        own, (w, *others) = others[:count], others[count:]
        states = tuple(own) or tuple(facts.zeros(x, (self.B,), self.H))
        norm = tuple(others[: len(self.extras.norm)])
        bias = others[-1] if self.bias else None
        keep, drop = (
            None if t is None else t.to(dtype) for t in (self.extras.keep, self.extras.drop)
        )
        sizes = reference.batch_sizes_of(self.sizes, x.shape[0], self.B)
        output, states_n = reference.recurrence(
            self.cell, x, sizes, states, w, bias, Extras(norm, keep, drop, self.clip), self.reverse
        )
        return [output, *states_n], wide

    def compare(self, tolerance: float) -> None:
        """Values, and gradients of everything."""
        found = self.fused()
        grads = torch.autograd.grad(found, self.leaves, cotangents(found))
        self.compare_with(found, grads, tolerance)

    def compare_with(
        self, found: Sequence[Tensor], grads: Sequence[Tensor], tolerance: float
    ) -> None:
        """The reference with these values, and with the gradients of their ``cotangents``."""
        expected, wide = self.reference()
        weights = [w.to(torch.float64) for w in cotangents(found)]
        expected_grads = torch.autograd.grad(expected, wide, weights)
        for actual, wanted in zip([*found, *grads], [*expected, *expected_grads], strict=True):
            assert actual.dtype == self.dtype
            scale = max(1.0, float(wanted.detach().abs().max()) if wanted.numel() else 0.0)
            assert_close([actual.double() / scale], [wanted / scale], tolerance)

    def gradients(
        self, values: Sequence[Tensor], reserve: list[Tensor], backward: Any
    ) -> list[Tensor]:
        """Those of the ``cotangents`` of `values`, by another op `backward`."""
        saved = recurrence._Saved(
            *(self.cell, self.x_gates, self.sizes, self.B, self.states, self.w_hh, self.b_hh),
            *(self.extras, self.reverse),
        )
        output, *states_n = cotangents(values)
        grad_x, grad_states, grad_w, grad_norm, grad_b = recurrence._fused_gradients(
            saved, reserve, output, states_n, backward
        )
        return [grad_x, *grad_states, grad_w, *grad_norm, *([] if grad_b is None else [grad_b])]
