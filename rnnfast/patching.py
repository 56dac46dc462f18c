"""``patch``, ``unpatch``, ``patched``: torch's own classes run our kernels.

Nothing changes its type: an object of ``torch.nn.GRU`` stays one, so all that goes by names and
types (pickles, quantisation, profilers, exporters, ``singledispatch``) sees what it knows. What
changes is the ``forward`` of torch's classes. The new one looks at one flag, an attribute of the
class that an object may have of its own: :func:`patch` sets it for the class, so for all objects,
:func:`patched` for each object that is made in its block. Where the flag is off, or our kernels
have nothing to offer, torch's own ``forward`` runs.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn.utils.rnn import PackedSequence

from rnnfast._interop import Interop
from rnnfast.cells import gru_cell, lstm_cell, rnn_cell
from rnnfast.layers import has_checks_of, run
from rnnfast.routes import exporting, route

_LAYERS: tuple[Any, ...] = (nn.RNN, nn.GRU, nn.LSTM)
_CELLS: dict[Any, Callable[..., Any]] = {
    nn.RNNCell: rnn_cell,
    nn.GRUCell: gru_cell,
    nn.LSTMCell: lstm_cell,
}
_BASES: tuple[Any, ...] = (nn.RNNBase, nn.RNNCellBase)
_FLAG = "_runs_rnnfast"
_TORCHS_FILE = nn.RNNBase.__init__.__code__.co_filename

_logger = logging.getLogger("rnnfast")
_lock = threading.RLock()
_unrolls: bool | None = None  # whether someone else lets Dynamo unroll layers; None: not known yet
_depth = 0  # of patched() blocks
_made_some = False  # a block has made objects, which go on running our kernels after it
_forwards: dict[Any, Any] = {}  # what we have put into torch's classes
_inits: dict[Any, Any] = {}  # what a block has put aside
_DYNAMOS_CONFIG = "torch._dynamo.config"
_is_tracing = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling


def patch() -> None:
    """Make every nn.RNN, GRU, LSTM and cell of this process run our kernels, until `unpatch`.

    Those that exist already too, those that an unpickler makes, and those of subclasses that call
    ``super().forward``. Types, parameters, pickles, ``state_dict`` stay torch's. Models with them
    compile with ``fullgraph=True``. A ``forward`` that someone else puts into torch's class stays,
    before this call (the logger ``rnnfast`` warns of it) or after it. Called twice, it does what it
    does called once.
    """
    with _lock:
        for base in _BASES:
            setattr(base, _FLAG, True)
        _settle(warn=True)


def unpatch() -> None:
    """Undo :func:`patch`. Objects that were made in a block of :func:`patched` stay as they are."""
    with _lock:
        for base in _BASES:
            setattr(base, _FLAG, False)
        _settle()


@contextmanager
def patched() -> Iterator[None]:
    """What ``torch.nn.GRU(...)`` (and RNN, LSTM, the cells) makes in the block runs our kernels.

    For models built by code that one does not own; during the block and after it, in copies and
    pickles. Objects keep torch's types: see :func:`patch`, which is the same for the whole process.
    Holds for every thread, every name of the class, and subclasses that call ``super()``. Modules
    that exist already stay as they are. Blocks may be nested; an exception ends a block as its end.
    """
    global _depth
    with _lock:
        _depth += 1
        _settle(warn=_depth == 1)
        if _depth == 1:
            for cls in (*_LAYERS, *_CELLS):
                _inits[cls] = cls.__init__
                cls.__init__ = _marking(cls.__init__)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                for cls, init in _inits.items():
                    if hasattr(cls.__init__, "_marks"):  # nobody else's by now
                        cls.__init__ = init
                _settle()


def _marking(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def marking(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        global _made_some
        init(self, *args, **kwargs)
        if _depth and not isinstance(self, Interop):
            self.__dict__[_FLAG] = _made_some = True

    marking._marks = True  # type: ignore[attr-defined]
    return marking


def is_patched(module: nn.Module) -> bool:
    """Whether `module`, a layer or cell of torch.nn, runs our kernels."""
    return isinstance(module, (*_LAYERS, *_CELLS)) and getattr(module, _FLAG, False)


def unmark(module: nn.Module) -> None:
    """Forget that `module` was made in a block of :func:`patched`."""
    module.__dict__.pop(_FLAG, None)


def _settle(warn: bool = False) -> None:
    """Put our ``forward`` into torch's classes where it is wanted, else take it out.

    Dynamo wants it, too. It refuses objects of torch's three classes, so of ours, which are derived
    from them, unless its configuration allows all. What torch runs is then kept from being
    unrolled, which takes minutes to compile, by our ``forward``: as if Dynamo had refused it.
    """
    global _unrolls
    config: Any = sys.modules.get(_DYNAMOS_CONFIG)
    if config is None:
        if _import not in sys.meta_path:
            sys.meta_path.insert(0, _import)
    elif _unrolls is None:  # an earlier import of this package has allowed it, too
        _unrolls = config.allow_rnn and not hasattr(nn.GRU.forward, "_torchs")
        config.allow_rnn = True
    if config is not None or _depth or _made_some or getattr(nn.RNNBase, _FLAG):
        _install(warn)
    else:
        _uninstall()


def _install(warn: bool) -> None:
    for cls in (*_LAYERS, *_CELLS):
        if cls.forward is _forwards.get(cls):
            continue
        # That of an earlier import of this package counts as torch's.
        original: Any = getattr(cls.forward, "_torchs", cls.forward)
        code = getattr(original, "__code__", None)
        if getattr(code, "co_filename", None) == _TORCHS_FILE:
            _forwards[cls] = cls.forward = _forward_of(cls, original)
        elif warn:
            _logger.warning(
                "torch.nn.%s stays as it is: someone else has replaced its forward, by %r",
                cls.__name__,
                original,
            )


def _uninstall() -> None:
    for cls, forward in _forwards.items():
        if cls.forward is forward:  # nobody else's by now
            cls.forward = forward._torchs
    _forwards.clear()


def _forward_of(cls: Any, original: Any) -> Any:
    """The `forward` of `cls` that looks at the flag.

    For whoever looks at it, it is torch's, by its name, signature and source. TorchScript compiles
    that source, and looks the names in it up in this file.
    """
    code, names = original.__code__, original.__globals__
    for name in code.co_names:
        if name in names:
            globals().setdefault(name, names[name])
    forward = _cell_forward(cls, original) if cls in _CELLS else _layer_forward(cls, original)
    forward._torchs = original
    return forward


def _layer_forward(cls: type[nn.RNNBase], original: Callable[..., Any]) -> Any:
    @_disable_dynamo  # unrolled, as Dynamo would do it, a sequence takes minutes to compile
    def layer_of_torch_is_not_compiled(self: Any, input: Any, hx: Any) -> Any:
        return original(self, input, hx)

    @functools.wraps(original)
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        compiling = _is_compiling()
        ours = self._runs_rnnfast and not _is_tracing()
        if ours and (not compiling or _serves(self, input, hx)):
            return run(self, input, hx, plain=has_checks_of(type(self), cls))
        if compiling and not exporting() and not _unrolls:
            return layer_of_torch_is_not_compiled(self, input, hx)
        return original(self, input, hx)

    return forward


def _cell_forward(cls: type[nn.RNNCellBase], original: Callable[..., Any]) -> Any:
    run_cell = _CELLS[cls]

    @functools.wraps(original)
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        if self._runs_rnnfast and not _is_tracing():
            return run_cell(self, input, hx)
        return original(self, input, hx)

    return forward


def _serves(module: nn.RNNBase, input: Any, hx: Any) -> bool:
    """Whether this call would run our operator, or the reference, while it is compiled."""
    data = input.data if isinstance(input, PackedSequence) else input
    states = () if hx is None else (hx,) if isinstance(hx, Tensor) else tuple(hx)
    weights = [getattr(module, name) for name in module._flat_weights_names]
    return route(data, (*states, *weights), module.proj_size).kind != "torch"


class _Import(MetaPathFinder):
    """Waits for the import of Dynamo, which takes a second or two, so that we do not import it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _DYNAMOS_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_settle(module: Any) -> None:
                execute(module)
                with _lock:
                    _settle()

            spec.loader.exec_module = execute_and_settle  # type: ignore[method-assign]
        return spec


_import = _Import()
for _base in _BASES:
    setattr(_base, _FLAG, getattr(_base, _FLAG, False))
_settle()
