"""Installing as a new user does: what is missing, another torch, a CUDA toolkit behind a script.

Catches twenty lines where a sentence would do, objects of the torch before the upgrade, and a
build that goes on for minutes towards a header that is not there.
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from tools import building, toolkit

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++")
LIBRARY = """
#include <pretended_torch.h>
extern "C" __attribute__((visibility("default"))) const char* built_with() { return PRETENDED; }
"""
PRETEND = """
import os, torch
from torch.utils import cpp_extension
torch.__version__ = os.environ["PRETENDED_TORCH"]
cpp_extension.include_paths = lambda *a, **k: [os.environ["PRETENDED_HEADERS"]]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project with next to nothing to compile."""
    folder = tmp_path / "clone"
    (folder / "csrc" / "cpu").mkdir(parents=True)
    (folder / "rnnfast").mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "tools", folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "rnnfast" / "__init__.py").touch()
    for name in ("library", "cpu/default", "cpu/avx2"):
        (folder / "csrc" / f"{name}.cpp").write_text(LIBRARY)
    (tmp_path / "pretend").mkdir()
    (tmp_path / "pretend" / "sitecustomize.py").write_text(PRETEND)
    (tmp_path / "headers").mkdir()
    return folder


def build(clone: Path, version: str, *options: str, cpu: str = "default") -> str:
    """Runs setup.py where this version of torch is installed; gives what it says."""
    headers = clone.parent / "headers"
    (headers / "pretended_torch.h").write_text(f'#define PRETENDED "with torch {version}."')
    environment = {
        **os.environ,
        "PYTHONPATH": str(clone.parent / "pretend"),
        "PRETENDED_TORCH": version,
        "PRETENDED_HEADERS": str(headers),
        "RNNFAST_CPU": cpu,
        "RNNFAST_CUDA": "0",
    }
    command = [sys.executable, "setup.py", *(options or ("build_ext", "--inplace"))]
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def libraries(folder: Path) -> dict[str, str]:
    """Library -> the torch whose headers it was compiled with."""
    found = {}
    for path in folder.glob("*.so"):
        said = re.search(rb"with torch (.*?)\.\0", path.read_bytes())
        found[path.name.partition(".")[0]] = said[1].decode() if said else ""
    return found


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("options", [("build_ext", "--inplace"), ("build",)])
def test_after_an_upgrade_of_torch_the_same_command_builds_anew(
    clone: Path, options: tuple[str, ...]
) -> None:
    for version in ("9.8.0", "9.9.0", "9.8.0"):
        build(clone, version, *options)
        folder = clone / "rnnfast"
        if options == ("build",):
            (folder,) = clone.glob("build/lib*/rnnfast")
        assert libraries(folder) == {"_C": version, "_cpu_default": version}
        assert f'TORCH = "{version}"' in (folder / "_build.py").read_text()


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_no_library_of_an_earlier_build_stays(clone: Path) -> None:
    build(clone, "9.8.0", cpu="default avx2")
    assert set(libraries(clone / "rnnfast")) == {"_C", "_cpu_default", "_cpu_avx2"}
    build(clone, "9.9.0")
    assert set(libraries(clone / "rnnfast")) == {"_C", "_cpu_default"}


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_an_editable_install_is_found_from_the_folder_above_the_clone(
    clone: Path, tmp_path: Path
) -> None:
    """Where `rnnfast` is a folder, that of the clone, which is no package but looks like one."""
    clone = clone.rename(tmp_path / "rnnfast")
    build(clone, "9.8.0", "editable_wheel", "--dist-dir", str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    installed = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); "
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    command = [sys.executable, "-ES", "-c", f"{installed}import rnnfast; print(rnnfast.__file__)"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.strip() == str(clone / "rnnfast" / "__init__.py"), result.stderr


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_a_build_says_what_it_builds_and_how_long_it_took(clone: Path) -> None:
    said = build(clone, "9.8.0")
    assert "rnnfast: building 2 libraries for torch 9.8.0" in said
    for name in ("_C", "_cpu_default"):
        assert re.search(rf"rnnfast: rnnfast\.{name} is built, \d+ s", said)
    assert re.search(r"rnnfast: built 2 libraries in \d+ s", said)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_no_more_compilers_run_than_max_jobs(
    clone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Six ran on two cores: two libraries side by side, and ninja in each of them."""
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho 1 >>{log}\nsleep 0.2\n{COMPILER} "$@"\ncode=$?\n'
        f"echo -1 >>{log}\nexit $code\n"
    )
    compiler.chmod(0o755)
    for name in ("second", "third", "fourth"):
        (clone / "csrc" / f"{name}.cpp").write_text(f"int {name};")
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("MAX_JOBS", "2")
    assert "takes minutes, 2 compilers at a time" in build(clone, "9.8.0", cpu="default avx2")
    running = list(itertools.accumulate(map(int, log.read_text().split())))
    assert running[-1] == 0
    assert max(running) <= 2


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_what_does_not_compile_ends_without_a_traceback(clone: Path) -> None:
    (clone / "csrc" / "library.cpp").write_text("int broken() { return nowhere; }")
    with pytest.raises(AssertionError) as caught:
        build(clone, "9.8.0")
    assert "nowhere" in str(caught.value)
    assert "rnnfast._C does not compile" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (clone / "rnnfast" / "_build.py").exists()


