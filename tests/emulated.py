"""The CUDA driver and its kernels on the emulator: builds and calls them."""

import fcntl
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from problems import TOLERANCE
from torch import Tensor
from torch.utils import cpp_extension

# `grid`, of thousands of threads at a time, is slow: tests of its own run it.
KERNELS = ("step", "cta", "cluster")
ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
NINJA = shutil.which("ninja") or shutil.which("ninja", path=Path(sys.executable).parent)
# A GPU reads words only where they may begin.
FLAGS = (
    "-std=c++20 -O1 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -DRNNFAST_SIMT"
    " -fsanitize=alignment -fsanitize-undefined-trap-on-error"
)
NINJA_FILE = """\
rule compile
  command = {compiler} {flags} -x c++ -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {compiler} -shared $in -o $out {libraries}
{objects}
build {library}: link {names}
"""


def build(folder: Path, csrc: Path = ROOT / "csrc") -> Path:
    """The library of the driver, the kernels and the emulator, in a folder of this torch's own."""
    folder.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{csrc}", f"-I{ROOT / 'tests'}"]
    includes += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    libraries = [f"-L{path} -Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    sources = [ROOT / "tests/simt/extension.cpp", *sorted((csrc / "cuda").glob("*.cu"))]
    objects = {f"{source.name}.o": source for source in sources}
    library = folder / "rnnfast_simt.so"
    text = NINJA_FILE.format(
        compiler=COMPILER,
        flags=" ".join([FLAGS, *includes]),
        libraries=" ".join([*libraries, "-ltorch -ltorch_cpu -lc10 -ldl -lpthread"]),
        objects="\n".join(f"build {name}: compile {source}" for name, source in objects.items()),
        library=library.name,
        names=" ".join(objects),
    )
    with (folder / "lock").open("w") as lock:  # pytest-xdist builds it once
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(text, encoding="utf-8")
        command = [str(NINJA), "-j", "2", "-C", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return library


def unit_by_unit(reserve: Sequence[Tensor]) -> list[Tensor]:
    """A reserve of the CPU's kernels as those of a GPU keep it."""
    return _with_gates(reserve, lambda hidden: (-1, hidden))


def gate_by_gate(reserve: Sequence[Tensor]) -> list[Tensor]:
    """A reserve of a GPU's kernels as those of the CPU keep it."""
    return _with_gates(reserve, lambda hidden: (hidden, -1))


def _with_gates(reserve: Sequence[Tensor], split: Callable[[int], tuple[int, int]]) -> list[Tensor]:
    *timelines, last = reserve
    hidden = reserve[0].shape[-1]
    if last.shape[-1] == hidden:  # the cell keeps none
        return list(reserve)
    return [*timelines, last.unflatten(-1, split(hidden)).transpose(-1, -2).flatten(-2)]


class Simt(NamedTuple):
    """The ops on the emulator, by one kernel, with the schedules of one seed."""

    kernel: str
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The most precise one that the kernel runs; others it would leave to `step`."""
        return {"step": torch.float64, "small": torch.bfloat16}.get(self.kernel, torch.float32)

    @property
    def tolerance(self) -> float:
        """Of that dtype."""
        return TOLERANCE[self.dtype]

    def layer(self, *arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``rnnfast::layer``."""
        return torch.ops.rnnfast_simt.layer(*arguments, self.kernel, self.seed)

    def layer_backward(self, *arguments: Any) -> list[Tensor]:
        """``rnnfast::layer_backward``."""
        return torch.ops.rnnfast_simt.layer_backward(*arguments, self.kernel, self.seed)

    @contextmanager
    def in_place_of_the_cpu(self) -> Iterator[None]:
        """The ops of rnnfast on CPU tensors are those of the emulator; TF32 is off."""
        library, tf32 = torch.library.Library("rnnfast", "IMPL"), torch.backends.cudnn.allow_tf32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch names what is overridden
            for op in ("layer", "layer_backward", "recurrence", "recurrence_backward"):
                library.impl(op, getattr(self, op), "CPU", allow_override=True)
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = tf32
            library._destroy()

    def recurrence(self, *arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``rnnfast::recurrence``."""
        return torch.ops.rnnfast_simt.recurrence(*arguments, self.seed)

    def recurrence_backward(self, *arguments: Any) -> list[Tensor]:
        """``rnnfast::recurrence_backward``."""
        return torch.ops.rnnfast_simt.recurrence_backward(*arguments, self.seed)
