"""What the tests of the CUDA kernels on a GPU share.

RNNFAST_TEST_KERNELS   the kernels to ask for, separated by spaces: "auto" is the plan's own choice;
                       one that cannot run a problem leaves it to `step`
RNNFAST_TEST_DEVICE    "cpu" runs on the CPU's kernels what makes sense there: it tests the tests
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from problems import Problem, cotangents, gradients
from torch import Tensor

from rnnfast._library import _C, HAS_CUDA

DEVICE = os.environ.get("RNNFAST_TEST_DEVICE", "cuda")
_KERNELS = os.environ.get("RNNFAST_TEST_KERNELS", " ".join(["auto", *_C.cuda_kernels()])).split()
KERNELS = _KERNELS if DEVICE == "cuda" else ["auto"]
_READY = DEVICE != "cuda" or (HAS_CUDA and torch.cuda.is_available())

MARKS = [
    pytest.mark.cuda,
    pytest.mark.skipif(not _READY, reason="no CUDA device, or built without CUDA"),
    # What torch and cuDNN say of the side that is compared with; ours copies no weights, and a wait
    # of ours is an error, not this warning.
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match"),
]
needs_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="streams, graphs and memory of a GPU")

# Dtype, whether its products may round their operands to TF32, and an error that is none: a quarter
# of a rounding, where cuDNN happens to be exact; in float64, where the truth is rounded too, four.
PRECISIONS = {
    "float64": (torch.float64, False, 2**-50),
    "float32": (torch.float32, False, 2**-25),
    "tf32": (torch.float32, True, 2**-12),
    "bfloat16": (torch.bfloat16, False, 2**-9),
    "float16": (torch.float16, False, 2**-12),
}

SHAPES: dict[str, dict[str, Any]] = {
    "one step": {"T": 1, "B": 9, "I": 20, "H": 64},
    "odd": {"T": 7, "B": 3, "I": 5, "H": 6},
    "aligned": {"T": 20, "B": 8, "I": 32, "H": 64},
    "past a tile": {"T": 9, "B": 17, "I": 40, "H": 129},
    "long": {"T": 300, "B": 2, "I": 8, "H": 48},
    "h256": {"T": 33, "B": 16, "I": 64, "H": 256},
    "h512": {"T": 9, "B": 33, "I": 16, "H": 512},
    "h1024": {"T": 5, "B": 8, "I": 24, "H": 1024},
    "bidirectional": {"T": 6, "B": 5, "I": 12, "H": 72, "bidirectional": True},
    "two layers": {"T": 6, "B": 4, "I": 8, "H": 40, "layers": 2, "bidirectional": True},
    "no biases": {"T": 5, "B": 9, "I": 8, "H": 40, "bias": False},
    "no states": {"T": 5, "B": 9, "I": 8, "H": 40, "states_given": False},
    "packed": {"lengths": (12, 12, 9, 4, 1), "I": 10, "H": 96, "bidirectional": True},
    "packed tiles": {"lengths": (11,) * 9 + (6,) * 8 + (1,) * 3, "I": 24, "H": 256},
}

# For `step`, which prepares its products once for each number of rows: rows that are aligned to
# elements, to some bytes, to 16; sizes that change from step to step and from one direction to the
# other, and come back.
STEPS: dict[str, dict[str, Any]] = {
    "odd": {"T": 6, "B": 7, "I": 5, "H": 35},
    "odd and large": {"T": 4, "B": 33, "I": 8, "H": 513, "bidirectional": True},
    "aligned": {"T": 5, "B": 16, "I": 8, "H": 512},
    "one row": {"T": 4, "B": 1, "I": 8, "H": 130, "bidirectional": True},
    "packed": {"lengths": (6, 6, 5, 3, 1, 1), "I": 5, "H": 35},
    "packed both ways": {"lengths": (9, 9, 9, 4, 2, 1), "I": 8, "H": 136, "bidirectional": True},
    "packed and odd": {"lengths": (5, 4, 4, 1), "I": 8, "H": 513, "bidirectional": True},
}


def allow_tf32(on: bool) -> None:
    """Sets torch's switches for TF32, of cuDNN and of products, until the end of the test."""
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cuda.matmul.allow_tf32 = on


def twins(mode: str, dtype: torch.dtype, **shape: Any) -> tuple[Problem, Problem]:
    """A problem on the device, and the same numbers in float64 on the CPU."""
    low, exact = Problem(mode, dtype=dtype, device=DEVICE, **shape), Problem(mode, **shape)
    with torch.no_grad():
        for a, b in zip(exact.leaves, low.leaves, strict=True):
            a.copy_(b)
    return low, exact


def groups(problem: Problem, values: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Results, gradients of the inputs and of the weights. The cotangents are exact in bfloat16, so
    that they are the same numbers in every dtype.
    """
    cot = cotangents([v.bfloat16() for v in values])
    cot = [g.to(v.dtype) for g, v in zip(cot, values, strict=True)]
    grads = torch.autograd.grad(values, problem.leaves, cot)
    inputs = 1 + len(problem.states)
    return {
        "results": [v.detach() for v in values],
        "gradients of inputs": list(grads[:inputs]),
        "gradients of weights": list(grads[inputs:]),
    }


def rms_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """Of all elements, each in units of the largest value of its tensor."""
    errors = [
        ((a.double().cpu() - b).abs() / b.abs().max().clamp(min=1e-30)).flatten()
        for a, b in zip(values, exact, strict=True)
    ]
    return float(torch.cat(errors).square().mean().sqrt())


def values_and_gradients(problem: Problem) -> list[Tensor | None]:
    """All that one call of ours and its backward pass compute."""
    values = problem.rnnfast()
    return [*values, *gradients(values, problem.leaves)]


def assert_equal(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    """Bit for bit."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b), f"tensor {i}: {int((a != b).sum())} of {a.numel()} differ"


def spoil_free_memory() -> None:
    """Leaves NaN in the memory that the next allocations get."""
    del [torch.full((size,), math.nan, device=DEVICE) for size in (10**3, 10**5, 10**7)][:]


def module(library: Any, mode: str, *sizes: int, **options: Any) -> Any:
    """A layer of torch.nn or rnnfast on the device."""
    name, _, nonlinearity = mode.partition("_")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity.lower()
    return getattr(library, name)(*sizes, device=DEVICE, **options)


def flat(result: Any) -> list[Tensor]:
    output, states_n = result
    return [output, *flat_states(states_n)]


def flat_states(states: Any) -> list[Tensor]:
    return [states] if isinstance(states, Tensor) else list(states)
