"""Programs of test_forks.py: ``python forking.py NAME`` runs one of them in a process of its own.

They fork after threaded work, in every way that people do, and hold the children's numbers to the
parent's. A child that waits for threads that are not there spins, and is killed by its limit.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import rnnfast

CPU_SECONDS = 120  # of one process: what one uses, however many others there are
WALL_SECONDS = 300
FORK = multiprocessing.get_context("fork")


def layer(name: str, *sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(rnnfast, name)(*sizes, dtype=dtype, **options)


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


# Layer and input: too small for threads, and large enough for them, split in every way.
CALLS: dict[str, tuple[nn.Module, Any]] = {
    "tiny": (layer("GRU", 4, 5), drawn(3, 1, 4)),
    "small": (layer("LSTM", 64, 64), drawn(20, 1, 64)),
    "one step": (layer("GRU", 256, 512), drawn(1, 64, 256)),
    "by its batch": (layer("RNN", 64, 512), drawn(8, 128, 64)),
    "by its units": (layer("LSTM", 64, 512), drawn(30, 2, 64)),
    "by its directions": (layer("GRU", 64, 256, bidirectional=True), drawn(20, 8, 64)),
    "packed": (
        layer("GRU", 64, 256, 2),
        pack_sequence([drawn(n, 64) for n in (3, 25, 9, 25)], enforce_sorted=False),
    ),
    "bfloat16": (
        layer("LSTM", 64, 256, dtype=torch.bfloat16),
        drawn(20, 16, 64, dtype=torch.bfloat16),
    ),
    "frozen": (rnnfast.freeze(layer("RNN", 64, 512)), drawn(20, 16, 64)),
}


def answers(name: str) -> list[Tensor]:
    """Inference, then training: output and gradients."""
    module, x = CALLS[name]

    def output() -> Tensor:
        result = module(x)[0]
        return result.data if isinstance(result, PackedSequence) else result

    with torch.no_grad():
        inferred = output()
    trained = output()
    gradients = torch.autograd.grad(trained.float().square().sum(), list(module.parameters()))
    return [inferred, trained.detach(), *gradients]


EXPECTED: dict[str, list[Tensor]] = {}


def is_right(name: str) -> bool:
    """No bit of a result depends on how many threads there are."""
    got = answers(name)
    return all(torch.equal(a, b) for a, b in zip(got, EXPECTED[name], strict=True))


def warm_up(pause: float = 0.3) -> None:
    """Threads at work, torch's and ours; then so long a pause that their distance is old news."""
    EXPECTED.update((name, answers(name)) for name in CALLS)
    torch.sigmoid(torch.randn(1 << 21))
    time.sleep(pause)


def in_child(work: Callable[[], bool]) -> None:
    """Forks, and waits for what the child makes of it."""
    pid = os.fork()
    if pid == 0:
        right = False
        try:
            right = work()
        finally:
            os._exit(0 if right else 1)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"


def all_are_right() -> bool:
    verdicts = [is_right(name) for name in CALLS]
    return all(verdicts)


def helpers() -> int:
    """Threads of this process beside Python's own."""
    return len(os.listdir("/proc/self/task")) - threading.active_count()


def tiny_a_second_later() -> None:
    torch.sigmoid(torch.randn(1 << 21))
    time.sleep(1)
    module, x = CALLS["tiny"]
    in_child(lambda: bool(module(x)[0].isfinite().all()))


def fork() -> None:
    warm_up()
    in_child(all_are_right)


def pool() -> None:
    warm_up()
    with FORK.Pool(2) as workers:
        assert all(workers.map_async(is_right, CALLS).get(WALL_SECONDS))


def executor() -> None:
    warm_up()
    with ProcessPoolExecutor(2, mp_context=FORK) as workers:
        assert all(workers.map(is_right, CALLS))


class Answers(torch.utils.data.Dataset[bool]):
    def __getitem__(self, index: int) -> bool:
        return is_right(list(CALLS)[index])

    def __len__(self) -> int:
        return len(CALLS)


def data_loader() -> None:
    warm_up()
    loader = torch.utils.data.DataLoader(
        Answers(), num_workers=2, multiprocessing_context=FORK, timeout=WALL_SECONDS
    )
    assert all(bool(right) for right in loader)


def grandchild() -> None:
    def child() -> bool:
        assert all_are_right()
        time.sleep(0.3)
        in_child(all_are_right)
        return all_are_right()

    warm_up()
    in_child(child)


def other_thread() -> None:
    """A server's worker thread did the work, and forks."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            warm_up()
            in_child(all_are_right)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures, failures


def torchs_own() -> None:
    """What torch does in threads ends in the child, too."""
    warm_up()
    x = torch.randn(1 << 21)
    expected = torch.sigmoid(x)
    in_child(lambda: torch.equal(torch.sigmoid(x), expected) and is_right("by its batch"))


def parent_goes_on() -> None:
    warm_up()
    in_child(lambda: True)
    before = helpers()
    assert all_are_right()
    torch.sigmoid(torch.randn(1 << 21))
    assert helpers() > before


def child_has_threads() -> None:
    def child() -> bool:
        all_are_right()
        torch.sigmoid(torch.randn(1 << 21))
        return helpers() > 0

    warm_up()
    in_child(child)


def while_others_work() -> None:
    """Locks that another thread holds at the moment of the fork are free in the child."""
    many = [torch.nn.Parameter(torch.zeros(1)) for _ in range(5_000)]
    for weight in many:  # each entry takes its time while the lock is held
        torch.ops.rnnfast.set_frozen(weight, True)
    module, x = CALLS["frozen"]
    expected = module(x)[0].detach()
    stop = threading.Event()

    def freeze() -> None:
        while not stop.is_set():
            torch.ops.rnnfast.set_frozen(many[0], True)

    def call() -> None:
        while not stop.is_set():
            module(x)

    def child() -> bool:
        rnnfast.unfreeze(module)
        thawed = module(x)[0]
        rnnfast.freeze(module)
        return torch.equal(thawed, expected) and torch.equal(module(x)[0], expected)

    others = [threading.Thread(target=work, daemon=True) for work in (freeze, call)]
    for other in others:
        other.start()
    try:
        for _ in range(10):
            in_child(child)
    finally:
        stop.set()
    for other in others:
        other.join()


def frozen_weights_change_apart() -> None:
    """After a fork each process sees the changes of its own."""
    module, x = CALLS["frozen"]
    expected = module(x)[0].detach()

    def child() -> bool:
        with torch.no_grad():
            module.weight_hh_l0.zero_()
        changed = module(x)[0]
        rnnfast.unfreeze(module)
        return torch.equal(module(x)[0], changed) and not torch.equal(changed, expected)

    in_child(child)
    assert torch.equal(module(x)[0], expected)


def twelve_threads() -> None:
    """Twelve threads of Python with a tiny layer each start no thread beside them."""
    module, x = CALLS["tiny"]
    module(x)[0].sum().backward()
    before, crowd = helpers(), 12
    met, left = threading.Barrier(crowd + 1), threading.Barrier(crowd + 1)

    def work() -> None:
        for _ in range(8):  # asked for at most ten times a second
            for _ in range(20):
                module(x)[0].sum().backward()
            time.sleep(0.11)
        met.wait()
        left.wait()

    threads = [threading.Thread(target=work) for _ in range(crowd)]
    for thread in threads:
        thread.start()
    met.wait()
    found = helpers()
    left.wait()
    for thread in threads:
        thread.join()
    assert found == before, f"{found - before} threads were started"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(2)
    globals()[sys.argv[1]]()
