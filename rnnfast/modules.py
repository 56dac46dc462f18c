"""``RNN``, ``GRU``, ``LSTM``: drop-in replacements of the layers of ``torch.nn``.

They are torch's own classes (parameters, initialisation, ``state_dict``, pickles, checks) with
another ``forward``: the checks of torch.nn, then the kernels (see layers.py). They keep no
attribute that torch's do not, so an object may change from one class to the other: that is how
:func:`rnnfast.convert` works. The formulas, gate orders and parameter names are those of torch.nn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rnnfast.base import Layers


def _refuse_proj_size(torch_args: tuple[Any, ...], torch_kwargs: dict[str, Any]) -> None:
    """By name as torch.nn; by position too, where torch.nn makes a module that cannot run."""
    if "proj_size" in torch_kwargs or (torch_args and torch_args[0] != 0):
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class RNN(Layers, nn.RNN):
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
        heads: equal parts of the units that do not see each other's states, n: `weight_hh` is
            ``[n, G*H/n, H/n]``, for an n-th of the recurrent work (torch.nn has none)
        recompute: backward computes the gates of GRU and LSTM again, for less memory between the
            passes (torch.nn has none); also an attribute, which may be set later
        detach_every: after so many steps gradients end: truncated backpropagation through time
            (torch.nn has none); also an attribute, which may be set later
        layer_norm: the products with both matrices, and c of an LSTM, are normalised over each
            row (Ba et al. 2016, arXiv 1607.06450), with gains `norm_ih`, `norm_hh`, `norm_c`
        zoneout: probability that a unit of a state stays as it was (Krueger et al. 2017, arXiv
            1606.01305); of an LSTM also a pair, for h and c. Outside of training each unit keeps
            so much of what it was
        state_dropout: probability that a unit of h is hidden from the recurrent product, in
            training, for all steps of a sequence (Gal and Ghahramani 2016, arXiv 1512.05287)
        weight_dropout: probability of a zero in `weight_hh`, in training, for a call (Merity et
            al. 2018, arXiv 1708.02182)
        clip_gradients: what no element of the gradient of a state exceeds, from step to step
        device, dtype: of the parameters

    Raises:
        ValueError, TypeError: for the arguments that torch.nn refuses, in its words
    """

    torch_class = nn.RNN

    if TYPE_CHECKING:  # TorchScript reads what a class declares, and cannot read this
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
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
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
        own = {
            "heads": heads,
            "recompute": recompute,
            "detach_every": detach_every,
            "layer_norm": layer_norm,
            "zoneout": zoneout,
            "state_dropout": state_dropout,
            "weight_dropout": weight_dropout,
            "clip_gradients": clip_gradients,
        }
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, *torch_args)
        mode = "RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU"
        self._construct(mode, sizes + options, device, dtype, {**torch_kwargs, **own})

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *others: Any,  # TorchScript compiles torch.nn's layers only: give it rnnfast.revert(module)
        resets: Any = None,
        reset_states: Tensor | None = None,
        lengths: Any = None,
    ) -> Any:
        """Run the layers over a sequence: see :meth:`GRU.forward`."""
        return self._forward(input, hx, others, resets, reset_states, lengths)


class GRU(Layers, nn.GRU):
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
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
        device: Any = None,
        dtype: Any = None,
        **torch_kwargs: Any,
    ) -> None:
        _refuse_proj_size(torch_args, torch_kwargs)
        own = {
            "heads": heads,
            "recompute": recompute,
            "detach_every": detach_every,
            "layer_norm": layer_norm,
            "zoneout": zoneout,
            "state_dropout": state_dropout,
            "weight_dropout": weight_dropout,
            "clip_gradients": clip_gradients,
        }
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, *torch_args)
        self._construct("GRU", sizes + options, device, dtype, {**torch_kwargs, **own})

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *others: Any,  # TorchScript compiles torch.nn's layers only: give it rnnfast.revert(module)
        resets: Any = None,
        reset_states: Tensor | None = None,
        lengths: Any = None,
    ) -> Any:
        """Run the layers over a sequence.

        Args:
            input: ``[T, B, I]`` (``[B, T, I]`` with `batch_first`), ``[T, I]`` for one sequence
                without a batch, or a PackedSequence; of the dtype and device of the weights
            hx: the initial states ``[L*D, B, H]``, or ``[L*D, H]`` without a batch; None: zeros
            *others: nothing; torch.onnx gives Nones, one for each of the following
            resets: where true, a sequence begins anew before that step, so that nothing passes
                from the steps before, in either direction; bool, in the form of `input` without
                its features
            reset_states: what it begins anew with, as `hx`, or ``[L*D, 1, H]`` for all alike;
                None: zeros. `hx` is what the rows of the batch begin with
            lengths: of the sequences in a tensor, from 1 to T, in any order: int64 ``[B]``, or
                one number without a batch. Outputs past the end of one are zeros, the final state
                is that at its end

        Returns:
            ``(output, h_n)``: the states of the last layer at every step, in the form of `input`
            with ``D*H`` features, and the last state of each layer and direction, as `hx`

        Raises:
            ValueError, RuntimeError, TypeError: an argument of another shape or dtype; in
                torch.nn's words where it has the argument
        """
        return self._forward(input, hx, others, resets, reset_states, lengths)


class LSTM(Layers, nn.LSTM):
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
        heads: int = 1,
        recompute: bool = False,
        detach_every: int | None = None,
        layer_norm: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        clip_gradients: float | None = None,
        device: Any = None,
        dtype: Any = None,
        **torch_kwargs: Any,
    ) -> None:
        own = {
            "heads": heads,
            "recompute": recompute,
            "detach_every": detach_every,
            "layer_norm": layer_norm,
            "zoneout": zoneout,
            "state_dropout": state_dropout,
            "weight_dropout": weight_dropout,
            "clip_gradients": clip_gradients,
        }
        sizes = (input_size, hidden_size, num_layers)
        options = (bias, batch_first, dropout, bidirectional, proj_size, *torch_args)
        self._construct("LSTM", sizes + options, device, dtype, {**torch_kwargs, **own})

    def forward(
        self,
        input: Any,
        hx: tuple[Tensor, Tensor] | None = None,
        *others: Any,  # TorchScript compiles torch.nn's layers only: give it rnnfast.revert(module)
        resets: Any = None,
        reset_states: tuple[Tensor, Tensor] | None = None,
        lengths: Any = None,
    ) -> Any:
        """Run the layers over a sequence: :meth:`GRU.forward`, with two states.

        `hx` and `reset_states` are pairs ``(h_0, c_0)``, of ``[L*D, B, P or H]`` and ``[L*D, B,
        H]``; the result is ``(output, (h_n, c_n))``, and `output` has ``D*P`` or ``D*H`` features.
        """
        return self._forward(input, hx, others, resets, reset_states, lengths)
