"""What a wheel does where it is installed: run by tools/wheel_checks.py, with that Python.

Prints one line of JSON: which rnnfast and torch, the kernels that were loaded, how far converted
models are from torch.nn's, and the OpenMP runtimes in this process.
"""

import copy
import json
import re
from pathlib import Path

import torch

import rnnfast


def results(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, and the gradient of every parameter."""
    output = model(x)[0]
    return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]


def difference(layer: type[torch.nn.RNNBase]) -> float:
    """The largest between torch's layer and the same one converted, in float64."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(layer(16, 24, num_layers=2, bidirectional=True)).double()
    ours = rnnfast.convert(copy.deepcopy(theirs))
    x = torch.randn(12, 5, 16, dtype=torch.float64)
    pairs = zip(results(ours, x), results(theirs, x), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def openmp_runtimes() -> list[str]:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"/\S*/lib[gi]?omp\S*", maps)))


if __name__ == "__main__":
    facts = {
        "rnnfast": rnnfast.__version__,
        "torch": torch.__version__,
        "file": rnnfast.__file__,
        "kernels": rnnfast._library.INSTRUCTION_SET,
        "cuda": rnnfast._library.HAS_CUDA,
        "difference": max(map(difference, (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM))),
        "openmp": openmp_runtimes(),
    }
    print(json.dumps(facts))
