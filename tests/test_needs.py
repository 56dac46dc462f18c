"""What a build needs and does not find, each in a sentence that says what to type.

Catches twenty lines where a sentence would do, and a need that is met but not seen.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from tools import needs


def test_an_old_torch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.1+cpu")
    assert needs.missing("torch") == ["torch 2.11 or newer is needed, this is 2.9.1+cpu"]


@pytest.mark.parametrize(
    ("compiler", "sentence"),
    [
        ("no-such-compiler", "the C++ compiler no-such-compiler is missing: on Debian"),
        ("false", "false cannot build C++20 with OpenMP"),
    ],
)
def test_a_missing_compiler_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, compiler: str, sentence: str
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(SystemExit, match=re.escape(f"rnnfast: {sentence}")):
        needs.require("compiler")


def test_debians_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(needs.sysconfig, "get_path", lambda name: str(tmp_path))
    venv, headers = needs.missing("venv", "headers")
    assert "apt install python3-venv" in venv
    assert "apt install python3-dev" in headers


def test_ninja_counts_where_it_lies_beside_python(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert needs.missing("ninja") == ["ninja is missing: pip install ninja"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ninja").touch(mode=0o755)
    assert needs.missing("ninja") == []


def test_nothing_is_missing_where_this_was_built() -> None:
    assert needs.missing("compiler", "headers", "setuptools", "torch") == []
