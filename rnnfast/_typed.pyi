"""``rnnfast.RNN``, ``GRU`` and ``LSTM`` as type checkers see them.

With the results of a call, which torch.nn leaves open. A test holds the signatures to those of
modules.py.
"""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_Device = torch.device | str | int

class RNN(nn.RNN):
    recompute: bool
    detach_every: int | None
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
        device: _Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        reset_states: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
        reset_states: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

class GRU(nn.GRU):
    recompute: bool
    detach_every: int | None
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
        device: _Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        reset_states: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
        reset_states: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

class LSTM(nn.LSTM):
    recompute: bool
    detach_every: int | None
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
        device: _Device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None: ...
    @overload
    def __call__(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | None = None,
        reset_states: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
        reset_states: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
