"""The benchmarks: a number is only as good as what made it.

Contract: problems are what their names say; the value check lets a right layer pass and stops a
layer that is wrong in any weight, in any gradient or in dtype.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

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
    results,
    steps,
    workloads,
)
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


# ---- steps ----


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
