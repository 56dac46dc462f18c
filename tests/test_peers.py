"""The comparison with other implementations: its bounds, its bookkeeping, and the peers themselves.

Contract: a bound follows from the machine's figures; no peer that is missing or wrong is timed or
silently dropped; each peer that is installed computes what torch.nn computes, gradients included.
The peers are tested where they are importable: in the environment that `make bench-peers` makes.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

import rnnfast
from benchmarks import documents
from benchmarks.peers import __main__ as peers
from benchmarks.peers import bound, machine, record, report, torch_peers
from benchmarks.peers.side import Side, Unavailable, reorder_gates
from benchmarks.problems import Problem
from benchmarks.workloads import PASSES, Workload, compare, make_workload

SMALL = Problem(5, 3, 4, 6, "test")

# ---- the bound ----

FIGURES = bound.Figures(
    threads=2,
    peak=1e9,
    gemm=0.5e9,
    levels=((100.0, 1e9), (1000.0, 1e8), (math.inf, 1e7)),
    sigmoid=1e6,
    tanh=2e6,
    step=lambda rows, K, N: rows * K * N * 1e-6,
)


@pytest.mark.parametrize(
    ("size", "seconds"), [(200, 2e-7), (201, 2.01e-6), (2000, 2e-5), (2001, 2.001e-4)]
)
def test_a_share_is_read_from_the_nearest_level_that_holds_it(size: int, seconds: float) -> None:
    assert FIGURES.read(size) == pytest.approx(seconds)


def test_the_bound_of_an_rnn_by_hand() -> None:
    problem = Problem(11, 2, 3, 5, "test")
    projection, step, read = 2 * 22 * 3 * 5, 2 * 2 * 5 * 5, 4 * 25 / 1e9
    inference = bound.bound(problem, "rnn_tanh", "inference", FIGURES)
    hidden = max(step / 1e9, read)
    assert inference.lower == pytest.approx(projection / 1e9 + 10 * hidden)
    recurrence = 10 * 2 * 5 * 5 * 1e-6 + 22 * 5 / 2e6
    assert inference.practical == pytest.approx(5e-6 + projection / 0.5e9 + recurrence)
    training = bound.bound(problem, "rnn_tanh", "training", FIGURES)
    products = 2 * projection + 10 * step  # forward, dW_ih, dW_hh; nothing for x
    assert training.lower == pytest.approx(products / 1e9 + 20 * hidden)
    recurrence += 10 * 2 * 5 * 5 * 1e-6
    assert training.practical == pytest.approx(30e-6 + products / 0.5e9 + recurrence)


def test_traffic_bounds_where_arithmetic_is_free() -> None:
    free = replace(FIGURES, step=lambda rows, K, N: 0.0, sigmoid=math.inf, tanh=math.inf)
    problem = Problem(11, 2, 3, 5, "test")
    numbers = {"inference": 4 + 1, "training": 4 + 1 + 2 * 5 + 2 + 4}
    for name in PASSES:
        found = bound.bound(problem, "lstm", name, free)
        products = (1 if name == "inference" else 2) * 2 * 22 * 3 * 20
        products += 0 if name == "inference" else 10 * 2 * 2 * 5 * 20
        traffic = 4 * 22 * 5 * numbers[name] / 1e7
        assert found.practical == pytest.approx(bound.CALL[name] + products / 0.5e9 + traffic)


@pytest.mark.parametrize("cell", bound.CELLS)
def test_one_step_from_zero_has_no_recurrent_product(cell: str) -> None:
    one = bound.bound(Problem(1, 2, 3, 5, "test"), cell, "inference", FIGURES)
    assert one.lower == pytest.approx(2 * 2 * 3 * bound.CELLS[cell].gates * 5 / 1e9)


def test_more_gates_cost_more() -> None:
    for name in PASSES:
        found = [bound.bound(SMALL, cell, name, FIGURES) for cell in ("rnn_tanh", "gru", "lstm")]
        assert found[0].lower < found[1].lower < found[2].lower
        assert found[0].practical < found[1].practical < found[2].practical


# ---- the machine ----


def test_a_list_of_processors_is_read_as_linux_writes_it() -> None:
    assert machine.processors("0-2,8") == {0, 1, 2, 8}
    assert machine.processors("3") == {3}


@pytest.mark.xdist_group("timing")
def test_the_primitives_run_and_scale_with_their_sizes() -> None:
    """Beside other programs a measurement only takes longer: the best of several tells."""
    here = machine.Machine(1)
    sizes = [(1, 6, 18), (8, 256, 256), (64, 256, 256)]
    seconds, peak = [math.inf] * len(sizes), 0.0
    for _ in range(20):
        seconds = [min(old, here._step(*size)) for old, size in zip(seconds, sizes, strict=True)]
        peak = max(peak, here.library.fma_peak(1))
        rate = 2 * 64 * 256 * 256 / seconds[2]
        if sorted(seconds) == seconds and rate < 1.1 * peak:
            break
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert rate < 1.1 * peak
    levels = machine.cache_sizes()
    assert all(size >= 4096 and sharers >= 1 for size, sharers in levels.values())


def test_a_process_is_pinned_to_as_many_processors_as_threads() -> None:
    before = os.sched_getaffinity(0)
    try:
        assert peers.pin(1) == list(os.sched_getaffinity(0))
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


# ---- who is timed ----


def workload(cell: str = "gru", dtype: torch.dtype = torch.float32) -> Workload:
    return make_workload(SMALL, cell, dtype, nn, rnnfast)


def wrong(workload: Workload, name: str) -> Side:
    side = torch_peers.torch_nn(workload, name)
    return Side(side.run, lambda: {k: v * 1.001 for k, v in side.values().items()})


def missing(workload: Workload, name: str) -> Side:
    import a_module_that_is_not_there  # noqa: F401


def unable(workload: Workload, name: str) -> Side:
    raise Unavailable("no training")


def test_who_is_wrong_or_missing_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = {name: peers.PEERS[name] for name in ("rnnfast", "torch.nn")}
    others = {"wrong": wrong, "missing": missing, "unable": unable}
    monkeypatch.setattr(peers, "PEERS", {**right, **others})
    sides, errors, left_out = peers.prepare(workload(), "training")
    assert list(sides) == list(errors) == ["rnnfast", "torch.nn"]
    assert left_out["wrong"].startswith("WrongValuesError: gru t5b3i4h6 training: error of output")
    assert left_out["missing"].startswith("ModuleNotFoundError: No module named 'a_module")
    assert left_out["unable"] == "no training"


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("cell", bound.CELLS)
def test_in_bfloat16_those_run_that_have_it(cell: str, name: str) -> None:
    sides, _, left_out = peers.prepare(workload(cell, torch.bfloat16), name)
    assert {"rnnfast", "torch.nn"} <= set(sides) <= {*peers.PEERS} - {*peers.IN_FLOAT32}
    assert all(left_out[peer] == "float32 only" for peer in peers.IN_FLOAT32)
    for side in sides.values():
        side.run()


def test_ours_must_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {"rnnfast": wrong})
    with pytest.raises(AssertionError, match="error of output"):
        peers.prepare(workload(), "inference")


@pytest.mark.parametrize("name", ["t100b32i128h128-l2-bi", "t60b32i128h256-packed"])
def test_only_plain_problems_are_taken(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.parse(["--problems", name])
    assert "only dense problems" in capsys.readouterr().err


# ---- the peers ----


def test_gates_go_to_another_order_and_back() -> None:
    rows = torch.arange(8.0).view(8, 1)
    moved = reorder_gates(rows, (0, 3, 1, 2))
    assert moved.flatten().tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert torch.equal(reorder_gates(moved, (0, 2, 3, 1)), rows)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("cell", bound.CELLS)
@pytest.mark.parametrize("problem", [SMALL, Problem(1, 32, 9, 17, "test")], ids=lambda p: p.name)
@pytest.mark.parametrize("peer", [peer for peer in peers.PEERS if peer != "torch.compile"])
def test_a_peer_computes_what_torch_nn_computes(
    peer: str, problem: Problem, cell: str, name: str
) -> None:
    made = make_workload(problem, cell, torch.float32, nn, rnnfast)
    try:
        side = peers.PEERS[peer](made, name)
    except (ImportError, Unavailable) as reason:
        pytest.skip(str(reason)[:100])
    errors = compare(made, name, side.values(), torch_peers.torch_nn(made, name).values())
    assert errors.candidate < 1e-5
    side.run()


def test_only_the_peers_that_are_wanted_run() -> None:
    sides, _, left_out = peers.prepare(workload(), "inference", ["torch.compile"])
    assert set(sides) == {"rnnfast", "torch.nn", "torch.compile"}
    assert not left_out
    assert peers.parse(["--peers", "oneDNN"]).peers == ["oneDNN"]


# ---- records and reports ----


def entry(cell: str, name: str, **changes: object) -> record.Entry:
    samples = {"rnnfast": (0.001, 0.001), "torch.nn": (0.008, 0.008), "oneDNN": (0.002, 0.002)}
    made = record.Entry(
        SMALL,
        cell,
        name,
        samples,
        dict.fromkeys(samples, 1e-7),
        {"JAX": "ModuleNotFoundError: No module named 'jax'"},
        bound.Bound(0.0005, 0.00075),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def made() -> record.Record:
    """Two cells: the best peer takes twice our time, but half of it where an LSTM is trained."""
    facts = peers.environment([0, 1])
    level = {"bytes_per_thread": 1, "bytes_per_second": 1e11}
    facts["machine"] = {
        **dict.fromkeys(("fma_peak", "gemm", "sigmoid", "tanh"), 2e9),
        "barrier_seconds": 1e-7,
        "read_bandwidth": [level],
    }
    entries = [entry(cell, name) for cell in ("gru", "lstm") for name in PASSES]
    samples = {**entries[-1].samples, "oneDNN": (0.0005, 0.0005)}
    entries[-1] = replace(entries[-1], samples=samples, problem=Problem(20, 3, 5, 6, "test"))
    return record.Record(facts, tuple(entries))


def test_the_best_peer_is_the_fastest_that_is_not_ours(made: record.Record) -> None:
    assert [e.best_peer for e in made.entries] == ["oneDNN"] * 4
    assert [e.lead for e in made.entries] == [2, 2, 2, 0.5]
    assert made.entries[0].speed_up("rnnfast") == 8
    assert math.isnan(made.entries[0].seconds("JAX"))
    assert made.names() == ["rnnfast", "torch.nn", "oneDNN", "JAX"]
    both = {**made.entries[0].samples, "rnnfast, frozen": (0.0001, 0.0001)}
    assert replace(made.entries[0], samples=both).best_peer == "oneDNN"


def test_a_record_survives_the_way_to_disk(made: record.Record, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    record.write(made, path)
    assert record.read(path) == made
    path.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="wanted format 'peers 1', got 1"):
        record.read(path)


def test_tables_show_times_ratios_means_and_who_is_left_out(made: record.Record) -> None:
    text = report.markdown(made)
    assert text.count("| 5, 3, 4, 6 | GRU | 1.00 | 8.00 | 2.00 |\n") == 2
    assert text.count("| 5, 3, 4, 6 | GRU | oneDNN | 2.00 | 8.00 | 2.00 | 1.33 |\n") == 2
    assert "| training, LSTM | 0.50 | 0.50 | 8.00 | 0 of 1 |" in text
    assert "| training, all cells | 1.00 | 0.50 | 8.00 | 1 of 2 |" in text
    assert "| inference, GRU | 2.00 | - | 8.00 | 1 of 1 |" in text
    assert "- JAX: left out of 4 cases: ModuleNotFoundError: No module named 'jax'" in text


def test_records_of_two_machines_have_unlike_titles(made: record.Record) -> None:
    other = replace(made, environment={**made.environment, "cpu": "another"})
    one, two = (report.markdown(r).partition("\n")[0] for r in (made, other))
    assert one.startswith("### ")
    assert one != two


def test_the_terminal_shows_the_same(
    made: record.Record, capsys: pytest.CaptureFixture[str]
) -> None:
    report.show(made)
    printed = capsys.readouterr().out
    assert "JAX: left out of 4 cases" in printed
    assert "best / ours" in printed


def test_the_plot_is_a_picture(made: record.Record, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "plot.png"
    report.plot(made, path)
    picture = imread(path)
    orange = [int(report.COLOURS[2][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert (abs(picture[..., :3] - orange).max(axis=-1) < 0.01).sum() > 100


def test_the_page_has_a_block_for_the_numbers() -> None:
    text = report.PAGE.read_text()
    assert "9.99" in documents.replace_block(text, "9.99", report.BEGIN, report.END)


@pytest.mark.xdist_group("timing")
def test_the_command_measures_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Callable[[Workload, str], Side]] = {
        name: peers.PEERS[name] for name in ("rnnfast", "torch.nn")
    }
    monkeypatch.setattr(peers, "PEERS", {**few, "wrong": wrong})
    monkeypatch.setattr(machine.Machine, "figures", lambda self: FIGURES)
    path, threads, affinity = tmp_path / "p.json", torch.get_num_threads(), os.sched_getaffinity(0)
    options = ["--quick", "--problems", "t20b3i5h6", "--cells", "gru", "--threads", "1"]
    try:
        assert peers.main([*options, "--output", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, affinity)
    read = record.read(path)
    assert [(e.cell, e.pass_name) for e in read.entries] == [("gru", name) for name in PASSES]
    assert all(list(e.samples) == list(few) and "wrong" in e.left_out for e in read.entries)
    assert "WrongValuesError" in capsys.readouterr().out
