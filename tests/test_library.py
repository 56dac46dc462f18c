"""What happens at import: one clear sentence, or the right library.

Catches an undefined symbol where a sentence was promised, and a slower library than need be.
"""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rnnfast import _library


def test_another_torch_is_refused_with_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    build = ModuleType("rnnfast._build")
    build.TORCH = "1.13.1+cpu"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rnnfast._build", build)
    with pytest.raises(ImportError) as caught:
        _library._check_build()
    text = str(caught.value)
    assert f"built for torch 1.13, this is torch {torch.__version__}" in text
    assert "pip install --no-build-isolation" in text


def test_another_patch_release_of_torch_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    major, minor = torch.__version__.split(".")[:2]
    build = ModuleType("rnnfast._build")
    build.TORCH = f"{major}.{minor}.99"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rnnfast._build", build)
    _library._check_build()
    build.TORCH = f"{major}.{minor}0.0"  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        _library._check_build()


def test_an_unbuilt_package_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rnnfast._build", None)
    with pytest.raises(ImportError, match=r"not built here: run `pip install --no-build-isol"):
        _library._check_build()


ALL = {"avx512bf16", "avx512", "avx2", "default"}


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
    monkeypatch: pytest.MonkeyPatch, capability: str, built: set[str], products: bool
) -> list[Path]:
    """Another CPU and another build; gives the list of what would be loaded."""
    paths: list[Path] = []
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(_library._C, "has_bfloat16_products", lambda: products)
    monkeypatch.setattr(
        _library, "_find", lambda name: Path(name) if name.removeprefix("_cpu_") in built else None
    )
    monkeypatch.setattr(_library, "_load", paths.append)
    return paths


def test_no_kernels_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_find", lambda name: None)
    with pytest.raises(ImportError, match="holds no CPU kernels"):
        _library._load_cpu()
    assert _library._load_cuda() is False
