"""The developers' tools, as far as they run without a GPU.

Contract: a spill in a time loop and a warning fail `cuda_compile`; `gpu_check` ends what takes too
long and reports it; results of several precisions come apart into tables of one.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from waiting import until

from rnnfast import _C

# The repository's root, last: an installed rnnfast must win over the source folder beside this one.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import cuda, gpu_report, problems, report, results, tune
from benchmarks.micro.__main__ import cells, measure
from benchmarks.problems import Problem
from benchmarks.resumed import Run
from benchmarks.table import plain
from benchmarks.timing import Pair
from tools import cuda_compile, gpu_check, gpu_pack

ROOT = Path(__file__).parents[1]

PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7rnnfast18persistent_forwardEv' for 'sm_90'
ptxas info    : Function properties for _ZN7rnnfast18persistent_forwardEv
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 16 bytes stack, 2048 bytes smem
ptxas info    : Compiling entry function '_ZN7rnnfast4stepEv' for 'sm_90'
ptxas info    : Function properties for _ZN7rnnfast4stepEv
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 4096 bytes smem
"""
LOOP, STEP = "_ZN7rnnfast18persistent_forwardEv", "_ZN7rnnfast4stepEv"


def test_what_ptxas_says_is_read() -> None:
    loop, step = cuda_compile.parse_usage(PTXAS, "90")
    assert loop == cuda_compile.Usage(LOOP, "90", registers=128, spilled=20, shared=2048)
    assert step == cuda_compile.Usage(STEP, "90", registers=40, spilled=4, shared=4096)


def test_spills_and_shared_memory_count_in_time_loops_alone() -> None:
    usages = tuple(cuda_compile.parse_usage(PTXAS, "90"))
    compilations = [
        cuda_compile.Compilation(Path("a.cu"), "90", usages, ""),
        cuda_compile.Compilation(Path("b.cu"), "80", (), "error: warning as error"),
    ]
    names = {LOOP: "persistent_forward", STEP: "step"}
    spill, shared, error = cuda_compile.complaints(compilations, names, cuda_compile.HOT, {})
    assert spill == "a.cu for sm_90: persistent_forward spills 20 bytes"
    assert "persistent_forward has 2048 bytes of static shared memory" in shared
    assert "b.cu for sm_80 does not compile" in error
    assert "warning as error" in error
    too_large = {"persistent_forward": 227 * 1024 + 1}  # for any block: it never runs
    assert cuda_compile.complaints(compilations, names, cuda_compile.HOT, too_large) == [error]
    rows = cuda_compile.rows(usages, names, ["80", "90"], {"persistent_forward": 7})
    assert rows == [
        ["persistent_forward", "7", "-", "128 20 2048"],
        ["step", "0", "-", "40 4 4096"],
    ]


def test_dynamic_shared_memory_is_that_of_the_layouts() -> None:
    small, large = (f"persistent_forward<Shape<Gru, Bf16Operand, {i}>>" for i in (0, 2))
    grid = "grid_forward<GridShape<Gru, Bf16Operand, 0>>"
    found = cuda_compile.dynamic_shared(["step_forward<Gru, float>", small, large, grid])
    assert found.keys() == {small, large, grid}
    assert 0 < found[small] < found[large] < found[grid] <= 227 * 1024


@pytest.mark.parametrize(
    "kernel",
    [
        "grid_backward<GridShape<Lstm, HalfOperand, 3>>",
        "fma_forward<FmaShape<Gru, 1>, true, false>",
        "small_forward<SmallShape<Gru, HalfOperand, 0>, true, true>",
        "single_step<SingleShape<Gru>>",
    ],
)
def test_every_time_loop_may_not_spill(kernel: str) -> None:
    usage = cuda_compile.Usage("mangled", "90", registers=255, spilled=8, shared=0)
    compilation = cuda_compile.Compilation(Path("a.cu"), "90", (usage,), "")
    (spill,) = cuda_compile.complaints([compilation], {"mangled": kernel}, cuda_compile.HOT, {})
    assert spill == f"a.cu for sm_90: {kernel} spills 8 bytes"


