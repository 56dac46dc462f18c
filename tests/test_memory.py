"""The memory of the ops' results: kept for the next call, within bounds, ordinary tensors to users.

Catches a block that two tensors have at once, one that is never used again or never given back, and
a result that cannot be resized, shared or pickled because of where it lies.
"""

import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rnnfast

KEPT, LENT = 64 << 20, 512 << 20  # of csrc/cpu/memory.h


def layer_and_input(T: int, H: int = 64) -> tuple[rnnfast.GRU, Tensor]:
    """Whose output takes T * 8 KB at H = 64."""
    return rnnfast.GRU(3, H), torch.randn(T, 32, 3)


def test_freed_memory_is_used_again() -> None:
    layer, x = layer_and_input(T=64)
    with torch.no_grad():
        first = layer(x)[0]
        place = first.data_ptr()
        assert layer(x)[0].data_ptr() != place, "the first result is still in use"
        del first
        places = {layer(x)[0].data_ptr() for _ in range(3)}
    assert place in places


def test_what_is_kept_is_bounded(memory_in_use: Callable[[], int]) -> None:
    layer, x = layer_and_input(T=1)
    layer(x)
    before = memory_in_use()
    with torch.no_grad():
        results = [layer(torch.randn(T, 32, 3))[0] for T in range(32, 2400, 128)]
        assert sum(result.nbytes for result in results) > 2 * KEPT
        del results
    assert memory_in_use() - before < KEPT + (8 << 20)


def lent_to_system() -> int:
    """Bytes of this process that the system takes when it needs some."""
    try:
        found = re.search(r"LazyFree:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    except OSError:
        found = None
    if not found:
        pytest.skip("the system does not tell")
    return int(found[1]) << 10


def test_large_blocks_are_lent_to_the_system() -> None:
    """Written again the pages are in use again; the values are those of the first time."""
    layer, x = layer_and_input(T=6000)  # an output of 47 MB
    with torch.no_grad():
        result = layer(x)[0]
        place, expected = result.data_ptr(), result[::100].clone()
        in_use = lent_to_system()
        del result
        assert lent_to_system() - in_use > 40 << 20
        again = layer(x)[0]
    assert again.data_ptr() == place
    assert torch.equal(again[::100], expected)
    assert lent_to_system() - in_use < 8 << 20


def test_nothing_is_lent_where_addresses_are_limited() -> None:
    lent_to_system()
    program = """
import re, resource, rnnfast, torch
from pathlib import Path

layer, x = rnnfast.GRU(3, 64), torch.randn(6000, 32, 3)
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
with torch.no_grad():
    layer(x)
print(re.search(r"LazyFree:\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1])
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) == 0


def test_large_blocks_kept_are_bounded(memory_in_use: Callable[[], int]) -> None:
    layer, x = layer_and_input(T=64)
    layer(x)
    before = memory_in_use()
    with torch.no_grad():
        results = [
            layer(torch.randn(T, 32, 3))[0] for T in (5000, 9000, 13000, 17000, 21000, 25000)
        ]
        assert sum(result.nbytes for result in results) > LENT
        del results
    assert memory_in_use() - before < LENT + KEPT + (8 << 20)


def test_a_result_is_an_ordinary_tensor() -> None:
    layer, x = layer_and_input(T=64)
    output = layer(x)[0].detach()
    expected = output.clone()
    assert torch.equal(pickle.loads(pickle.dumps(output)), expected)
    output.resize_(200, 32, 64)
    assert torch.equal(output[:64], expected)
    assert (output[:64].numpy() == expected.numpy()).all()
    assert torch.equal(layer(x)[0].detach().share_memory_(), expected)


def test_threads_do_not_get_the_same_memory() -> None:
    """Little to compute in much memory; what others wrote into it would show in the values."""
    twin = nn.RNN(1, 16)
    layer = rnnfast.RNN(1, 16)
    layer.load_state_dict(twin.state_dict())
    failures: list[int] = []

    def work(seed: int) -> None:
        x = torch.randn(1, 4096, 1, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = twin(x)[0]
            for _ in range(300):
                results = [layer(x)[0] for _ in range(3)]
                failures.extend(seed for got in results if (got - expected).abs().max() > 1e-5)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
