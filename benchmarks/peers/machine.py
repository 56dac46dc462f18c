"""The figures of a machine, measured: what `bound.py` makes its bounds of."""

from __future__ import annotations

import ctypes
import os
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import native
from benchmarks.peers.bound import Figures
from benchmarks.timing import Budget, take_turns

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
GEMM_SIZES = (512, 1024)


class Machine:
    """The primitives of machine.cpp on so many threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.library = native.load("machine.cpp", ("-march=native", "-ffp-contract=fast"))
        for name in ("fma_peak", "sigmoid_rate", "tanh_rate", "barrier_seconds"):
            getattr(self.library, name).restype = ctypes.c_double
        self.library.read_bandwidth.restype = ctypes.c_double
        self.library.read_bandwidth.argtypes = (ctypes.c_int, ctypes.c_size_t)
        self.library.step_seconds.restype = ctypes.c_double
        self.step = cache(self._step)

    def _step(self, rows: int, K: int, N: int) -> float:
        """Seconds of one packed recurrent product, the work shared in the fastest way."""
        ways = [(1, 0)] + [(self.threads, hidden) for hidden in (0, 1) if self.threads > 1]
        return float(min(self.library.step_seconds(n, rows, K, N, way) for n, way in ways))

    def levels(self) -> tuple[tuple[float, float], ...]:
        """(bytes a thread has of it, bytes a second of all threads) of each cache, then memory."""
        sizes = cache_sizes()
        found = []
        for _, (size, sharers) in sorted(sizes.items()):
            share = size / min(sharers, self.threads)
            found.append((share, self.library.read_bandwidth(self.threads, int(share / 2))))
        last = max(size for size, _ in sizes.values())
        found.append((float("inf"), self.library.read_bandwidth(self.threads, 4 * last)))
        return tuple(found)

    def figures(self) -> Figures:
        return Figures(
            threads=self.threads,
            peak=self.library.fma_peak(self.threads),
            gemm=gemm_rate(),
            levels=self.levels(),
            sigmoid=self.library.sigmoid_rate(self.threads),
            tanh=self.library.tanh_rate(self.threads),
            step=self.step,
        )

    def described(self, figures: Figures) -> dict[str, Any]:
        """The figures for the JSON of a run, and what a barrier costs."""
        levels = [
            {"bytes_per_thread": None if size == float("inf") else size, "bytes_per_second": rate}
            for size, rate in figures.levels
        ]
        return {
            "fma_peak": figures.peak,
            "gemm": figures.gemm,
            "read_bandwidth": levels,
            "sigmoid": figures.sigmoid,
            "tanh": figures.tanh,
            "barrier_seconds": self.library.barrier_seconds(self.threads),
        }


def cache_sizes() -> dict[int, tuple[int, int]]:
    """Level -> bytes, and how many of the processors that this process may run on share them."""
    ours = os.sched_getaffinity(0)
    found = {}
    for index in CACHES.glob("index*"):
        level, kind, size, sharers = (
            (index / name).read_text().strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            shared = len(ours & processors(sharers)) or 1
            found[int(level)] = (int(size.rstrip("K")) * 1024, shared)
    return found or {1: (32 << 10, 1), 2: (512 << 10, 1)}


def processors(text: str) -> set[int]:
    """Of a list as Linux writes it: `0-2,8` is {0, 1, 2, 8}."""
    ends = [part.split("-") for part in text.split(",")]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


def gemm_rate() -> float:
    """Operations a second of the best product that torch has: its own, or oneDNN's."""
    return max(_rate(size, product) for size in GEMM_SIZES for product in _products())


def _products() -> list[Callable[[Tensor, Tensor], Tensor]]:
    def onednn(a: Tensor, b: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
        return made

    return [torch.mm, onednn] if torch.backends.mkldnn.is_available() else [torch.mm]


def _rate(size: int, product: Callable[[Tensor, Tensor], Tensor]) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    with torch.inference_mode():
        (samples,) = take_turns([lambda: product(a, b)], Budget(total=0.2, rounds=(5, 50)))
    return 2 * size**3 / statistics.median(samples)
