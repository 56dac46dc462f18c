"""Which implementation, kernel and plan serve a call; what was built and loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rnnfast import functional
from rnnfast._library import HAS_CUDA, INSTRUCTION_SET, _C


@dataclass(frozen=True)
class LayerExplanation:
    """How one layer of a module will run."""

    name: str
    """Its place in the module, such as ``layer 0`` or ``cell``."""
    route: str
    """``fused``, ``torch`` or ``reference``."""
    kernel: str
    """What computes it: the compiled library, torch's operator, or the composite."""
    reason: str
    """Why this route."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The facts of ``rnnfast._C.plan``; empty for what our CPU kernels do not serve."""

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


def explain(module: nn.Module, input: Tensor | PackedSequence, hx: Any = None) -> Explanation:
    """Says how `module` would run on these arguments, here and now, without running it.

    Grad mode, autocast, transforms and the number of threads count as they are at this call.

    Args:
        module: a layer or cell of rnnfast, or of torch.nn, which is explained as if converted.
        input: what the module would be called with, and `hx` too.

    Raises:
        TypeError: `module` is neither a recurrent layer nor a recurrent cell.
    """
    if isinstance(module, nn.RNNCellBase):
        return _explain_cell(module, input, hx)
    if isinstance(module, nn.RNNBase):
        return _explain_layers(module, input, hx)
    raise TypeError(
        f"explain: module must be an RNN, GRU, LSTM or one of their cells, got"
        f" {type(module).__name__}; choose one of model.modules()"
    )


def _explain_cell(module: nn.RNNCellBase, input: Any, hx: Any) -> Explanation:
    mode = type(module).__name__.removesuffix("Cell").upper()
    if mode == "RNN":
        mode = f"RNN_{module.nonlinearity}".upper()
    weights = [w for w in (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh) if w is not None]
    states = () if hx is None else tuple(hx) if mode == "LSTM" else (hx,)
    route = functional.route(input, (*states, *weights))
    batch = input.size(0) if input.dim() == 2 else 1
    sizes = (1, batch, module.input_size, module.hidden_size, 1)
    layer = _explain_layer("cell", f"{mode}_cell", mode, route, input, sizes, True)
    return Explanation(repr(module), (layer,))


def _explain_layers(module: nn.RNNBase, input: Any, hx: Any) -> Explanation:
    uniform = True
    if isinstance(input, PackedSequence):
        x, batch_sizes = input.data, input.batch_sizes
        T, B = len(batch_sizes), int(batch_sizes[0])
        uniform = int(batch_sizes[-1]) == B
    else:
        x = input
        T, B = (x.size(0), 1) if x.dim() == 2 else (x.size(0), x.size(1))
        if module.batch_first and x.dim() == 3:
            T, B = B, T
    states = () if hx is None else tuple(hx) if module.mode == "LSTM" else (hx,)
    route = functional.route(x, (*states, *module._flat_weights), module.proj_size)
    directions = 2 if module.bidirectional else 1
    layers = []
    for i in range(module.num_layers):
        I = directions * (module.proj_size or module.hidden_size) if i else module.input_size
        sizes = (T, B, I, module.hidden_size, directions)
        layers.append(_explain_layer(f"layer {i}", module.mode, module.mode, route, x, sizes, uniform))
    return Explanation(repr(module), tuple(layers))


def _explain_layer(
    name: str,
    operator: str,
    mode: str,
    route: functional.Route,
    x: Tensor,
    sizes: Sequence[int],
    uniform: bool,
) -> LayerExplanation:
    if route.kind == "torch":
        return LayerExplanation(name, "torch", f"torch.{operator.lower()}", route.reason)
    if route.kind == "reference":
        return LayerExplanation(name, "reference", "torch's operations, step by step", route.reason)
    if x.device.type != "cpu":
        return LayerExplanation(name, "fused", x.device.type, route.reason)
    dtype = str(x.dtype).removeprefix("torch.")
    plan = _C.plan(mode.lower(), dtype, *sizes, torch.get_num_threads(), uniform)
    return LayerExplanation(name, "fused", f"cpu/{INSTRUCTION_SET}", route.reason, dict(plan))


def describe() -> dict[str, str]:
    """Facts about the build and this machine, ready to print."""
    build = _C.build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "torch": f"{torch.__version__} (built against {build['torch']})",
        "compiler": build["compiler"],
        "CPU kernels": f"{INSTRUCTION_SET} (torch says {torch.backends.cpu.get_cpu_capability()})",
        "CUDA kernels": "built" if HAS_CUDA else "not built",
        "threads": f"{torch.get_num_threads()}, OpenMP {'yes' if build['openmp'] else 'no'}",
        "devices": ", ".join(["cpu", *gpus]),
        "cells": ", ".join(cell["name"] for cell in _C.cells()),
    }


def self_check() -> dict[str, float]:
    """Runs every layer class, forward and backward, beside torch.nn in float64.

    Returns:
        Per layer the largest difference of any output, state or gradient.
    """
    differences = {}
    for mode in ("RNN_TANH", "RNN_RELU", "GRU", "LSTM"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            differences[mode] = _difference(mode)
    return differences


def _difference(mode: str) -> float:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    if mode.startswith("RNN"):
        module = nn.RNN(9, 17, nonlinearity=mode.removeprefix("RNN_").lower(), **options)
    else:
        module = getattr(nn, mode)(9, 17, **options)
    x = torch.randn(6, 3, 9, dtype=torch.float64, requires_grad=True)
    weights = list(module.parameters())
    theirs, states = module(x)
    expected = [theirs, *(states if mode == "LSTM" else [states])]
    ours, ours_n = functional.stack(
        mode,
        x,
        None,
        (),
        weights,
        has_biases=True,
        num_layers=2,
        dropout=0.0,
        training=True,
        bidirectional=True,
    )
    actual = [ours, *ours_n]
    for values in (expected, actual):
        loss = sum((value.square().sum() for value in list(values)), torch.zeros(()))
        values.extend(torch.autograd.grad(loss, [x, *weights]))
    return max(
        (a - b).abs().max().item() for a, b in zip(actual, expected, strict=True)
    )
