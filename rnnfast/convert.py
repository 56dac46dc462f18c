"""``convert``, ``revert``, ``patched``: rnnfast in models that were written with torch.nn.

A module of torch.nn and its namesake here hold the same attributes, so converting a module means
to give the object its other class. The object itself, its parameters, hooks, buffers, flags, and
all who refer to it (optimizers, containers, attributes) stay.
"""

from __future__ import annotations

import functools
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from rnnfast.cells import GRUCell, LSTMCell, RNNCell
from rnnfast.modules import GRU, LSTM, RNN

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
    """
    if not any(isinstance(module, tuple(_TO_OURS)) for module in model.modules()):
        warnings.warn(
            f"rnnfast.convert changes nothing: {type(model).__name__} holds no torch.nn.RNN, GRU,"
            " LSTM or cell of theirs",
            stacklevel=2,
        )
    return _change_classes(model, _TO_OURS)


def revert(model: _Model) -> _Model:
    """Undo :func:`convert`: every module of rnnfast in `model` becomes torch.nn's again, in place.

    Returns:
        `model`
    """
    return _change_classes(model, _TO_TORCH)


def _change_classes(model: _Model, target: dict[type[nn.Module], type[nn.Module]]) -> _Model:
    for name, module in model.named_modules():
        original = parametrize.type_before_parametrizations(module)
        if original in target:
            module.__class__ = _like(type(module), original, target[original])
        elif issubclass(original, tuple(target)) and original not in target.values():
            _logger.warning(
                "%s is left as it is: its class, %s.%s, is derived from %s",
                name or "the model",
                original.__module__,
                original.__qualname__,
                next(source.__name__ for source in target if issubclass(original, source)),
            )
    return model


def _like(cls: type, original: type, target: type) -> type:
    """`target`, or what parametrize would make of it where it made `cls` of `original`."""
    if cls is original:
        return target
    own = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__", "_view")}
    return type(cls.__name__, (target,), own)


_patch_lock = threading.Lock()
_patch_depth = 0
_unpatched = {theirs: theirs.__init__ for theirs in _TO_OURS}


@contextmanager
def patched() -> Iterator[None]:
    """While the block runs, ``torch.nn.GRU(...)`` (and RNN, LSTM, the cells) makes rnnfast's.

    For models built by code that one does not own. Holds for every thread, and for every name of
    the class, such as one imported earlier; subclasses, and modules that exist already, stay as
    they are. Blocks may be nested; an exception ends a block as its end does.
    """
    global _patch_depth
    with _patch_lock:
        _patch_depth += 1
        if _patch_depth == 1:
            for theirs, ours in _TO_OURS.items():
                theirs.__init__ = _init_as(theirs, ours)
    try:
        yield
    finally:
        with _patch_lock:
            _patch_depth -= 1
            if _patch_depth == 0:
                for theirs, original in _unpatched.items():
                    theirs.__init__ = original


def _init_as(theirs: type[nn.Module], ours: type[nn.Module]) -> Callable[..., None]:
    """Torch's ``__init__``, which first makes a bare object of `theirs` one of `ours`."""
    original = _unpatched[theirs]

    @functools.wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        if type(self) is theirs:
            self.__class__ = ours
            ours.__init__(self, *args, **kwargs)
        else:
            original(self, *args, **kwargs)

    return init
