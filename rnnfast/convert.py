"""``convert``, ``revert``: rnnfast in models that were written with torch.nn.

A module of torch.nn and its namesake here hold the same attributes, so converting a module means
to give the object its other class. The object itself, its parameters, hooks, buffers, flags, and
all who refer to it (optimizers, containers, attributes) stay.
"""

from __future__ import annotations

import logging
import warnings
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.layers import torch_lacks
from rnnfast.modules import GRU, LSTM, RNN
from rnnfast.patching import unmark

_logger = logging.getLogger("rnnfast")
_OURS: tuple[type[nn.Module], ...] = (RNN, GRU, LSTM, RNNCell, GRUCell, LSTMCell)
_TO_OURS = {ours.torch_class: ours for ours in _OURS}  # type: ignore[attr-defined]
_TO_TORCH = {ours: theirs for theirs, ours in _TO_OURS.items()}

_Model = TypeVar("_Model", bound=nn.Module)


def convert(model: _Model) -> _Model:
    """Make every nn.RNN, GRU, LSTM and cell in `model`, `model` itself too, one of rnnfast.

    In place: the modules and their parameters stay the same objects, so optimizers, hooks, shared
    modules and parametrizations keep working. For a copy: ``convert(copy.deepcopy(model))``.
    Instances of a subclass of torch's classes are left as they are, as their ``forward`` may do
    anything; the logger ``rnnfast`` warns of each by name. A model without any recurrent layer or
    cell gives a warning, as it cannot be what was meant.

    Returns:
        `model`

    Raises:
        TypeError: `model` is no module
    """
    check_is_module("convert", model)
    if not any(isinstance(module, tuple(_TO_OURS)) for module in model.modules()):
        warnings.warn(
            f"rnnfast.convert changes nothing: {type(model).__name__} holds no torch.nn.RNN, GRU,"
            " LSTM or cell of theirs",
            stacklevel=2,
        )
    return _change_classes("convert", model, _TO_OURS)


def revert(model: _Model) -> _Model:
    """Undo :func:`convert`: every module of rnnfast in `model` becomes torch.nn's again, in place.

    So do those that were made in a block of :func:`rnnfast.patched`.

    Returns:
        `model`

    Raises:
        TypeError: `model` is no module
    """
    check_is_module("revert", model)
    return _change_classes("revert", model, _TO_TORCH)


def check_is_module(function: str, model: object) -> None:
    """Raise TypeError for what is no model that `function` could change."""
    if isinstance(model, nn.Module):
        return
    hint = ""
    if isinstance(model, type) and issubclass(model, nn.Module):
        hint = f", the class {model.__name__}; rnnfast.patch() is for classes"
    raise TypeError(
        f"rnnfast.{function}: expected a torch.nn.Module, got {type(model).__name__}{hint}"
    )


def _change_classes(
    function: str, model: _Model, target: dict[type[nn.Module], type[nn.Module]]
) -> _Model:
    for name, module in model.named_modules():
        unmark(module)
        original = parametrize.type_before_parametrizations(module)
        ours = target is _TO_TORCH and isinstance(module, (RNN, GRU, LSTM))
        option = torch_lacks(module) if ours else None
        if option is not None:
            _logger.warning(
                "rnnfast.%s leaves %s as it is: torch.nn has no layers with %s",
                function,
                f"module '{name}'" if name else "the model",
                option,
            )
        elif original in target:
            module.__class__ = _like(type(module), original, target[original])
        elif issubclass(original, tuple(target)) and original not in target.values():
            base = next(source for source in target if issubclass(original, source))
            _logger.warning(
                "rnnfast.%s leaves %s as it is: its class, %s.%s, is derived from %s.%s%s",
                function,
                f"module '{name}'" if name else "the model",
                original.__module__,
                original.__qualname__,
                "torch.nn" if target is _TO_OURS else "rnnfast",
                base.__name__,
                "; rnnfast.patch() makes its super().forward fast" * (target is _TO_OURS),
            )
    return model


def _like(cls: type, original: type, target: type) -> type:
    """`target`, or what parametrize would make of it where it made `cls` of `original`."""
    if cls is original:
        return target
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (target,), own)
