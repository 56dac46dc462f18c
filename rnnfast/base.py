"""What ``RNN``, ``GRU`` and ``LSTM`` share: their construction, with the options that torch.nn has
not, and their calls.
"""

from __future__ import annotations

import difflib
import inspect
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rnnfast import truncated
from rnnfast._interop import Interop
from rnnfast.layers import has_checks_of, recomputes, run, torch_lacks
from rnnfast.regularisation import RATES, Regularisation, checked, norm_names
from rnnfast.segmented import run_in_segments
from rnnfast.spec import MODES

_NOT_REGULARISED: dict[str, Any] = {
    "layer_norm": False,
    "zoneout": 0.0,
    "state_dropout": 0.0,
    "weight_dropout": 0.0,
    "clip_gradients": None,
}


def _with_suggestion(error: TypeError, own: list[str]) -> TypeError:
    """Torch's words, with the option that a misspelt one is most like."""
    wrong = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    known = [*own, *inspect.signature(nn.RNNBase.__init__).parameters]
    like = difflib.get_close_matches(wrong[1], known, 1) if wrong else []
    return TypeError(f"{error}: did you mean '{like[0]}'?") if like else error


class Layers(Interop, nn.RNNBase):
    """The base of the three classes."""

    torch_class: ClassVar[type[nn.RNNBase]]
    _heads = 1  # an attribute of the object where there are more
    _regularisation: Regularisation | None = None  # the same
    recompute: bool = False
    """True: backward computes the gates again; may be set at any time."""
    detach_every: int | None = None
    """Steps after which gradients end; may be set at any time."""
    _checks_are_torchs: ClassVar[bool]  # no class of a user has put others in their place

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._checks_are_torchs = has_checks_of(cls, cls.torch_class)

    def _construct(
        self, mode: str, args: tuple[Any, ...], device: Any, dtype: Any, kwargs: dict[str, Any]
    ) -> None:
        """``RNNBase.__init__``; a device and dtype not given by name may be among `args`."""
        given = {"device": device, "dtype": dtype}
        kwargs |= {name: value for name, value in given.items() if value is not None}
        heads, recompute = kwargs.pop("heads"), kwargs.pop("recompute")
        detach_every = kwargs.pop("detach_every")
        options = {name: kwargs.pop(name) for name in _NOT_REGULARISED}
        try:
            nn.RNNBase.__init__(self, mode, *args, **kwargs)
        except TypeError as error:
            own = [*options, "heads", "recompute", "detach_every"]
            raise _with_suggestion(error, own) from None
        if not isinstance(recompute, bool):
            raise TypeError(f"recompute should be of type bool, got: {type(recompute).__name__}")
        if recompute:
            self.recompute = True
        if detach_every is not None:
            truncated.check(detach_every, self.bidirectional)
            self.detach_every = detach_every
        if heads != 1 or isinstance(heads, bool):
            self._divide(heads)
        self._regularise(options)

    def _regularise(self, options: dict[str, Any]) -> None:
        """Checks the options of that name, and adds the parameters that they have."""
        spec = MODES[self.mode]
        found = checked(spec, options)
        if found is None:
            return
        if self.proj_size:
            raise ValueError(f"proj_size: an LSTM with a projection takes no {found}")
        if found.layer_norm and 1 < self._heads < self.hidden_size:
            raise ValueError("layer_norm goes with one head, or as many as units")
        self._regularisation = found
        for name in RATES:
            setattr(self, name, options[name])
        if found.layer_norm:
            self._add_norms(norm_names(spec))

    def __setattr__(self, name: str, value: Any) -> None:
        """Rates of a regularised layer count from the next call on, as `dropout` does."""
        if name in RATES and self._regularisation is not None:
            options = self._regularisation._asdict()
            options |= {"zoneout": self._regularisation.zoneout or 0.0, name: value}
            found = checked(MODES[self.mode], options) or Regularisation()
            super().__setattr__("_regularisation", found)
        super().__setattr__(name, value)

    def _add_norms(self, kinds: tuple[str, ...]) -> None:
        """The parameters of layer normalisation, behind the others of each direction."""
        like: Any = self.weight_ih_l0
        sizes = {"norm_ih": like.size(0), "norm_hh": like.size(0)}
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for kind in kinds:
                size = sizes.get(kind, self.hidden_size)
                setattr(self, kind + suffix, nn.Parameter(like.new_empty(size)))
                names.append(kind + suffix)
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn; gains of layer normalisation are ones, and its biases zeros."""
        super().reset_parameters()
        for name in self._flat_weights_names:  # a user's class may have others called so
            if name.startswith("norm_"):
                nn.init.constant_(getattr(self, name), float(not name.startswith("norm_bias")))

    def _divide(self, heads: int) -> None:
        """Gives each of so many parts of the units its own block of ``weight_hh``."""
        H = self.hidden_size
        if not isinstance(heads, int) or isinstance(heads, bool):
            raise TypeError(f"heads should be of type int, got: {type(heads).__name__}")
        if heads < 1 or H % heads:
            raise ValueError(f"heads must divide hidden_size, {H}, got {heads}")
        if self.proj_size:
            raise ValueError("heads: there is no projection of an LSTM with heads")
        self._heads = heads
        for name in self._flat_weights_names:
            if name.startswith("weight_hh"):
                rows = getattr(self, name).size(0)
                block = getattr(self, name).new_empty(heads, rows // heads, H // heads)
                setattr(self, name, nn.Parameter(block))
        self.reset_parameters()

    def flatten_parameters(self) -> None:
        """As torch.nn, for cuDNN; which has no layers with heads, nor normalised ones."""
        norm = self._regularisation is not None and self._regularisation.layer_norm
        if self._heads == 1 and not norm:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        heads = f", heads={self._heads}" if self._heads > 1 else ""
        recompute = ", recompute=True" if recomputes(self) else ""
        every = f", detach_every={self.detach_every}" if self.detach_every is not None else ""
        regularisation = f", {self._regularisation}" if any(self._regularisation or ()) else ""
        return super().extra_repr() + heads + recompute + every + regularisation

    def __prepare_scriptable__(self) -> Any:
        if (option := torch_lacks(self)) is not None:
            raise RuntimeError(
                "torch.jit.script compiles torch.nn's layers in the place of ours, and torch.nn has"
                f" none with {option}; torch.jit.trace records this one"
            )
        return super().__prepare_scriptable__()

    def _check_are_defaults(self, given: tuple[Any, ...]) -> None:
        """Of a call's own arguments, given by position: as torch.onnx does to a layer by itself."""
        if torch.onnx.is_in_onnx_export() and all(value is None for value in given):
            return
        raise TypeError(
            f"{self.torch_class.__name__}.forward() takes from 2 to 3 positional arguments but"
            f" {3 + len(given)} were given"
        )

    def _forward(
        self,
        input: Any,
        hx: Any,
        others: tuple[Any, ...],
        resets: Any,
        reset_states: Any,
        lengths: Any,
    ) -> Any:
        plain = resets is None and lengths is None and reset_states is None
        if plain and type(input) is Tensor and not others:  # most calls
            return run(self, input, hx, plain=self._checks_are_torchs)
        given: dict[str, Any] = {}
        if not plain:
            given = {"resets": resets, "reset_states": reset_states, "lengths": lengths}
        if (leaf := self._call_as_leaf(input, hx, given)) is not None:
            return leaf
        if others:
            self._check_are_defaults(others)
        if plain:
            return run(self, input, hx, plain=self._checks_are_torchs)
        return run_in_segments(self, input, hx, **given)
