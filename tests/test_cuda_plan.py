"""The CUDA plan is a pure function of the problem and the GPU: which kernels are tried for a layer.

Catches a kernel on a GPU that cannot run it, one that is smaller than the layer, a plan that does
not end with `step`, which runs anything, a wish that is not heard, and a choice that took longer
on a GPU than another one, where benchmarks/results/tune holds its figures.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast import _C

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import tuned

KERNELS = tuple(_C.cuda_kernels())
H100 = {"arch": 90, "processors": 132, "shared_bytes": 227 << 10, "max_cluster": 16}
A100 = {"arch": 80, "processors": 108, "shared_bytes": 163 << 10, "max_cluster": 1}
TURING = {"arch": 75, "processors": 40, "shared_bytes": 64 << 10, "max_cluster": 1}
GPUS = {"H100": H100, "A100": A100, "Turing": TURING}
DTYPES = ("float64", "float32", "bfloat16", "float16")


def plan(cell: str, dtype: str, T: int, B: int, H: int, **options: Any) -> list[dict[str, Any]]:
    facts = {"directions": 1, "backward": False, "tf32": True, **H100, **options}
    return [dict(choice) for choice in _C.cuda_plan(cell, dtype, T, B, H, **facts)]


@settings(max_examples=300, deadline=None)
@given(
    cell=st.sampled_from([facts["name"] for facts in _C.cells()]),
    dtype=st.sampled_from(DTYPES),
    T=st.sampled_from([1, 2, 100, 2**33]),
    B=st.sampled_from([1, 8, 9, 64, 1000, 2**33]),
    H=st.sampled_from([1, 16, 100, 128, 129, 256, 512, 700, 1024, 2048, 4096, 2**33]),
    directions=st.sampled_from([1, 2]),
    backward=st.booleans(),
    tf32=st.booleans(),
    gpu=st.sampled_from(list(GPUS)),
    kernel=st.sampled_from(["auto", *KERNELS]),
)
def test_plan_is_sound(
    cell: str,
    dtype: str,
    T: int,
    B: int,
    H: int,
    directions: int,
    backward: bool,
    tf32: bool,
    gpu: str,
    kernel: str,
) -> None:
    options = {"directions": directions, "backward": backward, "tf32": tf32, "kernel": kernel}
    device = GPUS[gpu]
    choices = plan(cell, dtype, T, B, H, **options, **device)
    assert choices == plan(cell, dtype, T, B, H, **options, **device)
    assert [c["kernel"] for c in choices].count("step") == 1
    assert choices[-1]["kernel"] == "step"
    costs = [c["microseconds"] for c in choices[:-1]]
    assert costs == sorted(costs)
    for choice in choices[:-1]:
        assert kernel in ("auto", choice["kernel"])
        single = choice["kernel"] == "single"
        assert T == 1 and not backward if single else kernel != "auto" or T > 1
        assert kernel != "auto" or choice["microseconds"] < choices[-1]["microseconds"]
        assert choice["hidden"] >= H
        assert (choice["tiles"] - 1) * choice["rows"] < B <= choice["tiles"] * choice["rows"]
        assert dtype != "float64"
        assert device["arch"] >= (70 if single and dtype == "float32" else 80)
        peers = choice["peers"]
        if choice["kernel"] in ("small", "cta"):
            assert peers == 1
        elif choice["kernel"] in ("cluster", "fma"):
            assert 1 <= peers <= device["max_cluster"]
        elif not single:
            assert peers * choice["tiles"] * directions <= device["processors"]


def test_plan_of_known_problems() -> None:
    def best(*problem: Any, **options: Any) -> str:
        return str(plan(*problem, **options)[0]["kernel"])

    assert best("gru", "bfloat16", 50, 8, 64) == "small", "w_hh fits one processor"
    assert best("gru", "float32", 50, 8, 64) == "fma", "in float32, one row on each"
    assert best("gru", "bfloat16", 512, 64, 512) == "cluster", "w_hh fits eight processors"
    assert best("gru", "bfloat16", 512, 64, 512, **A100) != "cluster", "no clusters before Hopper"
    assert best("lstm", "float64", 100, 8, 64) == "step", "no tensor cores in float64 kernels"
    assert best("gru", "bfloat16", 1, 1, 512) == "single", "one launch instead of three"
    assert best("gru", "bfloat16", 1, 4096, 512) == "step", "tiles would read the weights too often"
    assert best("gru", "bfloat16", 1, 1, 512, backward=True) == "step", "nothing to launch twice"
    assert best("lstm", "bfloat16", 100, 64, 8192) == "step", "larger than all kernels"
    assert best("gru", "bfloat16", 100, 4096, 1024) == "step", "the product has work enough"


@pytest.mark.parametrize("cell", [facts["name"] for facts in _C.cells()])
@pytest.mark.parametrize("B", [1, 8, 32, 128])
@pytest.mark.parametrize("backward", [False, True])
def test_small_float32_layers_are_exact_where_tf32_is_allowed(
    cell: str, B: int, backward: bool
) -> None:
    """As cuDNN's are: at H = 32 a kernel with TF32 erred 46 times as much."""
    for H in (1, 32, 63):
        kernels = {
            choice["kernel"] for choice in plan(cell, "float32", 100, B, H, backward=backward)
        }
        assert kernels == {"fma", "step"}


