"""What was built and is loaded, and whether it gives torch.nn's numbers."""

import torch

from rnnfast import functional
from rnnfast._library import _C, HAS_CUDA, INSTRUCTION_SET
from rnnfast.spec import CELLS, CellSpec


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
        "cells": ", ".join(CELLS),
    }


def self_check() -> dict[str, float]:
    """Runs two layers of every cell, forward and backward, beside torch.nn's in float64.

    Returns:
        Per cell the largest difference of any output, state or gradient.
    """
    differences = {}
    for spec in (spec for spec in CELLS.values() if spec.operator is not None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            differences[spec.mode] = _difference(spec)
    return differences


def _difference(spec: CellSpec) -> float:
    layers, directions, B, I, H = 2, 2, 3, 9, 17  # noqa: E741
    x = torch.randn(6, B, I, dtype=torch.float64, requires_grad=True)
    rows = spec.gates * H
    weights = [
        torch.randn(*sizes, dtype=torch.float64).div_(4).requires_grad_()
        for features in (I, directions * H)
        for _ in range(directions)
        for sizes in ((rows, features), (rows, H), (rows,), (rows,))
    ]
    hx = spec.hx_of(spec.zeros(x, (layers * directions, B), H))
    expected = list(spec.operator(x, hx, weights, True, layers, 0.0, True, True, False))
    ours, ours_n = functional.stack(
        spec.mode,
        x,
        None,
        (),
        weights,
        has_biases=True,
        num_layers=layers,
        dropout=0.0,
        training=True,
        bidirectional=True,
    )
    actual = [ours, *ours_n]
    for values in (expected, actual):
        loss = sum((value.square().sum() for value in list(values)), torch.zeros(()))
        values.extend(torch.autograd.grad(loss, [x, *weights]))
    return max(float((a - b).detach().abs().max()) for a, b in zip(actual, expected, strict=True))
