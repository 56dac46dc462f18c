"""The table of cells: what each one is, for all of Python. The kernels have theirs, csrc/cells.h.

A new cell is a row here and a struct there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import _VF, Tensor

from rnnfast._library import _C

States = tuple[Tensor, ...]
Step = Callable[[Tensor, Tensor, States], States]
Emit = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CellSpec:
    """One cell.

    name: of our ops; in capitals torch.nn's `mode`. step: ``(x_gates [B, G*H], h_gates [B, G*H],
    states) -> states``, each state ``[B, H]``. gates: G. reserve: what backward keeps of the gates,
    in units of H. shared_gates: so many, the first ones, have one gradient for both sides.
    reads_h: whether the step reads h besides its product. reads_after: whether backward reads the
    states that the step made. emit: ``(x_gates, h_gates, c) -> h``, where the step's h follows from
    its second state so, else None. operator, cell_operator: torch's, for layers and for one step,
    or None where it has none.
    """

    name: str
    step: Step
    gates: int
    states: int
    reserve: int
    shared_gates: int
    reads_h: bool
    reads_after: bool
    emit: Any = None
    operator: Any = None
    cell_operator: Any = None

    @property
    def mode(self) -> str:
        return self.name.upper()

    def states_of(self, hx: Any) -> States:
        """The states of `hx` as torch.nn takes it: a tensor, or where there are two, a pair.

        An LSTM that is given a number or one state fails here, as torch's does.
        """
        return (hx,) if self.states == 1 else (hx[0], hx[1])

    def hx_of(self, states: Any) -> Any:
        """The opposite, from a sequence of states."""
        return states[0] if self.states == 1 else (states[0], states[1])

    def zeros(
        self, like: Tensor, sizes: tuple[Any, ...], hidden: Any, proj_size: int = 0
    ) -> list[Tensor]:
        """States to start from: ``[*sizes, H]``, the first ``[*sizes, P]`` with a projection."""
        widths = [proj_size or hidden, *[hidden] * (self.states - 1)]
        return [torch.zeros(*sizes, n, dtype=like.dtype, device=like.device) for n in widths]


def rnn_tanh(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Elman 1990: ``h' = tanh(x + h)``."""
    return (torch.tanh(x_gates + h_gates),)


def rnn_relu(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Elman's network with a rectifier: ``h' = relu(x + h)``."""
    return (torch.relu(x_gates + h_gates),)


def gru(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Cho et al. 2014, arXiv 1406.1078v1: the reset gate acts after the product.

    ``r, z = sigmoid(x + h)``, ``n = tanh(x_n + r * h_n)``, ``h' = (1 - z) * n + z * h``.
    """
    x_r, x_z, x_n = x_gates.chunk(3, -1)
    h_r, h_z, h_n = h_gates.chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (states[0] - n),)


def lstm(x_gates: Tensor, h_gates: Tensor, states: States) -> States:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.

    ``i, f, o = sigmoid(x + h)``, ``g = tanh(x + h)``, ``c' = f * c + i * g``,
    ``h' = o * tanh(c')``.
    """
    i, f, g, _ = (x_gates + h_gates).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return lstm_emit(x_gates, h_gates, c), c


def lstm_emit(x_gates: Tensor, h_gates: Tensor, c: Tensor) -> Tensor:
    """``h' = o * tanh(c')``."""
    o = x_gates.chunk(4, -1)[3] + h_gates.chunk(4, -1)[3]
    return torch.sigmoid(o) * torch.tanh(c)


_EMITS: dict[str, Emit] = {"lstm": lstm_emit}
_STEPS: dict[str, Step] = {"rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu, "gru": gru, "lstm": lstm}


def _spec(facts: Any) -> CellSpec:
    name = facts["name"]
    return CellSpec(
        name,
        _STEPS[name],
        facts["gates"],
        facts["states"],
        facts["reserve"],
        facts["shared_gates"],
        facts["reads_h"],
        facts["reads_after"],
        _EMITS[name] if facts["emits"] else None,
        getattr(_VF, name, None),
        getattr(_VF, f"{name}_cell", None),
    )


CELLS = {facts["name"]: _spec(facts) for facts in _C.cells()}
"""All cells, by name."""

MODES = {spec.mode: spec for spec in CELLS.values()}
"""The same, by torch.nn's `mode`."""
