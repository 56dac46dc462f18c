"""The build command of setup.py: which torch it builds for, where, and what it says meanwhile."""

from __future__ import annotations

import copy
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from setuptools import Extension
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension

from tools import needs, toolkit


class Build(BuildExtension):
    """Builds the extensions side by side, and records for which torch in rnnfast/_build.py."""

    def finalize_options(self) -> None:
        needs.require("compiler", "headers", "ninja")
        super().finalize_options()
        self.parallel = self.parallel or int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        self.compilers, self.turn = threading.Semaphore(self.parallel), threading.Lock()
        if self.editable_mode:  # then pip asks for a folder of its own, empty at every call
            base = self.get_finalized_command("build").build_base
            self.build_temp = f"{base}/temp.{self.plat_name}-{sys.implementation.cache_tag}"
        # torch's headers are in no depfile: ninja would take another torch's objects for new.
        self.build_temp = os.path.join(self.build_temp, f"torch-{torch.__version__}")

    def run(self) -> None:
        began, count = time.monotonic(), len(self.extensions)
        jobs = f"{self.parallel} compilers at a time" if self.parallel > 1 else "one by one"
        _say(f"building {count} libraries for torch {torch.__version__}; takes minutes, {jobs}")
        super().run()
        for folder in {Path(self.build_lib, "rnnfast"), self._target()}:
            self._record(folder)
        _say(f"built {count} libraries in {time.monotonic() - began:.0f} s")

    def build_extension(self, ext: Extension) -> None:
        # Each extension gets a folder of its own: ninja's files have the same name in all of them.
        worker = copy.copy(self)
        worker.build_temp = os.path.join(self.build_temp, ext.name)
        with self._compilers(alone=ext.name == "rnnfast._cuda"):
            began = time.monotonic()
            _say(f"{ext.name} ...")
            try:
                super(Build, worker).build_extension(ext)
            except RuntimeError as error:  # the compiler has said what is wrong
                raise SystemExit(f"rnnfast: {ext.name} does not compile: {error}") from None
            _say(f"{ext.name} is built, {time.monotonic() - began:.0f} s")

    @contextmanager
    def _compilers(self, alone: bool) -> Iterator[None]:
        """Waits for one that may run, or for all: a library of many files has them for itself."""
        count = self.parallel if alone else 1
        with self.turn:
            for _ in range(count):
                self.compilers.acquire()
        # For ninja, which of itself takes more than there are cores, in each library.
        each = count if alone else math.ceil(self.parallel / len(self.extensions))
        os.environ["MAX_JOBS"] = str(each)
        try:
            yield
        finally:
            self.compilers.release(count)

    def _target(self) -> Path:
        """Where the libraries are when all is done: in the source folder, if built in place."""
        return Path(self.get_ext_fullpath("rnnfast._C")).parent

    def _record(self, folder: Path) -> None:
        """Notes the torch, and takes away the libraries of earlier builds for another."""
        built = {Path(self.get_ext_filename(ext.name)).name for ext in self.extensions}
        for library in folder.glob("_*.so"):
            if library.name not in built:
                library.unlink()
        text = f'# Written by setup.py.\nTORCH = "{torch.__version__}"\n'
        (folder / "_build.py").write_text(text, encoding="utf-8")


def cuda_includes() -> list[str]:
    """Where the compilers find CUDA's headers: in the toolkit, and what it lacks (cuBLAS and others
    may come as packages beside torch's) after all else, as theirs of the runtime must not win.
    """
    packages = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/include"))
    return [f"-isystem{CUDA_HOME}/include", *(f"-idirafter{path}" for path in packages)]


def builds_cuda(nvcc: str | None, sources: Sequence[str], flags: dict[str, list[str]]) -> bool:
    """Whether the CUDA extension is built; says why not. For which GPUs: those of this machine.

    RNNFAST_CUDA=1 makes an error of what stands against it, RNNFAST_CUDA=0 forbids it.
    """
    wanted = os.environ.get("RNNFAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"rnnfast: RNNFAST_CUDA must be 0 or 1, got {wanted!r}")
    if wanted == "0":
        return False
    if reason := _against_cuda(nvcc, sources, flags):
        if wanted == "1":
            raise SystemExit(f"rnnfast: RNNFAST_CUDA=1, but {reason}")
        _say(f"the CUDA kernels are left out: {reason}")
        return False
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        present = [torch.cuda.get_device_capability(i) for i in range(count)]
        os.environ["TORCH_CUDA_ARCH_LIST"] = toolkit.architectures(nvcc, present)
        if not present:
            _say(
                "no GPU here: the CUDA kernels take tens of minutes; RNNFAST_CUDA=0 leaves them out"
            )
    _say(f"the CUDA kernels are built for {os.environ['TORCH_CUDA_ARCH_LIST']}")
    return True


def _against_cuda(nvcc: str | None, sources: Sequence[str], flags: dict[str, list[str]]) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if nvcc is None:
        return "nvcc is not found (set CUDA_HOME)"
    release = toolkit.release(nvcc)
    if release.partition(".")[0] != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {release}, torch of CUDA {torch.version.cuda}"
    quick = [source for source in sources if source.endswith(".cpp")] + sources[-1:]
    return toolkit.problem(nvcc, quick, flags)


def _say(text: str) -> None:
    print(f"rnnfast: {text}", flush=True)
