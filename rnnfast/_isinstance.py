"""One trick, kept here alone: ``isinstance(rnnfast.GRU(3, 4), torch.nn.GRU)``, and it compiles.

Two promises seem to exclude each other. People's code looks for ``torch.nn.GRU`` with
``isinstance`` (to initialise, freeze, export), and ``torch.compile`` refuses every object for which
``isinstance(m, (nn.RNN, nn.GRU, nn.LSTM))`` holds. Python offers the way out: ``isinstance`` asks
the type of an object first and its ``__class__`` attribute second (mocks and proxies live on this).
So our classes do *not* inherit torch's, and their ``__class__`` answers with a **view**: a class
that inherits ours *and* torch's, has the same name, and makes, compares and changes as ours does.
Only the part of Dynamo that refuses is told the plain truth; where it evaluates ``isinstance`` or
``__class__`` for the code that it compiles, it gets eager's answer, as it must.
"""

from __future__ import annotations

import copyreg
import sys
from typing import Any, ClassVar, SupportsIndex

import torch

_REFUSING_MODULE = "torch._dynamo.variables.builder"


class _ViewType(type):
    """Metaclass of views. A view has other ancestors than its real class; all else goes there."""

    _real: type

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if "_real" in namespace:
            return super().__new__(mcs, name, bases, namespace)
        # Someone derives from `module.__class__`, as parametrize and fully_shard do.
        reals = tuple(real_class(base) for base in bases)
        namespace.setdefault("__module__", sys._getframe(1).f_globals.get("__name__"))
        return type(reals[0])(name, reals, namespace)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._real(*args, **kwargs)

    def __setattr__(cls, name: str, value: Any) -> None:
        setattr(cls._real, name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(cls._real, name)

    def __eq__(cls, other: object) -> bool:
        return cls._real is (real_class(other) if isinstance(other, type) else other)

    def __hash__(cls) -> int:
        return hash(cls._real)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(real_class(subclass), cls._real)

    @property
    def __bases__(cls) -> Any:  # type: ignore[override]  # parametrize reads the original class
        return cls._real.__bases__


class _Quiet:
    """First base of every view: making it must not run the ``__init_subclass__`` of users again."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        pass


def real_class(cls: type) -> type:
    """The class that `cls` stands for, if it is a view; else `cls`."""
    real: type = cls._real if isinstance(cls, _ViewType) else cls
    return real


def _make_view(real: type[Disguised]) -> type:
    meta: type = _ViewType
    if type(real) is not type:  # an ABCMeta, say: ours must derive from the metaclass of each base
        meta = type("_ViewType", (_ViewType, type(real)), {})
    names = {key: real.__dict__.get(key) for key in ("__module__", "__doc__")}
    names |= {"__qualname__": real.__qualname__, "_real": real}
    view: type = meta(real.__name__, (_Quiet, real, real.torch_class), names)
    for cls in (real, view):  # a view has itself, should someone make it the type of an object
        type.__setattr__(cls, "_view", view)
    return view


def _new(cls: type[Disguised]) -> Any:
    return cls.__new__(cls)


# Who allows our classes to `torch.load(weights_only=True)` cannot know that pickles name `_new`.
torch.serialization.add_safe_globals([_new])


class Disguised:
    """Mix-in: the class is its own for ``type()``, and also `torch_class` for ``isinstance``."""

    torch_class: ClassVar[type]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(real_class(cls))

    @property
    def __class__(self) -> type:
        real = type(self)
        if sys._getframe(1).f_globals.get("__name__") == _REFUSING_MODULE:
            return real
        return real.__dict__.get("_view") or _make_view(real)

    @__class__.setter
    def __class__(self, cls: type) -> None:
        object.__dict__["__class__"].__set__(self, real_class(cls))

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """As any object's, without ``__newobj__``, whose class the pickler compares with ours."""
        reduced = object.__reduce_ex__(self, max(2, protocol.__index__()))
        if reduced[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            return (_new, *reduced[1:])
        return reduced
