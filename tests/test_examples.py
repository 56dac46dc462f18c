"""Every example runs, and learns what it says it learns.

Each is run in this process, with as few steps as show it; what is asserted fails for a model that
does not learn, or that learns without the feature the example is about.
"""

import importlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The examples are small: one thread is as fast, also beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example of this name, as a script finds it: its folder comes first on the path."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def run(name: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    return load(name, monkeypatch).main(["--steps", str(steps)])


def test_every_example_is_tested() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"common"}
    assert names == {name for name in names if f'"{name}"' in tests}


def test_sine_forecasts_better_than_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("sine", 300, monkeypatch) < 0.75


def test_names_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("names", 60, monkeypatch) > 0.7


def test_text_classifiers_read_past_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy = run("text_classifier", 100, monkeypatch)
    assert set(accuracy) == {"one-way", "bidirectional"}
    assert min(accuracy.values()) > 0.95


def test_seq2seq_writes_dates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("seq2seq", 100, monkeypatch)
    losses = [
        float(x.split("loss")[1]) for x in capsys.readouterr().out.splitlines() if "loss" in x
    ]
    assert losses[-1] < 1.5 < losses[0]  # log(37) = 3.6 where nothing is learned


def test_language_model_learns_the_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = run("language_model", 200, monkeypatch)
    assert last < 0.5 < 2.5 < first
    careful = capsys.readouterr().out.split("temperature 0.2\n")[1]
    assert careful.startswith("Beautiful is better than")


def test_loops_over_cells_learn_an_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = run("cells", 120, monkeypatch)
    assert len(accuracies) == 2
    assert min(accuracies) > 0.95


def test_residual_stack_learns_where_the_plain_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = run("residual", 150, monkeypatch)
    assert losses["residual"] < 0.2 < 0.7 < losses["plain"]


@pytest.mark.parametrize("seed", range(4))
def test_clipping_keeps_training_on_course(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any seed, and as torch.nn does on this machine."""
    example = load("gradient_clipping", monkeypatch)
    ours, torchs = (
        example.main(["--steps", "200", "--seed", str(seed), "--backend", library])
        for library in ("rnnfast", "torch")
    )
    for losses in (ours, torchs):
        assert losses["clipped"] < example.MEAN / 2
        assert not losses["unclipped"] < example.MEAN  # or not a number
    assert ours["clipped"] == pytest.approx(torchs["clipped"], rel=0.1)


def test_digits_demo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "digits.png"
    digits = load("digits", monkeypatch)
    runs = digits.main(["--epochs", "8", "--plot", str(plot)])
    ours, torchs = runs["rnnfast"], runs["torch"]
    assert len(ours.losses) == len(torchs.losses) == 8 * math.ceil(digits.TRAIN / digits.BATCH)
    assert max(abs(a - b) for a, b in zip(ours.losses, torchs.losses, strict=True)) < 1e-3
    assert min(ours.accuracy, torchs.accuracy) > 0.9
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "speed-up" in capsys.readouterr().out


def test_the_backend_option_chooses_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    common = load("common", monkeypatch)
    assert common.parse("", ["--backend", "torch"], 5) == (torch.nn, 5)
    library, steps = common.parse("", ["--steps", "7"], 5)
    assert (library.__name__, steps) == ("rnnfast", 7)


def test_recurrent_ppo_remembers_the_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory half of the turns are right."""
    assert run("recurrent_ppo", 40, monkeypatch) > 0.9


@pytest.mark.parametrize("processes", [1, 2])
def test_distributed_training_gives_the_weights_of_one_process(processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        str(processes),
        str((EXAMPLES / "distributed").with_suffix(".py")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [*command, "--steps", "40"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"{processes} processes, 40 steps" in result.stdout
    within = re.findall(r"(\S+): loss .* within (\S+) of one process's", result.stdout)
    assert [way for way, _ in within] == ["DistributedDataParallel", "FSDP2"]
    assert all(float(difference) < 1e-3 for _, difference in within)