@pytest.mark.parametrize("cell", [facts["name"] for facts in _C.cells()])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", ["auto", *KERNELS])
@pytest.mark.parametrize("backward", [False, True])
def test_rows_that_begin_anew_are_for_kernels_that_know_it(
    cell: str, dtype: str, kernel: str, backward: bool
) -> None:
    know = {"step", "cta", "cluster", "grid"}
    for H in (16, 64, 256, 512):
        options = {"kernel": kernel, "backward": backward, "tf32": False}
        choices = plan(cell, dtype, 100, 8, H, resets=True, **options)
        assert {choice["kernel"] for choice in choices} <= know
        assert choices[-1]["kernel"] == "step"
        others = plan(cell, dtype, 100, 8, H, **options)
        persistent = [c for c in choices if c["kernel"] in ("cta", "cluster")]
        assert persistent == [c for c in others if c["kernel"] in ("cta", "cluster")], "as ever"
        if kernel == "grid":  # those of the grid family take parts of other sizes
            assert all(choice["part"] == 8 for choice in choices[:-1])
    if dtype != "float64":
        best = plan(cell, dtype, 100, 8, 64, resets=True, tf32=False)[0]
        assert best["kernel"] in ("cta", "cluster")
        small = plan(cell, dtype, 100, 8, 32, resets=True, tf32=True)[0]
        assert small["kernel"] in ("cta", "cluster"), "exact, as cuDNN is with so few units"


def test_what_no_gpu_has_measured_is_not_chosen() -> None:
    """An instance in parts of 16 rows; once there is a figure, another one takes its place here."""
    exact = {"tf32": False}
    entries = plan("lstm", "float32", 100, 32, 512, kernel="grid", **exact)
    assert (512, 32, 16) in [(p.get("hidden"), p.get("peers"), p.get("part")) for p in entries]
    assert [p["kernel"] for p in plan("lstm", "float32", 100, 32, 512, **exact)] == ["step"]
    mixed = plan("gru", "float32", 100, 8, 512, kernel="grid", **exact)[:-1]
    assert [p["part"] for p in mixed] == sorted(p["part"] for p in mixed), "measured ones first"


def served(kernel: str) -> tuple[str, str, int, int, int]:
    """A problem that every GPU kernel of that name serves."""
    dtype = "float32" if kernel == "fma" else "bfloat16"
    return ("gru", dtype, 1 if kernel == "single" else 100, 8, 64)


def test_plan_hears_a_wish() -> None:
    for kernel in KERNELS:
        choices = plan(*served(kernel), kernel=kernel)
        assert {c["kernel"] for c in choices} == {kernel, "step"}


