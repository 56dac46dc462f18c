"""``freeze`` and ``unfreeze``: weights packed for the CPU kernels once, not at every call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn

from rnnfast import ops
from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.convert import check_is_module
from rnnfast.modules import GRU, LSTM, RNN
from rnnfast.patching import is_patched

_logger = logging.getLogger("rnnfast")
_OURS = (RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell)
_Model = TypeVar("_Model", bound=nn.Module)


def freeze(model: _Model) -> _Model:
    """Keep what the CPU kernels make of the weights of every RNN, GRU, LSTM and cell in `model`.

    For models that serve: without it every call brings the weights into the order that the kernels
    read, which shows where a call is short (few steps, many units). It takes about as much memory
    again as the weights, from the first call on until :func:`unfreeze`; that of parameters that no
    longer exist is given back when a model is frozen or unfrozen next. Results stay as close to
    torch.nn's.

    A change of the weights that autograd knows of (an optimizer's step, ``load_state_dict``,
    ``to``, ``copy_`` under ``no_grad``, another tensor for ``.data``) counts at the next call. One
    that it cannot see does not: a write through ``weight.data``, through numpy, from another
    process; after one, freeze the model again. Copies of it, and parameters that take the place of
    these later, are not frozen.

    Returns:
        `model`

    Raises:
        ValueError: there is no layer or cell of rnnfast in `model`
        TypeError: `model` is no module
        RuntimeError: a weight was made in inference mode
    """
    return _set(model, frozen=True)


def unfreeze(model: _Model) -> _Model:
    """Undo :func:`freeze`, and give its memory back.

    Returns:
        `model`

    Raises:
        ValueError: there is no layer or cell of rnnfast in `model`
        TypeError: `model` is no module
    """
    return _set(model, frozen=False)


def _set(model: _Model, *, frozen: bool) -> _Model:
    check_is_module("freeze" if frozen else "unfreeze", model)
    modules = {n: m for n, m in model.named_modules() if isinstance(m, _OURS) or is_patched(m)}
    if not modules:
        raise ValueError(
            f"{'freeze' if frozen else 'unfreeze'}: no RNN, GRU, LSTM or cell of rnnfast in the"
            " model; rnnfast.convert(model) makes them of torch.nn's"
        )
    for name, module in modules.items():
        for weight_name, weight in _matrices(module):
            if weight is not None and ops.can_freeze(weight) and weight.dim() == 2:
                ops.set_frozen(weight, False)  # what was kept may be of older numbers
                ops.set_frozen(weight, frozen)
            elif frozen:
                _logger.warning(
                    "rnnfast.freeze: %s of %s is not kept: it is %s",
                    weight_name,
                    name or "the model",
                    _why_not(weight),
                )
    return model


def _why_not(weight: Tensor | None) -> str:
    if weight is None:
        return "made anew at every call"
    if weight.dim() != 2:
        return "that of several heads"
    return f"a {type(weight).__name__} on {weight.device}"


def _matrices(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """The weights that are packed, by name; None for one that is no parameter (parametrized)."""
    for name in getattr(module, "_flat_weights_names", ("weight_ih", "weight_hh")):
        if name.startswith(("weight_ih", "weight_hh")):
            yield name, module._parameters.get(name)
