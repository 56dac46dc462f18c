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

    Seeds torch, so that every run of an example, with either library, starts the same.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, default="rnnfast")
    parser.add_argument("--steps", type=int, default=steps, help="default: %(default)s")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    return BACKENDS[options.backend], options.steps
