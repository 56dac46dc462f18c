"""What every CUDA kernel that can run a layer takes for a time step: what cost.h is made from.

    python -m benchmarks.tune                          TUNED, every entry of every kernel's plan
    python -m benchmarks.tune --kernels cluster step   of some kernels
    python -m benchmarks.tune --dry                    lists what would run; needs no GPU

Each entry of the plan is forced by RNNFAST_CUDA_KERNEL, compared with torch.nn in float64, and
measured three times: forward in inference, forward in training, backward. A row holds the
microseconds a step of its kernel alone, from the profiler, those of the whole call as a replayed
graph, and its launches. The result is rewritten after every layer; a kernel that breaks the device
or hangs is written down, and the rest goes on in a new process.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rnnfast
from benchmarks import results
from benchmarks.cuda import PRECISIONS, events, set_switches, spin_up
from benchmarks.problems import Problem
from benchmarks.resumed import Run
from benchmarks.workloads import CELLS, make_layer, relative_error
from rnnfast import _C

PASSES = ("inference", "training", "backward")
KERNEL = "RNNFAST_CUDA_KERNEL"
REPEATS, REPLAYS = 3, 5
STEPS = 100
HIDDEN = (32, 64, 128, 256, 384, 512, 768, 1024, 2048)
BATCHES = (32, 1, 128)

H200 = {"arch": 90, "processors": 132, "shared_bytes": 227 << 10, "max_cluster": 16}
"""For --dry."""


@dataclass(frozen=True)
class Layer:
    cell: str
    precision: str
    B: int
    H: int
    T: int = STEPS

    def __str__(self) -> str:
        return f"{self.cell} {self.precision} T{self.T} B{self.B} H{self.H}"


@dataclass(frozen=True)
class Entry:
    """One entry of a kernel's plan, in one pass. plan: as rnnfast._C.cuda_plan gives it."""

    name: str
    pass_name: str
    plan: dict[str, Any]


def layers() -> Iterator[Layer]:
    """The most telling first."""
    kinds = [(c, p) for p in ("bfloat16", "float32", "float32 exact") for c in CELLS]
    for B, H in ((1024, 256), (1024, 512), (512, 512), (1024, 128)):
        yield from (Layer(cell, "bfloat16", B, H) for cell in ("gru", "lstm", "rnn_tanh"))
    for B in BATCHES:
        for H in HIDDEN:
            # One cell of each number of gates, in each way to multiply.
            yield from (Layer(c, p, B, H) for c, p in kinds if c != "rnn_relu")
        if BATCHES[0] == B:
            yield from one_step()


def one_step() -> Iterator[Layer]:
    for cell in ("gru", "lstm"):
        for B, H in ((1, 512), (1, 1024), (8, 512), (1, 256), (32, 512)):
            yield Layer(cell, "bfloat16", B, H, T=1)
        yield Layer(cell, "float32", 1, 512, T=1)


def device_facts() -> dict[str, int]:
    if not torch.cuda.is_available():
        return H200
    gpu = torch.cuda.get_device_properties(0)
    return {
        "arch": 10 * gpu.major + gpu.minor,
        "processors": gpu.multi_processor_count,
        "shared_bytes": gpu.shared_memory_per_block_optin,
        "max_cluster": 16 if gpu.major >= 9 else 1,
    }


def entries(layer: Layer, kernels: Sequence[str], device: dict[str, int]) -> Iterator[Entry]:
    """All that can run the layer, pass by pass, but those for much larger layers."""
    precision = PRECISIONS[layer.precision]
    dtype = str(precision.dtype).removeprefix("torch.")
    for pass_name in PASSES:
        for kernel in kernels:
            plans = _C.cuda_plan(
                layer.cell,
                dtype,
                layer.T,
                layer.B,
                layer.H,
                directions=1,
                backward=pass_name == "backward",
                tf32=precision.cudnn_tf32,
                kernel=kernel,
                **device,
            )
            for number, plan in enumerate(plans):
                if plan["kernel"] == kernel and plan.get("hidden", 0) <= max(64, 2 * layer.H):
                    name = kernel if kernel == "step" else f"{kernel}/{number}"
                    yield Entry(name, pass_name, dict(plan))


@dataclass(frozen=True)
class Made:
    """A layer on the device, with the truth of its passes, and what cuDNN makes of them."""

    layer: nn.Module
    x: Tensor
    grad_output: Tensor
    truth: list[Tensor]
    theirs: list[Tensor]

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.layer.parameters())


