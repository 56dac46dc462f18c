"""Which folder holds the libraries for this torch and Python: ours, or the installed package's.

A clone's folder comes first on the path of whatever runs inside the clone (``python -m rnnfast``,
a script, the tests), and holds libraries only where they were built in place, for one torch and one
Python. Where it has none that fit, it stands back for the package that was installed.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch


def minor(version: str) -> str:
    """The part of a version that must agree, such as 2.13."""
    return ".".join(version.split(".")[:2])


def built_for(folder: Path) -> str | None:
    """The version of torch that the libraries in `folder` were built for; None: not for us."""
    if not any((folder / f"_C{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        return None
    try:
        text = (folder / "_build.py").read_text(encoding="utf-8")
    except OSError:
        return None
    return text.partition('TORCH = "')[2].partition('"')[0] or None


def fits(folder: Path) -> bool:
    """Whether the libraries in `folder` may be loaded here."""
    version = built_for(folder)
    return version is not None and minor(version) == minor(torch.__version__)


def find(own: Path) -> Path:
    """`own`, or the first other folder on the path that fits where `own` does not."""
    if fits(own):
        return own
    others = (Path(entry, own.name).resolve() for entry in sys.path)
    return next((other for other in others if fits(other)), own)
