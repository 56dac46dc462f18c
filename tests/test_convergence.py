"""The study of convergence: what it compares is comparable, and its statistics see what is there.

Contract: the arms of a seed start from the same weights, take the same batches and masks, and run
what their names say; a shift is found, none where there is none; what a run writes is what the
tables, the figures and the document show.
"""

from __future__ import annotations

import re
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torch.utils._python_dispatch import TorchDispatchMode

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

pytest.importorskip("scipy")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

import rnnfast
from benchmarks.convergence import comparison, record, report, tasks, training
from benchmarks.convergence.__main__ import main
from benchmarks.convergence.training import ARMS, NUDGED, OURS, OURS_BF16, TORCH, TORCH_BF16
from rnnfast._library import HAS_BFLOAT16

RESULTS = sorted(record.FOLDER.glob("*.json"))

# ---- the arms ----


@pytest.mark.parametrize("name", tasks.TASKS)
def test_arms_start_from_equal_weights_and_run_what_they_are_called(name: str) -> None:
    task = training.prepared(name, quick=True)
    made = training.learners(task, seed=3)
    assert list(made) == list(ARMS)
    wanted = made[TORCH].model.state_dict()
    x, _ = next(task.batches(Generator().manual_seed(0)))
    for arm, learner in made.items():
        off = 1e-6 if arm == NUDGED else 0
        torch.testing.assert_close(learner.model.state_dict(), wanted, rtol=off, atol=1e-9 * off)
        assert (learner.model.state_dict()["head.bias"] != wanted["head.bias"]).all() == bool(off)
        assert learner.bfloat16 == (arm in (TORCH_BF16, OURS_BF16))
        ours = arm in (OURS, OURS_BF16)
        assert (type(learner.model.layer).__module__ == "torch.nn.modules.rnn") != ours
        with torch.autocast("cpu", torch.bfloat16, enabled=learner.bfloat16):
            assert ("fused" in str(rnnfast.explain(learner.model, x))) == ours
    others = training.learners(task, seed=4)[TORCH].model.state_dict()
    assert all(not torch.equal(others[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_seed_gives_one_order_of_batches(name: str) -> None:
    task = tasks.TASKS[name]()
    same, again, other = (
        list(islice(task.batches(Generator().manual_seed(seed)), 3)) for seed in (1, 1, 2)
    )
    for (x, y), (x_again, y_again) in zip(same, again, strict=True):
        assert torch.equal(x[0], x_again[0])
        assert torch.equal(y, y_again)
    assert not torch.equal(same[0][0][0][:8], other[0][0][0][:8])
    assert not torch.equal(same[0][0][0][:8], same[1][0][0][:8])
    rows = same[0][0].batch_sizes[0] if name == "lines" else same[0][0].shape[1]
    assert rows == tasks.BATCH > 20


def test_all_arms_take_the_same_batches_and_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[Any, torch.Tensor]] = []
    monkeypatch.setattr(
        training.Learner, "step", lambda self, task, batch: taken.append((batch, torch.rand(3)))
    )
    monkeypatch.setattr(training.Learner, "evaluate", lambda *_: None)
    monkeypatch.setattr(training, "row", lambda *_: {})
    training.train(training.prepared("membrane", quick=True), 0)
    assert len(taken) == training.POINTS * len(ARMS)
    steps = [taken[i : i + len(ARMS)] for i in range(0, len(taken), len(ARMS))]
    for of_step in steps:
        assert all(batch is of_step[0][0] for batch, _ in of_step)
        assert all(torch.equal(mask, of_step[0][1]) for _, mask in of_step)
    assert not torch.equal(steps[0][0][1], steps[1][0][1])


def test_a_step_of_float32_is_torchs_and_carries_the_state() -> None:
    task = training.prepared("long", quick=True)
    made = training.learners(task, seed=0)
    for batch in islice(task.batches(Generator().manual_seed(0)), 3):
        for learner in made.values():
            learner.step(task, batch)
    ours, theirs = made[OURS], made[TORCH]
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-6)
    assert made[TORCH_BF16].losses != theirs.losses
    assert made[OURS_BF16].losses != theirs.losses
    torch.testing.assert_close(ours.states, theirs.states, rtol=1e-4, atol=1e-6)
    assert not ours.states[0].requires_grad
    assert ours.states[0].abs().sum() > 0


class Products(TorchDispatchMode):
    """The dtypes of what is multiplied, by the name of the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(":")[-1].split(".")[0]
        if name in ("addmm", "mm", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"):
            dtypes = {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
            self.seen.setdefault(name, set()).update(dtypes - {torch.uint8})
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the CPU does not multiply bfloat16")
@pytest.mark.parametrize(
    ("name", "products"),
    [
        ("digits", {"addmm", "mm", "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward"}),
        ("membrane", {"addmm", "mm"}),
        ("lines", {"addmm", "mm"}),
    ],
)
def test_torchs_arm_of_bfloat16_multiplies_it(name: str, products: set[str]) -> None:
    task = training.prepared(name, quick=True)
    learner = training.learners(task, seed=0)[TORCH_BF16]
    with Products() as found:
        learner.step(task, next(task.batches(Generator().manual_seed(0))))
    assert found.seen == {key: {torch.bfloat16} for key in products}
    assert {p.dtype for p in learner.model.parameters()} == {torch.float32}


def test_a_row_says_when_losses_part() -> None:
    task = training.prepared("digits", quick=True)
    made = training.learners(task, seed=0)
    losses = [float(i) for i in range(1, task.steps + 1)]
    for learner in made.values():
        learner.losses, learner.valid = list(losses), losses
    made[OURS].losses[3] *= 1.0005
    made[OURS].losses[6] *= 1.002
    made[OURS_BF16].losses[1] *= 0.9
    ours = training.row(task, 0, OURS, made)
    assert (ours["early"], ours["parted"]) == (pytest.approx(2e-3), 7)
    assert training.row(task, 0, OURS_BF16, made)["parted"] == 2
    assert training.row(task, 0, NUDGED, made)["parted"] is None
    assert "parted" not in training.row(task, 0, TORCH, made)


# ---- the statistics ----


def seeds_of_curves(seed: int, shift: float = 0.0, apart: float = 0.1) -> list[dict[str, Any]]:
    """Rows of two arms on one task: every seed its own curve, spread 1; arms `apart` beside it."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(10):
        curve = random.normal(5, 1) + np.linspace(0, -3, 24)
        for arm in (TORCH, OURS):
            seen = curve + apart * random.normal(size=24) + shift * (arm == OURS)
            parts = {"train": seen[:12], "valid": seen[12:], "score": seen[-1]}
            rows.append({"task": "t", "arm": arm, "seed": number, **parts})
    return rows


def compared(**how: Any) -> comparison.Compared:
    return comparison.compare(seeds_of_curves(**how), "t", OURS, TORCH)


def test_a_shift_is_found_and_measured() -> None:
    same = compared(seed=1)
    assert same.equivalent
    assert min(same.p) > 0.05
    small = compared(seed=1, shift=0.2)  # there, but it does not matter
    assert small.equivalent
    assert max(small.p) == 2 / 1024
    large = compared(seed=1, shift=1.0)
    assert not large.equivalent
    assert max(large.p) == 2 / 1024
    assert large.difference == pytest.approx(1.0, abs=0.1)
    assert large.interval[0] < 1 < large.interval[1]
    assert large.largest == pytest.approx(1.0, rel=0.5)  # ten seeds' spread
    noisy = compared(seed=1, apart=2.0)  # too little is known
    assert not noisy.equivalent
    assert min(noisy.p) > 0.05


def test_a_shift_at_one_point_is_found() -> None:
    differences = np.random.default_rng(0).normal(0, 0.1, (10, 24))
    assert comparison.sign_flips(differences)[1] > 0.05
    differences[:, 17] += 0.3
    assert comparison.sign_flips(differences) == (pytest.approx(0.3, abs=0.1), 2 / 1024)


@pytest.mark.parametrize("exact", [16, 6], ids=["all exchanges", "random ones"])
def test_p_is_uniform_where_there_is_no_difference(
    exact: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "EXACT", exact)
    random = np.random.default_rng(0)
    # Points that depend on each other, as those of a curve do, and are not normal.
    draws = (random.standard_t(3, (8, 6)).cumsum(1) for _ in range(400))
    p = np.array([comparison.sign_flips(differences)[1] for differences in draws])
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (p <= level).mean() == pytest.approx(level, abs=0.06)


def test_no_difference_at_all_is_none() -> None:
    assert comparison.sign_flips(np.zeros((4, 3))) == (0, 1)
    same = compared(seed=0, apart=0.0)
    assert (same.p, same.bound, same.interval) == ((1, 1), 0, (0, 0))


def test_the_bound_holds_as_often_as_it_promises() -> None:
    random = np.random.default_rng(0)
    bounds = [comparison.bound(random.normal(2, 1, (10, 1))) for _ in range(1000)]
    assert (np.array(bounds) >= 2).mean() == pytest.approx(0.95, abs=0.02)
    inside = [comparison.interval(random.normal(0.3, 1, 10)) for _ in range(1000)]
    assert np.mean([low < 0.3 < high for low, high in inside]) == pytest.approx(0.95, abs=0.02)


def test_holm_adjusts_in_any_order() -> None:
    assert comparison.holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert comparison.holm([0.9, 0.5]) == [1, 1]


# ---- runs and documents ----


def test_a_quick_run_is_what_tables_and_figures_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, threads = tmp_path / "quick.json", torch.get_num_threads()
    options = ["--quick", "--processes", "1", "--tasks", "digits", "long", "--output", str(path)]
    try:
        assert main(options) == 0
    finally:
        torch.set_num_threads(threads)
    read = record.read(path)
    keys = [(row["task"], row["seed"], row["arm"]) for row in read.rows]
    assert keys == [(t, seed, arm) for t in ("digits", "long") for seed in (0, 1) for arm in ARMS]
    for row in read.rows:
        assert len(row["train"]) == len(row["valid"]) == training.POINTS
        if row["arm"] in (OURS, NUDGED):
            assert row["early"] < 2e-6
    assert (read.environment["processes"], read.environment["threads"]) == (1, 1)
    printed = capsys.readouterr().out
    assert str(path) in printed.replace("\n", "")
    text = report.markdown(read)
    assert text.count("| rnnfast, bfloat16 | torch.nn, bfloat16 |") == 2
    assert all(answer in printed for answer in report.verdicts(read))
    for drawing in report.figures(read):
        assert all(f">{arm}<" in drawing for arm in ARMS)
        assert not re.search(r"#000000|#ffffff", drawing)
    axes = Figure().subplots()
    report._differences(axes, read, "digits", np.arange(training.POINTS))
    low, high = axes.get_ylim()
    drawn = [value for line in axes.lines[:4] for value in line.get_ydata() if value > low]
    assert len(drawn) > training.POINTS
    assert max(drawn) < high
    assert axes.get_yscale() == "log"


def test_other_seeds_of_a_part_of_the_arms(tmp_path: Path) -> None:
    path, threads = tmp_path / "part.json", torch.get_num_threads()
    options = ["--quick", "--processes", "1", "--tasks", "lines", "--output", str(path)]
    try:
        assert main([*options, "--bfloat16", "--seeds", "7:40"]) == 0
    finally:
        torch.set_num_threads(threads)
    read = record.read(path)
    keys = [(row["seed"], row["arm"]) for row in read.rows]
    assert keys == [(seed, arm) for seed in (7, 8) for arm in (TORCH_BF16, OURS_BF16)]
    (one,) = report.comparisons(read)
    assert (one.arm, one.other) == (OURS_BF16, TORCH_BF16)
    page = report.PAGE.read_text("utf-8")
    changed = report.written(page, read)
    begin, end = report.BLOCKS[False]
    assert changed.partition(begin)[0] == page.partition(begin)[0]
    assert changed.partition(end)[2] == page.partition(end)[2]
    assert report.verdicts(read)[0][:40] in changed.partition(begin)[2].partition(end)[0]
    for seeds in ("1", "9:10", "9:8"):
        with pytest.raises(SystemExit):
            main(["--quick", "--seeds", seeds])


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="wanted format convergence 1"):
        record.read(path)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_document_shows_what_was_measured(path: Path) -> None:
    read = record.read(path)
    text = report.PAGE.read_text("utf-8")
    assert report.written(text, read) == text
    drawn = f"```{{convergence}} {path.relative_to(report.REPOSITORY)}\n" in text
    assert drawn == (report.arms(read) == list(ARMS))
    for name, task in read.tasks.items():
        made = tasks.TASKS[name]()
        assert record.described(made) == task
        assert f"| `{name}` | {made.steps:,} | {made.score.name.partition(',')[0]} |" in text
    assert {type(tasks.TASKS[name]().model().layer) for name in read.tasks} == {
        nn.RNN,
        nn.GRU,
        nn.LSTM,
    }


def test_there_are_results_of_all_arms_and_of_fresh_seeds() -> None:
    every, part = sorted(map(record.read, RESULTS), key=lambda read: -len(report.arms(read)))
    assert report.arms(every) == list(ARMS)
    assert report.arms(part) == [TORCH_BF16, OURS_BF16]
    seeds = [{row["seed"] for row in read.rows} for read in (every, part)]
    assert not seeds[0] & seeds[1]
    assert len(seeds[1]) > len(seeds[0])
