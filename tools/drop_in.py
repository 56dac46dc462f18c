"""Other people's libraries on our layers: `make drop-in` installs them into .venv-drop-in.

    python -m tools.drop_in             what of each holds for a class, a call and a process
    python -m tools.drop_in thop dill   these alone

Each library does to a model what its users do, with torch.nn's layers and with ours put there in
each of the three ways. *same* is what torch.nn gives; else the line says what differs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import logging
import reprlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast

NAMES = ("RNN", "GRU", "LSTM")


class Model(nn.Module):
    """A layer between others."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@contextlib.contextmanager
def way(name: str) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """What makes a model of torch.nn one that runs our kernels."""
    if name == "convert":
        yield rnnfast.convert
    elif name == "patch":
        rnnfast.patch()
        yield lambda model: model
        rnnfast.unpatch()
    else:
        yield lambda model: model


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return Model(getattr(nn, name)(5, 6, batch_first=True))


X = torch.linspace(-1, 1, 60).view(3, 4, 5)


def thop(made: nn.Module) -> Any:
    from thop import profile

    return profile(made, (X,), verbose=False)


def ptflops(made: nn.Module) -> Any:
    from ptflops import get_model_complexity_info

    return get_model_complexity_info(
        made, (4, 5), as_strings=False, print_per_layer_stat=False, backend="pytorch"
    )


def deepspeed(made: nn.Module) -> Any:
    from deepspeed.profiling.flops_profiler import get_model_profile

    options = {"print_profile": False, "detailed": False, "as_string": False}
    return get_model_profile(made, args=[X], **options)


def opacus(made: nn.Module) -> Any:
    from opacus import PrivacyEngine
    from opacus.validators import ModuleValidator

    problems = [str(error) for error in ModuleValidator.validate(made, strict=False)]
    fixed = ModuleValidator.fix(made)
    optimizer = torch.optim.SGD(fixed.parameters(), 0.1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X), batch_size=3)
    private, *_ = PrivacyEngine().make_private(
        module=fixed, optimizer=optimizer, data_loader=data, noise_multiplier=1, max_grad_norm=1
    )
    private(X).sum().backward()
    return problems, type(fixed.rnn).__name__, private(X).detach()


def dill(made: nn.Module) -> Any:
    return by_value(importlib.import_module("dill"), made)


def cloudpickle(made: nn.Module) -> Any:
    return by_value(importlib.import_module("cloudpickle"), made)


def by_value(pickler: Any, made: nn.Module) -> Any:
    rnn: Any = made.rnn  # type: ignore[attr-defined]
    derived = type("Derived", (type(rnn),), {"__module__": "__main__"})(5, 6, batch_first=True)
    again = [pickler.loads(pickler.dumps(v)) for v in (made, type(rnn), rnn.__class__, derived)]
    kinds = [isinstance(v, (nn.RNN, nn.GRU, nn.LSTM)) for v in (again[0].rnn, again[3])]
    return again[0](X).detach(), kinds, [issubclass(c, nn.RNNBase) for c in again[1:3]]


def pytorch_forecasting(made: nn.Module) -> Any:
    """Its layers are subclasses that call ``super().forward``: no use of the model given."""
    rnn = importlib.import_module("pytorch_forecasting.models.nn.rnn")
    name = type(made.rnn).__name__
    if name == "RNN":
        return None
    torch.manual_seed(0)
    layer = getattr(rnn, name)(5, 6, batch_first=True)
    output = layer(X, lengths=torch.tensor([2, 4, 1]), enforce_sorted=False)[0]
    return nn.utils.rnn.pad_packed_sequence(output, batch_first=True)[0].detach()


def onnxscript(made: nn.Module) -> Any:
    program = torch.export.export(made.eval(), (X,))
    with contextlib.redirect_stdout(io.StringIO()):
        exported: Any = torch.onnx.export(program, dynamo=True, verbose=False)
    return sorted({node.op_type for node in exported.model.graph})


PEERS = (thop, ptflops, deepspeed, opacus, dill, cloudpickle, pytorch_forecasting, onnxscript)


class Failure(str):
    """The exception that a library ends with."""


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Failure) or isinstance(b, Failure):  # torch's and ours have their own words
        return type(a) is type(b)
    if isinstance(a, Tensor):
        return a.shape == b.shape and torch.allclose(a, b, atol=1e-4)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def short(value: Any) -> str:
    """On one line."""
    if isinstance(value, Failure):
        return value
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(short, value))})"
    return f"a tensor {[*value.shape]}" if isinstance(value, Tensor) else reprlib.repr(value)


def outcome(peer: Callable[[nn.Module], Any], name: str, how: str) -> Any:
    with way(how) as make:
        torch.manual_seed(1)
        try:
            return peer(make(copy.deepcopy(model(name))))
        except Exception as error:
            return Failure(f"{type(error).__name__}: {error}".splitlines()[0][:100])


def main(wanted: list[str]) -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    differing = 0
    for peer in PEERS:
        if wanted and peer.__name__ not in wanted:
            continue
        try:
            version = importlib.metadata.version(peer.__name__)
        except importlib.metadata.PackageNotFoundError:
            print(f"{peer.__name__}: not installed")
            continue
        for how in ("convert", "patch"):
            found = {n: (outcome(peer, n, "torch"), outcome(peer, n, how)) for n in NAMES}
            texts = [
                f"{n}: {short(o)} where torch.nn gives {short(t)}"
                for n, (t, o) in found.items()
                if not equal(t, o)
            ]
            differing += how == "patch" and bool(texts)
            print(f"{peer.__name__} {version}, {how}: {'; '.join(texts) or 'same'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