def test_plan_hears_a_wish_for_one_entry() -> None:
    for kernel in KERNELS:
        problem = served(kernel)
        *entries, step = plan(*problem, kernel=kernel)
        for number, entry in enumerate(entries):
            assert plan(*problem, kernel=f"{kernel}/{number}") == [entry, step]
        beyond = len(entries)
        assert plan(*problem, kernel=f"{kernel}/{beyond}") == [step]


@pytest.mark.parametrize("kernel", ["step/", "step/x", "step/-1", "step/1x", "/1", "warp/1", ""])
def test_plan_refuses_a_wish_that_is_none(kernel: str) -> None:
    with pytest.raises(ValueError, match="unknown kernel"):
        plan("gru", "bfloat16", 100, 8, 64, kernel=kernel)


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (("gru", "float32", 0, 1, 1), "sizes must be positive"),
        (("gru", "float32", 1, 1, 0), "sizes must be positive"),
        (("gru", "int8", 1, 1, 1), "no kernels for dtype 'int8'"),
        (("qrnn", "float32", 1, 1, 1), "unknown cell 'qrnn'"),
    ],
)
def test_plan_refuses_nonsense(problem: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        plan(*problem)
    with pytest.raises(ValueError, match="unknown kernel 'warp'"):
        plan("gru", "float32", 1, 1, 1, kernel="warp")


# ---- beside what was measured ----

FACTS = {"compute_capability": "9.0", "multiprocessors": 132, "shared_bytes": 227 << 10}


def tuned_rows(times: dict[str, float], **options: Any) -> dict[str, Any]:
    """What benchmarks.tune would write of one layer, had the kernels taken these times."""
    rows = []
    for name, microseconds in times.items():
        first, *_ = plan("gru", "bfloat16", 100, 32, 256, kernel=name)
        rows.append(
            {"layer": "gru bfloat16 B32 H256", "cell": "gru", "precision": "bfloat16", "T": 100}
            | {"B": 32, "H": 256, "pass": "inference", "entry": f"{name}/0", "plan": first}
            | {"right": True, "refused": False, "call_us": 1.0, "step_us": microseconds}
            | options
        )
    return {"format": 1, "environment": FACTS, "rows": rows}


def test_a_choice_that_took_longer_than_another_shows() -> None:
    chosen = plan("gru", "bfloat16", 100, 32, 256)[0]["kernel"]
    other = next(name for name in ("step", "grid", "cluster") if name != chosen)
    assert list(tuned.dearer_choices(tuned_rows({chosen: 109, other: 100}))) == []
    (line,) = tuned.dearer_choices(tuned_rows({chosen: 111, other: 100}))
    assert f"{chosen}/0 instead of {other}/0, 111.00 us a step against 100.00" in line
    (line,) = tuned.dearer_choices(tuned_rows({other: 100}))
    assert "was not measured" in line


def test_wrong_values_win_nothing() -> None:
    assert list(tuned.dearer_choices(tuned_rows({"step": 1}, right=False))) == []
    assert tuned.measured(tuned_rows({"grid": 1}, refused=True)) == {}


def test_the_next_choice_counts_where_the_device_refuses_the_first() -> None:
    first, second, *_ = plan("gru", "bfloat16", 100, 32, 256)
    data = tuned_rows({first["kernel"]: 1, "step": 10})
    data["rows"][0]["refused"] = True
    data["rows"].append(data["rows"][1] | {"plan": second, "entry": "second", "step_us": 12})
    (line,) = tuned.dearer_choices(data)
    assert "second instead of step/0" in line


def test_every_variant_is_in_the_table() -> None:
    lines = tuned.table(tuned_rows({"step": 100, "cluster": 50})).splitlines()
    assert [line.split(" | ")[2] for line in lines[2:]] == ["cluster/0", "step/0"]


@pytest.mark.parametrize("path", sorted(tuned.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_plan_names_no_kernel_that_was_slower_than_another(path: Path) -> None:
    assert list(tuned.dearer_choices(tuned.load(path))) == []
