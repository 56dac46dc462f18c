"""``RNN``, ``GRU``, ``LSTM``: drop-in replacements of the layers of ``torch.nn``.

They are torch's own ``RNNBase`` (parameters, initialisation, ``state_dict``, pickles, checks) with
another ``forward``: the checks of torch.nn, then :func:`rnnfast.functional.stack`. They keep no
attribute that torch's do not, so an object may change from one class to the other: that is how
:func:`rnnfast.convert` works. The formulas, gate orders and parameter names are those of torch.nn.
"""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from torch import _VF, Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast._interop import Interop
from rnnfast._isinstance import Disguised
from rnnfast._library import _C
from rnnfast.functional import is_pair, stack

_is_tracing = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling
_CHECKS = (
    "check_input",
    "check_forward_args",
    "check_hidden_size",
    "get_expected_hidden_size",
    "get_expected_cell_size",
)


class _Layers(Disguised, Interop, nn.RNNBase):
    """What the three classes share: the checks of the arguments, in torch.nn's order and words."""

    torch_class: ClassVar[type[nn.RNNBase]]
    _kind: ClassVar[str]  # how torch.nn calls the class in its message on dimensions
    _unit: ClassVar[str] = ""  # and, for RNN only, what it says after the number of dimensions
    _checks_are_torchs: ClassVar[bool]  # no class of a user has put others in their place

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._checks_are_torchs = all(
            getattr(cls, name, None) is getattr(cls.torch_class, name, None) for name in _CHECKS
        )

    def _construct(
        self, mode: str, args: tuple[Any, ...], device: Any, dtype: Any, kwargs: dict[str, Any]
    ) -> None:
        """``RNNBase.__init__``; a device and dtype not given by name may be among `args`."""
        given = {"device": device, "dtype": dtype}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        nn.RNNBase.__init__(self, mode, *args, **kwargs)

    def _forward(self, input: Any, hx: Any) -> Any:
        """Run the layers on a tensor or a PackedSequence, with `hx` in the form of torch.nn."""
        if (result := self._run_plain(input, None, hx)) is not None:
            return result
        if type(input) is not Tensor:
            if isinstance(input, PackedSequence):
                return self._forward_packed(input, hx)
            if (leaf := self._call_as_leaf(input, hx)) is not None:
                return leaf
        dim = input.dim()
        self._check_dim(dim)
        batch_dim = 0 if self.batch_first else 1
        if hx is not None:
            hx = self._batched_states(hx, dim)
        if dim == 3:
            return self._run(input, None, hx)
        input = input.unsqueeze(batch_dim)
        output, hidden = self._run_plain(input, None, hx) or self._run(input, None, hx)
        states = [s.squeeze(1) for s in self._states(hidden)]
        return output.squeeze(batch_dim), self._hidden(states)

    def _forward_packed(self, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        input, batch_sizes, sorted_indices, unsorted_indices = packed
        if hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        output, hidden = self._run_plain(input, batch_sizes, hx) or self._run(
            input, batch_sizes, hx
        )
        hidden = self.permute_hidden(hidden, unsorted_indices)
        return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hidden

    def _run_plain(self, input: Any, batch_sizes: Tensor | None, hx: Any) -> Any:
        """``(output, hidden)`` in one step of C++, or None where something about the call is
        special or wrong: then the rest of this class finds out what.
        """
        if _is_compiling() or not self._checks_are_torchs:
            return None
        return _C.layers(self, input, batch_sizes, hx)

    def _run(self, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> tuple[Tensor, Any]:
        """Check the arguments and run the layers. `hx` None counts as zeros, which nobody makes."""
        weights = self._current_weights()
        # A compiled program cannot read B from the values of batch_sizes; the operator does.
        if hx is None or (batch_sizes is not None and _is_compiling()):
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, hx, batch_sizes)
        states = () if hx is None else self._states(hx)
        if len(states) == 2 and not is_pair(hx):  # torch's operator says what it is not
            order = (self.batch_first,) if batch_sizes is None else ()
            data: Any = (input,) if batch_sizes is None else (input, batch_sizes)
            flags = (self.bias, self.num_layers, 0.0, False, bool(self.bidirectional), *order)
            return _VF.lstm(*data, hx, weights, *flags)  # type: ignore[no-any-return, call-overload]
        batch_first = self.batch_first and batch_sizes is None
        if not _is_tracing():  # then no value may be looked at, and torch's own operator checks
            _check_length(input, batch_sizes, batch_first)
        output, states = stack(
            self.mode,
            input,
            batch_sizes,
            states,
            weights,
            has_biases=self.bias,
            num_layers=self.num_layers,
            dropout=self.dropout,
            training=self.training,
            bidirectional=bool(self.bidirectional),
            batch_first=batch_first,
            proj_size=self.proj_size,
        )
        return output, self._hidden(states)

    def _check_sizes(self, input: Tensor, batch_sizes: Tensor | None, hx: Any) -> None:
        """Raise what a call would raise for the sizes of its arguments: for `explain`."""
        batch_first = self.batch_first and batch_sizes is None
        if batch_sizes is None:
            dim = input.dim()
            self._check_dim(dim)
            if hx is not None:
                hx = self._batched_states(hx, dim)
            if dim == 2:
                input = input.unsqueeze(0 if batch_first else 1)
        if hx is None:
            self.check_input(input, batch_sizes)
        else:
            self.check_forward_args(input, hx, batch_sizes)
        _check_length(input, batch_sizes, batch_first)

    def _check_dim(self, dim: int) -> None:
        if dim != 3 and dim != 2:
            raise ValueError(
                f"{self._kind}: Expected input to be 2D or 3D, got {dim}D{self._unit} instead"
            )

    def _current_weights(self) -> list[Tensor]:
        """``_flat_weights``, brought up to date with the attributes as torch.nn does.

        Parametrisations, weight normalisation, pruning, ``functional_call``, replicas and sharding
        put other tensors in the place of the parameters between two calls.
        """
        if _is_compiling():  # no tensor of this call may outlive it in `_flat_weights`
            return [getattr(self, name) for name in self._flat_weights_names]
        parameters = self._parameters
        for name, weight in zip(self._flat_weights_names, self._flat_weights, strict=True):
            if weight is None or parameters.get(name) is not weight:
                self._update_flat_weights()
                self._check_no_weight_is_missing()
                break
        return self._flat_weights  # type: ignore[return-value]

    def _check_no_weight_is_missing(self) -> None:
        """A deleted weight is an error here; torch.nn computes with the copy that it has kept."""
        places = (self._parameters, self.__dict__, self._buffers)
        for name, weight in zip(self._flat_weights_names, self._flat_weights, strict=True):
            found = any(name in place for place in places) or hasattr(type(self), name)
            if weight is None or not found:
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    # RNN and GRU have one state, a tensor; LSTM overrides these three for its pair.

    def _batched_states(self, hx: Any, dim: int) -> Any:
        """Check the dimensions of the states given with an input of `dim`; add the batch's."""
        if hx.dim() != dim:
            _raise_dim("hx should", dim, f"{hx.dim()}-D tensor")
        return hx if dim == 3 else hx.unsqueeze(1)

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        """The states of torch.nn's `hx`, as a tuple."""
        return (hx,)

    def _hidden(self, states: Any) -> Any:
        """The opposite: torch.nn's `h_n`, from a sequence of states."""
        return states[0]


def _raise_dim(subject: str, dim: int, got: str) -> NoReturn:
    form = "batched 3-D" if dim == 3 else "unbatched 2-D"
    raise RuntimeError(f"For {form} input, {subject} also be {dim}-D but got {got}")


def _check_length(input: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> None:
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


def _refuse_proj_size(torch_args: tuple[Any, ...], torch_kwargs: dict[str, Any]) -> None:
    """By name as torch.nn; by position too, where torch.nn makes a module that cannot run."""
    if "proj_size" in torch_kwargs or (torch_args and torch_args[0] != 0):
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(_Layers):
    r"""Elman network: :math:`h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})`.

    Arguments, parameters, results and errors are those of :class:`torch.nn.RNN`.

    Args:
        input_size: the number of features of the input, I
        hidden_size: the number of features of the state, H
        num_layers: layers, each on the output of the one before, L
        nonlinearity: f, ``'tanh'`` or ``'relu'``
        bias: whether the layers have `b_ih` and `b_hh`
        batch_first: input and output are ``[B, T, *]``, not ``[T, B, *]``; the states stay
        dropout: probability of a zero, in training, in the outputs of all layers but the last
        bidirectional: other weights read the sequence backwards too; D is then 2, else 1
        device, dtype: of the parameters

    Raises:
        ValueError, TypeError: for the arguments that torch.nn refuses, in its words
    """

    torch_class = nn.RNN
    _kind = "RNN"
    _unit = " tensor"

    nonlinearity: str

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
        *torch_args: Any,
        device: Any = None,
        dtype: Any = None,
        **torch_kwargs: Any,
    ) -> None:
        _refuse_proj_size(torch_args, torch_kwargs)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, *torch_args)
        mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        self._construct(mode, sizes + options, device, dtype, torch_kwargs)

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        """Run the layers over a sequence: see :meth:`GRU.forward`."""
        return self._forward(input, hx)


