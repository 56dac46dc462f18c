"""What happens at import: one clear sentence, or the right library.

Catches an undefined symbol where a sentence was promised, and a slower library than need be.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnfast
from rnnfast import _folder, _library

MAJOR, MINOR = torch.__version__.split(".")[:2]


def package(folder: Path, version: str | None) -> Path:
    """A clone's rnnfast, without libraries, or as if built in place for a version of torch."""
    source = Path(rnnfast.__file__).parent
    skip = shutil.ignore_patterns("*.so", "_build.py", "__pycache__")
    target = Path(shutil.copytree(source, folder / "rnnfast", ignore=skip))
    if version is not None:
        (target / "_build.py").write_text(f'TORCH = "{version}"\n')
        (library,) = source.glob("_C.*so")
        shutil.copy(library, target)
    return target


def run_in(folder: Path, *arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Python in `folder`, where `path` is what site-packages is to a user."""
    environment = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_another_torch_is_refused_with_what_to_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_library, "_FOLDER", package(tmp_path, "1.13.1+cpu"))
    with pytest.raises(ImportError) as caught:
        _library._check_build()
    text = str(caught.value)
    assert f"built for torch 1.13, this is torch {torch.__version__}" in text
    assert "pip install --no-build-isolation" in text


def test_another_patch_release_of_torch_is_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = package(tmp_path, f"{MAJOR}.{MINOR}.99")
    monkeypatch.setattr(_library, "_FOLDER", folder)
    _library._check_build()
    (folder / "_build.py").write_text(f'TORCH = "{MAJOR}.{MINOR}0.0"\n')
    with pytest.raises(ImportError):
        _library._check_build()


@pytest.mark.parametrize("built", ["never", "for another Python"])
def test_an_unbuilt_package_says_how_to_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str
) -> None:
    folder = package(tmp_path, None if built == "never" else torch.__version__)
    for library in folder.glob("_C.*so"):
        library.rename(folder / "_C.cpython-27-x86_64-linux-gnu.so")
    monkeypatch.setattr(_library, "_FOLDER", folder)
    with pytest.raises(ImportError, match=r"not built for this Python: run `pip install --no-bu"):
        _library._check_build()


@pytest.mark.parametrize("built_for", [None, "1.13.1+cpu"])
def test_python_m_rnnfast_in_the_source_folder_runs_what_was_installed(
    tmp_path: Path, built_for: str | None
) -> None:
    package(tmp_path, built_for)
    installed = Path(rnnfast.__file__).parents[1]
    result = run_in(tmp_path, "-m", "rnnfast", path=installed)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("agrees with torch.nn") == 4
    where = "import rnnfast, rnnfast.ops; print(rnnfast.__file__, rnnfast.ops.__file__)"
    result = run_in(tmp_path, "-c", where, path=installed)
    folder = Path(rnnfast.__file__).parent
    assert result.stdout.split() == [str(folder / "__init__.py"), str(folder / "ops.py")]


def test_a_source_folder_that_was_built_in_place_comes_first(tmp_path: Path) -> None:
    folder = package(tmp_path, torch.__version__)
    for library in Path(rnnfast.__file__).parent.glob("_cpu_*so"):
        shutil.copy(library, folder)
    where = "import rnnfast; print(rnnfast.__file__)"
    result = run_in(tmp_path, "-c", where, path=Path(rnnfast.__file__).parents[1])
    assert result.stdout.strip() == str(folder / "__init__.py"), result.stderr


def test_a_source_folder_without_an_installation_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = package(tmp_path / "clone", None)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert _folder.find(folder) == folder


ALL = {"avx512amx", "avx512bf16", "avx512", "avx2", "default"}


@pytest.mark.parametrize(
    ("capability", "built", "loaded"),
    [
        ("AVX512", ALL, "avx512"),
        ("AVX512", {"avx2", "default"}, "avx2"),
        ("AVX2", ALL, "avx2"),
        ("AVX2", {"default"}, "default"),
        ("DEFAULT", {"avx2", "default"}, "default"),
        ("SVE256", {"default"}, "default"),
        ("NO AVX", {"avx512", "default"}, "default"),
    ],
)
def test_the_best_library_that_was_built_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capability: str, built: set[str], loaded: str
) -> None:
    paths = pretend(monkeypatch, capability, built, products=False)
    assert _library._load_cpu() == loaded
    assert paths == [Path(f"_cpu_{loaded}")]


@pytest.mark.parametrize(
    ("capability", "wanted", "products", "loaded"),
    [
        ("AVX512", None, True, "avx512bf16"),
        ("AVX512", None, False, "avx512"),
        ("AVX512", "avx512", True, "avx512"),
        ("AVX2", None, True, "avx2"),
        ("AVX2", "avx2", True, "avx2"),
        ("DEFAULT", "default", True, "default"),
    ],
)
def test_products_of_bfloat16_are_taken_where_nothing_else_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    wanted: str | None,
    products: bool,
    loaded: str,
) -> None:
    pretend(monkeypatch, capability, ALL, products)
    if wanted is not None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", wanted)
    assert _library._load_cpu() == loaded


def test_the_cpu_is_asked_as_torch_asks_it() -> None:
    assert _library._C.has_bfloat16_products() == torch.cpu._is_avx512_bf16_supported()


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    built: set[str],
    products: bool,
    tiles: bool = False,
) -> list[Path]:
    """Another CPU and another build; gives the list of what would be loaded."""
    paths: list[Path] = []
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(_library._C, "has_bfloat16_products", lambda: products)
    monkeypatch.setattr(_library._C, "has_bfloat16_tiles", lambda: tiles)
    monkeypatch.setattr(
        _library, "_find", lambda name: Path(name) if name.removeprefix("_cpu_") in built else None
    )
    monkeypatch.setattr(_library, "_load", paths.append)
    return paths


@pytest.mark.parametrize(
    ("capability", "built", "wanted", "tiles", "loaded"),
    [
        ("AVX512", ALL, None, True, "avx512amx"),
        ("AVX512", ALL, None, False, "avx512bf16"),  # no such CPU, or the process is refused
        ("AVX512", ALL, "avx512", True, "avx512"),
        ("AVX2", ALL, "avx2", True, "avx2"),
        ("AVX2", ALL, None, True, "avx2"),
    ],
)
def test_tiles_are_taken_where_the_process_has_them(
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    built: set[str],
    wanted: str | None,
    tiles: bool,
    loaded: str,
) -> None:
    pretend(monkeypatch, capability, built, products=True, tiles=tiles)
    if wanted is not None:
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", wanted)
    assert _library._load_cpu() == loaded


def test_the_system_is_not_asked_for_tiles_without_kernels_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, "AVX512", ALL - {"avx512amx"}, products=True)
    monkeypatch.setattr(_library._C, "has_bfloat16_tiles", lambda: pytest.fail("asked"))
    assert _library._load_cpu() == "avx512bf16"


def test_no_kernels_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_find", lambda name: None)
    with pytest.raises(ImportError, match="holds no CPU kernels"):
        _library._load_cpu()
    assert _library._load_cuda() is False


IMPORT_AGAIN = """
import sys, torch
import rnnfast
first = rnnfast.GRU(5, 6)
for name in [name for name in sys.modules if name.partition(".")[0] == "rnnfast"]:
    del sys.modules[name]
import rnnfast
second = rnnfast.GRU(5, 6)
second.load_state_dict(first.state_dict())
x = torch.randn(4, 3, 5)
assert torch.equal(first(x)[0], second(x)[0])
second(x)[0].sum().backward(create_graph=True)
with torch.device("meta"):
    assert rnnfast.GRU(5, 6)(torch.empty(4, 3, 5))[0].shape == (4, 3, 6)
"""


def test_a_second_import_registers_nothing_twice(tmp_path: Path) -> None:
    """Test runners and notebooks take modules out of sys.modules."""
    ran = run_in(tmp_path, "-c", IMPORT_AGAIN, path=Path(rnnfast.__file__).parents[1])
    assert ran.returncode == 0, ran.stderr
