"""Random problems of ``rnnfast::recurrence``, and what the reference makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from problems import cotangents
from torch import Tensor

from rnnfast import recurrence
from rnnfast.spec import CELLS

EXTRAS: list[dict[str, Any]] = [
    {},
    {"norm": True},
    {"keep": "rows"},
    {"drop": True, "clip": 0.3},
    {"independent": True},
    {"independent": True, "keep": "rows"},
    # Everything at once.
    {"independent": True, "keep": "units", "drop": True, "clip": 0.3},
    {"independent": True, "norm": True, "drop": True, "keep": "rows"},
    {"norm": True, "keep": "units", "drop": True, "clip": 0.3},
]


@dataclass
class Recurrence:
    """One direction of a layer: dense, or packed if there are lengths."""

    cell: str
    T: int = 4
    B: int = 3
    H: int = 5
    lengths: tuple[int, ...] | None = None  # sorted; makes it packed
    states_given: bool = True
    bias: bool = True
    norm: bool = False
    keep: str = ""  # of "rows", of "units"
    drop: bool = False
    independent: bool = False
    clip: float | None = None
    reverse: bool = False
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    batch_sizes: Tensor | None = field(init=False, default=None)
    leaves: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        rows = self.T * self.B
        if self.lengths is not None:
            self.B, rows = len(self.lengths), sum(self.lengths)
            self.batch_sizes = torch.tensor(
                [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]
            )
        spec, H = CELLS[self.cell], self.H
        gates = spec.gates * H
        normed = 3 if spec.emit is not None else 1
        self.leaves = {
            "x_gates": self.random(rows, gates),
            "w_hh": self.random(gates, *[H] * (not self.independent)) * max(H, 1) ** -0.5,
            "b_hh": self.random(gates) if self.bias else None,
            "states": [self.random(self.B, H) for _ in range(spec.states * self.states_given)],
            "norm": [self.random(gates), self.random(H), self.random(H)][: normed * self.norm],
        }
        kept = spec.states * H
        sizes = {"rows": (rows, kept), "units": (kept,)}
        self.keep_of = torch.sigmoid(self.random(*sizes[self.keep])) if self.keep else None
        self.dropped = (self.random(self.B, H) > 0).to(self.dtype) * 2 if self.drop else None

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(self.device, self.dtype)

    def sizes(self) -> list[int]:
        return [self.B] * self.T if self.batch_sizes is None else self.batch_sizes.tolist()

    @property
    def extras(self) -> recurrence.Extras:
        return recurrence.Extras(tuple(self.leaves["norm"]), self.keep_of, self.dropped, self.clip)

    def arguments(self, train: bool) -> tuple[Any, ...]:
        """Those of the op."""
        x, w_hh, b_hh, states, norm = self.leaves.values()
        _, keep, drop, clip = self.extras
        return (
            self.cell, x, self.batch_sizes, self.B, states, w_hh, b_hh, norm, keep, drop,
            self.reverse, clip, train,
        )  # fmt: skip

    def expected(self) -> tuple[list[Tensor], list[Tensor]]:
        """``[output, *states_n]`` and the gradients of their ``cotangents``, in the order of
        ``_fused_gradients``: by the reference, in float64 from the numbers of the problem.
        """

        def wide(t: Tensor) -> Tensor:
            return t.to(torch.float64, copy=True).requires_grad_()

        x, w_hh = wide(self.leaves["x_gates"]), wide(self.leaves["w_hh"])
        b_hh = [] if self.leaves["b_hh"] is None else [wide(self.leaves["b_hh"])]
        states, norm = ([wide(t) for t in self.leaves[name]] for name in ("states", "norm"))
        initial = states or [x.new_zeros(self.B, self.H) for _ in range(CELLS[self.cell].states)]
        of_rows = [None if t is None else t.double() for t in (self.keep_of, self.dropped)]
        output, states_n = recurrence.reference(
            self.cell, x, self.sizes(), tuple(initial), w_hh, b_hh[0] if b_hh else None,
            recurrence.Extras(tuple(norm), *of_rows, self.clip), self.reverse,
        )  # fmt: skip
        values = [output, *states_n]
        grads = [g.double() for g in cotangents([v.to(self.dtype) for v in values])]
        leaves = [x, *states, w_hh, *b_hh, *norm]
        found = torch.autograd.grad(values, leaves, grads, allow_unused=True)
        return [v.detach() for v in values], [
            torch.zeros_like(leaf) if g is None else g
            for leaf, g in zip(leaves, found, strict=True)
        ]

    def gradients(self, values: list[Tensor], reserve: list[Tensor], backward: Any) -> list[Tensor]:
        """The gradients of the ``cotangents`` of `values`, by the op `backward`."""
        x, w_hh, b_hh, states, _ = self.leaves.values()
        saved = recurrence._Saved(
            self.cell, x, self.batch_sizes, self.B, states, w_hh, b_hh, self.extras, self.reverse
        )
        output, *of_states = cotangents(values)
        grad_x, grad_states, grad_w, grad_b, grad_norm = recurrence._fused_gradients(
            saved, reserve, output, of_states, backward
        )
        biases = [] if grad_b is None else [grad_b]
        return [grad_x, *grad_states, grad_w, *biases, *grad_norm]