class GRU(_Layers):
    r"""Gated recurrent units (Cho et al. 2014, arXiv 1406.1078v1: reset after the product).

    .. math::
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}

    Arguments, parameters, results and errors are those of :class:`torch.nn.GRU`; the arguments
    also those of :class:`RNN`, but for `nonlinearity`.
    """

    torch_class = nn.GRU
    _kind = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *torch_args: Any,
        device: Any = None,
        dtype: Any = None,
        **torch_kwargs: Any,
    ) -> None:
        _refuse_proj_size(torch_args, torch_kwargs)
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, *torch_args)
        self._construct("GRU", sizes + options, device, dtype, torch_kwargs)

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        """Run the layers over a sequence.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` with `batch_first`), ``[T, I]`` for one sequence
                without a batch, or a PackedSequence; of the dtype and device of the weights
            hx: the initial states ``[L*D, B, H]``, or ``[L*D, H]`` without a batch; None: zeros

        Returns:
            ``(output, h_n)``: the states of the last layer at every step, in the form of `input`
            with ``D*H`` features, and the last state of each layer and direction, as `hx`

        Raises:
            ValueError, RuntimeError: an argument of another shape or dtype, in torch.nn's words
        """
        return self._forward(input, hx)


class LSTM(_Layers):
    r"""Long short-term memory.

    .. math::
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)

    Arguments, parameters, results and errors are those of :class:`torch.nn.LSTM`; the arguments
    also those of :class:`RNN`, but for `nonlinearity`, and
    with `proj_size` P > 0, :math:`W_{hr} h_t`, P numbers, takes the place of :math:`h_t`.
    """

    torch_class = nn.LSTM
    _kind = "LSTM"

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
        *torch_args: Any,
        device: Any = None,
        dtype: Any = None,
        **torch_kwargs: Any,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, proj_size, *torch_args)
        self._construct("LSTM", sizes + options, device, dtype, torch_kwargs)

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        """Run the layers over a sequence: :meth:`GRU.forward`, with two states.

        `hx` is a pair ``(h_0, c_0)``, of ``[L*D, B, P or H]`` and ``[L*D, B, H]``; the result is
        ``(output, (h_n, c_n))``, and `output` has ``D*P`` or ``D*H`` features.
        """
        return self._forward(input, hx)

    # The helpers of torch.nn.LSTM do what is wanted; it is no ancestor of ours (see _isinstance).
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    def _batched_states(self, hx: Any, dim: int) -> Any:
        h, c = self._states(hx)
        if h.dim() != dim or c.dim() != dim:
            _raise_dim("hx and cx should", dim, f"({h.dim()}-D, {c.dim()}-D) tensors")
        return hx if dim == 3 else (h.unsqueeze(1), c.unsqueeze(1))

    def _states(self, hx: Any) -> tuple[Tensor, ...]:
        return (hx[0], hx[1])  # a number or one state alone fails here, as in torch.nn

    def _hidden(self, states: Any) -> Any:
        return (states[0], states[1])
