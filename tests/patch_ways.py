"""The two ways that torch's own classes come to run our kernels, for the tests of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.config
from side_by_side import CELLS, LAYERS
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import patching

layers = pytest.mark.parametrize("name", LAYERS)
every_class = pytest.mark.parametrize("name", [*LAYERS, *CELLS])
ways = pytest.mark.parametrize("way", ["patch", "patched"])
X = torch.randn(4, 3, 5)


def leave_as_they_were() -> Iterator[None]:
    """Leaves torch's classes as they were."""
    functions = [(c, c.forward, c.__init__) for c in (*patching._LAYERS, *patching._CELLS)]
    torch._dynamo.reset()
    yield
    patching._made_some = False
    rnnfast.unpatch()
    for cls, forward, init in functions:
        # A user who puts back what there was before may put back ours: switched off by now.
        assert getattr(cls.forward, "_torchs", cls.forward) is forward._torchs
        cls.forward = forward
        assert cls.__init__ is init
    torch._dynamo.reset()


class _Operators(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **kwargs or {})


def runs_ours(call: Callable[[], Any]) -> bool:
    with _Operators() as operators:
        call()
    return "rnnfast::layer" in operators.names


def make(way: str, build: Callable[[], Any]) -> Any:
    """What `build` makes, patched in either way."""
    if way == "patched":
        with rnnfast.patched():
            return build()
    rnnfast.patch()
    return build()


def run_python(program: str, folder: Path, path: Path | None = None) -> None:
    environment = dict(os.environ, PYTHONPATH=str(path) if path else "")
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