def test_a_warning_of_nvcc_is_an_error(tmp_path: Path) -> None:
    nvcc = cuda_compile.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    source = tmp_path / "unused.cu"
    source.write_text("__global__ void kernel() { int unused; }")
    assert "never referenced" in cuda_compile.compile_source(nvcc, source, "90").error
    source.write_text("__global__ void kernel(float* p) { *p = 1.f; }")
    done = cuda_compile.compile_source(nvcc, source, "90")
    assert [usage.kernel for usage in done.usages] == ["_Z6kernelPf"]


def test_without_nvcc_the_tool_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_compile, "find_nvcc", lambda: None)
    assert cuda_compile.main([]) == 1
    assert "nvcc is not found" in capsys.readouterr().out


def test_a_plain_table_aligns_figures_right() -> None:
    text = plain("title", ["kernel", "ns"], [["a", "1.5"], ["longer", "12"]])
    assert text == "title\nkernel   ns\na       1.5\nlonger   12"


# ---- gpu_check ----


def running(tmp_path: Path, script: str) -> gpu_check.Outcome:
    stage = gpu_check.Stage("stage", [sys.executable, "-c", script], 600, keep="kept")
    return gpu_check.Running(stage, 600, tmp_path / "stage.txt").wait()


def test_a_stage_reports_how_it_ended(tmp_path: Path) -> None:
    assert running(tmp_path, "print('kept')").ok
    failed = running(tmp_path, "print('reason'); raise SystemExit(3)")
    assert failed.status == "FAILED with exit status 3"
    assert "reason" in gpu_check.summary([failed])
    missing = gpu_check.Stage("stage", [str(tmp_path / "no program")], 60)
    assert "left out" in gpu_check.Running(missing, 60, tmp_path / "stage.txt").wait().status


def test_a_stage_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(3600)"
    )
    stage = gpu_check.Stage("stage", [sys.executable, "-c", script], 600)
    running = gpu_check.Running(stage, 600, tmp_path / "stage.txt")
    assert until(lambda: running.output.read_text().endswith("\n"))
    running.seconds = 0  # its time is up
    outcome = running.wait()
    assert outcome.status.startswith("STOPPED after")
    child = Path(f"/proc/{outcome.output.strip()}/stat")
    assert until(lambda: not child.exists() or child.read_text().split()[2] == "Z")


def test_the_summary_ends_with_how_the_stages_ended(tmp_path: Path) -> None:
    outcome = running(tmp_path, "print('kept'); print('left out')")
    lines = gpu_check.summary([outcome]).splitlines()
    assert lines[1] == "kept"
    assert lines[-1].startswith("stage: ok, ")
    assert "left out" not in lines


def test_without_a_gpu_only_a_rehearsal_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_smi", lambda query: "")
    assert gpu_check.main([]) == 1
    assert "--dry" in capsys.readouterr().out