def test_an_instruction_set_that_is_none_is_refused(clone: Path) -> None:
    with pytest.raises(AssertionError, match="RNNFAST_CPU must be of default"):
        build(clone, "9.8.0", cpu="default avx3")


# ---- make ----


def dry_make(folder: Path, *arguments: str) -> str:
    """What `make build` would do in `folder`."""
    shutil.copy(ROOT / "Makefile", folder)
    environment = {k: v for k, v in os.environ.items() if k not in ("TORCH", "VENV", "MAKEFLAGS")}
    command = ["make", "--dry-run", "build", *arguments]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True)


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_make_gives_another_torch_a_folder_of_its_own(clone: Path) -> None:
    pinned, other = dry_make(clone), dry_make(clone, "TORCH=torch==2.11.0")
    assert "build_ext --inplace" in pinned
    assert "-m venv --clear .venv\n" in pinned
    assert "--editable" in pinned
    assert "-m venv --clear .venv-torch-2.11.0\n" in other
    assert "--inplace" not in other
    assert "--editable" not in other
    assert ".venv/" not in other


@needs_make
def test_make_builds_anew_after_an_upgrade_of_torch_by_hand(clone: Path) -> None:
    (pin,) = re.findall(r"^PINNED := torch==(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    venv, site = clone / ".venv", clone / ".venv" / "lib" / "python3.11" / "site-packages"
    (site / f"torch-{pin}.dist-info").mkdir(parents=True)
    for name in (f"torch-{pin}", "built"):
        (venv / name).touch()
    dry_make(clone)  # copies the Makefile
    future = time.time() + 60
    os.utime(venv / "built", (future, future))
    assert "setup.py" not in dry_make(clone)
    (site / "torch-9.9.0.dist-info").mkdir()
    os.utime(site / "torch-9.9.0.dist-info", (future + 60, future + 60))
    assert "setup.py" in dry_make(clone)


# ---- what is missing ----


def bare_python(folder: Path, **packages: str) -> Path:
    """A Python with nothing but the metadata of these packages, and setuptools if it is one."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    for name, version in packages.items():
        (site / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(text)
    if "setuptools" in packages:
        import setuptools

        source = Path(setuptools.__file__).parent
        (site / "setuptools").symlink_to(source)
        (site / "_distutils_hack").symlink_to(source.parent / "_distutils_hack")
    return folder / "bin" / "python"


SETUPTOOLS = metadata.version("setuptools")


@pytest.mark.parametrize(
    ("packages", "sentence"),
    [
        ({}, "setuptools is missing: pip install 'setuptools>=77'"),
        ({"setuptools": "65.5.0"}, "setuptools 65.5.0 is too old: pip install 'setuptools>=77'"),
        ({"setuptools": SETUPTOOLS}, "torch is not found. Where it is installed, pip hides it"),
    ],
)
@pytest.mark.parametrize("by", ["pip", "setup.py"])
def test_what_an_install_lacks_is_one_sentence(
    clone: Path, tmp_path: Path, packages: dict[str, str], sentence: str, by: str
) -> None:
    python = bare_python(tmp_path / "bare", **packages)
    if by == "pip":
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
        command += ["--no-build-isolation", "."]
    else:
        command = [str(python), "setup.py", "build_ext", "--inplace"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert f"rnnfast: {sentence}" in said
    assert "Traceback" not in said


# ---- CUDA ----

NVCC = """#!/bin/sh
case "$*" in
  *--dryrun*) echo "#\\$ TOP=$(dirname "$(readlink -f "$0")")/.." >&2 ;;
  *--version*) echo "Cuda compilation tools, release 13.0, V13.0.88" ;;
  *--list-gpu-code*) echo "sm_75 sm_80 sm_90 sm_100" ;;
  *missing.cu*) echo "missing.cu:1:10: fatal error: crt/host_defines.h: No such file" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose nvcc is on the PATH as a script in another folder, as Debian's is."""
    home = tmp_path / "cuda-13.0"
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir(parents=True)
    (home / "lib64" / "libcudart.so").touch()
    wrapper = tmp_path / "local" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    for path, text in {
        home / "bin" / "nvcc": NVCC,
        wrapper: f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n',
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    for name in ("CUDA_HOME", "CUDA_PATH", "RNNFAST_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return home


def test_the_toolkit_is_found_where_nvcc_is_a_script_elsewhere(
    cuda: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = cuda.parent / "local" / "bin" / "nvcc"
    assert toolkit.find_nvcc() == str(wrapper)
    assert toolkit.find_home(str(wrapper)) == cuda
    monkeypatch.setenv("CUDA_HOME", str(cuda.parent / "local"))  # as torch would guess
    assert toolkit.find_home(str(toolkit.find_nvcc())) == cuda


def test_setup_py_tells_torch_of_the_toolkit(cuda: Path, clone: Path) -> None:
    # Without CUDA torch looks for no toolkit; what it would find is in the environment.
    spy = "print('HOME', cpp_extension.CUDA_HOME or os.environ['CUDA_HOME'])"
    code = f"import sys; sys.argv = ['setup.py', '--version']; exec(open('setup.py').read()); {spy}"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert f"HOME {cuda}\n" in result.stdout, result.stderr


REASONS = {
    "a header": ("missing.cu", "crt/host_defines.h: No such file"),
    "a header of the host": ("missing.cpp", "cublas_v2.h: No such file"),
}


@pytest.mark.parametrize("what", REASONS)
def test_cuda_that_cannot_be_built_is_left_out_with_a_sentence(
    cuda: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, sentence = REASONS[what]
    source = cuda / name
    source.write_text("#include <cublas_v2.h>\n")
    arguments = (toolkit.find_nvcc(), [str(source)], {"cxx": ["-O1"], "nvcc": ["-O1"]})
    assert building.builds_cuda(*arguments) is False
    said = capsys.readouterr().out
    assert said.startswith("rnnfast: the CUDA kernels are left out: ")
    assert sentence in said
    assert said.count("\n") == 1
    monkeypatch.setenv("RNNFAST_CUDA", "1")
    with pytest.raises(SystemExit, match=f"RNNFAST_CUDA=1, but .*{sentence}"):
        building.builds_cuda(*arguments)


def test_an_nvcc_of_another_cuda_than_torchs_is_left_out(
    cuda: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert building.builds_cuda(toolkit.find_nvcc(), [], {"cxx": [], "nvcc": []}) is False
    assert "nvcc is of CUDA 13.0, torch of CUDA 12.8" in capsys.readouterr().out


def test_a_toolkit_without_its_library_is_left_out(
    cuda: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cuda / "lib64" / "libcudart.so").unlink()
    assert building.builds_cuda(toolkit.find_nvcc(), [], {"cxx": [], "nvcc": []}) is False
    assert f"libcudart.so is not found in {cuda}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("present", "built"),
    [
        ([], "8.0;9.0;10.0+PTX"),  # of our list, what this nvcc knows
        ([(9, 0), (9, 0)], "9.0"),
        ([(10, 0), (8, 0)], "8.0;10.0"),
        ([(7, 5)], "8.0;9.0;10.0+PTX"),
        ([(12, 1)], "8.0;9.0;10.0+PTX"),
    ],
)
def test_cuda_is_built_for_the_gpus_of_this_machine(
    cuda: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    present: list[tuple[int, int]],
    built: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(present))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(present))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: present[i])
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    assert building.builds_cuda(toolkit.find_nvcc(), [], {"cxx": [], "nvcc": []}) is True
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == built
    said = capsys.readouterr().out
    assert f"the CUDA kernels are built for {built}\n" in said
    assert ("no GPU here" in said) == (not present)
