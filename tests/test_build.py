"""What is built, for which torch, and what a release holds.

Guards against: a wheel that accepts a torch it was not built for, a source release that does not
build because a header is missing, a library of this machine slipping into it, and switches of the
build that are ignored without a word.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast import _build

ROOT = Path(__file__).parents[1]
MINOR = ".".join(torch.__version__.split(".")[:2])
pytestmark = pytest.mark.xdist_group("build")


def setup_py(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The source release made from this tree: path -> text."""
    folder = tmp_path_factory.mktemp("release") / "tree"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "results", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=skip)
    result = setup_py(folder, "--quiet", "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (folder / "dist").glob("*.tar.gz")
    texts = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            if file is not None:
                path = member.name.partition("/")[2]
                texts[path] = file.read().decode("utf-8", errors="replace")
    return texts


def test_the_build_records_its_torch() -> None:
    assert _build.TORCH.startswith(f"{MINOR}.")


def test_the_installation_demands_the_torch_it_was_built_for() -> None:
    requirements = importlib.metadata.requires("rnnfast") or []
    assert [r for r in requirements if r.startswith("torch")] == [f"torch=={MINOR}.*"]


def test_the_version_is_the_same_everywhere() -> None:
    version = importlib.metadata.version("rnnfast")
    assert rnnfast.__version__ == version
    public = version.partition("+")[0]
    assert f'version = "{public}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_release_holds_all_that_a_build_reads(release: dict[str, str]) -> None:
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder, suffixes in (
            ("csrc", {".cpp", ".h", ".inc", ".cu", ".cuh"}),
            ("rnnfast", {".pyi"}),
        )
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes
    }
    assert "csrc/library.cpp" in sources
    assert "csrc/cells.h" in sources
    assert {path: release.get(path) for path in sources} == sources
    tools = {f"tools/{path.name}" for path in (ROOT / "tools").glob("*.py")}
    others = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "rnnfast/py.typed", *tools}
    assert others <= set(release)


def test_a_release_holds_nothing_built(release: dict[str, str]) -> None:
    built = [path for path in release if path.endswith((".so", ".pyc"))]
    assert built == []
    assert "rnnfast/_build.py" not in release


def test_a_release_holds_every_module(release: dict[str, str]) -> None:
    modules = {f"rnnfast/{path.name}" for path in (ROOT / "rnnfast").glob("*.py")}
    assert modules - {"rnnfast/_build.py"} <= set(release)


@pytest.mark.parametrize("value", ["yes", "2"])
def test_a_cuda_switch_that_is_no_switch_is_refused(value: str) -> None:
    result = setup_py(ROOT, "build_ext", RNNFAST_CUDA=value)
    assert result.returncode != 0
    assert f"RNNFAST_CUDA must be 0 or 1, got {value!r}" in result.stderr


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_insisting_on_cuda_says_what_is_missing() -> None:
    result = setup_py(ROOT, "build_ext", RNNFAST_CUDA="1")
    assert result.returncode != 0
    reason = f"torch {torch.__version__} is built without CUDA"
    assert f"RNNFAST_CUDA=1, but {reason}" in result.stderr


def test_without_cuda_nothing_is_missing() -> None:
    result = setup_py(ROOT, "--version", RNNFAST_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == rnnfast.__version__.partition("+")[0]
