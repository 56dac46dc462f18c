"""Measures the precision that docs/numerics.md states.

    python -m benchmarks.numerics            prints the tables
    python -m benchmarks.numerics --write    writes them into docs/numerics.md

The kernels' tanh and sigmoid cannot be called by themselves, so one step of a layer is made to
compute nothing else: with an identity for `w_ih` and zeros for `w_hh` an RNN returns tanh(x), and
an LSTM whose cell gate is zero and whose c_0 is one returns sigmoid(x) as c_n. All the products
and sums on the way are exact.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import rnnfast
from benchmarks.documents import replace_block
from benchmarks.problems import MAIN, Problem
from benchmarks.results import REPOSITORY, environment
from benchmarks.workloads import CELLS, make_workload, relative_error, values

BEGIN = "<!-- measured: written by python -m benchmarks.numerics --write -->"
END = "<!-- end of measured -->"

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FUNCTIONS = ("tanh", "sigmoid")
PROBLEMS = (MAIN[0], MAIN[2])

WIDTH = 64
"""Hidden size of the layer that computes a function: full vectors of every width."""


def of_layer(function: str, x: Tensor) -> Tensor:
    """tanh(x) or sigmoid(x) of x `[n]`, as the cells of rnnfast compute it."""
    padded = torch.nn.functional.pad(x, (0, -len(x) % WIDTH)).view(1, -1, WIDTH)
    identity, zeros = torch.eye(WIDTH, dtype=x.dtype), x.new_zeros(WIDTH, WIDTH)
    if function == "tanh":
        output, _, _ = rnnfast.ops.layer("rnn_tanh", padded, None, [], [identity, zeros])
        return output.flatten()[: len(x)]
    w_ih = torch.cat([zeros, identity, zeros, zeros])  # gates i f g o: c_n = sigmoid(x) * c_0
    h_0 = x.new_zeros(1, padded.shape[1], WIDTH)
    states = [h_0, torch.ones_like(h_0)]
    _, (_, c_n), _ = rnnfast.ops.layer("lstm", padded, None, states, [w_ih, zeros.repeat(4, 1)])
    return c_n.flatten()[: len(x)]


def inputs(dtype: torch.dtype) -> Tensor:
    """`[n]`: every finite number of a 16-bit dtype, else 2^21 numbers: half of them evenly spread
    over [-20, 20], half of them with random bits. None is above the largest exponent that sigmoid
    promises to follow (87; in float64, 708), nor, in bfloat16, where the result may be below the
    normal numbers: CPUs that multiply it take these for zero.
    """
    limit = 708.0 if dtype == torch.float64 else 87.0
    if dtype.itemsize == 2:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    else:
        spread = torch.linspace(-20, 20, 2**20, dtype=dtype)
        integers = torch.int64 if dtype == torch.float64 else torch.int32
        lowest, highest = torch.iinfo(integers).min, torch.iinfo(integers).max
        generator = torch.Generator().manual_seed(0)
        bits = torch.randint(lowest, highest, (2**20,), dtype=integers, generator=generator)
        x = torch.cat([spread, bits.view(dtype)])
    x = x[x.abs() <= limit]  # also drops NaN
    if dtype == torch.bfloat16:
        x = x[(x == 0) | (x.abs() >= 2 * torch.finfo(dtype).tiny)]
    return x


def exact(function: str, x: Tensor) -> np.ndarray:
    """In the longest float of the platform: 64 bits of mantissa on x86."""
    wide = x.double().numpy().astype(np.longdouble)
    return np.tanh(wide) if function == "tanh" else 1 / (1 + np.exp(-wide))


@dataclass(frozen=True)
class Bound:
    """The largest error over many inputs: absolute, and in units of the last place."""

    absolute: float
    ulp: float


def bound(got: Tensor, truth: np.ndarray) -> Bound:
    """A unit in the last place: the gap between neighbours of got's dtype around the truth, where
    its numbers are normal.
    """
    facts = torch.finfo(got.dtype)
    error = np.abs(got.double().numpy() - truth)
    _, exponent = np.frexp(np.maximum(np.abs(truth), facts.tiny))
    gaps = np.ldexp(np.longdouble(facts.eps), exponent - 1)
    return Bound(float(error.max()), float((error / gaps).max()))


def elementary(dtypes: Sequence[torch.dtype] = DTYPES) -> str:
    """Markdown: the largest errors of tanh and sigmoid, ours and torch's."""
    lines = [
        "| function | dtype | inputs | ours: absolute | ULP | torch: absolute | ULP |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for function in FUNCTIONS:
        for dtype in dtypes:
            x = inputs(dtype)
            truth = exact(function, x)
            ours = bound(of_layer(function, x), truth)
            peer = bound(getattr(torch, function)(x), truth)
            lines.append(
                f"| {function} | {_name(dtype)} | {len(x)} | {ours.absolute:.1e} | {ours.ulp:.2f} "
                f"| {peer.absolute:.1e} | {peer.ulp:.2f} |"
            )
    return "\n".join(lines)


def layers(problems: Sequence[Problem] = PROBLEMS, dtypes: Sequence[torch.dtype] = DTYPES) -> str:
    """Markdown: errors of whole layers against torch.nn in float64, ours and torch.nn's own."""
    lines = [
        "| T, B, I, H | dtype | cell | output: ours | torch.nn | final states: ours | torch.nn "
        "| gradients: ours | torch.nn |",
        "|---|---|---|" + "---:|" * 6,
    ]
    for problem in problems:
        for dtype in dtypes:
            for cell in CELLS:
                errors = layer_errors(problem, cell, dtype)
                figures = " | ".join(f"{error:.1e}" if error else "ref" for error in errors)
                lines.append(f"| {problem.label} | {_name(dtype)} | {cell} | {figures} |")
    return "\n".join(lines)


def layer_errors(problem: Problem, cell: str, dtype: torch.dtype) -> Iterator[float]:
    """Of output, final states, and gradients of the parameters: ours, then torch.nn's. Each is the
    largest error relative to the largest number of its tensor.
    """
    made = make_workload(problem, cell, dtype, nn, rnnfast)
    sides = [
        values(layer, made.x, made.grad_output, "training")
        for layer in (made.candidate, made.baseline)
    ]
    groups: tuple[Callable[[str], bool], ...] = (
        lambda key: key == "output",
        lambda key: key in ("h_n", "c_n"),
        lambda key: key.startswith("grad of "),
    )
    for belongs in groups:
        for side in sides:
            yield max(relative_error(side[key], made.truth[key]) for key in side if belongs(key))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def block() -> str:
    """The measured part of docs/numerics.md."""
    facts = environment(torch.float32, "rnnfast")
    machine = ", ".join(
        [facts["cpu"], facts["isa"], f"torch {facts['torch']}", f"commit {facts['commit']}"]
    )
    return (
        f"Measured on {machine}.\n\n### Elementary functions\n\n{elementary()}\n\n"
        f"### Whole layers\n\n{layers()}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.numerics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--write", action="store_true", help="write into docs/numerics.md")
    options = parser.parse_args(arguments)
    text = block()
    print(text)
    if options.write:
        path = REPOSITORY / "docs" / "numerics.md"
        path.write_text(replace_block(path.read_text(), text, BEGIN, END))


if __name__ == "__main__":
    main()