def values(layer: nn.Module, x: Tensor, grad_output: Tensor) -> list[Tensor]:
    """The output and the gradients of the parameters."""
    output = layer(x)[0]
    return [output.detach(), *torch.autograd.grad(output, list(layer.parameters()), grad_output)]


def make(layer: Layer) -> Made:
    precision = PRECISIONS[layer.precision]
    set_switches(precision)
    torch.manual_seed(0)
    problem = Problem(layer.T, layer.B, layer.H, layer.H, "tuning")
    base = make_layer(nn, layer.cell, problem, precision.dtype, "cuda")
    sizes = (layer.T, layer.B, layer.H)
    x, grad = (torch.randn(sizes, dtype=precision.dtype, device="cuda") for _ in range(2))
    truth = values(copy.deepcopy(base).double(), x.double(), grad.double())
    theirs = values(base, x, grad)
    return Made(rnnfast.convert(copy.deepcopy(base)), x, grad, truth, theirs)


def calls(made: Made, entry: Entry) -> Callable[[], object]:
    """The pass alone, by this entry. The forward pass before `backward` is the plan's own."""

    def inference() -> object:
        with torch.inference_mode():
            return made.layer(made.x)

    def training() -> object:
        return made.layer(made.x)

    if entry.pass_name != "backward":
        os.environ[KERNEL] = entry.name
        return inference if entry.pass_name == "inference" else training
    os.environ[KERNEL] = "auto"
    output = made.layer(made.x)[0]
    os.environ[KERNEL] = entry.name
    return lambda: torch.autograd.grad(output, made.parameters, made.grad_output, retain_graph=True)


def check(made: Made, entry: Entry, result: Any) -> tuple[float, float, bool]:
    """Our error, cuDNN's, and whether ours is no more than rounding."""
    backward = entry.pass_name == "backward"
    ours = list(result) if backward else [result[0].detach()]
    chosen = slice(1, None) if backward else slice(0, 1)
    pairs = list(zip(ours, made.theirs[chosen], made.truth[chosen], strict=True))
    own = max(relative_error(ours, exact) for ours, _, exact in pairs)
    peer = max(relative_error(theirs, exact) for _, theirs, exact in pairs)
    return own, peer, own <= 3 * peer + 8 * torch.finfo(made.x.dtype).eps


@dataclass(frozen=True)
class Timed:
    """A row, and the call that it is of."""

    row: dict[str, Any]
    entry: Entry
    call: Callable[[], object]

    @property
    def is_step(self) -> bool:
        return self.entry.name == "step"


