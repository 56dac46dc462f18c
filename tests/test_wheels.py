"""Wheels and releases: names, pins, what repairing leaves out, the checks that each goes through.

Catches a wheel for another torch than its name says, one with torch's libraries or a second OpenMP
runtime in it, and checks that would let these pass. Builds nothing and needs no network.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from tools import release_check, toolkit, wheel_checks, wheels
from tools.wheel_checks import CheckError, Venv

ROOT = Path(__file__).parents[1]
NAME = "rnnfast-0.2.0+torch9.8"
PLATFORM = "cp311-cp311-manylinux_2_34_x86_64"


# ---- names ----


def test_of_each_minor_the_newest_patch_is_built_for() -> None:
    found = ["2.14.1", "2.14.0", "2.13.0", "2.10.0", "2.11.0", "1.13.1", "2.15.0rc1"]
    assert wheels.newest(found, "2.15.0") == ["2.11.0", "2.13.0", "2.14.1"]
    assert wheels.newest(found, "2.14.0") == ["2.11.0", "2.13.0", "2.14.0"]


def test_what_pip_would_not_install_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {
        "index": "torch (2.15.0)\nAvailable versions: 2.15.0, 2.14.1, 2.13.0+cpu, 2.13.0\n",
        "install": '{"install": [{"metadata": {"version": "2.14.1"}}]}',
    }
    monkeypatch.setattr(wheels, "_pip", lambda name, *_: said[name])
    assert wheels.torches_of_pip() == ["2.13.0", "2.14.1"]
    assert capsys.readouterr().out.strip().endswith("would not install it: torch 2.15.0")
    for name in said:
        monkeypatch.setitem(said, name, "")
        with pytest.raises(SystemExit, match="name the versions"):
            wheels.torches_of_pip()


def test_a_version_names_its_torch_and_orders_by_it() -> None:
    assert wheel_checks.local_version("2.13.0+cpu") == "torch2.13"
    assert wheel_checks.local_version("2.13.0+cu130", "13.0") == "torch2.13.cu130"
    local = ["torch2.9", "torch2.13", "torch2.13.cu130", "torch2.14"]
    versions = [Version(f"0.2.0+{text}") for text in local]
    assert [version.local for version in versions] == local
    assert sorted(versions) == versions


def test_the_build_takes_the_local_version_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNFAST_LOCAL_VERSION", "torch9.8")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "rnnfast.egg-info" / "PKG-INFO").read_text("utf-8")
    version = release_check.versions(ROOT)["pyproject.toml"]
    assert f"\nVersion: {version}+torch9.8\n" in text


@pytest.mark.parametrize(
    ("cuda", "nvcc", "wanted", "variants"),
    [
        ("13.0", "nvcc", "", ["", "13.0"]),
        ("13.2", "nvcc", "", ["", "13.2"]),
        ("12.8", "nvcc", "", [""]),
        ("", "nvcc", "", [""]),
        ("13.0", None, "", [""]),
        ("13.0", "nvcc", "0", [""]),
    ],
)
def test_a_wheel_with_cuda_is_built_where_nvcc_fits_torch(
    monkeypatch: pytest.MonkeyPatch, cuda: str, nvcc: str | None, wanted: str, variants: list[str]
) -> None:
    monkeypatch.setattr(toolkit, "release", lambda nvcc: "13.0")
    monkeypatch.setenv("RNNFAST_CUDA", wanted)
    assert wheels.cuda_variants(cuda, nvcc) == variants


def test_who_insists_on_cuda_is_told_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNFAST_CUDA", "1")
    with pytest.raises(CheckError, match=r"RNNFAST_CUDA=1, but no nvcc is of torch's CUDA, 12\.8"):
        wheels.cuda_variants("12.8", None)


def test_what_setup_py_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNNFAST_CPU", "default")  # a wheel holds all instruction sets
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    plain = wheels.build_environment("2.13.0", "", tmp_path)
    ours = sysconfig.get_path("purelib")  # with a setuptools that is new enough
    assert plain["PYTHONPATH"].split(os.pathsep) == [ours, str(tmp_path)]
    assert (plain["RNNFAST_LOCAL_VERSION"], plain["RNNFAST_CUDA"]) == ("torch2.13", "0")
    assert "RNNFAST_CPU" not in plain
    assert "TORCH_CUDA_ARCH_LIST" not in plain
    cuda = wheels.build_environment("2.13.0", "13.0", tmp_path)
    assert (cuda["RNNFAST_LOCAL_VERSION"], cuda["RNNFAST_CUDA"]) == ("torch2.13.cu130", "1")
    assert cuda["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0;10.0;12.0+PTX"


def test_two_patches_of_one_torch_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wheels.main(["2.13.0", "2.13.1"])
    assert "name one of each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("library", "stays_out"),
    [
        ("libgomp.so.1", True),
        ("libtorch_cpu.so", True),
        ("libtorch_python.so", True),
        ("libtorch_cuda.so", True),
        ("libc10.so", True),
        ("libc10_cuda.so", True),
        ("libcudart.so.13", True),
        ("libcublasLt.so.13", True),
        ("libcuda.so.1", True),
        ("libnvrtc.so.13", True),
        ("libcurl.so.4", False),
        ("libiomp5.so", False),
    ],
)
def test_torchs_libraries_stay_out_of_a_wheel(library: str, stays_out: bool) -> None:
    command = wheels.repair_command(Path("a.whl"))
    patterns = [word.removeprefix("--exclude=") for word in command if "--exclude" in word]
    assert any(fnmatch.fnmatch(library, pattern) for pattern in patterns) == stays_out


# ---- checks ----


def fake_wheel(folder: Path, name: str = f"{NAME}-{PLATFORM}", **changes: Any) -> Path:
    """A wheel for torch 9.8 in which nothing runs; `changes` make one that is wrong."""
    version = changes.get("version", name.split("-")[1])
    pins = changes.get("pins", ["torch==9.8.*"])
    left_out = changes.get("left_out", "none")
    files = {
        f"rnnfast/{library}.cpython-311-x86_64-linux-gnu.so": ""
        for library in sorted(wheel_checks.libraries(cuda=False) - {left_out})
    }
    files |= {"rnnfast/__init__.py": changes.get("code", "")}
    files |= dict.fromkeys(changes.get("more", []), "")
    facts = f"rnnfast-{version}.dist-info"
    required = "".join(f"Requires-Dist: {pin}\n" for pin in pins)
    head = f"Metadata-Version: 2.1\nName: rnnfast\nVersion: {version}\n"
    files |= {
        f"{facts}/METADATA": head + required,
        f"{facts}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\n"
        f"Tag: {name.partition('-')[2].partition('-')[2]}\n",
    }
    files[f"{facts}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{facts}/RECORD"])
    wheel = folder / f"{name}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def test_a_whole_wheel_passes(tmp_path: Path) -> None:
    wheel_checks.content(fake_wheel(tmp_path), "9.8.1+cpu")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another version inside": ({"version": "0.2.0"}, r"its version is 0\.2\.0, not \+torch9\.8"),
    "another torch": ({"name": f"rnnfast-0.2.0+torch9.9-{PLATFORM}"}, r"not \+torch9\.8"),
    "no pin": ({"pins": ["torch"]}, "it demands torch of any version"),
    "a loose pin": ({"pins": ["torch>=9.8"]}, "it demands torch >=9.8"),
    "a pin of an extra": ({"pins": ['torch==9.8.*; extra == "a"']}, "torch of any version"),
    "no library for AVX2": ({"left_out": "_cpu_avx2"}, "_cpu_avx2 is not in it"),
    "no binding": ({"left_out": "_C"}, "_C is not in it"),
    "OpenMP": ({"more": ["rnnfast.libs/libgomp-1a2b.so.1"]}, r"libgomp-1a2b\.so\.1 is in it"),
    "not repaired": ({"name": f"{NAME}-cp311-cp311-linux_x86_64"}, "it is not repaired"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wheel_that_is_wrong_does_not_pass(tmp_path: Path, what: str) -> None:
    changes, sentence = WRONG[what]
    with pytest.raises(CheckError, match=sentence):
        wheel_checks.content(fake_wheel(tmp_path, **changes), "9.8.1")


def test_a_wheel_for_cuda_holds_its_kernels(tmp_path: Path) -> None:
    name = f"{NAME}.cu130-{PLATFORM}"
    with pytest.raises(CheckError, match="_cuda is not in it"):
        wheel_checks.content(fake_wheel(tmp_path, name), "9.8.1", "13.0")
    kernels = "rnnfast/_cuda.cpython-311-x86_64-linux-gnu.so"
    wheel_checks.content(fake_wheel(tmp_path, name, more=[kernels]), "9.8.1", "13.0")


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """An environment in which torch 9.9.0 seems to be installed."""
    venv = Venv(tmp_path_factory.mktemp("venv"))
    subprocess.run([sys.executable, "-m", "venv", str(venv.folder)], check=True)
    (venv.site / "torch-9.9.0.dist-info").mkdir()
    text = "Metadata-Version: 2.1\nName: torch\nVersion: 9.9.0\n"
    (venv.site / "torch-9.9.0.dist-info" / "METADATA").write_text(text)
    (venv.site / "torch").mkdir()
    code = "import types\n__version__ = '9.9.0'\nversion = types.SimpleNamespace(cuda='13.0')\n"
    (venv.site / "torch" / "__init__.py").write_text(code)
    return venv


SENTENCE = "raise ImportError('rnnfast was built for torch 9.8, this is torch 9.9.0: install {}')"
SAYS = SENTENCE.format("the wheel for torch 9.9")
LEAVES = f"import site; open(site.getsitepackages()[0] + '/left', 'w').close(); {SAYS}"


def test_what_is_in_an_environment(venv: Venv, tmp_path: Path) -> None:
    assert venv.torch() == ("9.9.0", "13.0")
    before = venv.entries()
    wheel = fake_wheel(tmp_path, pins=[])
    venv.pip("install", "--no-index", wheel)
    assert venv.entries() - before == {"rnnfast", f"{NAME}.dist-info"}
    venv.pip("uninstall", "--yes", "rnnfast")
    assert venv.entries() == before
    with pytest.raises(CheckError, match="fails: ZeroDivisionError"):
        venv.must("-c", "1 / 0")


def test_another_torch_is_refused_with_a_sentence(venv: Venv, tmp_path: Path) -> None:
    before = venv.entries()
    wheel_checks.refuses(fake_wheel(tmp_path, code=SAYS), venv)
    assert venv.entries() == before


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"code": SAYS, "pins": ["torch>=9"]}, r"pip installs it beside torch 9\.9\.0"),
        ({"code": ""}, "import says: nothing"),
        ({"code": SENTENCE.format("another")}, "import says: ImportError: rnnfast was built"),
        ({"code": LEAVES}, "uninstall leaves left"),
    ],
)
def test_a_wheel_that_does_not_refuse_another_torch_is_seen(
    venv: Venv, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    before = venv.entries()
    with pytest.raises(CheckError, match=sentence):
        wheel_checks.refuses(fake_wheel(tmp_path, **changes), venv)
    (venv.site / "left").unlink(missing_ok=True)
    assert venv.entries() == before


def facts(venv: Venv, **changes: Any) -> dict[str, Any]:
    """What tools/wheel_trial.py says where all is well."""
    well = {
        "rnnfast": "0.2.0+torch9.8",
        "file": str(venv.site / "rnnfast" / "__init__.py"),
        "kernels": "avx2",
        "cuda": False,
        "difference": 1e-15,
        "openmp": [str(venv.site / "torch" / "lib" / "libgomp.so.1")],
    }
    return {**well, **changes}


def test_what_an_installed_wheel_says_is_judged(venv: Venv) -> None:
    wheel = Path(f"{NAME}-{PLATFORM}.whl")
    wheel_checks.judge(facts(venv), wheel, venv)
    two = [*facts(venv)["openmp"], "/usr/lib/libgomp.so.1"]
    for changes, sentence in (
        ({"rnnfast": "0.2.0"}, r"rnnfast.__version__ is 0\.2\.0"),
        ({"file": "/elsewhere/rnnfast/__init__.py"}, "/elsewhere/.* runs in its place"),
        ({"cuda": True}, "HAS_CUDA is True"),
        ({"difference": 1e-3}, "avx2 differs from torch.nn by 0.001"),
        ({"difference": float("nan")}, "avx2 differs from torch.nn by nan"),
        ({"openmp": two}, "OpenMP's runtimes in one process are"),
        ({"openmp": two[1:]}, "OpenMP's runtimes in one process are"),
    ):
        with pytest.raises(CheckError, match=sentence):
            wheel_checks.judge(facts(venv, **changes), wheel, venv)


def test_the_table_says_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    row = wheels.Row("+torch9.8", "9.8.0")
    with row.check("builds"):
        pass
    with row.check("content"):
        raise CheckError("no library is in it")
    assert row.cells()[-1] == "FAILED: content: no library is in it; builds"
    assert capsys.readouterr().out.count("\n") == 2


# ---- releases ----


def test_this_tree_says_one_version_and_one_date() -> None:
    assert release_check.version_problem(ROOT) == ""


@pytest.mark.parametrize(
    ("name", "before", "after", "sentence"),
    [
        ("CITATION.cff", "version: 0.2.0", "version: 0.1.0", "CITATION.cff says 0.1.0"),
        ("CHANGELOG.md", "## [0.2.0]", "## [0.1.9]", "CHANGELOG.md says 0.1.9"),
        ("CHANGELOG.md", "## [0.2.0]", "## [Unreleased]\n\n## [0.2.0]", "unreleased changes"),
        ("CHANGELOG.md", "2026-11-28", "2026-11-29", "do not name the same date"),
        ("docs/installing.md", "rnnfast-0.2.0+torch", "rnnfast-+torch", "installing.md says none"),
    ],
)
def test_a_version_that_was_forgotten_is_named(
    tmp_path: Path, name: str, before: str, after: str, sentence: str
) -> None:
    texts = {
        "pyproject.toml": 'version = "0.2.0"',
        "CITATION.cff": "cff-version: 1.2.0\nversion: 0.2.0\ndate-released: 2026-11-28\n",
        "CHANGELOG.md": "## [0.2.0] - 2026-11-28\n",
        "docs/installing.md": "pip install dist/rnnfast-0.2.0+torch2.13-*.whl\n",
    }
    (tmp_path / "docs").mkdir()
    for path, text in texts.items():
        (tmp_path / path).write_text(text)
    assert release_check.version_problem(tmp_path) == ""
    (tmp_path / name).write_text(texts[name].replace(before, after))
    assert sentence in release_check.version_problem(tmp_path)


def test_what_is_not_committed_is_named(tmp_path: Path) -> None:
    assert "git does not know" in release_check.tree_problem(tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert release_check.tree_problem(tmp_path) == ""
    (tmp_path / "new.txt").touch()
    assert release_check.tree_problem(tmp_path) == "not committed: new.txt"


def test_every_step_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = {"good": ("all is well", lambda: ""), "bad": ("nothing is", lambda: "see the log")}
    monkeypatch.setattr(release_check, "STEPS", steps)
    assert release_check.main(["good"]) == 0
    assert release_check.main([]) == 1
    assert "see the log" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        release_check.main(["best"])
    assert "no step is called best: of good, bad" in capsys.readouterr().err


def test_the_checklist_names_every_step() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert [name for name in release_check.STEPS if f"\n- `{name}`: " not in text] == []
