"""Sweeps of sizes and threads, the smallest calls, peak memory, and what the page shows of them.

Contract: sizes are varied one at a time; nothing is timed whose values are wrong; the memory that a
call takes is seen to a MiB, whatever was held and given back before; the page shows what a file
has, and nothing of what it has not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import __main__ as bench
from benchmarks import memory, page, results, sweeps, workloads
from benchmarks.page import sources
from benchmarks.problems import Problem
from benchmarks.results import Measurement, Record
from benchmarks.timing import QUICK, Budget, Pair
from benchmarks.workloads import PASSES, WrongValuesError

SMALL = Problem(4, 2, 6, 6, "test")
MIB = 2**20
FACTS: dict[str, Any] = {
    **results.environment(torch.float32, "rnnfast"),
    "cpu": "A processor",
    "threads": 2,
}
SHORT = Budget(total=0.01, block=0.001, rounds=(3, 3), warm_up=0.0)
needs_proc = pytest.mark.skipif(not memory.PROCESS.exists(), reason="needs /proc")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# ---- what is measured ----


def test_sizes_are_varied_one_at_a_time() -> None:
    base, *others = sweeps.points()
    assert base == sweeps.BASE
    sizes = {(p.T, p.B, p.H) for p in others}
    assert len(sizes) == len(others) == sum(map(len, sweeps.SIZES.values())) - len(sweeps.SIZES)
    for problem in others:
        assert problem.I == problem.H
        changed = [n for n in sweeps.SIZES if getattr(problem, n) != getattr(base, n)]
        assert len(changed) == 1
        assert getattr(problem, changed[0]) in sweeps.SIZES[changed[0]]


@pytest.mark.parametrize(
    ("cores", "wanted"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])]
)
def test_threads_are_powers_of_two_and_all(cores: int, wanted: list[int]) -> None:
    assert sweeps.threads_up_to(cores) == wanted


def test_the_threads_of_a_measurement_are_those_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def measured(workload: Any, library: Any, name: str, budget: Any, threads: int) -> None:
        used.append((workload.problem, threads, torch.get_num_threads()))

    monkeypatch.setattr(sweeps, "measure_pass", measured)
    monkeypatch.setattr(sweeps, "points", lambda: [SMALL, replace(SMALL, T=2)])
    monkeypatch.setattr(sweeps, "BASE", SMALL)
    monkeypatch.setattr(sweeps.os, "sched_getaffinity", lambda _: range(4))
    list(sweeps.sweep(torch.float32, 2, QUICK))
    wanted = [(SMALL, 2), (replace(SMALL, T=2), 2), (SMALL, 1), (SMALL, 4)]
    assert list(dict.fromkeys(used)) == [(problem, n, n) for problem, n in wanted]
    assert torch.get_num_threads() == 2


def wrong(_: Any, __: Any, output: tuple[Any, Any]) -> tuple[Any, Any]:
    return output[0] * 1.01, output[1]


def never(*_: Any) -> None:
    raise AssertionError("timed")


def make_wrong(*arguments: Any) -> workloads.Workload:
    made = workloads.make_workload(*arguments)
    made.candidate.register_forward_hook(wrong)
    return made


def test_a_wrong_layer_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "make_workload", make_wrong)
    monkeypatch.setattr(sweeps, "points", lambda: [SMALL])
    monkeypatch.setattr(bench, "interleave", never)
    with pytest.raises(WrongValuesError, match="gru t4b2i6h6 inference"):
        next(sweeps.sweep(torch.float32, 2, QUICK))


@pytest.mark.parametrize("what", sweeps.CALLS)
def test_a_wrong_call_is_not_timed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def smallest(*arguments: Any) -> Any:
        made, sides = kept(*arguments)
        made.candidate.register_forward_hook(wrong)
        return made, sides

    kept = sweeps.smallest
    monkeypatch.setattr(sweeps, "CALLS", (what,))
    monkeypatch.setattr(sweeps, "smallest", smallest)
    monkeypatch.setattr(sweeps, "interleave", never)
    with pytest.raises(WrongValuesError, match="gru t1b1i8h8 inference"):
        next(sweeps.overhead(torch.float32, 2, QUICK))


@pytest.mark.parametrize("cell", sweeps.CELLS)
@pytest.mark.parametrize("what", sweeps.CALLS)
def test_what_is_called_is_what_was_checked(what: str, cell: str) -> None:
    made, sides = sweeps.smallest(SMALL, cell, what, torch.float32)
    assert len(made.x) == (1 if what == "cell" else SMALL.T)
    with torch.inference_mode():
        for layer, call in zip((made.baseline, made.candidate), sides, strict=True):
            found = call()
            found = found[0] if isinstance(found, tuple) else found
            wanted = layer(made.x)[0]
            torch.testing.assert_close(found, wanted.view_as(found), rtol=0, atol=0)
        assert isinstance(sides[0].func, nn.RNNBase if what != "cell" else nn.RNNCellBase)
        ran = str(sweeps.rnnfast.explain(sides[1].func, *sides[1].args))
    assert ("weights frozen" in ran) == (what == "frozen layer")


# ---- memory ----


def hold(size: int) -> nn.Module:
    return nn.Linear(size // 4, 1, bias=False)


def after_more() -> list[int]:
    """Of a layer of 50 MB, of one that is dropped, and of none; after 100 MB were given back."""
    hold(100 * MIB)
    kept = []
    calls = (lambda: kept.append(hold(50 * MIB)), partial(hold, 50 * MIB), lambda: None)
    return [memory.growth(call) for call in calls]


@needs_proc
def test_a_layer_of_known_size_is_seen_in_a_new_process() -> None:
    kept, dropped, nothing = memory.elsewhere(after_more)
    assert abs(kept - 50 * MIB) < MIB
    assert abs(dropped - 50 * MIB) < MIB
    assert nothing < MIB


@needs_proc
def test_the_memory_of_a_pass_holds_its_output() -> None:
    problem = Problem(64, 32, 16, 512, "test")
    row = memory.row(problem, "gru", "inference", "float32", 1, repeats=2)
    assert {side: len(found) for side, found in row["bytes"].items()} == {
        "torch.nn": 2,
        "rnnfast": 2,
    }
    output = 4 * problem.T * problem.B * problem.H
    assert all(output <= size < 20 * output for found in row["bytes"].values() for size in found)


def test_the_memory_of_a_wrong_layer_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "make_workload", make_wrong)
    monkeypatch.setattr(memory, "elsewhere", never)
    with pytest.raises(WrongValuesError, match="lstm t4b2i6h6 training"):
        memory.row(SMALL, "lstm", "training", "float32", 1, repeats=1)


# ---- the record and the page ----


def measurement(problem: Problem, name: str, threads: int, cell: str = "gru") -> Measurement:
    pair = Pair((2e-3, 3e-3, 4e-3), (1e-3,) * 3)
    return Measurement(problem, cell, name, pair, None, "GRU", threads=threads)


def swept() -> list[Measurement]:
    jobs = [(SMALL, 2), (replace(SMALL, T=16), 2), (replace(SMALL, T=2), 2), (SMALL, 1)]
    return [measurement(p, name, n) for p, n in jobs for name in PASSES]


ROW = {"label": "4, 2, 6, 6", "cell": "gru", "pass": "training", "threads": 2}
BYTES = {"torch.nn": [30 * MIB, 31 * MIB, 35 * MIB], "rnnfast": [10 * MIB] * 3}


def test_a_record_keeps_threads_and_memory(tmp_path: Path) -> None:
    record = Record(FACTS, tuple(swept()), memory=({**ROW, "bytes": BYTES},))
    results.write(record, tmp_path / "some.json")
    assert results.read(tmp_path / "some.json") == record
    assert [part.environment["threads"] for part in record.parts()] == [1, 2]
    written = (tmp_path / "some.json").read_text()
    assert all(f'"gru training {n} threads": 3.0' in written for n in (1, 2))


def test_a_line_is_of_what_differs_in_one_size_alone() -> None:
    lines = dict(sources.varied(swept()))
    assert list(lines) == ["T", "threads"]
    assert [m.problem.T for m in lines["T"]] == [2, 2, 4, 4, 16, 16]
    assert [(m.problem.T, m.threads) for m in lines["threads"]] == [(4, 1)] * 2 + [(4, 2)] * 2
    assert list(sources.varied([])) == []


def shown(folder: Path, record: Record) -> dict[str, str]:
    results.write(record, folder / "sweeps" / "some.json")
    return {section.name: section.content for section in page.sections(page.load(folder))}


def test_the_page_shows_lines_memory_and_calls(tmp_path: Path) -> None:
    calls = [measurement(SMALL, what, 2) for what in sweeps.CALLS]
    record = Record(FACTS, (*swept(), *calls), memory=({**ROW, "bytes": BYTES},))
    found = shown(tmp_path, record)
    assert found["sweeps"].count("<svg") == 4  # T and threads, of both passes
    for mark in ("rnnfast: GRU, T = 16: 1.00 ms (1.00 to 1.00)", "torch.nn: GRU, threads = 1: 3"):
        assert found["sweeps"].count(f"<title>{mark}") == 2
    assert "threads: 1, 2 rows" in found["sweeps"]
    assert "threads: 2, 6 rows" in found["sweeps"]
    assert ">3.10x<" in found["memory"]
    assert "31.0<small>30.0 to 35.0</small>" in found["memory"]
    assert "<td>GRU frozen layer</td>" in found["overhead"]
    assert "3000.00<small>2400.00 to 3600.00</small>" in found["overhead"]
    assert "A processor, 1 threads" in found["summary"]


def test_the_page_shows_nothing_of_what_is_not_there(tmp_path: Path) -> None:
    names = {"sweeps", "memory", "overhead"}
    every = {**dict.fromkeys(names, Record(FACTS, ())), "sweeps": Record(FACTS, tuple(swept()))}
    every["overhead"] = Record(FACTS, (measurement(SMALL, "cell", 2),))
    every["memory"] = Record(FACTS, (), memory=({**ROW, "bytes": BYTES},))
    assert not names & {section.name for section in page.sections(page.load(tmp_path))}
    for name, record in every.items():
        assert names & shown(tmp_path, record).keys() == {name}


@pytest.mark.xdist_group("timing")
def test_the_command_measures_writes_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweeps, "QUICK", SHORT)
    monkeypatch.setattr(sweeps, "BASE", SMALL)
    monkeypatch.setattr(sweeps, "SIZES", {"H": (3, 6)})
    monkeypatch.setattr(sweeps, "SMALLEST", (SMALL,))
    monkeypatch.setattr(memory, "PROBLEMS", (SMALL,))
    monkeypatch.setattr(sweeps.os, "sched_getaffinity", lambda _: range(2))
    path = tmp_path / "sweeps" / "some.json"
    options = ["--quick", "--threads", "1", "--dtype", "bfloat16", "--output", str(path)]
    assert sweeps.main(options) == 0
    read = results.read(path)
    assert (read.environment["dtype"], read.environment["threads"]) == ("bfloat16", 1)
    timed = {(m.problem.name, m.threads) for m in read.measurements if m.pass_name in PASSES}
    assert timed == {("t4b2i6h6", 1), ("t4b2i3h3", 1), ("t4b2i6h6", 2)}
    called = {(m.cell, m.pass_name) for m in read.measurements if m.pass_name not in PASSES}
    assert called == {(cell, what) for cell in sweeps.CELLS for what in sweeps.CALLS}
    assert all(m.errors and m.errors.candidate > 0 for m in read.measurements)
    assert len(read.memory) == (4 if memory.PROCESS.exists() else 0)
    assert "frozen layer" in capsys.readouterr().out
    assert "sweeps" in {section.name for section in page.sections(page.load(tmp_path))}


@pytest.mark.xdist_group("timing")
def test_make_bench_writes_a_file_for_each_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "QUICK", SHORT)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    options = ["--noise", "--quick", "--problems", "t20b3i5h6", "--cells", "gru"]
    both = ["--dtype", "float32", "bfloat16"]
    assert bench.main([*options, *both]) == 0
    dtypes = [results.read(path).environment["dtype"] for path in tmp_path.iterdir()]
    assert sorted(dtypes) == ["bfloat16", "float32"]
    with pytest.raises(SystemExit):
        bench.parse([*both, "--output", "one.json"])
