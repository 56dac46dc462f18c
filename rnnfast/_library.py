"""Loads the compiled libraries: the schemas and facts, and the kernels that fit this machine.

Importing this module registers ``torch.ops.rnnfast.layer`` and ``layer_backward`` with kernels for
the CPU and, where they were built, for CUDA. Of the CPU's there is one library per instruction set,
chosen as torch chooses its own, so that ``ATEN_CPU_CAPABILITY`` is honoured. torch's capability
says nothing about products of bfloat16, of vectors or of tiles (AMX): AVX512 comes with them where
the CPU has them and, for tiles, the system gives them to this process, unless it was asked for by
name.
"""

import os
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

from rnnfast._folder import built_for, minor

_FOLDER = Path(__file__).parent
_INSTALL = "pip install --no-build-isolation ."
# Best first: what a CPU of that capability can run.
_INSTRUCTION_SETS = {
    "AVX512": ("avx512amx", "avx512bf16", "avx512", "avx2", "default"),
    "AVX2": ("avx2", "default"),
}
# What torch's capability leaves open, and _C answers.
_NEEDS = {"avx512amx": "has_bfloat16_tiles", "avx512bf16": "has_bfloat16_products"}


def _check_build() -> None:
    """Compares versions before anything is loaded: a library built for another torch minor would
    fail with an undefined symbol, or worse, not fail.
    """
    version = built_for(_FOLDER)
    if version is None:
        raise ImportError(
            f"rnnfast is not built for this Python: run `{_INSTALL}` in its source folder"
        )
    if minor(version) != minor(torch.__version__):
        raise ImportError(
            f"rnnfast was built for torch {minor(version)}, this is torch {torch.__version__}:"
            f" install rnnfast's wheel for torch {minor(torch.__version__)}, or run"
            f" `{_INSTALL}` again in its source folder"
        )


def _find(name: str) -> Path | None:
    paths = (_FOLDER / f"{name}{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def _load(path: Path) -> None:
    torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]


def _runs_here(name: str) -> bool:
    """Whether a library may be loaded that fits torch's capability."""
    needs = _NEEDS.get(name)
    named = os.environ.get("ATEN_CPU_CAPABILITY") == "avx512"  # torch ignores what is no name
    return needs is None or (not named and getattr(_C, needs)())


def _load_cpu() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    for name in _INSTRUCTION_SETS.get(capability, ("default",)):
        path = _find(f"_cpu_{name}")
        if path is not None and _runs_here(name):
            _load(path)
            return name
    raise ImportError(f"rnnfast holds no CPU kernels: run `{_INSTALL}` again in its source folder")


def _load_cuda() -> bool:
    path = _find("_cuda")
    if path is None or torch.version.cuda is None:
        return False
    _load(path)
    return True


_check_build()

from rnnfast import _C  # noqa: E402  (only after the check)

INSTRUCTION_SET = _load_cpu()
"""What the CPU kernels were compiled for: ``avx512amx``, ``avx512bf16``, ``avx512``, ``avx2`` or
``default``.
"""

HAS_BFLOAT16 = INSTRUCTION_SET in ("avx512bf16", "avx512amx")
"""Whether they multiply bfloat16 as it stands."""

HAS_TILES = INSTRUCTION_SET == "avx512amx"
"""Whether they multiply bfloat16 by tiles."""

HAS_CUDA = _load_cuda()
"""Whether CUDA kernels were built and loaded. Says nothing about a GPU being there."""

KERNEL_DEVICES = frozenset({"cpu", "meta", "cuda"} if HAS_CUDA else {"cpu", "meta"})
"""Device types that the ops serve; ``meta`` by the fake kernels."""

__all__ = ["HAS_BFLOAT16", "HAS_CUDA", "HAS_TILES", "INSTRUCTION_SET", "KERNEL_DEVICES", "_C"]
