"""A class of torch.nn and rnnfast's, built alike, so that a test can run both and compare."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import rnnfast

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")


def build(name: str, *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """torch.nn's module of that name and ours, each built from the same seed."""
    torch.manual_seed(0)
    theirs = getattr(nn, name)(*args, **kwargs)
    torch.manual_seed(0)
    ours = getattr(rnnfast, name)(*args, **kwargs)
    return theirs, ours


def states(name: str, *shape: int, like: Tensor | None = None, **options: Any) -> Any:
    """A random ``hx`` in the form that the class takes: a tensor, or a pair of them for LSTM."""
    if like is not None:
        options = {"dtype": like.dtype, "device": like.device, **options}
    drawn = tuple(torch.randn(*shape, **options) for _ in range(2))
    return drawn if name.startswith("LSTM") else drawn[0]


def tensors(result: Any) -> list[Tensor]:
    """All tensors in a result of a layer or cell, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    return [tensor for part in result for tensor in tensors(part)]


def assert_same(theirs: Any, ours: Any, **tolerance: float) -> None:
    """Same structure, shapes, dtypes and, within torch's default tolerances, values."""
    assert type(theirs) is type(ours)
    pairs = list(zip(tensors(theirs), tensors(ours), strict=True))
    assert pairs
    for their, our in pairs:
        torch.testing.assert_close(our, their, **tolerance)


def error(call: Callable[[], Any]) -> tuple[type, str] | None:
    """Type and text of the exception that `call` raises, None if it raises none."""
    try:
        call()
    except Exception as caught:
        return type(caught), str(caught)
    return None


def assert_same_error(theirs: Callable[[], Any], ours: Callable[[], Any]) -> None:
    """Both calls fail, with exceptions of the same type and text."""
    expected = error(theirs)
    assert expected is not None
    assert error(ours) == expected


def gradients(result: Any, inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a fixed weighted sum of all tensors in `result`."""
    total = sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in tensors(result))
    return list(torch.autograd.grad(total, inputs, allow_unused=True))


class Model(nn.Module):
    """A recurrent module between others, as it stands in people's models."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 5)
        self.rnn = rnn
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.rnn(torch.relu(self.embed(x)))
        if isinstance(out, tuple):
            out = out[0]
        return self.head(out)


def model_of(name: str, *args: Any, library: Any = rnnfast, **kwargs: Any) -> Model:
    """The model of one recurrent module, 5 to 6 features, always with the same weights."""
    torch.manual_seed(0)
    return Model(getattr(library, name)(5, 6, *args, **kwargs))


def batch(name: str, steps: int = 4) -> Tensor:
    """An input of the model: seven sequences, or one step of them for a cell."""
    return torch.randn(7, 3) if name in CELLS else torch.randn(steps, 7, 3)


def loss_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of a loss of the model with respect to its parameters."""
    return list(torch.autograd.grad(model(x).pow(2).sum(), list(model.parameters())))


def copies(module: nn.Module) -> dict[str, nn.Module]:
    """The module pickled, saved and copied, by the name of the way."""
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    found = {f"pickle {p}": pickle.loads(pickle.dumps(module, p)) for p in (0, 2, 5)}
    found["torch.save"] = torch.load(buffer, weights_only=False)
    return found | {"deepcopy": copy.deepcopy(module), "copy": copy.copy(module)}


class Residual(rnnfast.GRU):
    """A user's class, whose forward calls ours."""

    def __init__(self, size: int) -> None:
        super().__init__(size, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        output, hidden = super().forward(input, hx)
        return self.norm(output + input), hidden