def test_a_pack_is_used_where_it_is_there(tmp_path: Path) -> None:
    package = tmp_path / "pack" / "tools"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "gpu_check.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:])")
    environment = {**os.environ, "PACK": str(package.parent), "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "tools" / "gpu-check.sh"), "correct"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(package.parent), "['correct']"]


def test_a_pack_is_not_begun_with_a_torch_without_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    earlier = tmp_path / "earlier"
    earlier.touch()
    assert gpu_pack.main(["--pack", str(tmp_path)]) == 1
    assert "built without CUDA: set TORCH" in capsys.readouterr().out
    assert earlier.exists()


def test_a_pack_holds_all_but_results_and_knows_its_commit(tmp_path: Path) -> None:
    package = tmp_path / "rnnfast"
    package.mkdir()
    library, removed = package / "_cuda.so", package / "removed.py"
    library.touch()
    removed.touch()
    gpu_pack.empty(tmp_path)
    gpu_pack.sources(tmp_path)
    assert library.exists()
    assert not removed.exists()
    assert (tmp_path / "commit").read_text().strip() == results.git_commit()
    (facts,) = tmp_path.glob("rnnfast-*.dist-info/METADATA")
    assert "Name: rnnfast\n" in facts.read_text()
    for path in ("tests/gpu/on_gpu.py", "tools/gpu_check.py", "csrc/library.cpp", "rnnfast/ops.py"):
        assert (tmp_path / path).read_text() == (ROOT / path).read_text()
    assert not (tmp_path / "benchmarks" / "results").exists()


def test_kernels_for_another_torch_are_built_again(tmp_path: Path) -> None:
    assert not gpu_check.built_for_this_torch(tmp_path)
    (tmp_path / "_cuda.so").touch()
    for version, right in ((torch.__version__, True), ("1.13.1", False)):
        (tmp_path / "_build.py").write_text(f'TORCH = "{version}"')
        assert gpu_check.built_for_this_torch(tmp_path) == right


# ---- benchmarks on a GPU ----


def test_micro_keeps_the_rows_before_a_failure(tmp_path: Path) -> None:
    program = tmp_path / "micro"
    program.write_text(
        '#!/bin/sh\necho \'{"group": "grid", "name": "a", "cycles": 2, "ns": 1}\'\nexit 7\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    first, last = measure(program, "grid")
    assert cells(first) == ["a", "2", "1", ""]
    assert last["error"] == "exit status 7"


def test_the_most_important_is_timed_first() -> None:
    chosen = cuda.default_problems()
    assert {p.name for p in chosen} == {p.name for p in problems.ALL + problems.GPU}
    order = cuda.jobs(chosen, ["rnn_tanh", "gru"], list(cuda.PRECISIONS.values()))
    assert str(order[0]) == "t128b32i256h256 gru bfloat16"
    assert len(order) == len(chosen) * 2 * len(cuda.PRECISIONS)


def test_a_dry_run_writes_every_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, micro = tmp_path / "gpu.json", tmp_path / "micro.json"
    micro.write_text('[{"group": "grid", "name": "a", "ns": 1}]')
    arguments = ["--device", "cpu", "--quick", "--cells", "gru", "--output", str(path)]
    assert cuda.main([*arguments, "--micro", str(micro)]) == 0
    record = results.read(path)
    assert record.micro == ({"group": "grid", "name": "a", "ns": 1},)
    assert {m.precision for m in record.measurements} == set(cuda.PRECISIONS)
    parts = report.load(path)
    assert [name for name, _ in parts] == [
        f"gpu-{name.replace(' ', '-')}" for name in sorted(cuda.PRECISIONS)
    ]
    assert all(part.environment["dtype"] in cuda.PRECISIONS for _, part in parts)
    printed = capsys.readouterr().out
    assert "| 20, 3, 5, 6 | GRU |" in printed
    assert "| inference, eager: float32, TF32 everywhere | 1 |" in printed


def test_graphs_are_a_table_of_their_own() -> None:
    pair = cuda.interleave(lambda: None, lambda: None, cuda.BUDGET, stopwatch=lambda _, calls: 1e-3)
    problem, errors = Problem(4, 3, 2, 5, "test"), cuda.Errors(0.0, 0.0)
    measured = [
        results.Measurement(problem, "gru", "inference", pair, errors, "", "tf32", graph)
        for graph in (False, True)
    ]
    facts = {"dtype": "several", "gpu": "NVIDIA H100", "cpu": "x", "candidate": "rnnfast"}
    parts = results.Record(facts, tuple(measured)).parts()
    assert [part.environment["dtype"] for part in parts] == ["tf32", "tf32, CUDA graph"]
    assert results.default_name(facts, quick=False) == "nvidia-h100.json"


def measured(cell: str, precision: str, theirs: float, ours: float) -> results.Measurement:
    problem = Problem(100, 32, 64, 64, "test")
    pair = Pair((theirs / 1e4,), (ours / 1e4,))  # of a hundred steps: so many us a step
    return results.Measurement(problem, cell, "inference", pair, None, "", precision, True)


def gpu_record() -> results.Record:
    facts = {"gpu": "NVIDIA H100", "torch": "2.11.0", "commit": "abc"}
    rows = [("bfloat16", 4.0, 2.0), ("float16", 1.0, 2.0), ("float32", 3.0, 2.0)]
    return results.Record(facts, tuple(measured("gru", *row) for row in rows))


def test_where_cudnn_is_ahead_stands_beside_where_it_is_not() -> None:
    record = gpu_record()
    lines = gpu_report.summary(record).splitlines()
    assert "| inference, CUDA graph: bfloat16 | 1 | 2.00 | 0 |" in lines[2]
    assert "| inference, CUDA graph: float16 | 1 | 0.50 | 1 | 0.50: GRU B32 H64 |" in lines[3]
    assert f"| inference, CUDA graph: {gpu_report.SIXTEEN} | 1 | 0.50 | 1 |" in lines[-1]
    table = gpu_report.steps_table(record, True, "inference")
    assert "| 4.00 → 2.00 2.00x | 1.00 → 2.00 **0.50x** | 3.00 → 2.00 1.50x |" in table


def test_rows_are_told_apart_by_what_differs() -> None:
    alike = [Problem(100, B, 64, 64, "test") for B in (1, 32)]
    assert gpu_report.row_labels(alike) == ("T = 100, I = H", ["B 1, H 64", "B 32, H 64"])
    other = Problem(100, 1, 64, 64, "test", layers=2)
    common, labels = gpu_report.row_labels([*alike, other])
    assert common == "T, B, I, H"
    assert labels[-1] == "100, 1, 64, 64 (2 layers)"


def test_the_plot_of_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    gpu_report.plot(gpu_record(), tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks/results").glob("nvidia*.json")), ids=str
)
def test_the_figures_of_a_gpu_are_those_of_its_file(path: Path) -> None:
    record = results.read(path)
    assert gpu_report.summary(record) in (ROOT / "docs/figures.md").read_text()
    assert gpu_report.tables(record) in path.with_suffix(".md").read_text()
    assert {"commit", "gpu", "driver", "torch", "cudnn"} <= record.environment.keys()


def test_a_time_alone_is_a_measurement_too(tmp_path: Path) -> None:
    results.write(gpu_record(), tmp_path / "gpu.json")
    assert results.read(tmp_path / "gpu.json") == gpu_record()


def test_layers_of_users_and_of_the_grid_are_there_once() -> None:
    for found in (cuda.grid_jobs(), cuda.user_jobs()):
        assert len(set(map(str, found))) == len(found)
    names = {str(job) for job in cuda.grid_jobs()}
    assert {"t100b16i768h768 lstm float16", "t100b32i64h64 gru float32 exact"} <= names


def test_every_entry_of_a_plan_is_tried() -> None:
    layer = tune.Layer("gru", "bfloat16", 32, 256)
    found = list(tune.entries(layer, _C.cuda_kernels(), tune.H200))
    assert len({(entry.name, entry.pass_name) for entry in found}) == len(found)
    for name in tune.PASSES:
        chosen = [entry for entry in found if entry.pass_name == name]
        assert [entry.name for entry in chosen if entry.plan["kernel"] == "step"] == ["step"]
        for entry in chosen:
            (first, *_) = _C.cuda_plan(
                *("gru", "bfloat16", tune.STEPS, 32, 256),
                **{"directions": 1, "backward": name == "backward", "tf32": False, **tune.H200},
                kernel=entry.name,
            )
            assert first == entry.plan


def test_a_step_is_the_longest_kernel_or_what_runs_in_every_step() -> None:
    product = [("gemm", 50.0), ("rnnfast::pack", 3.0)]
    whole = [*product, ("rnnfast::cta", 200.0)]
    stepwise = [*product, *[("gemm small", 4.0), ("rnnfast::step", 2.0)] * 100]
    marker = ("spin_kernel", 1.0)
    parts = tune.split([("before", 9.0), marker, *whole, marker, *stepwise])
    assert [tune.step_microseconds(part, 100) for part in parts] == [2.0, 6.0]
    assert tune.step_microseconds(whole, 1) == 253.0


def test_a_run_goes_on_behind_what_broke_the_device(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    run = Run(path, {}, resumed=False)
    one, two = tune.Layer("gru", "bfloat16", 1, 32), tune.Layer("gru", "bfloat16", 8, 32)
    run.add(str(one), [{"pass": "inference", "entry": "step"}])
    run.data["rows"].append(
        {"layer": str(two), "broken": True, "pass": "backward", "entry": "cta/0"}
    )
    path.write_text(json.dumps(run.data))
    again = Run(path, {}, resumed=True)
    assert again.done == {str(one)}
    assert again.broke == {(str(two), "backward", "cta/0")}


def test_a_stopwatch_replaces_the_clock() -> None:
    calls: list[int] = []

    def stopwatch(function: object, count: int) -> float:
        calls.append(count)
        return 0.5

    pair = cuda.interleave(lambda: None, lambda: None, cuda.BUDGET, stopwatch=stopwatch)
    assert set(pair.baseline) == {0.5}
    assert set(calls) == {1}