def graph_of(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """On the current stream; without the collection of garbage of `torch.cuda.graph`."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    graph.capture_begin()
    try:
        call()
    finally:
        graph.capture_end()
    return graph


def measure(layer: Layer, chosen: Sequence[Entry], begin: Callable[[Entry], None]) -> list[Any]:
    """A row for each entry. `begin` is told before the device is asked for anything."""
    made, rows, timed = make(layer), [], []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for entry in chosen:
            begin(entry)
            row = {**asdict(layer), "pass": entry.pass_name, "entry": entry.name}
            row |= {"plan": entry.plan}
            try:
                call = calls(made, entry)
                own, peer, right = check(made, entry, call())
                row |= {"error": own, "error_cudnn": peer, "right": right}
                graph = graph_of(call)
                replays = REPLAYS if layer.T > 1 else 10 * REPLAYS
                times = sorted(events(graph.replay, replays) for _ in range(REPEATS))
                row["call_us"] = round(times[REPEATS // 2] * 1e6, 2)
                timed.append(Timed(row, entry, call))
            except RuntimeError as error:
                row["failed"] = str(error).splitlines()[0][:200]
                if "CUDA error" in str(error):
                    raise
            rows.append(row)
        profile(timed)
    os.environ[KERNEL] = "auto"
    return rows


def profile(timed: Sequence[Timed]) -> None:
    """Adds to each row what its kernels take: one session for all, split by a marker."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for one in timed:
            os.environ[KERNEL] = one.entry.name
            torch.cuda._sleep(1000)
            one.call()
        torch.cuda.synchronize()
    found = sorted(
        (event.time_range.start, event.name, event.device_time_total)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    parts = split([(name, microseconds) for _, name, microseconds in found])
    if len(parts) != len(timed):
        print(f"the profiler saw {len(parts)} of {len(timed)} runs")
        return
    ran = [sorted(name for name, _ in part) for part in parts]
    stepwise = {one.entry.pass_name: n for one, n in zip(timed, ran, strict=True) if one.is_step}
    for one, part, names in zip(timed, parts, ran, strict=True):
        one.row["step_us"] = step_microseconds(part, one.row["T"])
        one.row["launches"] = len(part)
        one.row["kernels_us"] = top(part)
        # By the device, at the launch: `step` took over.
        one.row["refused"] = not one.is_step and names == stepwise.get(one.entry.pass_name)


def split(kernels: Sequence[tuple[str, float]]) -> list[list[tuple[str, float]]]:
    """What ran after each marker."""
    parts: list[list[tuple[str, float]]] = []
    for name, microseconds in kernels:
        if "spin_kernel" in name:
            parts.append([])
        elif parts:
            parts[-1].append((name, microseconds))
    return parts


def step_microseconds(kernels: Sequence[tuple[str, float]], T: int) -> float:
    """Of what runs in every step, or of the kernel of ours that takes the longest; of a sequence of
    one step, of everything.
    """
    if T == 1:
        return round(sum(microseconds for _, microseconds in kernels), 4)
    totals: dict[str, tuple[int, float]] = {}
    for name, microseconds in kernels:
        count, total = totals.get(name, (0, 0.0))
        totals[name] = (count + 1, total + microseconds)
    stepwise = sum(total for count, total in totals.values() if count >= T - 1)
    longest = max((t for name, (_, t) in totals.items() if "rnnfast" in name), default=0.0)
    return round((stepwise or longest) / T, 4)


def top(kernels: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The longest, by name, for who wonders what a call consists of."""
    totals: dict[str, float] = {}
    for name, microseconds in kernels:
        totals[name[:60]] = totals.get(name[:60], 0.0) + microseconds
    return [(n, round(t, 1)) for n, t in sorted(totals.items(), key=lambda item: -item[1])[:5]]


def line(rows: Sequence[dict[str, Any]]) -> str:
    """The best of each pass, and what is wrong."""
    parts = []
    for pass_name in PASSES:
        timed = [r for r in rows if r["pass"] == pass_name and not r.get("refused", True)]
        ranked = sorted(timed, key=lambda row: row["call_us"])
        said = ", ".join(f"{r['entry']} {r['step_us']:.2f}" for r in ranked[:4])
        parts.append(f"{pass_name} {said}")
    wrong = [f"WRONG {r['entry']} {r['error']:.1e}" for r in rows if not r.get("right", True)]
    failed = [f"FAILED {r['entry']} {r['failed']}" for r in rows if "failed" in r]
    return "; ".join([*parts, *wrong, *failed])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = _C.cuda_kernels()
    parser.add_argument("--kernels", nargs="+", choices=names, default=names)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--hidden", nargs="+", type=int, help="only these sizes")
    parser.add_argument("--seconds", type=float, default=40, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("tune.json"))
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--resume", action="store_true", help="leave out what the file holds")
    options = parser.parse_args(arguments)
    if not options.dry and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --dry lists what would run")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options, begun = parse(arguments), time.monotonic()
    chosen = [layer for layer in layers() if layer.cell in options.cells]
    chosen = [layer for layer in chosen if not options.hidden or layer.H in options.hidden]
    device = device_facts()
    if options.dry:
        for layer in chosen:
            print(f"{layer}: {' '.join(e.name for e in entries(layer, options.kernels, device))}")
        return 0
    spin_up()
    run = Run(options.output, results.gpu_environment("rnnfast"), options.resume)
    run.watch()
    for layer in chosen:
        if str(layer) in run.done:
            continue
        if time.monotonic() - begun > options.seconds:
            print(f"{layer}: left out, no time")
            continue
        run.begin(str(layer))
        tried = [
            entry
            for entry in entries(layer, options.kernels, device)
            if (str(layer), entry.pass_name, entry.name) not in run.broke
        ]
        try:
            rows = measure(
                layer,
                tried,
                lambda entry, layer=layer: run.begin(str(layer), entry.pass_name, entry.name),
            )
        except RuntimeError as error:
            run.broken(str(error).splitlines()[0][:200])
        run.add(str(layer), rows)
        print(f"{layer}: {line(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
