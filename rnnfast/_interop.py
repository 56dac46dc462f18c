"""What torch's program transformers need to know of our modules: FX, TorchScript, quantisation.

All three know the classes of ``torch.nn`` by name or by exact type. Each gets here what torch.nn
would have given it, or a sentence that names the one call which gives it: ``rnnfast.revert``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch import fx


class Interop:
    """Mix-in of a module class that stands for `torch_class`, with that class's attributes."""

    torch_class: ClassVar[type]

    @classmethod
    def _is_exact(cls) -> bool:
        """Whether `cls` is one of ours, and no class that a user (or torch) derived from it."""
        return "torch_class" in cls.__dict__

    def _call_as_leaf(
        self: Any, input: Any, hx: Any, options: Mapping[str, Any] = MappingProxyType({})
    ) -> Any:
        """Record this call in the FX graph that is traced, as for a module of torch.nn.

        ``fx.Tracer`` takes modules for leaves by the name of their file, so it calls ours with
        proxies. Returns a proxy, or None when `input` is none, or a user's forward is traced.
        """
        if not isinstance(input, fx.Proxy) or not type(self)._is_exact():
            return None
        path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
        if path == "" or self._forward_hooks or self._forward_pre_hooks:
            raise fx.proxy.TraceError(
                f"{type(self).__name__}: FX traces this module only as a part of a larger one, "
                "and without forward hooks; trace rnnfast.revert(model) instead"
            )
        args = (input,) if hx is None else (input, hx)
        return input.tracer.create_proxy("call_module", path, args, dict(options))

    def __prepare_scriptable__(self: Any) -> Any:
        """The torch.nn module, sharing our parameters, that TorchScript compiles in our place.

        ``torch.jit.script`` also puts it in our place in the model that it is given.
        """
        if not type(self)._is_exact():
            return self
        warnings.warn(
            f"torch.jit.script compiles torch.nn.{type(self).__name__}, and leaves it in the place "
            "of rnnfast's in the model that it was given; rnnfast.convert(model) undoes that",
            stacklevel=2,
        )
        twin = self.torch_class.__new__(self.torch_class)
        twin.__dict__.update(self.__dict__)
        return twin

    @property
    def qconfig(self) -> Any:
        """Set by ``torch.ao.quantization`` on every module of a model, to quantise it.

        TorchScript compiles properties, ends at this one's `try`, and shows the line.
        """
        try:  # TorchScript compiles torch.nn's layers only: give it rnnfast.revert(module)
            return self.__dict__["qconfig"]
        except KeyError:
            raise AttributeError(f"'{type(self).__name__}' object has no 'qconfig'") from None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["qconfig"] = value
        warnings.warn(
            f"torch.ao.quantization knows the classes of torch.nn only, and leaves rnnfast's "
            f"{type(self).__name__} in floating point: quantise rnnfast.revert(model) instead",
            stacklevel=2,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        del self.__dict__["qconfig"]
