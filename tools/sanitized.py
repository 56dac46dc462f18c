"""A small program for compute-sanitizer: every kernel, cell and dtype, forward and backward.

    compute-sanitizer --kernel-name kns=rnnfast python -m tools.sanitized
    python -m tools.sanitized --device cpu          the program itself, on the CPU's kernels

Values are compared loosely with torch.nn in float64: what is checked was computed.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import rnnfast
from rnnfast import _C

KERNELS = _C.cuda_kernels()
SIZES = (40, 136)
TOLERANCE = 0.05


def layers() -> Iterator[tuple[str, nn.Module]]:
    for hidden in SIZES:
        yield f"RNN {hidden}", nn.RNN(12, hidden)
        yield f"GRU {hidden}", nn.GRU(12, hidden, bidirectional=True)
        yield f"LSTM {hidden}", nn.LSTM(12, hidden)


def values(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of everything."""
    x = x.detach().requires_grad_()
    output: Tensor = layer(x)[0]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest, relative to the largest value of its tensor."""
    return max(
        float((a.double().cpu() - b).abs().max() / b.abs().max())
        for a, b in zip(found, wanted, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.sanitized", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    torch.manual_seed(0)
    x, worst = torch.randn(4, 9, 12), 0.0
    for name, layer in layers():
        wanted = values(copy.deepcopy(layer).double(), x.double())
        for dtype in (torch.float32, torch.bfloat16):
            ours = rnnfast.convert(copy.deepcopy(layer)).to(device, dtype)
            for kernel in KERNELS:
                os.environ["RNNFAST_CUDA_KERNEL"] = kernel
                found = error(values(ours, x.to(device, dtype)), wanted)
                worst = max(worst, found)
                if not found < TOLERANCE:
                    print(f"{name} {dtype} {kernel}: error {found:.1e}")
    print(f"largest error {worst:.1e}, allowed {TOLERANCE}")
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
