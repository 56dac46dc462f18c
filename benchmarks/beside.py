"""Several ways to the same values, compared and then timed in turns: what the benchmarks of single
features share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import results
from benchmarks.timing import FULL, QUICK, Budget, summarise, take_turns


@dataclass(frozen=True)
class Side:
    """A way: what it is called, and the leaves whose gradients training takes."""

    name: str
    call: Callable[[], Tensor]
    leaves: Sequence[Tensor]

    def train(self) -> object:
        """Both passes."""
        return torch.autograd.grad(self.call().square().mean(), self.leaves)


def side(name: str, module: nn.Module, call: Callable[[], Tensor]) -> Side:
    """Of a module, by all its parameters."""
    return Side(name, call, list(module.parameters()))


def compare(sides: Sequence[Side]) -> None:
    """Raises AssertionError unless all give the first one's outputs, in the mode that is on;
    gradients are the tests' to compare.
    """
    values = [one.call() for one in sides]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-5)


def seconds(
    sides: Sequence[Side],
    budget: Budget,
    passes: Sequence[str] = ("inference", "training"),
    unlike: Sequence[Side] = (),
) -> dict[str, list[float]]:
    """By pass, each side's median time of a call; behind them that of those `unlike` them, whose
    values are others.
    """
    found = {}
    for name in passes:
        training = name == "training"
        with torch.inference_mode(not training):
            compare(sides)
            calls = [one.train if training else one.call for one in (*sides, *unlike)]
            found[name] = [summarise(s).median for s in take_turns(calls, budget)]
    return found


def begin(module: str, description: str | None, cells: Sequence[str]) -> tuple[Any, Budget]:
    """Reads the options, sets threads and seed, and says where the figures come from."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cells", nargs="+", choices=cells, default=cells)
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="few samples: a look, not a result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    facts = results.environment(torch.float32, "rnnfast")
    print(f"{facts['cpu']}, {facts['threads']} threads, float32, torch {facts['torch']}")
    return options, QUICK if options.quick else FULL
