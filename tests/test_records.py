"""Records of the benchmarks: they survive the way to disk, and pages show what was measured."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import (
    documents,
    readme,
    report,
    results,
    timing,
    workloads,
)
from benchmarks.__main__ import main
from benchmarks.problems import Problem

SMALL = Problem(5, 3, 4, 6, "test")
STACK = Problem(4, 2, 3, 5, "test", layers=2, bidirectional=True)
PACKED = Problem(4, 3, 4, 6, "test", lengths=(4, 2, 1))


def test_statistics_of_known_samples() -> None:
    assert timing.summarise([5, 1, 4, 2, 3, 6]) == timing.Summary(3.5, 2.0, 5.0)
    assert timing.geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4.0)
    pair = timing.Pair((2.0, 3.0, 10.0), (1.0, 1.0, 2.0))
    measured = results.Measurement(SMALL, "gru", "training", pair, workloads.Errors(0, 0), "")
    assert measured.speed_up == 3.0  # of the medians: 3 and 1
    assert measured.pairwise == timing.Summary(3.0, 2.4, 4.2)  # of 2, 3 and 5


@pytest.fixture
def record() -> results.Record:
    """Two cells on two problems, both passes: the LSTM half, the GRU four times as fast."""
    measurements = tuple(
        results.Measurement(
            problem,
            cell,
            name,
            timing.Pair((0.002, 0.002), (0.002 / speed_up, 0.002 / speed_up)),
            workloads.Errors(4e-7, 3e-7),
            "fused",
        )
        for problem in (SMALL, PACKED)
        for cell, speed_up in (("gru", 4.0), ("lstm", 0.5))
        for name in workloads.PASSES
    )
    return results.Record(results.environment(torch.float32, "rnnfast"), measurements)


def test_a_record_survives_the_way_to_disk(record: results.Record, tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    results.write(record, path)
    assert results.read(path) == record
    assert record.geometric_means() == pytest.approx(
        {
            ("gru", "inference"): 4.0,
            ("gru", "training"): 4.0,
            ("lstm", "inference"): 0.5,
            ("lstm", "training"): 0.5,
        }
    )


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="wanted format 1, got 0"):
        results.read(path)


def test_the_environment_names_what_a_number_depends_on() -> None:
    facts = results.environment(torch.bfloat16, "rnnfast")
    assert facts["threads"] == torch.get_num_threads()
    assert facts["isa"] == torch.backends.cpu.get_cpu_capability()
    assert (facts["torch"], facts["dtype"]) == (torch.__version__, "bfloat16")
    assert facts["cpu"]
    named = {**facts, "cpu": "AMD EPYC (family 25, model 17)", "threads": 2}
    expected = "amd-epyc-family-25-model-17-2-threads-bfloat16-quick.json"
    assert results.default_name(named, quick=True) == expected
    loaded = {**named, "busy": 4, "dtype": "float32"}
    expected = "amd-epyc-family-25-model-17-2-threads-busy-4.json"
    assert results.default_name(loaded, quick=False) == expected
    assert "2 threads" in report.machine(results.Record(named, ()))
    assert report.machine(results.Record(loaded, ())).endswith("beside 4 busy processes")


def test_markdown_shows_times_ratios_and_means(record: results.Record) -> None:
    lines = report.markdown(record).splitlines()
    assert "| 5, 3, 4, 6 | 2.00 → 0.500 | **4.00x** | 2.00 → 4.00 | **0.50x** |" in lines
    assert "| geometric mean |  | 4.00x |  | 0.50x |" in lines
    assert sum(line.startswith("|---") for line in lines) == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.891e-5, "0.0389"), (1.0176e-3, "1.02"), (1.2345e-2, "12.3"), (0.2353, "235")],
)
def test_milliseconds_keep_three_digits(seconds: float, text: str) -> None:
    assert report.milliseconds(seconds) == text


def test_only_the_marked_block_is_replaced() -> None:
    markers = (readme.BEGIN, readme.END)
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    once = documents.replace_block(text, "new\n", *markers)
    assert once == f"before\n{readme.BEGIN}\n\nnew\n\n{readme.END}\nafter\n"
    assert documents.replace_block(once, "new", *markers) == once
    with pytest.raises(ValueError, match="wanted the markers"):
        documents.replace_block("no markers", "new", *markers)


def test_the_pages_have_what_the_committed_results_say() -> None:
    folder = results.REPOSITORY / "benchmarks/results"
    records = [part for path in folder.glob("*.json") for part in report.load(path)]
    cpus = [(name, record) for name, record in records if "gpu" not in record.environment]
    gpus = {path.stem: results.read(path) for path in folder.glob("nvidia*.json")}
    for name in readme.SUMMARIES:
        page = (results.REPOSITORY / name).read_text()
        summary = readme.summary_block(name, cpus, list(gpus.values()))
        assert page == documents.replace_block(
            page, summary, readme.SUMMARY_BEGIN, readme.SUMMARY_END
        )
    page = (results.REPOSITORY / "docs/figures.md").read_text()
    assert page == documents.replace_block(
        page, readme.figures_block(cpus), readme.BEGIN, readme.END
    )
    assert page == documents.replace_block(
        page, readme.gpu_block(gpus), readme.GPU_BEGIN, readme.GPU_END
    )
    for name, record in gpus.items():
        assert (folder / f"{name}.md").read_text() == readme.gpu_page(record)


def test_each_machine_has_its_float32_first(record: results.Record) -> None:
    def ran(cpu: str, dtype: str) -> tuple[str, results.Record]:
        facts = {**record.environment, "cpu": cpu, "dtype": dtype}
        return f"{cpu}-{dtype}", dataclasses.replace(record, environment=facts)

    runs = [
        ran(*run) for run in itertools.product(("zen", "arm"), ("bfloat16", "float32", "float16"))
    ]
    drawn = re.findall(r"images/(\S+)\.png", readme.figures_block(runs))
    assert drawn[0::3] == ["arm-float32", "zen-float32"]
    assert [name.split("-")[0] for name in drawn] == 3 * ["arm"] + 3 * ["zen"]


def test_the_plot_is_a_picture(record: results.Record, tmp_path: Path) -> None:
    from matplotlib.image import imread

    path = tmp_path / "plot.png"
    report.plot(record, path)
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1000
    for cell in ("gru", "lstm"):
        colour = [int(report.COLOURS[cell][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(picture[..., :3] - colour).max(axis=-1) < 0.01).sum() > 1000, cell


@pytest.mark.xdist_group("timing")
def test_the_command_measures_writes_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, threads = tmp_path / "noise.json", torch.get_num_threads()
    options = ["--noise", "--quick", "--problems", "t20b3i5h6", "--cells", "gru", "--threads", "1"]
    try:
        assert main([*options, "--busy", "1", "--output", str(path)]) == 0
    finally:
        torch.set_num_threads(threads)
    read = results.read(path)
    assert [(m.problem.name, m.cell, m.pass_name) for m in read.measurements] == [
        ("t20b3i5h6", "gru", "inference"),
        ("t20b3i5h6", "gru", "training"),
    ]
    facts = read.environment
    assert (facts["candidate"], facts["threads"], facts["busy"]) == ("torch.nn", 1, 1)
    assert all(len(m.pair.ratios) >= timing.QUICK.rounds[0] for m in read.measurements)
    # The same code on both sides; how fast it is, nobody can promise on a busy machine.
    assert all(m.errors.candidate == m.errors.baseline > 0 for m in read.measurements)
    printed = capsys.readouterr().out
    assert f"{read.measurements[0].speed_up:.2f}x" in printed
    assert str(path) in printed.replace("\n", "")


def test_each_dtype_has_the_machine_as_it_was_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, ...]] = []

    def look(dtype: torch.dtype, *_: Any) -> str:
        order.append(("look", str(dtype)))
        return f"facts of {dtype}"

    command, threads = sys.modules[main.__module__], torch.get_num_threads()
    monkeypatch.setattr(command, "quiet_environment", look)
    monkeypatch.setattr(
        command, "run", lambda _, dtype, __, facts: order.append((str(dtype), facts))
    )
    try:
        assert main(["--dtype", "float32", "bfloat16"]) == 0
    finally:
        torch.set_num_threads(threads)
    names = ["torch.float32", "torch.bfloat16"]
    assert order == [*(("look", n) for n in names), *((n, f"facts of {n}") for n in names)]
