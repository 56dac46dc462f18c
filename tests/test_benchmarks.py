"""The benchmarks: a number is only as good as what made it.

Contract: problems are what their names say; the value check lets a right layer pass and stops a
layer that is wrong in any weight, in any gradient or in dtype; a record survives the way to disk;
reports show what was measured.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import (
    documents,
    numerics,
    problems,
    readme,
    report,
    results,
    steps,
    timing,
    workloads,
)
from benchmarks.__main__ import main
from benchmarks.problems import Problem

SMALL = Problem(5, 3, 4, 6, "test")
STACK = Problem(4, 2, 3, 5, "test", layers=2, bidirectional=True)
PACKED = Problem(4, 3, 4, 6, "test", lengths=(4, 2, 1))

# ---- problems ----


def test_problems_are_the_promised_ones_and_names_tell_them_apart() -> None:
    sizes = [(p.T, p.B, p.I, p.H) for p in problems.DENSE]
    assert sizes == [
        (50, 32, 128, 128),
        (100, 1, 64, 64),
        (1000, 1, 128, 256),
        (128, 32, 256, 256),
        (128, 128, 512, 512),
        (256, 16, 1024, 1024),
        (1, 32, 128, 128),
        (20, 3, 5, 6),
    ]
    assert len({p.name for p in problems.ALL}) == len({p.label for p in problems.ALL}) == 13
    assert all(p.origin for p in problems.ALL)
    assert not any(p.layers > 1 or p.bidirectional or p.lengths for p in problems.DENSE)
    stack, packed = problems.MAIN[len(sizes) :]
    assert (stack.layers, stack.bidirectional, stack.lengths) == (2, True, ())
    assert packed.bidirectional
    assert packed.lengths


def test_a_name_says_all_that_shapes_the_work() -> None:
    assert SMALL.name == "t5b3i4h6"
    assert STACK.name == "t4b2i3h5-l2-bi"
    assert PACKED.name == "t4b3i4h6-packed"


def test_packed_lengths_spread_like_sentences() -> None:
    packed = next(p for p in problems.ALL if p.lengths)
    assert sorted(packed.lengths)[15:17] == [20, 20]  # the median asked for
    assert packed.lengths[0] == packed.T > 2.5 * 20
    assert 1 <= packed.lengths[-1] < 20 / 2.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"T": 0}, "every size must be positive"),
        ({"layers": 0}, "every size must be positive"),
        ({"lengths": (1, 5, 2)}, "the longest first"),
        ({"lengths": (5, 2, 0)}, "lengths must be positive"),
        ({"lengths": (5, 2)}, "agree with T and B"),
    ],
)
def test_an_impossible_problem_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**{"T": 5, "B": 3, "I": 4, "H": 6, "origin": "test", **arguments})


def test_select_keeps_order_and_names_what_there_is() -> None:
    first, second = problems.ALL[0], problems.ALL[5]
    assert problems.select([second.name, first.name]) == (first, second)
    with pytest.raises(ValueError, match=f"no problem named t9; there are: {first.name}"):
        problems.select(["t9"])


# ---- the value check ----


def workload(problem: Problem, cell: str, dtype: torch.dtype) -> workloads.Workload:
    """torch.nn on both sides: a candidate that is right."""
    return workloads.make_workload(problem, cell, dtype, nn, nn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("problem", [SMALL, STACK, PACKED], ids=lambda p: p.name)
@pytest.mark.parametrize("cell", workloads.CELLS)
def test_a_right_layer_passes(cell: str, problem: Problem, dtype: torch.dtype) -> None:
    made = workload(problem, cell, dtype)
    for name in workloads.PASSES:
        errors = workloads.check(made, name)
        assert errors.candidate == errors.baseline <= 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", workloads.PASSES)
@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_perturbed_weights_are_caught(parameter: str, name: str) -> None:
    made = workload(SMALL, "gru", torch.float32)
    with torch.no_grad():
        made.candidate.get_parameter(parameter).view(-1)[0] += 1e-2
    with pytest.raises(workloads.WrongValuesError, match=f"gru t5b3i4h6 {name}: error of output"):
        workloads.check(made, name)


def test_a_wrong_gradient_is_caught_though_the_output_is_right() -> None:
    made = workload(SMALL, "lstm", torch.float32)
    made.candidate.weight_hh_l0.register_hook(lambda grad: grad * 1.001)
    workloads.check(made, "inference")
    with pytest.raises(workloads.WrongValuesError, match="grad of weight_hh_l0"):
        workloads.check(made, "training")


def replaced_output(change: Callable[[Tensor], Tensor]) -> workloads.Workload:
    """A workload whose candidate returns its right output changed by `change`."""
    made = workload(SMALL, "rnn_tanh", torch.float32)
    made.candidate.register_forward_hook(lambda _, __, out: (change(out[0]), out[1]))
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: out.double(), r"output must be torch.float32 \[5, 3, 6\], got torch.float64"),
        (lambda out: out[:-1], r"output must be torch.float32 \[5, 3, 6\], got .* \[4, 3, 6\]"),
        (lambda out: out.index_fill(0, torch.tensor(2), float("nan")), "error of output is nan"),
    ],
)
def test_other_dtype_shape_or_nan_is_caught(
    change: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(workloads.WrongValuesError, match=message):
        workloads.check(replaced_output(change), "inference")


def test_the_training_pass_leaves_the_gradients_the_check_compared() -> None:
    made = workload(PACKED, "gru", torch.float64)
    layer = made.baseline
    expected = workloads.values(layer, made.x, made.grad_output, "training")
    run = workloads.make_pass(made, layer, "training")
    run()
    run()  # a second call replaces the gradients, it does not add to them
    for key, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[f"grad of {key}"], rtol=0, atol=0)


# ---- records and reports ----


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


@pytest.mark.xdist_group("timing")
def test_steps_carry_the_state_and_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "PROBLEMS", [Problem(1, 2, 6, 6, "test")])
    path, threads = tmp_path / "steps.json", torch.get_num_threads()
    options = ["--quick", "--cells", "gru", "lstm", "--threads", "1", "--output", str(path)]
    try:
        assert steps.main(options) == 0
    finally:
        torch.set_num_threads(threads)
    read = results.read(path).measurements
    modes = [(cell, mode) for cell in ("gru", "lstm") for mode in ("step", "frozen step")]
    assert [(m.cell, m.pass_name) for m in read] == modes
    assert ["weights frozen" in m.ran for m in read] == [False, True] * 2
    printed = map(float, re.findall(r"= (\d+\.\d\d)", capsys.readouterr().out))
    speed_ups = [m.speed_up for m in read]  # of the file, whose seconds keep five digits
    assert sorted(printed) == pytest.approx(sorted(speed_ups), abs=0.011)


def test_a_step_from_another_state_is_caught() -> None:
    made = workload(Problem(1, 2, 6, 6, "test"), "gru", torch.float32)
    steps.check(made)
    made.candidate.register_forward_hook(lambda _, __, out: (out[0], out[1] * 1.01))
    with pytest.raises(workloads.WrongValuesError, match="gru t1b2i6h6: error"):
        steps.check(made)


# ---- numerics ----


def test_an_error_is_counted_in_units_of_the_last_place() -> None:
    got = torch.tensor([1.0, 2.0, -0.5], dtype=torch.float32)
    eps = 2.0**-23
    truth = np.array([1.0 + 3 * eps, 2.0 + eps, -0.5 - eps], np.longdouble)
    # The gaps are eps at 1, 2 eps at 2 and eps / 2 at a half.
    assert numerics.bound(got, truth) == numerics.Bound(absolute=3 * eps, ulp=3.0)
    assert numerics.bound(got[1:], truth[1:]) == numerics.Bound(absolute=eps, ulp=2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", numerics.FUNCTIONS)
def test_a_layer_computes_the_function_that_is_measured(function: str, dtype: torch.dtype) -> None:
    x = numerics.inputs(dtype)
    assert len(x) > 30_000
    error = numerics.bound(numerics.of_layer(function, x), numerics.exact(function, x))
    assert 0.49 < error.ulp < 0.6  # all there is to see is the rounding of the result


@pytest.mark.parametrize(
    ("function", "dtype", "absolute", "ulp"),
    [
        ("tanh", torch.float32, 7e-8, 1.2),
        ("tanh", torch.float64, 1.3e-16, 1.2),
        ("sigmoid", torch.float32, 9e-8, 2.5),
        ("sigmoid", torch.float64, 1.7e-16, 2.5),
    ],
)
def test_the_kernels_functions_keep_the_bounds_that_are_stated(
    function: str, dtype: torch.dtype, absolute: float, ulp: float
) -> None:
    x = numerics.inputs(dtype)
    error = numerics.bound(numerics.of_layer(function, x), numerics.exact(function, x))
    assert error.absolute <= absolute
    assert error.ulp <= ulp


def test_the_precision_tables_hold_every_dtype_cell_and_side() -> None:
    rows = numerics.layers([SMALL], [torch.float32]).splitlines()[2:]
    assert [row.split(" | ")[2] for row in rows] == list(workloads.CELLS)
    for row in rows:
        errors = [float(text) for text in row.strip("| ").split(" | ")[3:]]
        assert len(errors) == 6
        assert all(0 < error < 1e-5 for error in errors)


def test_the_page_on_precision_has_a_block_for_the_tables() -> None:
    text = (results.REPOSITORY / "docs" / "numerics.md").read_text()
    assert "| 9.9e-9 |" in documents.replace_block(text, "| 9.9e-9 |", numerics.BEGIN, numerics.END)
