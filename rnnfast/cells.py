"""``RNNCell``, ``GRUCell``, ``LSTMCell``: drop-in replacements of the cells of ``torch.nn``.

They inherit torch's own classes (which ``torch.compile`` accepts) and replace ``forward``: the
checks of torch.nn in its words, then :func:`rnnfast.functional.cell`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rnnfast._interop import Interop
from rnnfast._library import _C
from rnnfast.functional import cell, is_pair
from rnnfast.spec import CELLS, MODES, CellSpec

_is_tracing = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling


def rnn_cell(module: nn.RNNCellBase, input: Tensor, hx: Tensor | None) -> Tensor:
    """A call of an RNNCell, ours or torch.nn's."""
    nonlinearity: Any = module.nonlinearity
    mode = f"RNN_{nonlinearity.upper()}" if nonlinearity in ("tanh", "relu") else None
    if mode is not None and (result := _one_call(module, mode, input, hx)) is not None:
        return result  # type: ignore[no-any-return]
    _check_dim("RNNCell", "input", input)
    if hx is not None:
        _check_dim("RNNCell", "hidden", hx)
    if mode is None:
        raise RuntimeError(f"Unknown nonlinearity: {module.nonlinearity}")
    return _step(module, MODES[mode], input, () if hx is None else (hx,))[0]


def gru_cell(module: nn.RNNCellBase, input: Tensor, hx: Tensor | None) -> Tensor:
    """A call of a GRUCell, ours or torch.nn's."""
    if (result := _one_call(module, "GRU", input, hx)) is not None:
        return result  # type: ignore[no-any-return]
    _check_dim("GRUCell", "input", input)
    if hx is not None:
        _check_dim("GRUCell", "hidden", hx)
    return _step(module, CELLS["gru"], input, () if hx is None else (hx,))[0]


def lstm_cell(
    module: nn.RNNCellBase, input: Tensor, hx: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """A call of an LSTMCell, ours or torch.nn's."""
    if (result := _one_call(module, "LSTM", input, hx)) is not None:
        return result  # type: ignore[no-any-return]
    _check_dim("LSTMCell", "input", input)
    states: tuple[Tensor, ...] = ()
    if hx is not None:
        for index, state in enumerate(hx):
            _check_dim("LSTMCell", f"hx[{index}]", state)
        if input.dim() == 2 and not is_pair(hx):  # torch's operator says what it is not
            weights = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
            return CELLS["lstm"].cell_operator(input, hx, *weights)  # type: ignore[no-any-return]
        states = (hx[0], hx[1])
    h, c = _step(module, CELLS["lstm"], input, states)
    return h, c


def _one_call(module: nn.RNNCellBase, mode: str, input: Any, hx: Any) -> Any:
    """The whole call in C++, or None where something about it is special or wrong."""
    if _is_compiling() or type(module).__getattr__ is not nn.Module.__getattr__:
        return None
    return _C.cell(module, mode, input, hx)


def _step(
    module: nn.RNNCellBase, spec: CellSpec, input: Tensor, states: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """One step for ``[B, I]``, or for ``[I]`` without a batch; no `states`: zeros."""
    batched = input.dim() == 2
    if not batched:
        input = input.unsqueeze(0)
        states = tuple(state.unsqueeze(0) for state in states)
    w_ih, w_hh = module.weight_ih, module.weight_hh
    if not all(isinstance(w, Tensor) and w.dim() == 2 for w in (w_ih, w_hh)):
        hx = spec.hx_of(states or spec.zeros(input, (input.size(0),), module.hidden_size))
        return spec.states_of(  # torch's operator says what they are not
            spec.cell_operator(input, hx, w_ih, w_hh, module.bias_ih, module.bias_hh)
        )
    if not _is_tracing():  # then no value may be looked at, and torch's own operator checks
        _check_sizes(input, states, w_ih.size(1), w_hh.size(1))
    states = cell(spec.mode, input, states, w_ih, w_hh, module.bias_ih, module.bias_hh)
    return states if batched else tuple(state.squeeze(0) for state in states)


def check_cell(cell: nn.RNNCellBase, input: Tensor, states: tuple[Tensor, ...]) -> None:
    """Raise what a call of `cell`, ours or torch.nn's, would raise for these sizes, without one."""
    ours = next(c for c in (RNNCell, GRUCell, LSTMCell) if isinstance(cell, c.torch_class))
    _check_dim(ours.__name__, "input", input)
    for index, state in enumerate(states):
        _check_dim(ours.__name__, f"hx[{index}]" if ours is LSTMCell else "hidden", state)
    if input.dim() == 1:
        input, states = input.unsqueeze(0), tuple(state.unsqueeze(0) for state in states)
    _check_sizes(input, states, cell.input_size, cell.hidden_size)


def _check_dim(name: str, what: str, tensor: Tensor) -> None:
    dim = tensor.dim()
    if dim != 2 and dim != 1:
        raise ValueError(f"{name}: Expected {what} to be 1D or 2D, got {dim}D instead")


def _check_sizes(
    input: Tensor, states: tuple[Tensor, ...], input_size: int, hidden_size: int
) -> None:
    if input.size(1) != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {input_size}"
        )
    for index, state in enumerate(states):
        if input.size(0) != state.size(0):
            raise RuntimeError(
                f"Input batch size {input.size(0)} doesn't match "
                f"hidden{index} batch size {state.size(0)}"
            )
        if state.size(1) != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: "
                f"got {state.size(1)}, expected {hidden_size}"
            )


class RNNCell(Interop, nn.RNNCell):
    """One step of :class:`rnnfast.RNN`; arguments, errors as :class:`torch.nn.RNNCell`."""

    torch_class = nn.RNNCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step: see :meth:`GRUCell.forward`."""
        if (leaf := self._call_as_leaf(input, hx)) is not None:
            return leaf  # type: ignore[no-any-return]
        return rnn_cell(self, input, hx)


class GRUCell(Interop, nn.GRUCell):
    """One step of :class:`rnnfast.GRU`; arguments, errors as :class:`torch.nn.GRUCell`."""

    torch_class = nn.GRUCell

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            input: ``[B, I]``, or ``[I]`` without a batch
            hx: the state before, ``[B, H]`` or ``[H]``; None: zeros

        Returns:
            the state after, in the form of `hx`

        Raises:
            ValueError, RuntimeError: an argument of another shape or dtype, in torch.nn's words
        """
        if (leaf := self._call_as_leaf(input, hx)) is not None:
            return leaf  # type: ignore[no-any-return]
        return gru_cell(self, input, hx)


class LSTMCell(Interop, nn.LSTMCell):
    """One step of :class:`rnnfast.LSTM`; arguments, errors as :class:`torch.nn.LSTMCell`."""

    torch_class = nn.LSTMCell

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: :meth:`GRUCell.forward` with two states, ``(h, c)`` in and out."""
        if (leaf := self._call_as_leaf(input, hx)) is not None:
            return leaf  # type: ignore[no-any-return]
        return lstm_cell(self, input, hx)
