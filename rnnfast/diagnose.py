"""``explain``: which implementation, kernel and plan serve a call."""

import contextlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from rnnfast import functional, ops, segments
from rnnfast._interop import Interop
from rnnfast._library import _C, HAS_BFLOAT16, HAS_TILES, INSTRUCTION_SET
from rnnfast.cells import check_cell
from rnnfast.layers import check_sizes, detaches_every, heads_of, recomputes, regularisation_of
from rnnfast.modules import GRU, LSTM, RNN
from rnnfast.patching import is_patched
from rnnfast.routes import (
    AUTOCAST,
    TRANSFORMED,
    autocast_dtype,
    autocast_products,
    casts,
    cuda_plan,
)
from rnnfast.segmented import is_one_step, stay
from rnnfast.spec import CELLS, MODES, CellSpec

_CELLS = (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
_WIDENED = {torch.float16} if HAS_BFLOAT16 else {torch.float16, torch.bfloat16}
"""Dtypes that the CPU kernels do not multiply as they are."""


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer of a module will run."""

    name: str
    """Its place in the module, such as ``layer 0`` or ``cell``."""
    route: str
    """``fused``, ``torch`` or ``reference``."""
    kernel: str
    """The compiled library, torch's operator, or the composite that computes it."""
    reason: str
    """Why this route."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The ``dtype`` that is computed in, the facts of ``rnnfast._C.plan`` or, of the forward pass,
    ``cuda_plan``, and for frozen weights ``weights`` as well; empty for what our kernels do not
    serve.
    """

    def __str__(self) -> str:
        facts = "".join(f", {key} {value}" for key, value in self.plan.items())
        return f"{self.name}: {self.route} ({self.kernel}{facts}) because {self.reason}"


@dataclass(frozen=True)
class Explanation:
    """How a module will run on an input; ``print`` it."""

    module: str
    layers: tuple[LayerExplanation, ...]

    def __str__(self) -> str:
        return "\n".join([self.module, *(f"  {layer}" for layer in self.layers)])


def explain(module: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Says how `module` would run on these arguments, here and now.

    Grad mode, autocast, transforms and the number of threads count as they are at this call.

    Args:
        module: a layer or cell of rnnfast, or of torch.nn, which is explained as if converted, and
            said to be (one of a subclass of torch.nn's, which `convert` leaves alone, as if its
            ``super().forward`` ran ours); or a model that holds some, which runs once, eagerly, as
            in ``module(*args, **kwargs)``, while each call of a layer in it is explained: those of
            torch.nn as they are.
        *args: what `module` would be called with: of a layer its input, packed or not, and ``hx``.
        **kwargs: likewise: of a layer ``hx``, ``resets``, ``reset_states`` and ``lengths``.

    Raises:
        TypeError: `module` neither is nor holds a recurrent layer or cell, no input is given, or an
            argument that `module` does not take.
        ValueError, RuntimeError: sizes that `module` would refuse, in its words.
    """
    recurrent = isinstance(module, (nn.RNNBase, *_CELLS))
    if recurrent and not args and "input" not in kwargs:
        raise TypeError("explain: the input that the module would be called with is missing")
    if not recurrent:
        return _explain_model(module, args, kwargs)
    of_one: Any = _explain_cell if isinstance(module, _CELLS) else _explain_layers
    try:
        inspect.signature(of_one).bind(module, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"explain: {error}") from None
    found: Explanation = of_one(module, *args, **kwargs)
    if _is_ours(module):
        return found
    how = "of torch.nn, as if it were converted"
    if _is_of_users(module):
        how = "of a subclass of torch.nn's, as under rnnfast.patch(): convert leaves it alone"
    return replace(found, module=f"{found.module} {how}")


def _is_ours(module: nn.Module) -> bool:
    """Whether a call of this layer or cell comes to our code."""
    return isinstance(module, Interop) or is_patched(module)


def _is_of_users(module: nn.Module) -> bool:
    """Whether this layer or cell of torch.nn's has a class of its own: `convert` leaves those."""
    own = parametrize.type_before_parametrizations(module)
    return own.__module__ != nn.RNNBase.__module__


def _explain_model(model: nn.Module, args: Any, kwargs: Any) -> Explanation:
    """Of every call of a layer while `model` runs; the same calls of one layer are counted."""
    held = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    held = {name: m for name, m in held.items() if isinstance(m, (nn.RNNBase, *_CELLS))}
    if not held:
        raise TypeError(
            "explain: module must be an RNN, GRU, LSTM or one of their cells, or a model that holds"
            f" some, got {type(model).__name__}"
        )
    found: dict[str, list[LayerExplanation]] = {}

    def before(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        for layer in _explain_held(module, args, kwargs):
            layer = replace(layer, name=f"{name}, {layer.name}".removesuffix(", cell"))
            found.setdefault(str(layer), []).append(layer)

    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # what is compiled does not ask for new hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, m in held.items():
            hook = partial(before, name)
            stack.enter_context(m.register_forward_pre_hook(hook, with_kwargs=True))
        model(*args, **kwargs)
    layers = tuple(
        same[0] if len(same) == 1 else replace(same[0], name=f"{same[0].name}, {len(same)} calls")
        for same in found.values()
    )
    called = {layer.name.partition(",")[0] for layer in layers}
    missing = ", ".join(name for name in held if name not in called)
    return Explanation(type(model).__name__ + (f", not called: {missing}" * bool(missing)), layers)


def _explain_held(module: nn.Module, args: Any, kwargs: Any) -> tuple[LayerExplanation, ...]:
    """A call of a layer in a model."""
    if _is_ours(module):
        return explain(module, *args, **kwargs).layers
    name = type(module).__name__
    reason = f"it is torch's {name}: rnnfast.convert(model) makes it rnnfast's"
    if _is_of_users(module):
        reason = (
            f"{name} is a subclass of torch's, left alone by convert; rnnfast.patch() is for it"
        )
    which = "cell" if isinstance(module, _CELLS) else "all layers"
    return (LayerExplanation(which, "torch", f"{name}.forward", reason),)


def _explain_cell(
    module: nn.RNNCell | nn.GRUCell | nn.LSTMCell, input: Any, hx: Any = None
) -> Explanation:
    if isinstance(module, nn.RNNCell):
        spec = CELLS[f"rnn_{module.nonlinearity}"]
    else:
        spec = CELLS["gru" if isinstance(module, nn.GRUCell) else "lstm"]
    check_cell(module, input, _states(hx))
    weights = list(module.parameters())
    if input.dim() == 1:
        input = input.unsqueeze(0)
    route = functional.route_cell(spec, input, _states(hx), weights)
    problem = {
        "T": 1,
        "B": input.size(0),
        "I": module.input_size,
        "H": module.hidden_size,
        "directions": 1,
    }
    layer = _explain_layer(
        "cell", spec, f"{spec.name}_cell", route, input.device, input.dtype, problem
    )
    return Explanation(repr(module), (layer,))


def _check_layers(module: nn.RNNBase, x: Tensor, batch_sizes: Tensor | None, hx: Any) -> None:
    """Raises what a call would raise for these sizes; another dtype is a matter of routes."""
    sizes = torch.empty(x.shape, device="meta")
    ours: Any = next(c for c in (RNN, GRU, LSTM) if isinstance(module, c.torch_class))
    twin = ours.__new__(ours)
    twin.__dict__.update(module.__dict__, _flat_weights=[sizes])
    check_sizes(twin, sizes, batch_sizes, hx)


def _explain_layers(
    module: nn.RNNBase,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    resets: Tensor | None = None,
    reset_states: Any = None,
    lengths: Any = None,
) -> Explanation:
    uniform, sizes, batched = True, None, True
    if not isinstance(input, (Tensor, PackedSequence)):
        got = type(input).__name__
        raise TypeError(f"explain: expected a tensor or a PackedSequence as input, got {got}")
    if isinstance(input, PackedSequence):
        if lengths is not None:
            raise ValueError("lengths: a PackedSequence has its own")
        _check_layers(module, input.data, input.batch_sizes, hx)
        x, sizes = input.data, input.batch_sizes
        steps, batch = len(sizes), int(sizes[0])
    else:
        _check_layers(module, input, None, hx)
        x = input if input.dim() == 3 else input.unsqueeze(0 if module.batch_first else 1)
        first, second, _ = x.shape
        batched = input.dim() == 3
        steps, batch = (second, first) if module.batch_first else (first, second)
    weights = [w for w in module._flat_weights if w is not None]
    spec, states = MODES[module.mode], (*_states(hx), *_states(reset_states))
    route = functional.route(x, (*states, *weights), module.proj_size)
    route, dtype = _computed_in(spec, route, x, states, weights, onednn=sizes is None)
    if lengths is not None:
        lengths = segments.as_lengths(lengths, batch if batched else None)
    given, others = (resets, _states(reset_states), lengths), (*_states(hx), *weights)
    one_step = resets is not None and lengths is None and is_one_step(steps, sizes)
    stays = not one_step and stay(module, x, *given, others)
    if one_step:
        route = route._replace(reason=f"{route.reason}; one step, whose states are chosen before")
    elif stays:
        what = "lengths" if resets is None else "resets"
        route = route._replace(reason=f"{route.reason}; {what} that nobody waits for")
    elif resets is not None or lengths is not None:
        flat = None if resets is None else resets.reshape(-1)
        form = ((steps, batch), module.batch_first and sizes is None)
        sizes = segments.find(flat, lengths, sizes, *form, x.device).batch_sizes
        steps, batch = len(sizes), int(sizes[0])
        route = route._replace(reason=f"{route.reason}; {batch} stretches, the longest of {steps}")
    if sizes is not None:
        uniform = bool(sizes[0] == sizes[-1])
    route, heads = _with_options(module, route), heads_of(module)
    directions = 2 if module.bidirectional else 1
    layers = []
    for i in range(module.num_layers):
        features = directions * (module.proj_size or module.hidden_size) if i else module.input_size
        problem = {
            "T": steps,
            "B": batch,
            "I": features,
            "H": module.hidden_size // heads,
            "directions": directions,
            "uniform": uniform,
        }
        layer = _explain_layer(
            *(f"layer {i}", spec, spec.name, route, x.device, dtype, problem),
            resets=stays and resets is not None,
        )
        count = len(weights) // module.num_layers
        if layer.plan and _is_frozen(weights[i * count : (i + 1) * count]):
            layer.plan.update(kernel="packed", weights="frozen")
        layers.append(layer)
    return Explanation(repr(module), tuple(layers))


def _with_options(module: nn.RNNBase, route: functional.Route) -> functional.Route:
    """The route of a layer of ours with options that torch.nn's have not."""
    heads, regularised = heads_of(module), regularisation_of(module)
    left = None if regularised is None else regularised.left(module.training)
    sees_rows, single_units = left is not None and left.sees_rows, 1 < heads == module.hidden_size
    if route is TRANSFORMED and (sees_rows or single_units):
        route = functional.Route("reference", "torch.func, which such layers have no rules for")
    if route.kind == "torch" and (heads > 1 or left is not None):
        route = route._replace(kind="reference")
    if heads > 1:
        how = "one after the other" if heads < module.hidden_size else "units on their own"
        route = route._replace(reason=f"{route.reason}; {heads} heads, {how}")
    if sees_rows:
        route = route._replace(reason=f"{route.reason}; {left}, over the rows of a step")
    if (
        recomputes(module)
        and not sees_rows
        and route.kind == "fused"
        and MODES[module.mode].reserve
    ):
        route = route._replace(reason=f"{route.reason}; backward computes the gates again")
    if (every := detaches_every(module)) is not None:
        route = route._replace(
            reason=f"{route.reason}; where gradients are asked for, {every} steps a call"
        )
    return route


def _computed_in(
    spec: CellSpec,
    route: functional.Route,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    onednn: bool,
) -> tuple[functional.Route, torch.dtype]:
    """The dtype that our kernels are given; under autocast the route says what they give back."""
    if route is not AUTOCAST or not casts((x, *states, *weights)):
        if route.kind == "fused" and x.is_cpu and x.dtype in _WIDENED:
            route = route._replace(reason=f"{route.reason}; calculated in float32")
        return route, x.dtype
    back = autocast_dtype(spec, x, states, onednn)
    given, name = autocast_products(x, back), str(back).removeprefix("torch.")
    reason = route.reason
    if all(t.dtype == given for t in (x, *states, *weights)):
        reason = "autocast, for which nothing is cast here"
    return route._replace(reason=f"{reason}; {name} comes back, as from torch.nn"), given


def _is_frozen(weights: Sequence[Tensor]) -> bool:
    """Whether all matrices among the weights of a layer are."""
    return all(ops.is_frozen(w) for w in weights if w.dim() > 1)


def _states(hx: Any) -> tuple[Tensor, ...]:
    if hx is None:
        return ()
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _explain_layer(
    name: str,
    spec: CellSpec,
    operator: str,
    route: functional.Route,
    device: torch.device,
    given: torch.dtype,
    problem: dict[str, Any],
    resets: bool = False,
) -> LayerExplanation:
    if route.kind == "torch":
        return LayerExplanation(name, route.kind, f"torch.{operator}", route.reason)
    if route.kind == "reference":
        return LayerExplanation(name, route.kind, "torch's operations step by step", route.reason)
    dtype = str(given).removeprefix("torch.")
    facts: dict[str, Any] = {"dtype": dtype}
    if device.type == "cuda":
        facts |= cuda_plan(spec.name, dtype, device, problem, resets)
        return LayerExplanation(name, route.kind, "cuda", route.reason, facts)
    if device.type != "cpu":
        return LayerExplanation(name, route.kind, device.type, route.reason)
    threads = torch.get_num_threads()
    backend: Any = torch.backends.mkldnn
    if given == torch.float32 and backend.rnn.fp32_precision == "bf16":
        dtype = "bfloat16"  # where there are tiles for it, which the plan looks at
    facts |= _C.plan(spec.name, dtype, threads=threads, tiles=HAS_TILES, **_C.caches(), **problem)
    return LayerExplanation(name, route.kind, f"cpu/{INSTRUCTION_SET}", route.reason, facts)
