"""What the examples share: their command line, and the choice between torch.nn and rnnfast."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from types import ModuleType

import torch

import rnnfast

BACKENDS: dict[str, ModuleType] = {"torch": torch.nn, "rnnfast": rnnfast}


def parse(
    description: str | None, arguments: Sequence[str] | None, steps: int
) -> tuple[ModuleType, int]:
    """The library to take the layers from, and the number of training steps (default `steps`).

    Seeds torch, with 0 unless asked otherwise, so that with either library an example starts alike.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, default="rnnfast")
    parser.add_argument("--steps", type=int, default=steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    return BACKENDS[options.backend], options.steps
