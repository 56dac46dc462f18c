"""What type checkers make of `import rnnfast`: tests/typed/user.py, a user's file.

Catches layers that are Any, that are none of torch.nn's, and arguments that no layer has.
"""

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rnnfast

ROOT = Path(__file__).parents[1]
USER = Path(__file__).parent / "typed" / "user.py"


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")


@needs("mypy")
def test_mypy_takes_ours_for_torchs_and_catches_hidden_3(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), str(USER)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@needs("basedpyright")
def test_pyright_takes_ours_for_torchs_and_catches_hidden_3(tmp_path: Path) -> None:
    config = {
        "include": [str(USER)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",  # pyright's own
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    project = tmp_path / "pyrightconfig.json"
    project.write_text(json.dumps(config))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    command += ["--project", str(project)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert "0 errors, 0 warnings" in result.stdout


def declared(name: str) -> dict[str, str]:
    """The arguments that type checkers know of a layer, with their annotations and defaults."""
    tree = ast.parse((ROOT / "rnnfast" / "_typed.pyi").read_text(encoding="utf-8"))
    (layer,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    (init,) = (n for n in layer.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    arguments = init.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    defaults += arguments.kw_defaults
    return {
        argument.arg: ast.unparse(default) if default else ""
        for argument, default in zip(arguments.args + arguments.kwonlyargs, defaults, strict=True)
    }


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_type_checkers_know_the_arguments_that_there_are(name: str) -> None:
    parameters = inspect.signature(getattr(rnnfast, name).__init__).parameters.values()
    assert declared(name) == {
        p.name: "" if p.default is p.empty else repr(p.default)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
